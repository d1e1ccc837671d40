"""What a browser is shown, by the pictures that it is sent; no training, no screen."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_avatar import write_avatar

import view
from arguments import Options, parse_render, parse_view
from benchmarks.scripted_browser import ScriptedBrowser
from benchmarks.viewer import free_port
from gaussian_renderer import choose_device_and_rasterizer
from innovations.color_calibration import NoColorCalibration
from ops.sh import from_colors
from ops.types import Camera
from scene import Avatar, load_avatar
from scene.gaussian_model import GaussianModel
from scene.motion import chosen_motion
from scene.motion.key_frames import KeyFrames
from scene.motion.rows import FPS
from scene.view_path import front, place_of_head
from utils.errors import UserError, run_script
from utils.images import to_bytes
from viewer.film import load_key_frames, new_file, saved_key_frames
from viewer.look import MOVING_FRAME, Pace
from viewer.server import Doorkeeper, listen
from viewer.session import Viewer
from viewer.shows import SHOWS, Shot
from viewer.stage import Stage
from viewer.visitor import Visitor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("avatar") / "out")


@pytest.fixture
def avatar(folder: Path) -> Avatar:
    avatar = load_avatar(folder, device="cpu")
    flame, model = avatar.model.flame, avatar.model
    assert flame is not None
    with torch.no_grad():  # a smooth pattern, to tell what is where
        middles = flame.v_template[flame.faces].mean(1)[model.binding]
        model.features[:, 0] = from_colors(0.45 + 0.35 * torch.sin(40.0 * middles))
    return avatar


@pytest.fixture
def shots(avatar: Avatar) -> dict[str, dict[int, Shot]]:
    """A camera with its principal point aside and pixels not square; its photograph is the avatar's picture."""
    view = front(place_of_head(avatar, avatar.motion().values[:1].double().numpy()), 96, 80)
    camera = dataclasses.replace(view, shift=(0.05, -0.03), stretch=0.95, camera_id="cam_08").camera(96, 80)
    return {"cam_08": {0: Shot(camera, lambda: avatar.render(camera, avatar.pose(5)))}}


@pytest.fixture
def viewer(avatar: Avatar, shots: dict[str, dict[int, Shot]], tmp_path: Path) -> Iterator[Viewer]:
    door = Doorkeeper(listen(None, 0), None)
    viewer = Viewer(door, Stage(avatar, tmp_path, shots))
    viewer.port = door.port  # type: ignore[attr-defined]
    yield viewer
    viewer.close()


def visit(viewer: Viewer, size: tuple[int, int] = (200, 160)) -> tuple[ScriptedBrowser, Visitor]:
    browser = ScriptedBrowser(viewer.port, size)  # type: ignore[attr-defined]
    before = set(viewer.visitors)
    browser.say_where()
    pump(viewer, browser, lambda: bool(set(viewer.visitors) - before) and browser.pictures > 0)
    settle(viewer, browser)
    return browser, viewer.visitors[max(viewer.visitors)]


def pump(viewer: Viewer, browser: ScriptedBrowser, until: Callable[[], bool]) -> None:
    """Lets both do what they do until something is so."""
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end, "waited in vain"
        viewer.turn()
        browser.listen(0.01)


def settle(viewer: Viewer, browser: ScriptedBrowser) -> None:
    """Until every picture is drawn in full, and has arrived."""
    for _ in range(3):
        browser.listen(0.05)
        viewer.turn()
    pump(viewer, browser, lambda: all(visitor.look.sharp for visitor in viewer.visitors.values()))
    browser.listen(0.1)


def subject(pixels: np.ndarray) -> np.ndarray:
    """[H, W] where it is not white."""
    return (pixels.astype(int) < 235).any(axis=2)


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((image.astype(float) - other.astype(float)) ** 2), 1e-9)))


def test_the_first_picture_is_a_face_that_fills_two_thirds(viewer: Viewer) -> None:
    for size in ((320, 240), (240, 240)):
        browser, visitor = visit(viewer, size)
        rows = np.flatnonzero(subject(browser.pixels()).mean(axis=1) > 0.02)
        assert browser.pixels().shape[:2] == size[::-1]
        assert abs(rows[0] / size[1] - 1 / 6) < 0.03  # the crown; below, the neck goes on
        # The eyes are above the middle, whatever the world of the tracking: it stands upright.
        flame = viewer.stage.avatar.model.flame
        assert flame is not None
        _, vertices = viewer.stage.avatar.model(0)
        eyes = flame.joint_regressor[3:5] @ flame.v_template  # the left one of the person is right in the picture
        posed = torch.stack([vertices[(flame.v_template - eye).norm(dim=1).argmin()] for eye in eyes])  # type: ignore[index]
        camera = visitor.look.view().camera(*size)
        local = posed @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
        x, y = (camera.fx * local[:, 0] / local[:, 2] + camera.cx, camera.fy * local[:, 1] / local[:, 2] + camera.cy)
        assert x[0] > size[0] / 2 > x[1] and abs(y[0] - y[1]) < 0.02 * size[1]
        assert 0.25 * size[1] < y.mean() < 0.6 * size[1]
        browser.socket.close()
    # On a phone the panel covers the lower half.
    browser, _ = visit(viewer, (200, 430))
    assert subject(browser.pixels())[:215].any(axis=1).mean() > 0.5


def test_looking_through_a_camera_is_the_rasterizers_picture(viewer: Viewer, avatar: Avatar) -> None:
    browser, visitor = visit(viewer)
    camera = viewer.stage.shots["cam_08"][0].camera
    expected = to_bytes(avatar.render(camera, avatar.pose(5)))
    browser.set("Look", "cam_08")
    settle(viewer, browser)
    drawn = to_bytes(visitor.image("Picture", full=True)[0])
    left, top = (drawn.shape[1] - camera.width) // 2, (drawn.shape[0] - camera.height) // 2
    window = (slice(top, top + camera.height), slice(left, left + camera.width))
    assert 0.2 < subject(expected).mean() < 0.9
    np.testing.assert_array_equal(drawn[window], expected)
    assert psnr(browser.pixels()[window], expected) > 30
    assert abs(drawn.shape[1] / drawn.shape[0] - 200 / 160) < 0.02

    # Its photograph is this picture: no error anywhere, but where the jaw was opened.
    browser.set("Show", "Error against photograph")
    settle(viewer, browser)
    same = to_bytes(visitor.image("Error against photograph", full=True)[0])[window]
    assert same.max() <= 5
    browser.set("Jaw: open", 30.0)
    settle(viewer, browser)
    assert to_bytes(visitor.image("Error against photograph", full=True)[0])[window].max() > 50

    browser.orbit(0.2)  # whoever drags leaves the camera
    pump(viewer, browser, lambda: visitor.look.through is None)
    settle(viewer, browser)
    assert "look through a camera" in visitor.panel.status.content


def test_pose_sliders_hold_and_the_rest_follows_the_motion(viewer: Viewer, avatar: Avatar) -> None:
    browser, visitor = visit(viewer)
    columns = avatar.motion().columns
    jaw = columns["jaw_pose"].start
    browser.set("Jaw: open", 20.0)
    browser.set("Timestep", 2)
    settle(viewer, browser)
    pose, row = visitor.look.pose(avatar)
    assert pose is not None and row is None
    expected = avatar.pose(8)
    expected[jaw] = math.radians(20)
    torch.testing.assert_close(pose, expected)
    browser.set("Head: around", 30.0)
    settle(viewer, browser)
    turned, _ = visitor.look.pose(avatar)
    assert turned is not None
    moved = (turned - pose).abs() > 1e-6
    assert moved[columns["rotation"]].any() and not moved[columns["expr"]].any()
    browser.set("From this timestep", True)
    browser.set("Timestep", 0)
    settle(viewer, browser)
    pose, _ = visitor.look.pose(avatar)
    assert pose is not None
    torch.testing.assert_close(pose[columns["expr"]], avatar.pose(8)[columns["expr"]])
    torch.testing.assert_close(pose[columns["translation"]], avatar.pose(5)[columns["translation"]])
    browser.set("At rest", True)
    settle(viewer, browser)
    pose, _ = visitor.look.pose(avatar)
    assert pose is not None and not pose[columns["expr"]].any() and not pose[columns["eyes_pose"]].any()
    browser.set("Reset", True)
    settle(viewer, browser)
    assert visitor.look.pose(avatar)[1] == 0


def test_every_show_draws_and_browsers_have_cameras_of_their_own(viewer: Viewer, avatar: Avatar) -> None:
    (first, one), (_, two) = visit(viewer), visit(viewer)
    shown = {}
    for show in SHOWS:
        first.set("Show", show)
        settle(viewer, first)
        shown[show] = to_bytes(one.image(show if "Error" not in show else "Picture", full=True)[0])
    assert len({pixels.tobytes() for pixels in shown.values()}) == len(SHOWS) - 1
    camera = one.look.view().camera(*one.look.size(True))
    alpha = avatar.draw(avatar.model(0)[0], camera).alpha
    np.testing.assert_array_equal(shown["Alpha"][..., 0], to_bytes(alpha.expand(3, -1, -1))[..., 0])
    before = two.look.view()
    first.orbit(0.5)
    settle(viewer, first)
    assert np.linalg.norm(one.look.position - before.position) > 0.05
    np.testing.assert_array_equal(two.look.view().position, before.position)


def test_moving_pictures_keep_their_time() -> None:
    for fixed, each in ((0.001, 1e-8), (0.01, 4e-7), (0.03, 2e-6)):  # seconds of a picture, and of a pixel
        pace, taken = Pace(), []
        for _ in range(40):
            taken.append(fixed + each * pace.pixels)
            pace.note(round(pace.pixels), taken[-1])
        assert np.mean(taken[10:]) <= 1.1 * MOVING_FRAME


def test_key_frames_become_a_clip_and_a_file(viewer: Viewer, avatar: Avatar) -> None:
    browser, visitor = visit(viewer)
    browser.set("Seconds between", 0.2)
    browser.set("Add key frame", True)
    settle(viewer, browser)
    browser.orbit(0.4)
    browser.set("Jaw: open", 25.0)
    browser.set("Add key frame", True)
    settle(viewer, browser)
    browser.set("Name", "../up")
    browser.set("Save key frames", True)
    settle(viewer, browser)
    assert not (viewer.stage.folder / "clips").exists() and "letters" in visitor.panel.clip.message.content
    browser.set("Name", "two poses")
    browser.set("Save key frames", True)
    browser.set("Make mp4", True)
    pump(viewer, browser, lambda: visitor.panel.clip.message.content.endswith(".mp4"))
    assert {path.name for path in (viewer.stage.folder / "clips").iterdir()} == {"two poses.json", "two poses.mp4"}
    keys = KeyFrames.load(viewer.stage.folder / "clips" / "two poses.json")
    assert [frame.seconds for frame in keys.frames] == [0.0, 0.2]
    first, last = (frame.pose for frame in keys.frames)
    assert first is not None and last is not None and abs(last["jaw_pose"][0] - math.radians(25)) < 1e-6
    view_of_last = keys.frames[1].view
    assert view_of_last is not None
    np.testing.assert_allclose(view_of_last.position, visitor.look.position, atol=1e-6)


def test_clips_stay_in_their_folder(tmp_path: Path) -> None:
    for name in ("../a", "a/b", "", ".hidden", "a\0b", "x" * 200, "con\n"):
        with pytest.raises(UserError, match="letters"):
            new_file(tmp_path, name, ".mp4")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.json").write_text("{}")
    assert new_file(tmp_path, "a", ".json").name == "a_2.json"
    assert saved_key_frames(tmp_path) == ("a.json",)
    with pytest.raises(UserError, match="no key frames"):
        load_key_frames(tmp_path, "../clips/a.json")
    shutil.rmtree(tmp_path / "clips")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "clips").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        new_file(tmp_path, "a", ".mp4")


def test_what_is_saved_meanwhile_is_shown(viewer: Viewer, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "growing"
    shutil.copytree(folder, output)
    options = parse_view(["-m", str(output), "--device", "cpu"])
    browser, visitor = visit(viewer)
    viewer.stage.avatar = load_avatar(output, device="cpu")
    view.follow_training(options, viewer)
    assert viewer.stage.avatar.iteration == 7
    shutil.copytree(output / "point_cloud" / "iteration_7", output / "point_cloud" / "iteration_8")
    (output / "point_cloud" / "iteration_9").mkdir()
    (output / "point_cloud" / "iteration_9" / "point_cloud.ply").write_bytes(b"half of a fi")
    view.follow_training(options, viewer)
    assert viewer.stage.avatar.iteration == 7  # it waits until that is whole
    shutil.rmtree(output / "point_cloud" / "iteration_9")
    pictures = browser.pictures
    view.follow_training(options, viewer)
    assert viewer.stage.avatar.iteration == 8 and "iteration 8" in viewer.stage.status.headline
    pump(viewer, browser, lambda: browser.pictures > pictures)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("-s NOWHERE", "--source_path"),
        ("-t NOWHERE", "--target_path"),
        ("--iteration 5", "there are 7"),
        ("--port 0", "at least 1"),
        ("--ip no.such.host.invalid", "no address"),
    ],
)
def test_what_cannot_be_shown_is_said(
    folder: Path, more: str, word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", str(folder), "--port", str(free_port()), *more.split()]
    monkeypatch.setattr(sys, "argv", ["view.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_script(view.main)
    said = capfd.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and word in said


def test_it_plays_a_motion_that_is_not_its_own(folder: Path, tmp_path: Path) -> None:
    stage = view.open_stage(parse_view(["-m", str(folder), "--device", "cpu", "--motion", "sweep"]))
    sweep = chosen_motion(parse_render(["-m", str(folder), "--motion", "sweep"]), load_avatar(folder), "sweep")
    assert stage.rows == len(sweep.at_rate(FPS).rows) and not stage.shots
    assert np.abs(stage.avatar.motion().values.numpy() - sweep.at_rate(FPS).rows).max() < 1e-6
    for words in (["--smooth", "0.1"], ["--motion", "sweep", "-t", str(tmp_path)], ["--mapping", str(tmp_path)]):
        with pytest.raises(UserError, match="--motion"):
            parse_view(["-m", str(folder), *words])


def test_a_static_scene_is_shown_from_its_camera(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    points = 0.2 * generator.normal(size=(300, 3)) + [0.0, 0.0, 2.0]
    model = GaussianModel.from_points(points, generator.random((300, 3)), sh_degree=0, device="cpu")
    device, backend, rasterize = choose_device_and_rasterizer("cpu", "auto")
    path = tmp_path / "point_cloud" / "iteration_1" / "point_cloud.ply"
    avatar = Avatar(model, None, NoColorCalibration(), Options(), 1, path, torch.zeros(3), backend, rasterize)
    camera = Camera(torch.eye(4), 100.0, 100.0, 32.0, 24.0, 64, 48, name="first")
    for shots in ({}, {"first": {0: Shot(camera, lambda: torch.zeros(3, 48, 64))}}):
        door = Doorkeeper(listen(None, 0), None)
        viewer = Viewer(door, Stage(avatar, tmp_path, shots))
        viewer.port = door.port  # type: ignore[attr-defined]
        browser, visitor = visit(viewer, (160, 120))
        filled = (browser.pixels().sum(axis=2) > 60)[40:80, 50:110]
        assert filled.mean() > 0.5 and "Timestep" not in browser.widgets and "Jaw: open" not in browser.widgets
        if shots:
            np.testing.assert_allclose(visitor.look.position, np.zeros(3), atol=1e-6)
        for turn in (0.0, 0.2):
            browser.orbit(turn)
            settle(viewer, browser)
            browser.set("Add key frame", True)
        browser.set("Seconds between", 0.2)
        browser.set("Make mp4", True)
        pump(viewer, browser, lambda: visitor.panel.clip.message.content.endswith(".mp4"))
        viewer.close()
    assert {path.name for path in (tmp_path / "clips").iterdir()} == {"clip.mp4", "clip_2.mp4"}


def test_a_clip_that_is_not_finished_leaves_no_file(viewer: Viewer) -> None:
    browser, visitor = visit(viewer)
    for turn in (0.0, 0.3):
        browser.orbit(turn)
        settle(viewer, browser)
        browser.set("Add key frame", True)
    browser.set("Make mp4", True)
    pump(viewer, browser, lambda: visitor.panel.clip.progress.value > 0)
    viewer.close()
    clips = viewer.stage.folder / "clips"
    assert not clips.exists() or list(clips.iterdir()) == []
