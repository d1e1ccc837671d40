"""Frames of a capture that cannot be used: one is an error, or with --skip_bad_frames left out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scene.dataset.common import View
from scene.images import decode as image_decode
from scene.images.workers import affordable
from utils.cores import usable_cores
from utils.errors import UserError

NAMED = 20  # so many are named in the note


class BadFrames:
    """Takes note of frames that cannot be used; without `skip` the first one is raised.

    bad = BadFrames(skip)
    with bad.instead_of("timestep 7"):
        ... read what belongs to it ...
    bad.conclude(source, left_out, views)
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.problems: dict[str, str] = {}  # what is left out -> why

    @contextlib.contextmanager
    def instead_of(self, name: str) -> Iterator[None]:
        """Around the reading of `name`: an error in it is noted, and what is left inside not done."""
        try:
            yield
        except UserError as error:
            if not self.skip:
                raise
            self.problems[name] = str(error)

    def whole_images(self, views: Sequence[View]) -> list[View]:
        """Those of `views` whose image and mask can be read to their end; all of them, unasked, without `skip`.

        Reads every file once: a PNG's checksums tell whether it is whole, others are decoded.
        """
        if not self.skip:
            return list(views)
        with ThreadPoolExecutor(affordable(views, usable_cores())) as pool:
            problems = list(pool.map(_image_problem, views))
        self.problems.update({view.image_path.name: problem for view, problem in zip(views, problems) if problem})
        return [view for view, problem in zip(views, problems) if not problem]

    def conclude(self, source: Path, left_out: int, total: int) -> None:
        """One line on stderr that says which are left out.

        Raises:
            UserError: more than half of the `total` views are.
        """
        if not self.problems:
            return
        first = next(iter(self.problems.values()))
        if 2 * left_out > total:
            raise UserError(
                f"--skip_bad_frames would leave out {left_out} of the {total} views of {source}, more than "
                f"half; the first error: {first}"
            )
        names = ", ".join(list(self.problems)[:NAMED])
        more = f" and {len(self.problems) - NAMED} more" if len(self.problems) > NAMED else ""
        print(
            f"note: --skip_bad_frames leaves out {left_out} of the {total} views of {source}: {names}{more}; "
            f"the first error: {first}",
            file=sys.stderr,
        )


def _image_problem(view: View) -> str | None:
    try:
        image_decode.verify(view.job())
        return None
    except image_decode.DecodeError as error:
        return str(error)
