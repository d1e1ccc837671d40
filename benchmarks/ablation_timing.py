"""The time per iteration of several trainings relative to a baseline, while the machine's speed drifts.

Runs minutes apart do not compare on a machine whose speed varies. So the runs
that are compared go on together, in turns: every one is a process of its own
that runs the very loop of `train.py`, and only one of them is awake. Each trains
`SLICE` iterations, reports how long they took and sleeps until its next turn;
in every round the one who begins moves on by one. Within seconds all of them
meet the same machine, at the same state of their training.

A slice and the baseline's slice of the same round are a pair. The figure of a run
is made from blocks of `BLOCK` rounds: the median of the ratios of a block's pairs,
which forgives the moments when something else wanted the machine, and then the
mean of the blocks, weighted with how long the baseline takes there, so that what
changes along a run (progressive resolution, a growing number of Gaussians) counts
for as long as it lasts. Events rarer than every second slice do not show in a
median; densification is more frequent than that in the scaled schedules of short
runs. The first slice, in which buffers grow, is left out, and so is everything
around the loop: loading, evaluation, saving. A second baseline among the runs is
the control: its ratio says what the method itself gets wrong.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SLICE = 25  # iterations: long against waking up, short against the drift
BLOCK = 20  # slices: enough for a median, few enough that the training changes little within them
# Nothing is evaluated or saved between the slices.
UNDISTURBED = ("--quiet", "--interval", str(2**40))


class Failed(Exception):
    """A training stopped, for the reason told."""


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


def train_in_turns(flags: Sequence[str], slice_length: int, connection: Connection) -> None:
    """What each process does: sleeps for its turn, trains a slice, tells the seconds, and again."""
    import torch

    import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
    from arguments import parse_train
    from train import train
    from training.stages import Stages
    from utils.errors import UserError

    class Done(Exception):
        """The last iteration that counts is over."""

    class Turns(Stages):
        """A stop-watch that hands the machine over at the end of every slice."""

        def __init__(self, last: int) -> None:
            super().__init__(False)
            self.iteration, self.last = 0, last
            self.begun = time.perf_counter()

        def end_iteration(self) -> None:
            self.iteration += 1
            # Before the loop there was building, so the first iteration only comes to a halt here.
            if (self.iteration - 1) % slice_length == 0:
                self._hand_over(self.iteration > 1)
            if self.iteration >= self.last:
                raise Done

        def _hand_over(self, whole: bool) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if whole:
                connection.send(("slice", time.perf_counter() - self.begun))
            else:
                connection.send(("ready", None))
            connection.recv()
            self.begun = time.perf_counter()

    try:
        options = parse_train(flags)
        # The last iteration evaluates and saves before it ends: it is not waited for.
        slices = (options.optimization.iterations - 2) // slice_length
        try:
            train(options, Turns(1 + slices * slice_length))
        except Done:
            pass
        connection.send(("done", None))
    except UserError as error:
        connection.send(("failed", str(error)))
    except EOFError:
        pass  # whoever asked has gone
    except Exception:  # told by the parent, which is the one that is being watched
        connection.send(("failed", traceback.format_exc()))


def interleave(
    commands: Mapping[str, Sequence[str]],  # name -> train.py flags, without -m
    *,
    slice_length: int = SLICE,
    worker: Callable[[Sequence[str], int, Connection], None] = train_in_turns,  # tests put another one here
    on_slice: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every slice of every run; the runs take turns and all have as many slices.

    Raises:
        Failed: one of them stopped; says which and why.
    """
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    processes: dict[str, tuple[Any, Connection]] = {}
    with tempfile.TemporaryDirectory(prefix="ablation-timing-") as folder:
        try:
            for number, (name, flags) in enumerate(commands.items()):
                connection, other = context.Pipe()
                words = [*flags, *UNDISTURBED, "-m", str(Path(folder) / str(number))]
                process = context.Process(target=worker, args=(words, slice_length, other), daemon=True)
                process.start()
                other.close()  # the child's end: now its death shows as the end of the pipe
                processes[name] = process, connection
                _answer(name, connection)
            order, done = list(commands), False
            while not done:
                for name in order:
                    connection = processes[name][1]
                    connection.send("go")
                    said, value = _answer(name, connection)
                    if said == "done":
                        done = True
                    else:
                        seconds[name].append(value)
                        on_slice()
                order = [*order[1:], order[0]]
            for process, _ in processes.values():
                process.join(60)
        finally:
            for process, connection in processes.values():
                connection.close()
                process.terminate()
                process.join()
    return seconds


def _answer(name: str, connection: Connection) -> tuple[str, Any]:
    try:
        said, value = connection.recv()
    except EOFError:
        raise Failed(f"the timed training of {name} died without a word (out of memory?)") from None
    if said == "failed":
        raise Failed(f"the timed training of {name} stopped: {value}")
    return said, value
