"""train.py from the command line to its files: what it writes, stopping and resuming, and its flags."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from plyfile import PlyData
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_capture import rigged_flags, write_capture

import render
import train
from arguments import parse_render, parse_train, read_cfg_args
from gaussian_renderer import choose_rasterizer
from scene.dataset import load_dataset
from scene.ply import read_ply
from training import checkpoint, objective
from training.objective import Objective
from training.setup import build_avatar
from utils.errors import UserError

TIMESTEPS = [3, 4, 7, 9]  # neither from 0 nor without gaps; the last one is the held-out sequence
TIMES = {"time/iteration_ms", "time/iterations_per_second"}
ITERATIONS = 300
# Evaluations, saves and checkpoints at 70, 140, 210, 280 and 300. Every event of
# the density control falls on both sides of each: densifications every 20 from
# 40 on, opacity resets at 20 (white), 90, 180 and 270.
SCHEDULE = [
    "--iterations",
    ITERATIONS,
    "--keep_checkpoints",
    0,
    "--interval",
    70,
    "--densify_from_iter",
    20,
    "--densification_interval",
    20,
    "--opacity_reset_interval",
    90,
    "--densify_until_iter",
    290,
    "--densify_grad_threshold",
    0.001,
    "--sh_increase_interval",
    60,
]


def command_line(capture: Path, model: Path, *more: object) -> list[str]:
    return rigged_flags(capture, model, "--threads", 2, *more)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("train") / "capture", TIMESTEPS, size=(32, 48))


@pytest.fixture(scope="module", autouse=True)
def _without_lpips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """LPIPS reads n/a, whatever this machine has installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPIPS_CACHE", str(tmp_path_factory.mktemp("no-weights")))
        yield


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`python train.py` with these arguments, to its end."""
    return subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)


def run_here(capture: Path, model: Path, *more: object) -> dict[str, Any]:
    """A run inside this process, short unless told otherwise; one thread, since the suite has others to feed."""
    return train.train(parse_train(command_line(capture, model, "--iterations", 12, "--quiet", "--threads", 1, *more)))


def gaussians(model: Path, iteration: int) -> dict[str, torch.Tensor | None]:
    return read_ply(model / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply")


@pytest.fixture(scope="module")
def finished(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run by the command, never stopped."""
    model = tmp_path_factory.mktemp("finished") / "model"
    done = command(*command_line(capture, model, *SCHEDULE))
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(model=model, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture(scope="module")
def killed(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the same run leaves when it is killed some time after its second checkpoint."""
    model = tmp_path_factory.mktemp("killed") / "model"
    with subprocess.Popen(
        [sys.executable, "train.py", *command_line(capture, model, *SCHEDULE, "--quiet")], cwd=ROOT
    ) as process:
        deadline = time.monotonic() + 600
        try:
            while not (model / "chkpnt140.pth").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.kill()
    assert process.returncode == -9 and not (model / f"chkpnt{ITERATIONS}.pth").exists()
    return model


def scalars(model: Path) -> dict[str, dict[int, float]]:
    """The curves as TensorBoard shows them: name -> step -> value."""
    events = EventAccumulator(str(model), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        points = [(event.step, event.value) for event in events.Scalars(name)]
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{name} is not one curve: {steps}"
        curves[name] = dict(points)
    return curves


def assert_same(first: Any, second: Any, where: str) -> None:
    """Equal bit for bit, all the way down."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
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
    curves = scalars(finished.model)
    assert list(curves["loss/total"]) == list(range(10, ITERATIONS + 1, 10))
    assert {"loss/l1", "loss/ssim", "loss/xyz", "loss/scale", "points/total", "time/iteration_ms"} <= curves.keys()
    assert list(curves["1_val/psnr"]) == [3, 70, 140, 210, 280, 300]
    assert list(curves["2_test/flip"]) == [300]
    total = list(curves["loss/total"].values())
    assert np.mean(total[-3:]) < 0.5 * np.mean(total[:3])
    # Terms are logged as they enter the sum.
    parts = sum(curves[f"loss/{name}"][300] for name in ("l1", "ssim", "xyz", "scale"))
    assert parts == pytest.approx(curves["loss/total"][300], rel=1e-5)


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


# ---- stopping and going on --------------------------------------------------


def test_killed_and_resumed_ends_bit_identical(
    finished: SimpleNamespace, killed: Path, capture: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(killed, model)
    done = command(*command_line(capture, model, *SCHEDULE, "--start_checkpoint", "auto"))
    assert done.returncode == 0, done.stderr
    resumed_at = int(re.search(r"Resumed at iteration (\d+)", done.stdout)[1])
    assert 140 <= resumed_at < ITERATIONS
    for iteration in (280, ITERATIONS):
        assert_same_run(finished.model, model, iteration)

    whole, mended = scalars(finished.model), scalars(model)
    assert whole["points/total"][resumed_at] != whole["points/total"][ITERATIONS]  # densified after the resumption
    for name in whole.keys() - TIMES:
        assert mended[name] == whole[name], name
    for name in TIMES:
        assert list(mended[name]) == list(whole[name])
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (finished.model, model))
    assert first["metrics"] == second["metrics"] and first["points"] == second["points"]


def test_a_checkpoint_cut_in_half_is_passed_over(
    finished: SimpleNamespace, killed: Path, capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(killed, model)
    newest = checkpoint.newest(model)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    # In this process and with another number of threads: the kernels add in a fixed order.
    run_here(capture, model, *SCHEDULE, "--start_checkpoint", "auto")
    captured = capfd.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("warning: checkpoint passed over") and newest.name in captured.err
    assert_same_run(finished.model, model, ITERATIONS)
    # The killed run had gone further than this one went on from: that part is not shown twice.
    assert scalars(model)["loss/total"] == scalars(finished.model)["loss/total"]


def test_resuming_by_name_with_trained_offsets(capture: Path, tmp_path: Path) -> None:
    flags = [
        "--interval",
        7,
        "--densify_from_iter",
        2,
        "--densification_interval",
        3,
        "--opacity_reset_interval",
        5,
        "--densify_until_iter",
        12,
        "--lambda_dynamic_offset",
        1,
        "--lambda_dynamic_offset_std",
        1,
        "--lambda_laplacian",
        1,
    ]
    run_here(capture, tmp_path / "whole", *flags)
    run_here(capture, tmp_path / "rest", *flags, "--start_checkpoint", tmp_path / "whole" / "chkpnt7.pth")
    assert_same_run(tmp_path / "whole", tmp_path / "rest", 12)
    offsets = np.load(tmp_path / "rest/point_cloud/iteration_12/flame_param.npz")["dynamic_offset"]
    assert offsets[:3].any(axis=(1, 2)).all() and not offsets[3].any()


def test_a_run_is_never_overwritten_nor_begun_again(finished: SimpleNamespace, capture: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.model.rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run \(chkpnt300.pth\).*--start_checkpoint auto"):
        run_here(capture, finished.model, *SCHEDULE)
    done = command(*command_line(capture, finished.model, *SCHEDULE, "--start_checkpoint", "auto"))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: .*at iteration 300 of 300: this run is complete; raise --iterations to go on\n", done.stderr
    )
    assert {path: path.stat().st_mtime_ns for path in finished.model.rglob("*")} == before


def test_killed_while_measuring_the_end(finished: SimpleNamespace, capture: Path, tmp_path: Path) -> None:
    """The last checkpoint is there, results.json is not: resuming only measures, with the same outcome."""
    model = tmp_path / "model"
    shutil.copytree(finished.model, model)
    whole = json.loads((model / "results.json").read_text())
    (model / "results.json").unlink()
    results = train.train(parse_train(command_line(capture, model, *SCHEDULE, "--start_checkpoint", "auto", "--quiet")))
    assert results["metrics"] == whole["metrics"] and results["points"] == whole["points"]
    assert json.loads((model / "results.json").read_text())["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--sh_degree", "1"], "sh_degree = 3, this run has 1"),
        (["--disable_flame_static_offset"], "disable_flame_static_offset = False, this run has True"),
    ],
)
def test_resuming_under_options_that_contradict_the_checkpoint(
    finished: SimpleNamespace, capture: Path, tmp_path: Path, flags: list[str], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        run_here(
            capture,
            tmp_path / "model",
            "--start_checkpoint",
            finished.model / "chkpnt140.pth",
            "--iterations",
            300,
            *flags,
        )


@pytest.mark.parametrize("part", ["step", "avatar", "optimizer", "density", "sampler", "flame"])
def test_a_checkpoint_without_a_part_is_refused(
    finished: SimpleNamespace, capture: Path, tmp_path: Path, part: str
) -> None:
    state = checkpoint.load(finished.model / "chkpnt140.pth")
    del state[part]
    checkpoint.save(tmp_path / "chkpnt140.pth", state)
    with pytest.raises(UserError, match=f"checkpoint.*{part}"):
        run_here(capture, tmp_path / "model", "--start_checkpoint", tmp_path / "chkpnt140.pth", "--iterations", 300)


def test_auto_starts_afresh_where_nothing_is(capture: Path, tmp_path: Path) -> None:
    assert run_here(capture, tmp_path / "model", "--start_checkpoint", "auto")["iterations"] == 12


def test_a_checkpoint_of_other_data_is_refused(finished: SimpleNamespace, tmp_path: Path) -> None:
    fewer = write_capture(tmp_path / "fewer", TIMESTEPS[1:], size=(32, 48))
    with pytest.raises(UserError, match="checkpoint.*data"):
        run_here(fewer, tmp_path / "model", *SCHEDULE, "--start_checkpoint", finished.model / "chkpnt140.pth")


# ---- flags ------------------------------------------------------------------


def test_tracked_parameters_can_be_kept(capture: Path, tmp_path: Path) -> None:
    run_here(capture, tmp_path, "--not_finetune_flame_params")
    trained = np.load(tmp_path / "point_cloud/iteration_12/flame_param.npz")
    for row, timestep in enumerate(TIMESTEPS):
        tracked = np.load(capture / "flame_param" / f"{timestep:05d}.npz")
        for name in ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation"):
            np.testing.assert_array_equal(trained[name][row], tracked[name][0])


def test_regularizers_in_triangle_units_and_in_meters(finished: SimpleNamespace, capture: Path) -> None:
    options = parse_train(command_line(capture, finished.model, *SCHEDULE))
    dataset = load_dataset(capture, bind_to_mesh=True, eval_split=True, white_background=True)
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

    def terms(*flags: object) -> dict[str, float]:
        optim = parse_train(command_line(capture, finished.model, *flags)).optimization
        return {
            name: term.item()
            for name, term in Objective(optim, avatar)(world, vertices, out, out.image, target, None, 1).items()
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
    return run_here(capture, model), model


@pytest.mark.parametrize(
    "flags",
    [
        ["--convert_SHs_python", "--sh_increase_interval", "3"],
        ["--rasterizer", "reference", "--sh_increase_interval", "3"],
    ],
)
def test_other_ways_to_the_same_picture(capture: Path, tmp_path: Path, flags: list[str]) -> None:
    ours = run_here(capture, tmp_path / "plain", *flags[-2:])
    other = run_here(capture, tmp_path / "other", *flags)
    assert other["backend"] == ("reference" if "reference" in flags else "native")
    for split in ("val", "test"):
        assert other["metrics"][split]["psnr"] == pytest.approx(ours["metrics"][split]["psnr"], abs=0.02)
    colors = [gaussians(tmp_path / name, 12)["features_dc"] for name in ("plain", "other")]
    start = gaussians_at_start(capture)
    assert (colors[0] - colors[1]).abs().median() < 0.01 * (colors[0] - start).abs().median()


def gaussians_at_start(capture: Path) -> torch.Tensor:
    dataset = load_dataset(capture, bind_to_mesh=True, eval_split=True, white_background=True)
    options = parse_train(command_line(capture, capture)).model
    avatar = build_avatar(options, dataset, None, seed=0, device=torch.device("cpu"))
    return avatar.fields()["features_dc"]


@pytest.mark.parametrize("flags", [["--debug"], ["--debug_from", "5"], ["--detect_anomaly"]])
def test_looking_for_nan_changes_nothing(
    plain: tuple[dict[str, Any], Path], capture: Path, tmp_path: Path, flags: list[str]
) -> None:
    assert run_here(capture, tmp_path, *flags)["metrics"] == plain[0]["metrics"]
    assert torch.is_anomaly_enabled() == (flags == ["--detect_anomaly"])
    assert_same_run(plain[1], tmp_path, 12)


def test_debug_stops_at_the_first_nan(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = objective.image_terms
    steps = []

    def broken(*arguments: Any) -> dict[str, torch.Tensor]:
        steps.append(1)
        terms = original(*arguments)
        return {**terms, "ssim": terms["ssim"] * math.nan} if len(steps) == 5 else terms

    monkeypatch.setattr(objective, "image_terms", broken)
    with pytest.raises(UserError, match=r"iteration 5, view 0000\d_0\d: loss ssim is not finite"):
        run_here(capture, tmp_path, "--debug")


def test_one_camera(capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = parse_train(command_line(capture, tmp_path, "--iterations", 3, "--threads", 1, "--select_camera_id", 2))
    results = train.train(options)
    assert "3 training views" in capfd.readouterr().out
    assert list(results["metrics"]) == ["test"]  # camera 1 alone is val
    names = [camera["img_name"] for camera in json.loads((tmp_path / "cameras.json").read_text())]
    assert names == ["00003_02", "00004_02", "00007_02", "00009_02"]
    with pytest.raises(UserError, match="no training view.*--select_camera_id 1"):
        run_here(capture, tmp_path / "other", "--select_camera_id", 1)


def test_half_the_size(tmp_path: Path) -> None:
    run_here(write_capture(tmp_path / "capture", [3, 4, 9], size=(64, 96)), tmp_path, "-r", 2)
    cameras = json.loads((tmp_path / "cameras.json").read_text())
    assert {(camera["width"], camera["height"], camera["fx"], camera["fy"]) for camera in cameras} == {
        (32, 48, 30.0, 31.0)
    }


def test_no_view_dependence(capture: Path, tmp_path: Path) -> None:
    run_here(capture, tmp_path, "--sh_degree", 0, "--sh_increase_interval", 1)
    assert gaussians(tmp_path, 12)["features_rest"].shape[1] == 0
    names = PlyData.read(str(tmp_path / "point_cloud/iteration_12/point_cloud.ply"))["vertex"].data.dtype.names
    assert not any(name.startswith("f_rest") for name in names)


def test_without_held_out_views_the_training_views_are_measured(capture: Path, tmp_path: Path) -> None:
    line = command_line(capture, tmp_path, "--iterations", 3, "--quiet", "--threads", 1)
    line.remove("--eval")
    assert list(train.train(parse_train(line))["metrics"]) == ["train"]
    assert len(json.loads((tmp_path / "cameras.json").read_text())) == 12


def test_images_that_do_not_fit_into_memory(plain: tuple[dict[str, Any], Path], capture: Path, tmp_path: Path) -> None:
    run_here(capture, tmp_path, "--ram_share", 1e-9)
    assert len(list((tmp_path / "cache").glob("*.images"))) == 1
    assert_same_run(plain[1], tmp_path, 12)


def main_here(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    train.main()


def test_the_viewer_that_is_not_there(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    main_here(
        monkeypatch,
        *command_line(
            capture, tmp_path, "--iterations", 2, "--quiet", "--threads", 1, "--ip", "127.0.0.1", "--port", 6009
        ),
    )
    assert capfd.readouterr() == ("note: there is no live viewer yet; --ip and --port are ignored\n", "")


def test_quiet(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    main_here(monkeypatch, *command_line(capture, tmp_path, "--iterations", 2, "--quiet", "--threads", 1))
    assert capfd.readouterr() == ("", "")
