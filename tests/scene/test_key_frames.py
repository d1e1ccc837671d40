"""Key frames: as JSON and back, between them, nerfstudio's camera paths, and files that are neither."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import refusal
from places import ROOT
from scipy.spatial.transform import Rotation
from toy_avatar import write_keys
from toy_capture import look_at

from scene.cameras import Viewpoint
from scene.flame.parameters import row_columns
from scene.motion.key_frames import KeyFrame, KeyFrames
from utils.errors import UserError

CAMERA = {"position": [0.1, 0.2, 1.0], "quaternion": [0.0, 1.0, 0.0, 0.0], "fov_degrees": 20.0}


def viewpoint(seed: int) -> Viewpoint:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    return Viewpoint(rng.normal(size=3), rotation, rng.uniform(0.2, 1.0), (0.1, -0.05), 1.02, "cam_3")


def assert_same_view(a: Viewpoint, b: Viewpoint, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(a.position, b.position, atol=tolerance)
    np.testing.assert_allclose(a.rotation, b.rotation, atol=tolerance)
    np.testing.assert_allclose([a.fov, *a.shift, a.stretch], [b.fov, *b.shift, b.stretch], atol=tolerance)
    assert a.camera_id == b.camera_id


def test_saved_and_read_again(tmp_path: Path) -> None:
    poses = [{"expr": np.array([0.5, 1.0]), "jaw_pose": np.array([0.3, 0, 0])}, {}, {"eyes_pose": np.arange(6.0)}]
    frames = tuple(KeyFrame(1.5 * i, viewpoint(i), poses[i]) for i in range(3))
    KeyFrames(frames, (640, 480), 30.0).save(tmp_path / "keys.json")
    again = KeyFrames.load(tmp_path / "keys.json")
    assert again.size == (640, 480) and again.fps == 30.0 and again.seconds == 3.0
    for before, after in zip(frames, again.frames):
        assert before.seconds == after.seconds
        assert before.view is not None and after.view is not None and before.pose is not None and after.pose is not None
        assert_same_view(before.view, after.view)
        assert before.pose.keys() == after.pose.keys()
        assert all(np.array_equal(before.pose[name], after.pose[name]) for name in before.pose)


def test_at_the_key_frames_it_is_them_and_between_it_is_smooth() -> None:
    times = (0.0, 1.0, 1.5, 4.0)
    keys = KeyFrames(tuple(KeyFrame(t, viewpoint(i)) for i, t in enumerate(times)))
    view = keys.views()
    for frame in keys.frames:
        assert frame.view is not None
        assert_same_view(view(frame.seconds), frame.view)
    assert_same_view(view(-5.0), view(0.0))
    assert_same_view(view(9.0), view(4.0))
    # No jump in speed where one piece ends and the next begins: the two one-sided differences agree.
    step = 1e-4
    for moment in times[1:-1]:
        before, here, after = (view(moment + s) for s in (-step, 0.0, step))
        speed = np.abs((after.position - here.position) - (here.position - before.position)).max() / step
        spin = np.abs((after.rotation - here.rotation) - (here.rotation - before.rotation)).max() / step
        assert speed < 0.02 and spin < 0.02
        assert np.abs(after.position - here.position).max() / step > 0.1  # it does move


def test_two_key_frames_are_an_even_turn() -> None:
    """Around the axis between them, at one speed, in a straight line."""
    turn = np.array([0.0, 1.2, 0.0])
    ends = [Viewpoint(np.array([x, 0.0, 1.0]), Rotation.from_rotvec(x * turn).as_matrix(), 0.4) for x in (0.0, 1.0)]
    view = KeyFrames((KeyFrame(0.0, ends[0]), KeyFrame(2.0, ends[1]))).views()
    for share in (0.25, 0.5, 0.9):
        between = view(2.0 * share)
        np.testing.assert_allclose(between.position, [share, 0.0, 1.0], atol=1e-9)
        np.testing.assert_allclose(between.rotation, Rotation.from_rotvec(share * turn).as_matrix(), atol=1e-9)


def test_catmull_rom_at_even_times() -> None:
    """The textbook's weights at the middle of a piece: -1/16, 9/16, 9/16, -1/16."""
    views = [viewpoint(i) for i in range(4)]
    middle = KeyFrames(tuple(KeyFrame(float(i), v) for i, v in enumerate(views))).views()(1.5)
    wanted = sum(w * v.position for w, v in zip((-1 / 16, 9 / 16, 9 / 16, -1 / 16), views))
    np.testing.assert_allclose(middle.position, wanted, atol=1e-9)


def test_poses_are_laid_out_as_rows() -> None:
    columns = row_columns(4)
    rest = np.arange(columns["translation"].stop, dtype=np.float64)
    frames = (KeyFrame(0.0, pose={"expr": np.array([9.0])}), KeyFrame(1.0, pose={"translation": np.array([1.0, 2, 3])}))
    rows = KeyFrames(frames).motion(rest, columns, 4.0).rows
    assert len(rows) == 5 and rows[0, 0] == 9.0 and np.array_equal(rows[0, 1:4], rest[1:4])
    np.testing.assert_allclose(rows[-1, columns["translation"]], [1, 2, 3])
    with pytest.raises(UserError, match="5 values of 'expr'"):
        KeyFrames((KeyFrame(0.0, pose={"expr": np.zeros(5)}),)).motion(rest, columns, 4.0)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "doc" / "motion.md").read_text(encoding="utf-8").partition("## Key frames\n")[2]
    (tmp_path / "keys.json").write_text(re.search(r"\{.*?\}\]\}", text, re.DOTALL)[0])
    keys = KeyFrames.load(tmp_path / "keys.json")
    assert keys.seconds == 2.0 and keys.has_views and keys.has_poses
    for seconds in (0.0, 2.0):  # the cameras look at the head, which is at the origin
        x, y, z, _ = keys.views()(seconds).camera(512, 512).world_to_camera @ torch.tensor([0.0, 0.0, 0.0, 1.0])
        assert z > 0.9 and max(abs(x), abs(y)) < 0.03


# ---- nerfstudio -----------------------------------------------------------------


def camera_path(poses: list[np.ndarray], **more: Any) -> dict[str, Any]:
    """As nerfstudio's viewer exports it: key frames for itself, and every frame of the path."""
    frames = [{"camera_to_world": pose.flatten().tolist(), "fov": 40.0, "aspect": 16 / 9} for pose in poses]
    keys = [{"matrix": pose.flatten().tolist(), "fov": 40.0, "aspect": 1.0} for pose in poses[::2]]
    return {
        "default_fov": 75.0,
        "default_transition_sec": 2.0,
        "keyframes": keys,
        "camera_type": "perspective",
        "render_height": 360,
        "render_width": 640,
        "fps": 10.0,
        "seconds": 0.4,
        "is_cycle": False,
        "smoothness_value": 0.0,
        "camera_path": frames,
        "crop": None,
        **more,
    }


def test_a_camera_path_of_nerfstudio(tmp_path: Path) -> None:
    angles = 0.2 * np.arange(5)
    poses = [look_at(2.0 * np.array([math.sin(a), 0.2, math.cos(a)])) for a in angles]
    (tmp_path / "path.json").write_text(json.dumps(camera_path(poses)))
    keys = KeyFrames.load(tmp_path / "path.json")
    assert keys.size == (640, 360) and keys.fps == 10.0 and keys.seconds == pytest.approx(0.4)
    view = keys.views()
    for i, pose in enumerate(poses):
        camera = view(i / 10).camera(640, 360)
        np.testing.assert_allclose(camera.center.numpy(), pose[:3, 3], atol=1e-6)
        # A point above and to the right of the middle, in OpenGL axes, at 40 degrees of height.
        point = pose @ [0.3, 0.2, -2.0, 1.0]
        x, y, z, _ = camera.world_to_camera.numpy() @ point
        focal = 180 / math.tan(math.radians(20))
        np.testing.assert_allclose(
            [camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy],
            [320 + focal * 0.15, 180 - focal * 0.1],
            atol=1e-3,
        )
    # Without a rate, the time that it is to take.
    content = camera_path(poses, seconds=2.0)
    del content["fps"]
    (tmp_path / "slow.json").write_text(json.dumps(content))
    assert KeyFrames.load(tmp_path / "slow.json").seconds == pytest.approx(2.0)


# ---- bad files ------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries, message",
    [
        ([], "must be a list of 1 to"),
        (["front"], "key frame 0 must be a JSON object"),
        ([{"seconds": 1.0, "camera": CAMERA}], "first key frame must be at 0 seconds"),
        ([{"seconds": 0, "camera": CAMERA}] * 2, "key frame 1 must be later"),
        ([{"seconds": 0, "camera": CAMERA}, {"seconds": 1e9, "camera": CAMERA}], "at most a day"),
        ([{"seconds": 0, "camera": CAMERA}, {"seconds": 1}], "key frame 1 has no 'camera'"),
        ([{"seconds": 0}], "neither 'camera' nor 'pose'"),
        ([{"seconds": "0", "camera": CAMERA}], "'seconds' must be a finite number"),
        ([{"seconds": 0, "camera": {**CAMERA, "position": [0, 0]}}], "'position' must be 3 finite numbers"),
        ([{"seconds": 0, "camera": {**CAMERA, "position": [0, 0, math.nan]}}], "'position' must be 3 finite numbers"),
        ([{"seconds": 0, "camera": {**CAMERA, "quaternion": [0, 0, 0, 0]}}], "'quaternion' must have length 1"),
        ([{"seconds": 0, "camera": {**CAMERA, "fov_degrees": 180}}], "'fov_degrees' must be a vertical field of view"),
        ([{"seconds": 0, "camera": {**CAMERA, "stretch": 0}}], "'stretch' must be a number from"),
        ([{"seconds": 0, "camera": {**CAMERA, "camera_id": 3}}], "'camera_id' must be a name"),
        ([{"seconds": 0, "camera": [1, 2]}], "'camera' must be a JSON object"),
        ([{"seconds": 0, "pose": {"jaw": [0, 0, 0]}}], "'pose' must be a JSON object with some of expr, rotation"),
        ([{"seconds": 0, "pose": {"jaw_pose": [0, 0]}}], "'jaw_pose' must be 3 finite numbers"),
        ([{"seconds": 0, "pose": {"expr": [[1]]}}], "'expr' must be 1 finite numbers"),
        ([{"seconds": 0, "pose": {"expr": [0.0] * 2000}}], "2000 values, more than any head model"),
    ],
)
def test_key_frames_that_cannot_be(tmp_path: Path, entries: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=f"keys.json.*{message}"):
        KeyFrames.load(write_keys(tmp_path / "keys.json", *entries))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"camera_path": []}, "'camera_path' must be a list of 1 to"),
        ({"camera_type": "fisheye"}, "'camera_type' is 'fisheye', only 'perspective'"),
        ({"fps": 0}, "'fps' must be a number from"),
        ({"camera_path": [{"camera_to_world": [0.0] * 12, "fov": 40}]}, "camera 0, 'camera_to_world' must be 4x4"),
        ({"camera_path": [{"camera_to_world": [1.0] * 16, "fov": 40}]}, "'camera_to_world' is not a rotation"),
        ({"camera_path": [{"camera_to_world": np.eye(4).tolist(), "fov": -1}]}, "camera 0, 'fov' must be"),
        ({"render_width": 10**9}, "'render_width' must be a width and a height"),
    ],
)
def test_camera_paths_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "path.json").write_text(json.dumps(camera_path([np.eye(4)] * 2, **changes)))
    with pytest.raises(UserError, match=f"path.json.*{message}"):
        KeyFrames.load(tmp_path / "path.json")


def test_files_of_another_kind(tmp_path: Path) -> None:
    for text, message in (
        ("{", "JSON syntax error"),
        ("[]", "must hold a JSON object"),
        ('{"frames": []}', "holds neither key frames"),
        ('{"format": "head avatar key frames", "version": 2, "key_frames": []}', "version 1"),
    ):
        (tmp_path / "keys.json").write_text(text)
        with pytest.raises(UserError, match=message):
            KeyFrames.load(tmp_path / "keys.json")


def test_many_key_frames_are_refused_quickly(tmp_path: Path) -> None:
    entry = '{"seconds":0},' * 200_000
    text = f'{{"format": "head avatar key frames", "version": 1, "key_frames": [{entry}0]}}'
    (tmp_path / "keys.json").write_text(text)
    assert "must be a list of 1 to 100,000" in refusal(lambda: KeyFrames.load(tmp_path / "keys.json"))
