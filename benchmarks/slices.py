"""What each process of `timing.time_in_turns` runs: trains a slice whenever it is told to, and tells the seconds.

Imports from nothing but the checkout whose training it is, which may be an older one. Arguments: the iterations of a
slice, the number of slices, and the flags of train.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

# isort: off
import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
# isort: on

import torch

from arguments import parse_train
from train import train


class Turns:
    """In place of the stop-watch of `train`: hands the machine over at the end of every slice."""

    def __init__(self, length: int, slices: int) -> None:
        self.length, self.last = length, 1 + slices * length
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the training prints is no answer
        self.iteration, self.begun = 0, 0.0

    def __call__(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def end_iteration(self) -> None:
        self.iteration += 1
        # Before the loop there was building, so the first iteration only comes to a halt here.
        if (self.iteration - 1) % self.length == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            print(time.perf_counter() - self.begun, file=self.answers, flush=True)
            if self.iteration >= self.last or not sys.stdin.readline():
                raise SystemExit
            self.begun = time.perf_counter()


if __name__ == "__main__":
    turns: Any = Turns(int(sys.argv[1]), int(sys.argv[2]))
    train(parse_train(sys.argv[3:]), turns)
