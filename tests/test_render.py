"""render.py from the command line down to its files, on a small ball of a head."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from toy_capture import BALL, HEIGHT, WIDTH, write_capture

import render
from arguments import Options, parse_render, parse_train, write_cfg_args
from innovations.color_calibration import ColorCalibration
from scene.flame.head_model import load_head_model
from scene.flame.model import Flame, FlameParameters
from scene.gaussian_model import GaussianModel
from scene.ply import read_ply
from utils.errors import UserError

BLUR = 2  # pixels by which Gaussians on a silhouette stand out, both sides together


def save_avatar(model: Path, capture: Path, timesteps: list[int]) -> None:
    """An opaque grey ball, as train.py would save it; its identity (0.1) is neither the source's nor the target's."""
    head = load_head_model(capture / "head_model.pkl")
    motion = {
        name: np.zeros((len(timesteps), width), np.float32)
        for name, width in (("rotation", 3), ("neck_pose", 3), ("jaw_pose", 3), ("eyes_pose", 6), ("translation", 3))
    }
    motion["expr"] = np.arange(len(timesteps), dtype=np.float32)[:, None] * 0.25
    motion["shape"] = np.full(1, 0.1, np.float32)
    parameters = FlameParameters(motion, timesteps, head)
    avatar = GaussianModel.from_mesh(
        Flame(head), parameters, sh_degree=1, generator=torch.Generator().manual_seed(0), device="cpu"
    )
    with torch.no_grad():
        avatar.opacity.fill_(4.0)
        avatar.scaling.fill_(math.log(0.12))
        avatar.features.fill_(0.0)
    for iteration in (20, 100):
        avatar.save(model / "point_cloud" / f"iteration_{iteration}")
    write_cfg_args(model, parse_train(["-s", str(capture), "-m", str(model), "--eval", "--bind_to_mesh", "-w"]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A capture, an avatar made on it, and another person's capture."""
    base = tmp_path_factory.mktemp("render")
    write_capture(base / "capture", [3, 4, 9], shape=0.0, taller=0.5)
    write_capture(base / "other", [0, 1], shape=1.5, taller=-0.4)
    save_avatar(base / "avatar", base / "capture", [3, 4, 9])
    return {name: base / name for name in ("capture", "avatar", "other")}


def run(*arguments: object) -> dict[str, dict[str, float | None]]:
    return render.render_avatar(parse_render([*map(str, arguments), "--device", "cpu"]))


def psnr_of_files(first: Path, second: Path) -> float:
    a, b = (np.asarray(Image.open(path), np.float64) / 255 for path in (first, second))
    return -10 * math.log10(((a - b) ** 2).mean())


def frame_count(path: Path) -> tuple[int, tuple[int, int]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    size = next(reader)["size"]
    return sum(1 for _ in reader), size


def test_pictures_videos_and_metrics_of_every_split(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    stale = folders["avatar"] / "val" / "ours_100" / "renders" / "00007.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier, longer rendering")
    kept = stale.with_name("mine.png")
    kept.write_bytes(b"not ours")
    measured = run("-m", folders["avatar"], "--render_mesh")

    assert list(measured) == ["train", "val", "test"]
    for split, views in (("train", 4), ("val", 2), ("test", 3)):
        folder = folders["avatar"] / split / "ours_100"
        names = [f"{i:05d}.png" for i in range(views)]
        for kind in ("renders", "gt", "renders_mesh"):
            assert sorted(p.name for p in (folder / kind).glob("0*.png")) == names
            assert frame_count(folder / f"{kind}.mp4") == (views, (WIDTH + 1, HEIGHT))
        written = json.loads((folder / "metrics.json").read_text())
        assert written["mean"] == measured[split] and [view["file"] for view in written["views"]] == names
        for view in written["views"]:
            # The photograph by the name in the record: pairs renderings with their own views.
            photograph = folders["capture"] / "images" / f"{view['image']}.png"
            assert np.array_equal(
                np.asarray(Image.open(folder / "gt" / view["file"])), np.asarray(Image.open(photograph))
            )
            assert view["image"] == f"{view['timestep']:05d}_{int(view['camera']) - 100:02d}"
            # The PNG has 8 bits, the metric more.
            assert psnr_of_files(folder / "renders" / view["file"], photograph) == pytest.approx(view["psnr"], abs=0.02)
        assert written["mean"]["psnr"] == pytest.approx(np.mean([view["psnr"] for view in written["views"]]))
        comparison = np.asarray(Image.open(folder / "comparison.png"))
        assert comparison.shape == (3 * HEIGHT, min(views, 4) * WIDTH, 3)
    assert not stale.exists() and kept.exists()

    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    header = next(line for line in lines if "psnr" in line)
    assert header == ["psnr", "ssim", "l1", "flip", "lpips_vgg", "lpips_alex"]
    assert [line[0] for line in lines[lines.index(header) + 1 :][:3]] == ["train", "val", "test"]
    assert str(folders["avatar"] / "test" / "ours_100") in out


def test_only_drawn(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No photograph is opened, and the pictures are those of a run that measures."""
    shutil.copytree(folders["avatar"], tmp_path / "avatar")
    run("-m", tmp_path / "avatar", "--skip_train", "--metrics", "psnr")
    whole = tmp_path / "avatar" / "val" / "ours_100"
    assert list(json.loads((whole / "metrics.json").read_text())["mean"]) == ["psnr"]
    measured = {path.name: path.read_bytes() for path in (whole / "renders").glob("0*.png")}
    shutil.rmtree(whole)
    monkeypatch.setattr(render, "ImageCache", None)
    capfd.readouterr()
    assert run("-m", tmp_path / "avatar", "--skip_train", "--no_metrics") == {}
    assert {path.name: path.read_bytes() for path in (whole / "renders").glob("0*.png")} == measured
    assert {path.name for path in whole.glob("[!.]*")} == {"renders", "renders.mp4"}
    out = capfd.readouterr().out
    assert re.search(r"^val: 2 views, [0-9.]+ a second$", out, re.MULTILINE) and "psnr" not in out


@pytest.mark.parametrize("more", ["--metrics psnr", "--refine_flame 3 --refine_cameras 1"])
def test_nothing_is_measured_where_nothing_is_looked_at(folders: dict[str, Path], more: str) -> None:
    with pytest.raises(UserError, match="--no_metrics does not go with"):
        run("-m", folders["avatar"], "--no_metrics", *more.split())


def height_of_ball(path: Path) -> int:
    """Rows in which the grey ball stands out from the white background."""
    return int((np.asarray(Image.open(path)).min(axis=2) < 192).any(axis=1).sum())


def test_each_view_shows_its_own_moment(folders: dict[str, Path]) -> None:
    # Timesteps 3, 4, 9 are rows 0, 1, 2; each row stands a quarter taller. Distance 0.6 m, fl_y 62.
    run("-m", folders["avatar"], "--iteration", 20, "--quiet")
    heights = [height_of_ball(folders["avatar"] / "val" / "ours_20" / "renders" / f"0000{i}.png") for i in (0, 1)]
    heights.append(height_of_ball(folders["avatar"] / "test" / "ours_20" / "renders" / "00001.png"))
    for row, height in enumerate(heights):
        assert height == pytest.approx(2 * 62 * 0.1 * (1.1 + 0.25 * row) / 0.6 + BLUR, abs=2)


def test_quiet_says_nothing(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    run("-m", folders["avatar"], "--skip_train", "--skip_val", "--quiet")
    assert capfd.readouterr() == ("", "")


def test_one_camera_only(folders: dict[str, Path]) -> None:
    assert list(run("-m", folders["avatar"], "--select_camera_id", 2, "--quiet")) == ["train", "test"]
    for split, views in (("train", 2), ("test", 1)):
        written = json.loads((folders["avatar"] / split / "ours_100" / "metrics.json").read_text())
        assert [view["camera"] for view in written["views"]] == ["102"] * views


def test_color_calibration_is_applied_and_can_be_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    model, flags = tmp_path / "avatar", ("--skip_train", "--skip_test", "--quiet")
    save_avatar(model, folders["capture"], [3, 4, 9])
    write_cfg_args(
        model,
        parse_train(
            [
                "-s",
                str(folders["capture"]),
                "-m",
                str(model),
                "--eval",
                "--bind_to_mesh",
                "-w",
                "--use_color_calibration",
            ]
        ),
    )
    with pytest.raises(UserError, match="--no_color_calibration"):
        run("-m", model, *flags)
    calibration = ColorCalibration(hidden_dim=4, num_layers=2)
    with torch.no_grad():
        next(reversed(list(calibration.parameters()))).copy_(torch.tensor([2.0, 0.0, -2.0]))  # the last bias
    calibration.save(model / "point_cloud" / "iteration_100" / "color_calibration.pt")
    plain = run("-m", folders["avatar"], *flags)["val"]
    measured = run("-m", model, *flags)["val"]
    folder = model / "val" / "ours_100"
    middle = np.asarray(Image.open(folder / "renders" / "00000.png"))[HEIGHT // 2, WIDTH // 2] / 255
    # The ball is as good as opaque and of colour 0.5: sigmoid(logit(0.5) + r).
    assert middle == pytest.approx([1 / (1 + math.exp(-2)), 0.5, 1 / (1 + math.exp(2))], abs=0.03)
    written = json.loads((folder / "metrics.json").read_text())
    assert written["without_color_calibration"] == plain and written["mean"] == measured
    assert measured["psnr"] != pytest.approx(plain["psnr"], abs=0.1)
    assert run("-m", model, *flags, "--no_color_calibration")["val"] == plain


def test_refined_test_poses_are_measured_on_the_other_cameras(folders: dict[str, Path], tmp_path: Path) -> None:
    # The photographs show a ball of height 2.0 and width 1.0; tracked it is 1.6 and 1.1.
    capture, model = tmp_path / "capture", tmp_path / "avatar"
    write_capture(capture, [3, 4, 9], shape=0.0, taller=0.5)
    save_avatar(model, capture, [3, 4, 9])
    kept = model / "point_cloud" / "iteration_100" / "flame_param.npz"
    before = kept.read_bytes()
    flags = ("-m", model, "--skip_train", "--skip_val", "--quiet", "--refine_flame", 60, "--refine_cameras", 0, 2)
    measured = run(*flags)

    assert list(measured) == ["test", "test_as_tracked", "test_refined", "test_looked_at"]
    folder = model / "test_refined" / "ours_100"
    tracked, refined = (
        json.loads((path / "metrics.json").read_text()) for path in (model / "test" / "ours_100", folder)
    )
    psnrs = [{view["camera"]: view["psnr"] for view in written["views"]} for written in (tracked, refined)]
    assert measured["test_as_tracked"]["psnr"] == psnrs[0]["101"] == refined["as_tracked"]["psnr"]
    assert measured["test_refined"]["psnr"] == psnrs[1]["101"] == refined["mean"]["psnr"]
    # A grey ball on a patterned one: the outline is all there is to gain.
    assert psnrs[1]["101"] > psnrs[0]["101"] + 0.05
    assert measured["test_looked_at"]["psnr"] == pytest.approx((psnrs[1]["100"] + psnrs[1]["102"]) / 2)
    assert [view.get("looked_at", False) for view in refined["views"]] == [True, False, True]
    report = refined["refinement"]
    assert (report["steps"], report["timesteps"]) == (60, 1) and report["loss_refined"] < report["loss_as_tracked"]
    assert (report["cameras_looked_at"], report["cameras_measured"]) == ([0, 2], [1])
    assert psnr_of_files(folder / "renders" / "00001.png", capture / "images" / "00009_01.png") == pytest.approx(
        psnrs[1]["101"], abs=0.02
    )

    assert kept.read_bytes() == before
    with np.load(kept) as old, np.load(folder / "flame_param_refined.npz") as new:
        assert set(old) == set(new)
        assert np.array_equal(new["expr"][:2], old["expr"][:2]) and new["expr"][2] != old["expr"][2]
        assert all(np.array_equal(new[name], old[name]) for name in ("shape", "static_offset", "timestep_index"))
        fitted = {name: new[name] for name in new}

    # A measured photograph that is not of this world must not move the poses.
    Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 255)).save(capture / "images" / "00009_01.png")
    assert run(*flags)["test_refined"]["psnr"] < psnrs[0]["101"]
    with np.load(folder / "flame_param_refined.npz") as again:
        assert all(np.array_equal(again[name], value) for name, value in fitted.items())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--refine_cameras", "7"], "--refine_cameras 7: .* only of 0, 1, 2"),
        (["--refine_cameras", "0", "1", "2"], "leaves no view to measure"),
        (["--refine_cameras", "0", "--skip_test"], "--skip_test"),
        (["--refine_cameras", "0", "--export_world", "3"], "--export_world"),
        (["--refine_cameras", "0", "-t", "elsewhere"], "-t"),
    ],
)
def test_refinements_that_cannot_be(folders: dict[str, Path], arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("-m", folders["avatar"], "--refine_flame", 5, *arguments)


def test_reenactment_moves_the_avatar_and_keeps_the_person(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("-m", folders["avatar"], "-t", folders["other"], "--render_mesh") == {}
    out = capfd.readouterr().out
    assert "No metrics" in out and "psnr" not in out
    folder = folders["avatar"] / "test_other" / "ours_100"
    assert {path.name for path in folder.iterdir()} == {
        "renders",
        "renders.mp4",
        "renders_mesh",
        "renders_mesh.mp4",
        ".lock",
    }
    assert len(list((folder / "renders").iterdir())) == 3
    # Timestep 1 of the target: expression -0.4, so 1 + 0.1 - 0.4 = 0.7 of the height; the target's
    # identity (shape 1.5) would make it 2.1.
    assert height_of_ball(folder / "renders" / "00001.png") == pytest.approx(2 * 62 * 0.1 * 0.7 / 0.6 + BLUR, abs=2)
    drawn = np.asarray(Image.open(folder / "renders_mesh" / "00001.png")).astype(int)
    blue = (drawn[..., 2] - drawn[..., 0] > 20).any(axis=1).sum()  # the mesh is, the grey ball is not
    assert blue == pytest.approx(2 * 62 * 0.1 * 0.7 / 0.6, abs=1.5)


def test_export_world_writes_where_the_gaussians_are(folders: dict[str, Path]) -> None:
    run("-m", folders["avatar"], "--export_world", 9)
    fields = read_ply(folders["avatar"] / "point_cloud" / "iteration_100" / "world_00009.ply")
    centers = np.asarray(BALL.triangles_center) * [1.1, 1.6, 1.1]  # row 2: half a radius taller
    assert fields["binding"] is None
    assert np.allclose(fields["xyz"].numpy(), centers, atol=1e-6)
    assert torch.allclose(fields["opacity"], torch.tensor(4.0), atol=1e-3)

    run("-m", folders["avatar"], "-t", folders["other"], "--export_world", 1, "--quiet")
    fields = read_ply(folders["avatar"] / "point_cloud" / "iteration_100" / "world_other_00001.ply")
    assert np.allclose(fields["xyz"].numpy(), np.asarray(BALL.triangles_center) * [1.1, 0.7, 1.1], atol=1e-6)


def test_export_needs_no_capture_but_a_head_model(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "avatar"
    save_avatar(model, folders["capture"], [3, 4, 9])
    write_cfg_args(model, parse_train(["-s", str(tmp_path / "gone"), "-m", str(model), "--bind_to_mesh"]))
    run("-m", model, "--export_world", 3, "--head_model", folders["capture"] / "head_model.pkl")
    assert (model / "point_cloud" / "iteration_100" / "world_00003.ply").is_file()
    with pytest.raises(UserError, match="gone.*-s"):
        run("-m", model)


def test_avatars_of_other_trainers_number_no_timesteps(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "avatar"
    save_avatar(model, folders["capture"], [3, 4, 9])
    path = model / "point_cloud" / "iteration_100" / "flame_param.npz"
    arrays = dict(np.load(path))
    arrays.pop("timestep_index")
    np.savez(path, **arrays)
    run("-m", model, "--skip_train", "--quiet")
    ours, theirs = (root / "val" / "ours_100" / "renders" / "00001.png" for root in (folders["avatar"], model))
    run("-m", folders["avatar"], "--skip_train", "--quiet")
    assert np.array_equal(np.asarray(Image.open(ours)), np.asarray(Image.open(theirs)))
    np.savez(path, **{name: value[:2] if len(value) == 3 else value for name, value in arrays.items()})
    with pytest.raises(UserError, match="has no timestep 3"):
        run("-m", model, "--quiet")


def test_a_static_scene(folders: dict[str, Path], tmp_path: Path) -> None:
    scene, model = tmp_path / "scene", tmp_path / "model"
    scene.mkdir()
    rng = np.random.default_rng(0)
    pose = np.eye(4)
    pose[2, 3] = 3.0
    for split in ("train", "test"):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(scene / f"{split}.png")
        (scene / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": 0.7, "frames": [{"file_path": split, "transform_matrix": pose.tolist()}]})
        )
    avatar = GaussianModel.from_points(
        rng.normal(size=(50, 3)).astype(np.float32) * 0.3,
        rng.random((50, 3)).astype(np.float32),
        sh_degree=0,
        device="cpu",
    )
    avatar.save(model / "point_cloud" / "iteration_5")
    write_cfg_args(model, parse_train(["-s", str(scene), "-m", str(model), "--eval"]))
    assert list(run("-m", model, "--quiet")) == ["train", "test"]
    assert (model / "test" / "ours_5" / "renders" / "00000.png").is_file()
    run("-m", model, "--export_world", 0, "--quiet")
    exported = read_ply(model / "point_cloud" / "iteration_5" / "world_00000.ply")
    assert torch.allclose(exported["xyz"], avatar.xyz.detach())
    with pytest.raises(UserError, match="--render_mesh"):
        run("-m", model, "--render_mesh")
    with pytest.raises(UserError, match="-t"):
        run("-m", model, "-t", folders["other"])
    with pytest.raises(UserError, match="--refine_flame.* not bound"):
        run("-m", model, "--refine_flame", 5, "--refine_cameras", 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--iteration", "7"], "there are 20, 100"),
        (["--select_camera_id", "5"], "only 0, 1, 2"),
        (["--export_world", "5"], "3 to 9, 3 in all"),
        (["-t", "nowhere"], "nowhere"),
        (["--head_model", "nowhere.pkl"], "nowhere.pkl"),
        (["--rasterizer", "gsplat", "--device", "cpu"], "gsplat"),
    ],
)
def test_wrong_options_are_one_sentence(folders: dict[str, Path], arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run("-m", folders["avatar"], *arguments)


def test_folders_that_are_no_avatar(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no avatar"):
        run("-m", tmp_path / "nothing")
    write_cfg_args(tmp_path, Options())
    with pytest.raises(UserError, match="nothing was saved there"):
        run("-m", tmp_path)
    (tmp_path / "point_cloud" / "iteration_3").mkdir(parents=True)  # cut short before the PLY was written
    with pytest.raises(UserError, match="nothing was saved there"):
        run("-m", tmp_path)
