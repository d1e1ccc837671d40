"""What ends a training, or keeps it from being spoiled: bad steps, --debug, too little memory."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import Options
from scene.gaussian_model import GaussianModel
from training import checkpoint
from training.reporter import Reporter
from utils.errors import UserError, one_line, short_of_memory

LIMIT = 20  # in a row: neither one bad view nor a gradient scaler that looks for its scale (16 at most) gets there
ANNOUNCED = 10  # so many are told one by one
NAMED = 10  # so many views are named at once


class BadSteps:
    """Counts the steps that were left out, says which view each was, and ends a run that consists of nothing else.

        bad_steps = BadSteps(reporter, last_checkpoint)
        for step in ...:
            bad_steps.note(step, names_of_views, amp.bad)

    A flag on a device is only read when the reporter reads its losses, so that the host never waits for one.
    """

    def __init__(self, reporter: Reporter, last_checkpoint: Callable[[int], Path | None]) -> None:
        """
        Args:
            last_checkpoint: the newest one of at most the given iteration, for the message at the end.
        """
        self._reporter = reporter
        self._last_checkpoint = last_checkpoint
        self._unread: list[tuple[int, Sequence[str], Tensor]] = []
        self._views: Counter[str] = Counter()  # how often each was in a bad step
        self._row: list[tuple[int, str]] = []  # iterations and views since the last good step
        self.count = 0

    def note(self, step: int, views: Sequence[str], bad: Tensor | bool) -> None:
        """Takes down whether iteration `step`, which looked at `views`, was bad.

        Raises:
            UserError: the last 20 all were.
        """
        if not isinstance(bad, Tensor):
            self._add(step, views, bad)
            return
        self._unread.append((step, views, bad))
        if step % self._reporter.every == 0:
            self.read()

    def read(self) -> None:
        """Fetches the flags that are still on the device; one transfer for all."""
        unread, self._unread = self._unread, []
        if unread:
            for (step, views, _), bad in zip(unread, torch.stack([flag for *_, flag in unread]).tolist()):
                self._add(step, views, bad)

    def _add(self, step: int, views: Sequence[str], bad: bool) -> None:
        if not bad:
            self._row.clear()
            return
        self.count += 1
        self._views.update(views)
        named = ", ".join(views)
        self._row.append((step, named))
        self._reporter.scalars(step, {"steps/left_out": self.count})
        if self.count <= ANNOUNCED:
            more = "; further ones are only counted" if self.count == ANNOUNCED else ""
            self._reporter.warn(
                f"warning: iteration {step} (view {named}) is left out, because its loss or a gradient "
                f"is not finite{more}"
            )
        if len(self._row) == LIMIT:
            first = self._row[0][0]
            path = self._last_checkpoint(first - 1)
            recent = list(dict.fromkeys(view for _, view in self._row))
            more = ", ..." if len(recent) > NAMED else ""
            raise UserError(
                f"the loss or a gradient was not finite in {LIMIT} iterations in a row, {first} to {step} (views "
                f"{', '.join(recent[:NAMED])}{more}), so the training has failed: lower the learning rates or the "
                "weights of the losses, or look at these views, then "
                + (
                    f"go on from the last good checkpoint with --start_checkpoint {path}"
                    if path
                    else "start again, in another --model_path (there is no checkpoint from before)"
                )
            )

    def summary(self) -> dict[str, Any]:
        """For results.json: how many steps were left out, and how often the views most concerned were in them."""
        self.read()
        return {"count": self.count, "views": dict(self._views.most_common(NAMED))}

    def state_dict(self) -> dict[str, Any]:
        self.read()
        return {"count": self.count, "views": dict(self._views)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the counts; whoever goes on, with other rates perhaps, has all of the limit in front of him."""
        self.count, self._views = state["count"], Counter(state["views"])


def check_finite(step: int, view: str, avatar: GaussianModel, terms: Mapping[str, Tensor]) -> None:
    """With --debug: stops at the first NaN or infinity, in a loss or a gradient, and says where."""
    values = {f"loss {name}": value for name, value in terms.items() if name != "total"}
    values.update({f"gradient of {name}": p.grad for name, p in avatar.parameters().items() if p.grad is not None})
    if avatar.flame_parameters is not None:
        gradients = avatar.flame_parameters.gradients()
        values.update({f"gradient of FLAME {table}": gradient for (table, _), gradient in gradients.items()})
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise UserError(f"--debug: iteration {step}, view {view}: {name} is not finite")


@contextmanager
def explain_failure(options: Options) -> Iterator[None]:
    """Around a run: what helps where memory ran out, and beside the traceback of a defect what tells the run.

    Raises:
        UserError: in place of the many exceptions that mean too little memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        output = Path(options.model.model_path)
        kept = checkpoint.latest(output)
        place = short_of_memory(error)
        if place is None:
            error.add_note(
                f"This is a defect of the program; to report it:\ncommand: {shlex.join(sys.argv)}\noptions: "
                f"{output / 'cfg_args'}\nlast checkpoint: {kept or 'none was written yet'}"
            )
            raise
        fewer = (
            "--max_gaussians (smaller)"
            if options.innovations.use_smart_densification
            else "--densify_grad_threshold (larger)"
        )
        elsewhere = "--data_device cpu" if place == "GPU" else "--ram_share (smaller)"
        raise UserError(
            f"the memory of the {place} ran out with these options ({one_line(error)[:200] or 'no details'}): "
            f"{fewer}, --resolution (smaller) and {elsewhere} take less; "
            + (
                f"{kept} and all before it are kept, go on with --start_checkpoint auto"
                if kept
                else "no checkpoint was written yet"
            )
        ) from error
