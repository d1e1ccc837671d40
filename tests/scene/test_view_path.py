"""Where cameras stand: projections of the head's own landmarks, worked out here, and pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from toy_avatar import write_keys

from ops.types import Camera
from scene import Avatar, load_avatar
from scene.cameras import Viewpoint, read_cameras_json, write_cameras_json
from scene.flame.parameters import MOTION
from scene.view_path import front, load_view_path, place_of_head
from utils.errors import UserError


@pytest.fixture(scope="module")
def avatar(puppet: Path) -> Avatar:
    return load_avatar(puppet, device="cpu")


def rows_at(avatar: Avatar, rotation: object, translation: object, **more: object) -> np.ndarray:
    """[1, D] a pose of the avatar: at rest, but for these."""
    zero = {name: torch.zeros(width) for name, width in {"expr": 20, **MOTION}.items()}
    parts = {**zero, "rotation": rotation, "translation": translation, **more}
    return avatar.pose(5, **parts).double().numpy()[None]


def landmarks(avatar: Avatar, row: np.ndarray) -> dict[str, np.ndarray]:
    """World positions of parts of the posed mesh, by the head's masks."""
    own, head, flame = avatar.motion(), avatar.head, avatar.model.flame
    assert head is not None and flame is not None
    mesh = flame.from_row(own.values.new_tensor(row), own.shape, own.static_offset).double().numpy()
    names = ("left_eyeball", "right_eyeball", "lips", "nose", "face", "scalp", "left_ear", "right_ear")
    return {name: mesh[head.masks[name].numpy()] for name in names}


def pixels(camera: Camera, points: np.ndarray) -> np.ndarray:
    """[P, 2] by the pinhole formula of doc/conventions.md."""
    matrix = camera.world_to_camera.double().numpy()
    x, y, z = (points @ matrix[:3, :3].T + matrix[:3, 3]).T
    assert (z > 0.2).all()  # nothing of the head is clipped
    return np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], axis=1)


PLACES = [
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((0.4, 2.5, 0.3), (3.0, -1.0, 7.0)),  # looking backwards, tilted, far off
    ((math.pi, 0.0, 0.0), (0.0, 1.0, 0.0)),  # a world upside down
]


@pytest.mark.parametrize("rotation, translation", PLACES)
@pytest.mark.parametrize("size", [(512, 512), (300, 600), (900, 300)])
def test_in_front_of_a_face_that_is_upright_and_fills_two_thirds(
    avatar: Avatar, rotation: tuple[float, ...], translation: tuple[float, ...], size: tuple[int, int]
) -> None:
    rows = rows_at(avatar, rotation, translation)
    camera = load_view_path("front", avatar, rows, size=size).at(3.0).camera(*size)
    seen = {name: pixels(camera, points) for name, points in landmarks(avatar, rows[0]).items()}
    left, right, lips, nose = (seen[name].mean(axis=0) for name in ("left_eyeball", "right_eyeball", "lips", "nose"))
    apart = left[0] - right[0]
    assert apart > 0  # the head's left is on the right
    assert abs(left[1] - right[1]) < 0.02 * apart  # upright
    assert lips[1] - left[1] > 0.5 * apart and abs(lips[0] - nose[0]) < 0.02 * apart and lips[1] > nose[1]
    head = np.concatenate([seen[name] for name in ("face", "scalp", "left_ear", "right_ear")])
    low, high = head.min(axis=0), head.max(axis=0)
    share = (high - low) / size
    assert share.max() == pytest.approx(2 / 3, abs=0.025)
    np.testing.assert_allclose((low + high) / 2 / size, [0.5, 0.5], atol=0.02)
    # From about a metre, where faces look as they do.
    distance = np.linalg.norm(camera.center.double().numpy() - landmarks(avatar, rows[0])["nose"].mean(axis=0))
    assert 0.7 < distance < 1.2


def test_the_picture_shows_that_face(avatar: Avatar) -> None:
    rows = rows_at(avatar, (0.4, 2.5, 0.3), (3.0, -1.0, 7.0), jaw_pose=(0.2, 0, 0))
    camera = load_view_path("front", avatar, rows, size=(120, 150)).at(0.0).camera(120, 150)
    image = avatar.render(camera, torch.from_numpy(rows[0]).float())
    covered = (image[0] < 0.75).numpy()
    assert not covered[:20].any() and covered[75, 60] and covered[-1].any()  # the crown is in, the neck goes on below
    top = covered.any(axis=1).argmax()
    assert top == pytest.approx(150 / 6, abs=5)


def test_the_neck_turns_the_face_and_the_camera_goes_with_it(avatar: Avatar) -> None:
    straight, turned = (
        place_of_head(avatar, rows_at(avatar, (0, 0, 0), (0, 0, 0), neck_pose=neck))
        for neck in ((0, 0, 0), (0, 0.5, 0))
    )
    between = Rotation.from_matrix(turned.rotation @ straight.rotation.T).as_rotvec()
    np.testing.assert_allclose(between, [0, 0.5, 0], atol=0.02)


def test_a_motion_is_seen_from_its_middle(avatar: Avatar) -> None:
    """A head that turns from side to side: the camera stands before neither end."""
    rows = np.concatenate([rows_at(avatar, (0, angle, 0), (angle, 0, 0)) for angle in np.linspace(-0.6, 1.0, 9)])
    place = place_of_head(avatar, rows)
    forward = place.rotation[:, 2]
    assert math.atan2(forward[0], forward[2]) == pytest.approx(0.2, abs=1e-3)
    assert place.center[0] == pytest.approx(0.2, abs=0.03)


def test_a_small_head_is_not_clipped(avatar: Avatar) -> None:
    place = place_of_head(avatar, rows_at(avatar, (0, 0, 0), (0, 0, 0)))
    tiny = type(place)(place.center, place.rotation, place.outline / 50)
    view = front(tiny, 100, 100)
    nearest = np.linalg.norm(view.position - place.center) - tiny.outline[:, 2].max()
    assert nearest > 0.2
    assert 2 * math.tan(view.fov / 2) * np.linalg.norm(view.position - place.center) == pytest.approx(
        1.5 * np.ptp(tiny.outline[:, 1]), rel=0.05
    )


def test_an_orbit_looks_at_the_head_from_both_sides_and_comes_back(avatar: Avatar) -> None:
    rows = rows_at(avatar, (0.1, 0.7, 0), (1, 0, 0))
    path = load_view_path("orbit", avatar, rows, degrees=30, seconds=4.0)
    assert path.frames(25) == 100 and path.size == (512, 512)
    place = place_of_head(avatar, rows)

    def angles(seconds: float) -> tuple[float, float]:
        """Degrees to the camera's right and upwards, from the head."""
        arm = place.rotation.T @ (path.at(seconds).position - place.center)
        assert np.linalg.norm(arm) == pytest.approx(np.linalg.norm(path.at(0).position - place.center))
        return math.degrees(math.atan2(arm[0], arm[2])), math.degrees(math.asin(arm[1] / np.linalg.norm(arm)))

    assert angles(0.0) == pytest.approx((0, 0), abs=1e-6) and angles(4.0) == pytest.approx((0, 0), abs=1e-6)
    assert angles(1.0) == pytest.approx((30, 0), abs=1e-6) and angles(3.0) == pytest.approx((-30, 0), abs=1e-6)
    assert angles(0.5)[1] > 3  # a little up
    for seconds in (0.3, 1.0, 2.6):
        camera = path.at(seconds).camera(512, 512)
        middle = pixels(camera, place.center[None])[0]
        np.testing.assert_allclose(middle, pixels(path.at(0).camera(512, 512), place.center[None])[0], atol=1.0)
        up, here = pixels(camera, np.stack([place.center + 0.05 * place.up, place.center]))
        assert here[1] - up[1] > 5 and abs(up[0] - here[0]) < 1  # the head stands upright in the picture
    around = load_view_path("orbit", avatar, rows, degrees=180, seconds=4.0)
    behind = place.rotation.T @ (around.at(2.0).position - place.center)
    assert behind[2] < 0 and abs(behind[0]) < 1e-6


def test_a_camera_of_the_capture(avatar: Avatar, puppet: Path) -> None:
    rows = rows_at(avatar, (0, 0, 0), (0, 0, 0))
    for name in ("capture:cam_08", "capture:8", "capture:08"):
        path = load_view_path(name, avatar, rows)
        camera = path.at(0.0).camera(*path.size)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((300, 310, 52, 41))
        assert path.size == (96, 80) and camera.camera_id == "cam_08"
        np.testing.assert_allclose(camera.world_to_camera[:3, 3], [-0.3, 1.6, 3.0], atol=1e-6)
    # At another size: the same height of the world, the principal point where it was.
    wide = load_view_path("capture:4", avatar, rows, size=(400, 160)).at(0.0).camera(400, 160)
    assert (wide.fx, wide.fy, wide.cx, wide.cy) == pytest.approx((600, 620, 200 + 2 * (52 - 48), 82))
    with pytest.raises(UserError, match=f"{puppet}/cameras.json has no camera '3': it has cam_04, cam_08"):
        load_view_path("capture:3", avatar, rows)


def test_cameras_of_other_trainers(tmp_path: Path) -> None:
    """No principal point, no camera's name: the middle, and the number in the picture's name."""
    camera = Camera(torch.eye(4), 300.0, 310.0, 52.0, 41.0, 96, 80, 0, "x", "00003_07")
    write_cameras_json(tmp_path / "cameras.json", [camera])
    entries = json.loads((tmp_path / "cameras.json").read_text())
    for name in ("cx", "cy", "camera_id"):
        del entries[0][name]
    entries.append({**entries[0], "img_name": "00004_07"})
    entries.append({**entries[0], "img_name": "portrait.png", "id": 2})
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    found = read_cameras_json(tmp_path / "cameras.json")
    assert list(found) == ["07", "portrait.png"]
    assert (found["07"].cx, found["07"].cy, found["07"].fx) == (48.0, 40.0, 300.0)
    torch.testing.assert_close(found["07"].world_to_camera, torch.eye(4))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "'rotation' is not a rotation"),
        ({"rotation": [1, 2, 3]}, "'rotation' must be 3x3 finite numbers"),
        ({"position": [0, 0, math.inf]}, "'position' must be 3 finite numbers"),
        ({"fy": None}, "'fy' must be a finite number"),
        ({"width": 0}, "must be positive numbers of pixels"),
        ({"cx": "middle"}, "'cx' must be a finite number"),
        ({"img_name": None, "camera_id": None}, "neither a 'camera_id' nor an 'img_name'"),
    ],
)
def test_lists_of_cameras_that_cannot_be(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_cameras_json(tmp_path / "cameras.json", [Camera(torch.eye(4), 3.0, 3.0, 2.0, 2.0, 4, 4, 0, "x", "00003_07")])
    entries = json.loads((tmp_path / "cameras.json").read_text())
    (tmp_path / "cameras.json").write_text(json.dumps([{**entries[0], **changes}]))
    with pytest.raises(UserError, match=f"cameras.json, entry 0.*{message}"):
        read_cameras_json(tmp_path / "cameras.json")


def test_key_frames(avatar: Avatar, tmp_path: Path) -> None:
    rows = rows_at(avatar, (0, 0, 0), (0, 0, 0))
    camera = {"position": [0, 0, 1], "quaternion": [0, 1, 0, 0], "fov_degrees": 30}
    path = write_keys(tmp_path / "keys.json", {"seconds": 0, "camera": camera}, size=[64, 48], fps=12)
    found = load_view_path(str(path), avatar, rows)
    assert found.size == (64, 48) and found.fps == 12 and found.frames(12) == 1
    matrix = found.at(0.0).camera(64, 48).world_to_camera
    np.testing.assert_allclose(matrix @ torch.tensor([0.0, 0.1, 0.0, 1.0]), [0, -0.1, 1, 1], atol=1e-6)
    poses = write_keys(tmp_path / "poses.json", {"seconds": 0, "pose": {}})
    for source, message in ((str(poses), "have poses but no cameras"), ("back", "is neither front, orbit, capture:ID")):
        with pytest.raises(UserError, match=message):
            load_view_path(source, avatar, rows)


def test_a_view_and_its_camera_are_one() -> None:
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.from_numpy(Rotation.random(random_state=0).as_matrix())
    matrix[:3, 3] = torch.tensor([0.2, -0.1, 1.5])
    camera = Camera(matrix, 200.0, 190.0, 61.0, 44.0, 120, 100, camera_id="b")
    again = Viewpoint.of(camera).camera(120, 100)
    torch.testing.assert_close(again.world_to_camera, camera.world_to_camera)
    assert (again.fx, again.fy, again.cx, again.cy) == pytest.approx((200, 190, 61, 44)) and again.camera_id == "b"
