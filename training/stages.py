"""Where the time of a run goes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


class Stages:
    """Times the named stages of an iteration; switched off it costs a function call.

        stages = Stages(enabled, device)
        for ...:
            with stages("forward"):
                ...
            stages.end_iteration()
        print(stages.table())

    On a GPU, work is queued and returns at once, so each stage is fenced by a
    synchronisation: figures are true, the total is somewhat slower than a run
    without the timer. Switched off, nothing synchronises.
    """

    def __init__(self, enabled: bool, device: torch.device | str = "cpu") -> None:
        self.enabled = enabled
        self._cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        self._null = contextlib.nullcontext()
        self._current: dict[str, float] = {}
        self._iterations: list[dict[str, float]] = []
        self._started: float | None = None

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A context that adds its duration to stage `name` of this iteration."""
        return self._timed(name) if self.enabled else self._null

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = self._now()
        if self._started is None:
            self._started = begin
        try:
            yield
        finally:
            self._current[name] = self._current.get(name, 0.0) + self._now() - begin

    def _now(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter()

    def end_iteration(self) -> None:
        """Closes the iteration; stages entered twice in it have been added up."""
        if not self.enabled or self._started is None:
            return
        self._current["total"] = self._now() - self._started
        self._iterations.append(self._current)
        self._current, self._started = {}, None

    def medians(self, skip: int = 0) -> dict[str, float]:
        """Median milliseconds per stage, in the order first met; "total" is the whole iteration.

        `skip` leaves out the first iterations (kernels being built, memory being claimed).
        A stage that an iteration did not enter counts as 0 there.
        """
        kept = self._iterations[skip:]
        names = {name: None for iteration in kept for name in iteration if name != "total"}
        return (
            {
                name: 1e3 * statistics.median(iteration.get(name, 0.0) for iteration in kept)
                for name in [*names, "total"]
            }
            if kept
            else {}
        )

    def table(self, skip: int = 0) -> str:
        """The medians as text, with each stage's share and the iterations per second."""
        medians = self.medians(skip)
        if not medians:
            return "no iteration was timed"
        total = medians["total"]
        lines = [f"{'stage':<12} {'ms':>8} {'share':>6}"]
        lines += [f"{name:<12} {value:8.2f} {value / total:6.0%}" for name, value in medians.items()]
        return "\n".join([*lines, f"{1e3 / total:.1f} iterations/s"])


NO_STAGES = Stages(False)
