"""render.py --motion --camera, from the command line down to its files; there is no capture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from toy_avatar import toy_motion, write_keys

import render
from arguments import parse_render, parse_train, read_cfg_args, write_cfg_args
from innovations.color_calibration import ColorCalibration
from scene import load_avatar
from scene.gaussian_model import GaussianModel
from scene.motion import load_motion
from scene.view_path import load_view_path
from utils.errors import UserError
from utils.images import to_bytes

SIZE = ("--size", "48", "64")


def run(*arguments: object) -> None:
    render.render_avatar(parse_render([*map(str, arguments), "--device", "cpu", "--quiet"]))


def decode(path: Path, channels: int = 3) -> np.ndarray:
    """[T, H, W, channels] of a video, by ffmpeg's own decoders."""
    size = next(imageio_ffmpeg.read_frames(str(path)))["size"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *"-v error -c:v".split()]
    command += ["libvpx-vp9" if path.suffix == ".webm" else "h264", "-i", str(path), "-f", "rawvideo", "-pix_fmt"]
    raw = subprocess.run([*command, "rgba" if channels == 4 else "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], channels)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = ((first.astype(np.float64) - second) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    np.savez(tmp_path / "tracked.npz", **toy_motion(5, seed=2))
    return tmp_path / "tracked.npz"


def wanted_pictures(puppet: Path, tracked: Path) -> list[np.ndarray]:
    """What the frames must be, by the avatar's own render."""
    avatar = load_avatar(puppet, device="cpu")
    rows = load_motion(str(tracked), avatar).rows
    camera = load_view_path("front", avatar, rows, size=(48, 64)).at(0.0).camera(48, 64)
    return [to_bytes(avatar.render(camera, torch.from_numpy(row).float())) for row in rows]


def test_an_mp4_of_a_motion(puppet: Path, tracked: Path, tmp_path: Path) -> None:
    run("-m", puppet, "--motion", tracked, *SIZE, "--fps", 12, "-o", tmp_path / "clip.mp4")
    frames, wanted = decode(tmp_path / "clip.mp4"), wanted_pictures(puppet, tracked)
    assert len(frames) == 5 and next(imageio_ffmpeg.read_frames(str(tmp_path / "clip.mp4")))["fps"] == 12
    assert all(psnr(frame, picture) > 30 for frame, picture in zip(frames, wanted))
    assert psnr(frames[0], wanted[3]) < 30  # another pose is another picture
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "tracked.npz"]


def test_pngs_with_alpha_are_the_same_over_the_background(puppet: Path, tracked: Path, tmp_path: Path) -> None:
    out = tmp_path / "pngs"
    run("-m", puppet, "--motion", tracked, *SIZE, "--alpha", "-o", out)
    assert sorted(path.name for path in out.glob("*.png")) == [f"{i:05d}.png" for i in range(5)]
    for i, wanted in enumerate(wanted_pictures(puppet, tracked)):
        picture = pixels(out / f"{i:05d}.png").astype(np.float64)
        assert picture.shape == (64, 48, 4)
        alpha = picture[..., 3:] / 255
        assert np.abs(alpha * picture[..., :3] + (1 - alpha) * 255 - wanted).max() <= 2
        assert alpha[0, 0, 0] == 0 and alpha[32, 24, 0] > 0.95


def test_a_webm_with_alpha(puppet: Path, tracked: Path, tmp_path: Path) -> None:
    run("-m", puppet, "--motion", tracked, *SIZE, "--alpha", "-o", tmp_path / "clip.webm")
    run("-m", puppet, "--motion", tracked, *SIZE, "--alpha", "-o", tmp_path / "pngs")
    frames = decode(tmp_path / "clip.webm", channels=4)
    assert frames.shape == (5, 64, 48, 4)
    for i, frame in enumerate(frames):
        assert psnr(frame[..., 3], pixels(tmp_path / "pngs" / f"{i:05d}.png")[..., 3]) > 25


def test_a_single_picture_and_where_it_goes(puppet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(puppet, tmp_path / "avatar")
    words = ["-m", str(copy), "--motion", "neutral", *SIZE, "--device", "cpu"]
    render.render_avatar(parse_render(words))
    path = copy / "clips" / "neutral_front.png"
    assert pixels(path).shape == (64, 48, 3) and pixels(path)[0, 0].tolist() == [255, 255, 255]
    out = capsys.readouterr().out
    assert str(path) in out and "1 pictures of 48x64 pixels" in out and " a second; " in out and "rasterizer" in out
    run("-m", copy, "--camera", "orbit", "--orbit_seconds", 0.4, *SIZE)
    assert len(decode(copy / "clips" / "neutral_orbit.mp4")) == 10  # a still face lasts as long as the camera's path


def test_a_background_of_ones_own_is_not_calibrated(puppet: Path, tmp_path: Path) -> None:
    """With a network and a camera's map that change colors: white stays where nothing is, the person is changed."""
    copy = shutil.copytree(puppet, tmp_path / "avatar")
    options = read_cfg_args(copy)
    innovations = type(options.innovations)(use_color_calibration=True, color_per_camera=True)
    write_cfg_args(copy, type(options)(model=options.model, innovations=innovations))
    color = ColorCalibration(["cam_04", "cam_08"], per_camera=True, background=torch.ones(3))
    with torch.no_grad():
        for parameter in color.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    color.save(copy / "point_cloud" / "iteration_7" / "color_calibration.pt")
    small = ("-m", copy, "--motion", "neutral", *SIZE)
    keys = {"position": [0.25, -0.2, 2.9], "quaternion": [0, 1, 0, 0], "fov_degrees": 25}
    found = {}
    for name, more in (("own", ()), ("red", ("--background", "#ff0000")), ("plain", ("--no_color_calibration",))):
        run(*small, *more, "-o", tmp_path / f"{name}.png")
        found[name] = pixels(tmp_path / f"{name}.png").astype(int)
    for camera_id in ("cam_04", "cam_08"):
        path = write_keys(tmp_path / "k.json", {"seconds": 0, "camera": {**keys, "camera_id": camera_id}})
        run("-m", copy, "--camera", path, *SIZE, "-o", tmp_path / f"{camera_id}.png")
        found[camera_id] = pixels(tmp_path / f"{camera_id}.png").astype(int)
    assert found["own"][0, 0].tolist() == [255, 255, 255] and found["red"][0, 0].tolist() == [255, 0, 0]
    assert np.abs(found["own"][32, 24] - found["plain"][32, 24]).max() > 5
    assert np.abs(found["own"][32, 24] - found["red"][32, 24]).max() <= 2
    assert np.abs(found["cam_04"] - found["cam_08"]).max() > 5


def test_key_frames_bring_camera_and_pose(puppet: Path, tmp_path: Path) -> None:
    cameras = [
        {"position": [0.25 + x, -0.2, 2.9], "quaternion": [0, 1, 0, 0], "fov_degrees": 25, "camera_id": ""}
        for x in (0.0, 0.1)
    ]
    entries = [
        {"seconds": 0.0, "camera": cameras[0], "pose": {}},
        {"seconds": 0.5, "camera": cameras[1], "pose": {"jaw_pose": [0.3, 0, 0]}},
    ]
    path = write_keys(tmp_path / "keys.json", *entries, size=[48, 64], fps=8)
    run("-m", puppet, "--camera", path, "-o", tmp_path / "pngs")
    names = sorted(found.name for found in (tmp_path / "pngs").glob("*.png"))
    assert names == [f"{i:05d}.png" for i in range(5)]
    avatar = load_avatar(puppet, device="cpu")
    view = load_view_path(str(path), avatar, load_motion("neutral", avatar).rows).at(0.5)
    rest = avatar.neutral()
    jaw = avatar.motion().columns["jaw_pose"]
    rest[jaw] = torch.tensor([0.3, 0.0, 0.0])
    last = to_bytes(avatar.render(view.camera(48, 64), rest))
    assert np.abs(pixels(tmp_path / "pngs" / "00004.png").astype(int) - last).max() <= 1
    assert not np.array_equal(last, pixels(tmp_path / "pngs" / "00000.png"))


def test_a_contact_sheet(puppet: Path, tracked: Path, tmp_path: Path) -> None:
    run("-m", puppet, "--motion", tracked, *SIZE, "--contact_sheet", 3, 3, "-o", tmp_path / "sheet.png")
    sheet, wanted = pixels(tmp_path / "sheet.png"), wanted_pictures(puppet, tracked)
    assert sheet.shape == (3 * 64, 3 * 48, 3)
    for column, row in enumerate((0, 2, 4)):  # evenly spaced; the middle view is the camera itself
        assert np.array_equal(sheet[64:128, 48 * column : 48 * (column + 1)], wanted[row])
    assert not np.array_equal(sheet[:64], sheet[128:])
    run("-m", puppet, "--motion", "sweep", *SIZE, "--contact_sheet", 100, 1, "-o", tmp_path / "sweep.png")
    # 33 turning points in four blocks of nine, each under a line of labels.
    assert pixels(tmp_path / "sweep.png").shape == (4 * (18 + 64), 9 * 48, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size", "64", "64"], "--size is about a clip: it needs --motion or --camera"),
        (["--motion", "neutral", "--skip_train"], "--skip_train is about the pictures of a capture"),
        (["--motion", "neutral", "-t", "other"], "--target_path is about the pictures of a capture"),
        (["--motion", "neutral", "--size", "64"], "--size needs two numbers, not 1"),
        (["--motion", "neutral", "--size", "64", "9000"], "--size must be at most 8192"),
        (["--motion", "neutral", "--fps", "0"], "--fps must be at least 1"),
        (["--motion", "neutral", "--alpha", "--background", "white"], "exclude each other"),
        (["--camera", "front", "--relative"], "--relative needs --motion"),
        (["--motion", "neutral", "--rest_frames", "0", "0"], "--rest_frames needs --relative"),
        (["--motion", "neutral", "--mapping", "x.npz"], "--mapping is about a .csv"),
        (["--motion", "neutral", "--background", "nice"], "'nice' is no color"),
        (["--motion", "sweep", "-o", "x.png"], "x.png can hold one picture, but the clip has 425"),
        (["--motion", "sweep", "-o", "x.avi"], "x.avi has another ending"),
        (["--motion", "sweep", "--alpha", "-o", "x.mp4"], "holds no alpha channel"),
        (["--motion", "sweep", "--contact_sheet", "3", "1", "-o", "x.mp4"], "--contact_sheet is a .png"),
        (["--motion", "neutral", "--orbit_degrees", "20"], "--orbit_degrees"),
        (["--motion", "neutral", "--orbit_seconds", "2"], "--orbit_seconds"),
        (["--motion", "neutral", "--iteration", "5"], "there are 7"),
        (["--camera", "capture:x"], "has no camera 'x'"),
    ],
)
def test_wrong_options_are_one_sentence(
    puppet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(puppet.rglob("*"))
    with pytest.raises(UserError, match=message):
        run("-m", puppet, *arguments)
    assert list(tmp_path.iterdir()) == [] and sorted(puppet.rglob("*")) == before


def test_a_bad_file_ends_the_command_with_status_2(puppet: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.csv").write_text("time,smile\n0,1\n")
    words = ["-m", str(puppet), "--motion", str(tmp_path / "weights.csv"), "-o", str(tmp_path / "clip.mp4")]
    done = subprocess.run(
        [sys.executable, "render.py", *words, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "weights.csv has no column eyeBlinkLeft" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["weights.csv"]


def test_what_a_user_may_not_expect_is_said(puppet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = toy_motion(5, seed=2)
    np.savez(tmp_path / "wide.npz", **{**arrays, "expr": np.ones((5, 30), np.float32)})
    run("-m", puppet, "--motion", tmp_path / "wide.npz", "--relative", *SIZE, "-o", tmp_path / "clip.mp4")
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and all(line.startswith("note: ") for line in err)
    assert "30 expression coefficients, the head model 20" in err[0] and "at rest: row " in err[1]


def test_a_static_scene_has_a_camera_but_no_motion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points, colors = rng.normal(size=(50, 3)).astype(np.float32) * 0.3, rng.random((50, 3)).astype(np.float32)
    model = tmp_path / "model"
    scene = GaussianModel.from_points(points, colors, sh_degree=0, device="cpu")
    scene.save(model / "point_cloud" / "iteration_5")
    write_cfg_args(model, parse_train(["-s", str(tmp_path), "-m", str(model), "--eval"]))
    camera = {"position": [0, 0, 3], "quaternion": [0, 1, 0, 0], "fov_degrees": 30}
    further = {**camera, "position": [0.5, 0, 3]}
    entries = [{"seconds": 0, "camera": camera}, {"seconds": 0.2, "camera": further}]
    path = write_keys(tmp_path / "keys.json", *entries)
    run("-m", model, "--camera", path, *SIZE, "-o", tmp_path / "clip.mp4")
    assert decode(tmp_path / "clip.mp4").shape == (6, 64, 48, 3)
    for arguments, message in (
        (["--camera", "front"], "front: .* is not bound to a head mesh"),
        (["--motion", "sweep", "--camera", path], "is not bound to a head mesh, so it has no pose"),
    ):
        with pytest.raises(UserError, match=message):
            run("-m", model, *arguments)
