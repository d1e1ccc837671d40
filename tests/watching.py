"""Looking at what single stages of a training do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import flags
from torch.utils._python_dispatch import TorchDispatchMode

import train
from arguments import parse_train


class Watchman:
    """Stands in for `training.stages.Stages`: once the caches are filled, the stages named run inside `watch()`."""

    def __init__(self, names: set[str], settle: int, watch: Callable[[], Any]) -> None:
        self.names = names
        self.settle = settle  # iterations
        self.watch = watch
        self.watched = 0

    def __call__(self, name: str) -> Any:
        if self.settle > 0 or name not in self.names:
            return contextlib.nullcontext()
        self.watched += 1
        return self.watch()

    def end_iteration(self) -> None:
        self.settle -= 1


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a GPU, wherever it runs: so a machine without one can tell.

    Numbers that become a tensor (copied from memory that is not pinned), values
    that are fetched, and results whose size depends on values.
    """

    WAITING = {"lift_fresh", "_local_scalar_dense", "nonzero", "masked_select"}

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = operator.__name__.split(".")[0]
        indices = args[1] if name == "index" else ()
        assert name not in self.WAITING and not any(i is not None and i.dtype == torch.bool for i in indices), operator
        return operator(*args, **(kwargs or {}))


SETTLE, WATCHED = 8, 8  # iterations; there are six views
FLAGS_OF_LOSSES = [
    "",
    "--metric_xyz --metric_scale",
    "--lambda_dynamic_offset 1 --lambda_dynamic_offset_std 1 --lambda_laplacian 1",
]


def watch_training(
    capture: Path,
    model: Path,
    names: set[str],
    watch: Callable[[], Any],
    *more: str,
    settle: int = SETTLE,
    watched: int = WATCHED,
) -> None:
    """Trains for a few iterations, between two densifications, with the stages `names` watched."""
    watchman = Watchman(names, settle, watch)
    schedule = f"--iterations {settle + watched} --densify_from_iter 100 --densify_until_iter 200"
    train.train(parse_train(flags(capture, model, schedule, *more)), watchman)
    assert watchman.watched == watched * len(names)
