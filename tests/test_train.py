"""train.py from the command line to its files: what it writes, and its flags."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plyfile import PlyData
from runs import ITERATIONS, SCHEDULE, assert_same_run, curves, flags, gaussians, in_each_iteration, train_on
from toy_capture import TIMESTEPS, write_capture
from toy_datasets import load

import render
import train
from arguments import parse_render, parse_train, read_cfg_args
from gaussian_renderer import choose_rasterizer
from training import checkpoint
from training.objective import Objective
from training.setup import build_avatar
from utils.errors import UserError


def short_run(capture: Path, model: Path, *more: object) -> dict[str, Any]:
    return train_on(capture, model, "--iterations 12", *more)


# ---- what a run writes ------------------------------------------------------


def test_everything_is_written(finished: SimpleNamespace, capture: Path) -> None:
    model = finished.model
    moments = (70, 140, 210, 280, 300)
    checkpoints = (f"chkpnt{step}.pth" for step in moments)
    expected = {".lock", "cfg_args", "cameras.json", "results.json", "train.log", *checkpoints}
    for step in moments:
        expected |= {f"point_cloud/iteration_{step}/{name}" for name in ("point_cloud.ply", "flame_param.npz")}
    found = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("events.out.tfevents.")}
    assert found - events == expected and len(events) == 1

    options = read_cfg_args(model)
    assert options.model.source_path == str(capture) and options.optimization.iterations == ITERATIONS
    cameras = json.loads((model / "cameras.json").read_text())
    assert len(cameras) == 12 and {(camera["width"], camera["height"]) for camera in cameras} == {(32, 48)}

    vertices = PlyData.read(str(model / "point_cloud/iteration_300/point_cloud.ply"))["vertex"]
    names = [
        "x",
        "y",
        "z",
        "nx",
        "ny",
        "nz",
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(45)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
        "binding_0",
    ]
    assert [item.name for item in vertices.properties] == names
    assert all(np.isfinite(vertices[name]).all() for name in names)
    # Every triangle keeps at least one Gaussian, and densification has added some.
    assert set(vertices["binding_0"].astype(int)) == set(range(320)) and len(vertices) > 400
    flame = np.load(model / "point_cloud/iteration_300/flame_param.npz")
    assert flame["timestep_index"].tolist() == TIMESTEPS and flame["eyes_pose"].shape == (4, 6)


def test_results_hold_finite_measurements(finished: SimpleNamespace) -> None:
    results = json.loads((finished.model / "results.json").read_text())
    assert results["iterations"] == ITERATIONS and results["backend"] == "native"
    assert list(results["metrics"]) == ["val", "test"]
    for split in results["metrics"].values():
        assert split["lpips_vgg"] is None and split["lpips_alex"] is None
        assert all(math.isfinite(split[name]) for name in ("psnr", "ssim", "l1", "flip"))
    # A picture that is white all over has 13.3 dB on val: something has been learnt.
    assert results["metrics"]["val"]["psnr"] > 16
    assert results["points"] == len(gaussians(finished.model, ITERATIONS)["xyz"])
    assert results["iterations_per_second"] > 0 and results["peak_memory"]["host_bytes"] > 1e8


def test_curves(finished: SimpleNamespace) -> None:
    found = curves(finished.model)
    assert list(found["loss/total"]) == list(range(10, ITERATIONS + 1, 10))
    assert {"loss/l1", "loss/ssim", "loss/xyz", "loss/scale", "points/total", "time/iteration_ms"} <= found.keys()
    assert list(found["1_val/psnr"]) == [3, 70, 140, 210, 280, 300]
    assert list(found["2_test/flip"]) == [300]
    total = list(found["loss/total"].values())
    assert np.mean(total[-3:]) < 0.5 * np.mean(total[:3])
    # Terms are logged as they enter the sum.
    parts = sum(found[f"loss/{name}"][300] for name in ("l1", "ssim", "xyz", "scale"))
    assert parts == pytest.approx(found["loss/total"][300], rel=1e-5)


def test_what_is_said(finished: SimpleNamespace) -> None:
    assert "6 training views, 320 Gaussians, rasterizer native on cpu" in finished.stdout
    assert re.search(r"^val +\d", finished.stdout, re.MULTILINE) and "results.json" in finished.stdout
    assert "python -m utils.lpips_weights" in finished.stdout
    assert "300/300" in finished.stderr and "Traceback" not in finished.stderr


def test_the_saved_avatar_is_the_measured_one(finished: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(finished.model, tmp_path / "model")
    measured = render.render_avatar(
        parse_render(["-m", str(tmp_path / "model"), "--skip_train", "--quiet", "--device", "cpu", "--threads", "1"])
    )
    results = json.loads((finished.model / "results.json").read_text())["metrics"]
    for split in ("val", "test"):
        for name in ("psnr", "ssim", "l1", "flip"):
            assert measured[split][name] == pytest.approx(results[split][name], rel=1e-5)


def test_only_the_rows_that_were_rendered_move(finished: SimpleNamespace, capture: Path) -> None:
    trained = np.load(finished.model / "point_cloud/iteration_300/flame_param.npz")
    for row, timestep in enumerate(TIMESTEPS):
        tracked = np.load(capture / "flame_param" / f"{timestep:05d}.npz")
        for name in ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation"):
            unchanged = np.array_equal(trained[name][row], tracked[name][0])
            if timestep == TIMESTEPS[-1]:
                assert unchanged, f"{name} of the held-out timestep has moved"
            elif name in ("expr", "rotation", "translation"):  # the joints of the ball turn nothing
                assert not unchanged, f"{name} of timestep {timestep} has not moved"
    np.testing.assert_array_equal(trained["shape"], np.load(capture / "flame_param/00003.npz")["shape"])
    assert not trained["static_offset"].any()


# ---- flags ------------------------------------------------------------------


def test_tracked_parameters_can_be_kept(capture: Path, tmp_path: Path) -> None:
    short_run(capture, tmp_path, "--not_finetune_flame_params")
    trained = np.load(tmp_path / "point_cloud/iteration_12/flame_param.npz")
    for row, timestep in enumerate(TIMESTEPS):
        tracked = np.load(capture / "flame_param" / f"{timestep:05d}.npz")
        for name in ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation"):
            np.testing.assert_array_equal(trained[name][row], tracked[name][0])


def test_regularizers_in_triangle_units_and_in_meters(finished: SimpleNamespace, capture: Path) -> None:
    options = parse_train(flags(capture, finished.model, SCHEDULE))
    dataset = load(capture)
    avatar = build_avatar(
        options.model, dataset, checkpoint.load(finished.model / "chkpnt300.pth"), seed=0, device=torch.device("cpu")
    )
    world, vertices = avatar(1)
    camera = dataset.train[2].camera
    rasterize = choose_rasterizer("native", torch.device("cpu"))[1]
    out = rasterize(world, camera, torch.ones(3), sh_degree=0)
    target = torch.full_like(out.image, 0.5)
    seen = (out.radii > 0).numpy()
    assert 0 < seen.sum() < len(seen)

    def terms(*words: object) -> dict[str, float]:
        optim = parse_train(flags(capture, finished.model, *words)).optimization
        objective = Objective(optim, avatar)
        return {
            name: term.item()
            for name, term in objective(world, vertices, out, out.image, target, None, None, 1, 0).items()
            if name != "total"
        }

    # Independently, from the mesh: a triangle's scale is the mean of its first edge and the height over it.
    corners = vertices.detach().double().numpy()[avatar.flame.faces.numpy()]
    edge, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    length = np.linalg.norm(edge, axis=1)
    unit = ((length + np.linalg.norm(np.cross(edge, other), axis=1) / length) / 2)[avatar.binding.numpy()][seen]
    local = np.linalg.norm(avatar.xyz.detach().double().numpy()[seen], axis=1)
    scale = avatar.scaling.detach().double().exp().numpy()[seen]

    plain = terms("--threshold_xyz", 0.1, "--threshold_scale", 0.3)
    assert plain["xyz"] == pytest.approx(1e-2 * np.maximum(local - 0.1, 0).mean(), rel=1e-4)
    assert plain["scale"] == pytest.approx(np.linalg.norm(np.maximum(scale - 0.3, 0), axis=1).mean(), rel=1e-4)
    metric = terms("--metric_xyz", "--metric_scale", "--threshold_xyz", 0.002, "--threshold_scale", 0.005)
    assert metric["xyz"] == pytest.approx(1e-2 * np.maximum(local * unit - 0.002, 0).mean(), rel=1e-4)
    assert metric["scale"] == pytest.approx(
        np.linalg.norm(np.maximum(scale * unit[:, None] - 0.005, 0), axis=1).mean(), rel=1e-4
    )
    assert "xyz" not in terms("--lambda_xyz", 0) and "scale" not in terms("--lambda_scale", 0)


@pytest.fixture(scope="module")
def plain(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A short run without any special flag."""
    model = tmp_path_factory.mktemp("plain")
    return short_run(capture, model), model


@pytest.mark.parametrize("way, backend", [("--convert_SHs_python", "native"), ("--rasterizer reference", "reference")])
def test_other_ways_to_the_same_picture(capture: Path, tmp_path: Path, way: str, backend: str) -> None:
    ours = short_run(capture, tmp_path / "plain", "--sh_increase_interval 3")
    other = short_run(capture, tmp_path / "other", way, "--sh_increase_interval 3")
    assert other["backend"] == backend
    for split in ("val", "test"):
        assert other["metrics"][split]["psnr"] == pytest.approx(ours["metrics"][split]["psnr"], abs=0.02)
    colors = [gaussians(tmp_path / name, 12)["features_dc"] for name in ("plain", "other")]
    start = gaussians_at_start(capture)
    assert (colors[0] - colors[1]).abs().median() < 0.01 * (colors[0] - start).abs().median()


def gaussians_at_start(capture: Path) -> torch.Tensor:
    options = parse_train(flags(capture, capture)).model
    avatar = build_avatar(options, load(capture), None, seed=0, device=torch.device("cpu"))
    return avatar.fields()["features_dc"]


@pytest.mark.parametrize("flag", ["--debug", "--debug_from 5", "--detect_anomaly"])
def test_looking_for_nan_changes_nothing(
    plain: tuple[dict[str, Any], Path], capture: Path, tmp_path: Path, flag: str
) -> None:
    assert short_run(capture, tmp_path, flag)["metrics"] == plain[0]["metrics"]
    assert torch.is_anomaly_enabled() == (flag == "--detect_anomaly")
    assert_same_run(plain[1], tmp_path, 12)


def test_debug_stops_at_the_first_nan(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_each_iteration(
        monkeypatch, lambda step, terms: {**terms, "ssim": terms["ssim"] * (math.nan if step == 5 else 1)}
    )
    with pytest.raises(UserError, match=r"iteration 5, view 0000\d_0\d: loss ssim is not finite"):
        short_run(capture, tmp_path, "--debug")


def test_one_camera(capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = train_on(capture, tmp_path, "--iterations 3 --select_camera_id 2", quiet=False)
    assert "3 training views" in capfd.readouterr().out
    assert list(results["metrics"]) == ["test"]  # camera 1 alone is val
    names = [camera["img_name"] for camera in json.loads((tmp_path / "cameras.json").read_text())]
    assert names == ["00003_02", "00004_02", "00007_02", "00009_02"]
    with pytest.raises(UserError, match="no training view.*--select_camera_id 1"):
        short_run(capture, tmp_path / "other", "--select_camera_id 1")


def test_half_the_size(tmp_path: Path) -> None:
    short_run(write_capture(tmp_path / "capture", [3, 4, 9], size=(64, 96)), tmp_path, "-r 2")
    cameras = json.loads((tmp_path / "cameras.json").read_text())
    assert {(camera["width"], camera["height"], camera["fx"], camera["fy"]) for camera in cameras} == {
        (32, 48, 30.0, 31.0)
    }


def test_no_view_dependence(capture: Path, tmp_path: Path) -> None:
    short_run(capture, tmp_path, "--sh_degree 0 --sh_increase_interval 1")
    assert gaussians(tmp_path, 12)["features_rest"].shape[1] == 0
    names = PlyData.read(str(tmp_path / "point_cloud/iteration_12/point_cloud.ply"))["vertex"].data.dtype.names
    assert not any(name.startswith("f_rest") for name in names)


def test_without_held_out_views_the_training_views_are_measured(capture: Path, tmp_path: Path) -> None:
    line = flags(capture, tmp_path, "--iterations 3")
    line.remove("--eval")
    assert list(train.train(parse_train(line))["metrics"]) == ["train"]
    assert len(json.loads((tmp_path / "cameras.json").read_text())) == 12


def test_images_that_do_not_fit_into_memory(plain: tuple[dict[str, Any], Path], capture: Path, tmp_path: Path) -> None:
    short_run(capture, tmp_path, "--ram_share 1e-9")
    assert len(list((tmp_path / "cache").glob("*.images"))) == 1
    assert_same_run(plain[1], tmp_path, 12)


@pytest.mark.parametrize("more, out", [("", ""), ("--ip 127.0.0.1", "note: --ip has no effect without --port\n")])
def test_quiet_and_no_viewer(
    capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    more: str,
    out: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *flags(capture, tmp_path, "--iterations 2", more)])
    train.main()
    assert capfd.readouterr() == (out, "")
