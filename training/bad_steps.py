"""The book of bad steps: those whose loss or gradient was not finite, and which therefore changed nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.reporter import Reporter
from utils.errors import UserError

LIMIT = 20  # in a row: neither one bad view nor a gradient scaler that looks for its scale (16 at most) gets there
TOLD = 10  # so many are told one by one
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
        if self.count <= TOLD:
            more = "; further ones are only counted" if self.count == TOLD else ""
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
