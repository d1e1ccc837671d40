"""The time per iteration of several trainings relative to a baseline, while the machine's speed drifts.

Runs minutes apart do not compare on a machine whose speed varies. So the runs that are compared go on
together, in turns: every one is a process of its own that runs the very loop of `train.py`, and only one of
them is awake. Each trains `SLICE` iterations, reports how long they took and sleeps until its next turn.
Within seconds all of them meet the same machine, at the same state of their training.

A slice and the baseline's slice of the same round are a pair. The figure of a run is made from blocks of
`BLOCK` rounds: the median of the ratios of a block's pairs, which forgives the moments when something else
wanted the machine, and then the mean of the blocks, weighted with how long the baseline takes there, so that
what changes along a run (progressive resolution, a growing number of Gaussians) counts for as long as it
lasts. Events rarer than every second slice do not show in a median; densification is more frequent than that
in the scaled schedules of short runs. The first slice, in which buffers grow, is left out, and so is
everything around the loop: loading, evaluation, saving. A second baseline among the runs is the control: its
ratio says what the method itself gets wrong.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from benchmarks.common import ROOT, UNDISTURBED, interleaved
from utils.errors import UserError

SLICE = 25  # iterations: long against waking up, short against the drift
BLOCK = 20  # slices: enough for a median, few enough that the training changes little within them


def ratio(slices: Sequence[float], baseline: Sequence[float], *, skip: int = 1, block: int = BLOCK) -> float:
    """Time of a run over that of its baseline, from the seconds of their slices, without the first `skip`.

    Raises:
        ValueError: they have not the same number of slices, or none is left.
    """
    if len(slices) != len(baseline) or len(slices) <= skip:
        raise ValueError(f"{len(slices)} and {len(baseline)} slices do not pair")
    pairs = list(zip(slices, baseline))[skip:]
    blocks = max(1, len(pairs) // block)
    total = weights = 0.0
    for number in range(blocks):
        # The last block takes what is left over.
        of_block = pairs[number * block : (number + 1) * block if number < blocks - 1 else None]
        weight = len(of_block) * statistics.median(base for _, base in of_block)
        total += weight * statistics.median(own / base for own, base in of_block)
        weights += weight
    return total / weights


def slice_count(iterations: int, length: int = SLICE) -> int:
    """How many slices of a run are timed: the first iteration ends the building, the last one evaluates and saves."""
    return (iterations - 2) // length


class Runner:
    """A training that waits for its turns, in a process of its own.

    Args:
        code: the checkout whose train.py it is.
        folder: empty, for what it writes.
    """

    def __init__(self, name: str, code: Path, folder: Path, flags: Sequence[str], length: int, slices: int) -> None:
        self.name, self.log = name, folder / "log"
        script = str(Path(__file__).with_name("slices.py"))
        words = [sys.executable, "-P", script, str(length), str(slices), *flags, *UNDISTURBED]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*words, "-m", str(folder / "model")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=code,
                env={**os.environ, "PYTHONPATH": str(code)},
            )
        self._answer()  # it has been built, and is at the end of its first iteration

    def slice(self) -> float:
        """Trains a slice; returns the seconds. UserError when it stopped instead."""
        print("go", file=self._pipe(self.process.stdin), flush=True)
        return self._answer()

    def _answer(self) -> float:
        answer = self._pipe(self.process.stdout).readline()
        if not answer:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise UserError(f"the timed training of {self.name} stopped: {lines[-1] if lines else 'without a word'}")
        return float(answer)

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def stop(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def time_in_turns(
    commands: Mapping[str, Sequence[str]],  # name -> train.py flags, without -m; of equally long runs
    slices: int,
    *,
    length: int = SLICE,
    checkouts: Mapping[str, Path] | None = None,  # name -> the code that trains it; default: this one
    on_slice: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every slice of every run.

    Raises:
        UserError: one of them stopped; says which and why.
    """

    def turn(runner: Runner) -> float:
        seconds = runner.slice()
        on_slice()
        return seconds

    with contextlib.ExitStack() as stack:
        works = {}
        for name, flags in commands.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="timing-")))
            runner = Runner(name, (checkouts or {}).get(name, ROOT), folder, flags, length, slices)
            stack.callback(runner.stop)
            works[name] = partial(turn, runner)
        return interleaved(works, slices)
