"""The three former innovations inside a run of train.py, and the metrics that it is asked for."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same_run, ending, flags, train_on
from toy_capture import BALL, TIMESTEPS, write_capture

from ops import lpips
from utils import lpips_weights
from utils.tensor_files import save_tensors

STEPS = 60
SCHEDULE = (
    f"--iterations {STEPS} --interval 30 --densify_from_iter 5 --densification_interval 10 --densify_until_iter 55 "
    "--opacity_reset_interval 50 --densify_grad_threshold 1e-4 --sh_increase_interval 20 --flame_expr_lr 0.01"
)


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """The toy capture with region masks; nothing but the nose, the upper half of the ball."""
    folder = write_capture(tmp_path / "capture", TIMESTEPS, size=(32, 48))
    (folder / "masks.pkl").write_bytes(pickle.dumps({"nose": np.flatnonzero(np.asarray(BALL.vertices)[:, 1] > 0)}))
    return folder


@pytest.fixture
def small_vgg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed weights of a network with five layers."""
    layers = [lpips.Layer(4 + 2 * i, 3, 1, 1, (2, 2) if i else None, tap=True) for i in range(5)]
    monkeypatch.setitem(lpips.NETWORKS, "vgg", tuple(layers))
    monkeypatch.setenv("LPIPS_CACHE", str(tmp_path / "weights"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_tensors(lpips_weights.weights_path("vgg"), lpips.LPIPS("vgg").state_dict())


def run(capture: Path, model: Path, *more: object) -> dict[str, Any]:
    return train_on(capture, model, SCHEDULE, *more)


def test_resumed_it_ends_bit_identical(masked: Path, tmp_path: Path, small_vgg: None) -> None:
    """Although the second part begins without the photographs' features, and where half of them find no room."""
    everything = "--preset full --lambda_temporal 0.5 --batch_views 2 --use_progressive_resolution"
    more = f"{everything} --resolution_schedule 0.5,1 --resolution_milestones 20"
    run(masked, tmp_path / "whole", more)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / f"chkpnt{STEPS}.pth").unlink()
    run(masked, tmp_path / "again", more, "--start_checkpoint auto --ram_share 0.000001")
    assert_same_run(tmp_path / "whole", tmp_path / "again", STEPS)


def test_each_alone_does_something(masked: Path, tmp_path: Path, small_vgg: None) -> None:
    plain = run(masked, tmp_path / "plain")
    vgg = run(masked, tmp_path / "vgg", "--use_vgg_loss --lambda_perceptual 1")
    assert vgg["metrics"]["val"]["l1"] != plain["metrics"]["val"]["l1"]
    dense = run(masked, tmp_path / "dense", "--use_adaptive_densification --adaptive_densify_ratio 4")
    assert dense["points"] > plain["points"]
    run(masked, tmp_path / "steady", "--use_temporal_consistency --lambda_temporal 100")

    def steps(name: str) -> np.ndarray:
        """Between the expressions of the only two training timesteps that follow each other, 3 and 4."""
        motion = np.load(tmp_path / name / "point_cloud" / f"iteration_{STEPS}" / "flame_param.npz")
        return motion["expr"][1] - motion["expr"][0]

    assert np.abs(steps("steady")).max() < 0.5 * np.abs(steps("plain")).max()


@pytest.mark.parametrize(
    "more, told",
    [
        ("--use_vgg_loss", "run `python -m utils.lpips_weights` once"),
        (
            "--use_vgg_loss --use_progressive_resolution --resolution_schedule 0.25,1 --resolution_milestones 9",
            "at least 16 pixels on each side, and 8 is the smallest",
        ),
        ("--use_adaptive_densification", "no masks for eyes, mouth, nose, face"),
        ("--use_temporal_consistency --not_finetune_flame_params", "are not fine-tuned"),
        ("--use_temporal_consistency --adaptive_densify_ratio 0.5", "--adaptive_densify_ratio must be at least 1"),
        ("--metrics psnr flop", "'flop'; did you mean flip?"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    more: str,
    told: str,
) -> None:
    status, out, err = ending(monkeypatch, capfd, flags(capture, tmp_path / "model", SCHEDULE, more))
    assert status == 2 and told in err and "Traceback" not in err + out
    assert not (tmp_path / "model").exists()


def test_only_the_chosen_metrics(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.metrics.ssim", lambda image, ground_truth: 1 / 0)
    results = run(capture, tmp_path / "model", "--iterations 35 --metrics flip psnr flip")
    assert list(results["metrics"]["val"]) == ["flip", "psnr"]
    assert json.loads((tmp_path / "model" / "results.json").read_text())["metrics"] == results["metrics"]
