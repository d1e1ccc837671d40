"""Runs of train.py on a `toy_capture`: their command lines, what disturbs them, and whether two ended alike."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import train
from arguments import parse_train
from scene.ply import read_ply
from training import checkpoint, objective
from utils.errors import run_script

ITERATIONS = 300
# Evaluations, saves and checkpoints at 70, 140, 210, 280 and 300. Every event of the density control falls on both
# sides of each: densifications every 20 from 40 on, opacity resets at 20 (white), 90, 180 and 270.
TIMES = {"time/iteration_ms", "time/iterations_per_second"}
SCHEDULE = (
    "--keep_checkpoints 0 "
    f"--iterations {ITERATIONS} --interval 70 --densify_from_iter 20 --densification_interval 20 "
    "--opacity_reset_interval 90 --densify_until_iter 290 --densify_grad_threshold 0.001 --sh_increase_interval 60"
)


def flags(capture: Path, model: Path, *more: object, quiet: bool = True) -> list[str]:
    """The command line of a training on `capture`; a string of `more` may hold several words."""
    words = [word for part in more for word in (part.split() if isinstance(part, str) else [str(part)])]
    loudness = ["--quiet"] if quiet else []
    always = "--eval --bind_to_mesh -w --device cpu --threads 1".split()
    return ["-s", str(capture), "-m", str(model), *always, *loudness, *words]


def train_on(capture: Path, model: Path, *more: object, quiet: bool = True) -> dict[str, Any]:
    """Trains inside this process; the results."""
    return train.train(parse_train(flags(capture, model, *more, quiet=quiet)))


def command(capture: Path, model: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """`python train.py` to its end."""
    words = flags(capture, model, "--threads 2", *more, quiet=False)
    return subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)


def ending(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str]
) -> tuple[int, str, str]:
    """Exit status, output and error output of a `train.py` that fails with these arguments."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_script(train.main)
    return ended.value.code, *capfd.readouterr()


def in_each_iteration(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, dict[str, Tensor]], Any]) -> None:
    """`act(iteration, terms)` gives the terms of the image's loss anew in every iteration, counted from 1."""
    original, count = objective.image_terms, itertools.count(1)
    monkeypatch.setattr(objective, "image_terms", lambda *arguments: act(next(count), original(*arguments)))


def gaussians(model: Path, iteration: int) -> dict[str, Tensor | None]:
    return read_ply(model / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply")


def curves(model: Path) -> dict[str, dict[int, Any]]:
    """What TensorBoard shows: name -> step -> value or PNG. Every step must be there once."""
    events = EventAccumulator(str(model), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    points = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in tags["scalars"]}
    points.update({name: [(e.step, e.encoded_image_string) for e in events.Images(name)] for name in tags["images"]})
    for name, found in points.items():
        steps = [step for step, _ in found]
        assert steps == sorted(set(steps)), f"{name} has steps twice or out of order: {steps}"
    return {name: dict(found) for name, found in points.items()}


def assert_same(first: Any, second: Any, where: str) -> None:
    """Equal bit for bit, all the way down."""
    assert type(first) is type(second), where
    if isinstance(first, Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert first == second, where


def assert_same_run(first: Path, second: Path, iteration: int) -> None:
    """The avatars and the checkpoints of `iteration` agree bit for bit."""
    folders = [model / "point_cloud" / f"iteration_{iteration}" for model in (first, second)]
    assert (folders[0] / "point_cloud.ply").read_bytes() == (folders[1] / "point_cloud.ply").read_bytes()
    flames = [dict(np.load(folder / "flame_param.npz")) for folder in folders]
    assert flames[0].keys() == flames[1].keys()
    for name in flames[0]:
        np.testing.assert_array_equal(flames[0][name], flames[1][name], err_msg=name)
    states = [checkpoint.load(model / f"chkpnt{iteration}.pth") for model in (first, second)]
    for state in states:
        del state["options"]  # the paths and --start_checkpoint differ
        for name in ("seconds", "intervals", "elapsed"):  # as does the time it took
            del state["reporter"][name]
        for name in TIMES:
            state["reporter"]["scalars"].pop(name, None)
    assert {"optimizer", "flame_optimizer", "density", "sampler", "avatar", "flame"} <= states[0].keys()
    assert_same(*states, "checkpoint")
