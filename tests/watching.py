"""Looking at what single stages of a training do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import flags

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


SETTLE, WATCHED = 8, 8  # iterations; there are six views
FLAGS_OF_LOSSES = [
    "",
    "--metric_xyz --metric_scale",
    "--lambda_dynamic_offset 1 --lambda_dynamic_offset_std 1 --lambda_laplacian 1",
]


def watch_training(capture: Path, model: Path, names: set[str], watch: Callable[[], Any], *more: str) -> None:
    """Trains for a few iterations, between two densifications, with the stages `names` watched."""
    watchman = Watchman(names, SETTLE, watch)
    schedule = f"--iterations {SETTLE + WATCHED} --densify_from_iter 100 --densify_until_iter 200"
    train.train(parse_train(flags(capture, model, schedule, *more)), watchman)
    assert watchman.watched == WATCHED * len(names)
