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

import multiprocessing
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from arguments import parse_train
from benchmarks.common import UNDISTURBED, interleaved
from train import train
from training.stages import Stages
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


class Done(Exception):
    """The last iteration that counts is over."""


class Turns(Stages):
    """A stop-watch that hands the machine over at the end of every slice."""

    def __init__(self, slices: int, length: int, connection: Connection) -> None:
        super().__init__(False)
        self.iteration, self.last, self.length = 0, 1 + slices * length, length
        self.connection = connection
        self.begun = 0.0

    def end_iteration(self) -> None:
        self.iteration += 1
        # Before the loop there was building, so the first iteration only comes to a halt here.
        if (self.iteration - 1) % self.length == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.connection.send(time.perf_counter() - self.begun)
            if self.iteration >= self.last:
                raise Done
            self.connection.recv()
            self.begun = time.perf_counter()


def train_in_turns(flags: Sequence[str], length: int, connection: Connection) -> None:
    """What each process does: sleeps for its turn, trains a slice, sends the seconds, and again; or why it stopped."""
    try:
        options = parse_train(flags)
        with suppress(Done, EOFError):  # EOFError: whoever asked has gone
            train(options, Turns(slice_count(options.optimization.iterations, length), length, connection))
    except UserError as error:
        connection.send(str(error))
    except Exception:  # shown by the parent, which is the one that is being watched
        connection.send(traceback.format_exc())


def time_in_turns(
    commands: Mapping[str, Sequence[str]],  # name -> train.py flags, without -m; of equally long runs
    slices: int,
    *,
    length: int = SLICE,
    worker: Callable[[Sequence[str], int, Connection], None] = train_in_turns,  # tests put another one here
    on_slice: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every slice of every run.

    Raises:
        UserError: one of them stopped; says which and why.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[str, tuple[Any, Connection]] = {}

    def slice_of(name: str) -> float:
        connection = processes[name][1]
        connection.send("go")
        seconds = _answer(name, connection)
        on_slice()
        return seconds

    with tempfile.TemporaryDirectory(prefix="ablation-timing-") as folder:
        try:
            for number, (name, flags) in enumerate(commands.items()):
                connection, other = context.Pipe()
                words = [*flags, *UNDISTURBED, "-m", str(Path(folder) / str(number))]
                process = context.Process(target=worker, args=(words, length, other), daemon=True)
                process.start()
                other.close()  # the child's end: now its death shows as the end of the pipe
                processes[name] = process, connection
                _answer(name, connection)
            return interleaved({name: partial(slice_of, name) for name in commands}, slices)
        finally:
            for process, connection in processes.values():
                connection.close()
                process.terminate()
                process.join()


def _answer(name: str, connection: Connection) -> float:
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f"the timed training of {name} died without a word (out of memory?)") from None
    if isinstance(answer, str):
        raise UserError(f"the timed training of {name} stopped: {answer}")
    return answer
