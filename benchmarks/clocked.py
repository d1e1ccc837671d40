"""What `time_to_quality` runs in a process of its own: one training, with the time at which each avatar was saved.

Arguments: the JSON file to write, and the flags of train.py with `--save_iterations`. The clock starts where `train`
does, so that reading the capture, decoding its images and the warm start count, but not the import of Python's modules.
It stands still from the end of a step's arithmetic to its density control, which is where listeners save, and the
process ends with the last save, before what a run measures at its end.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

# isort: off
import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
# isort: on

import torch

from arguments import parse_train
from train import train
from utils.files import write_json


class Clock:
    """In place of the stop-watch of `train`."""

    def __init__(self, saves: tuple[int, ...]) -> None:
        self.saves, self.times = saves, dict[int, float]()
        self.step, self.paused = 1, 0.0
        self.begun = time.perf_counter()

    def __call__(self, name: str) -> AbstractContextManager[None]:
        if name == "density" and self.step in self.times:
            self.paused += self.now() - self.times[self.step]
            if self.step == self.saves[-1]:
                raise SystemExit
        return self.reported() if name == "report" and self.step in self.saves else contextlib.nullcontext()

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        yield
        self.times[self.step] = self.now()

    def now(self) -> float:
        """Seconds, without the pauses."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self.begun - self.paused

    def end_iteration(self) -> None:
        self.step += 1


def main() -> None:
    options = parse_train(sys.argv[2:])
    clock: Any = Clock(options.run.save_iterations)
    try:
        train(options, clock)
    finally:
        write_json(Path(sys.argv[1]), clock.times)


if __name__ == "__main__":
    main()
