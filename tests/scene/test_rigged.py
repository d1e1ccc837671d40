"""Rigged captures: projection of known points, splits, timesteps, and every mistake such a data set can contain."""

from __future__ import annotations

import json
import math
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import CAPTURE
from toy_datasets import EXPRESSIONS, HEIGHT, VERTICES, WIDTH, flame, frame, load, project, write_rigged

from scene.dataset import training_size
from utils.errors import UserError


def test_splits_timesteps_and_motion(tmp_path: Path) -> None:
    data = load(write_rigged(tmp_path))
    assert [len(data.train), len(data.val), len(data.test)] == [4, 2, 1]
    assert data.timesteps == [3, 7, 12]
    assert [(v.timestep_index, v.camera.timestep) for v in data.train] == [(7, 1), (7, 1), (3, 0), (3, 0)]
    assert data.test[0].camera.timestep == 2
    assert data.train[1].camera.camera_id == "cam1" and data.train[1].camera.name == "00007_01"
    assert data.background == (1.0, 1.0, 1.0) and data.points is None
    for row, timestep in enumerate(data.timesteps):
        for name in ("expr", "eyes_pose", "translation", "jaw_pose", "neck_pose", "rotation"):
            np.testing.assert_array_equal(data.flame[name][row], flame(timestep)[name][0])
    np.testing.assert_array_equal(data.flame["shape"], flame(3)["shape"])
    np.testing.assert_array_equal(data.flame["static_offset"], flame(3)["static_offset"][0])
    assert all(value.dtype == np.float32 for value in data.flame.values()) and "dynamic_offset" not in data.flame
    assert not load(tmp_path, white_background=False).background[0]


def test_without_eval_everything_is_trained_on(tmp_path: Path) -> None:
    data = load(write_rigged(tmp_path), eval_split=False)
    assert [len(data.train), len(data.val), len(data.test)] == [7, 0, 0]


def test_known_point_lands_on_known_pixel(tmp_path: Path) -> None:
    # Camera on +z at distance 2, looking at the origin: OpenGL x is image x, OpenGL y is up.
    matrix = np.eye(4)
    matrix[2, 3] = 2.0
    write_rigged(tmp_path, {"train": [frame(0, 0, transform_matrix=matrix.tolist()), frame(0, 1)]})
    camera = load(tmp_path).train[0].camera
    expected = [17.0 + 50.0 * 0.1 / 1.5, 19.0 - 45.0 * 0.2 / 1.5]
    np.testing.assert_allclose(project(camera, np.array([0.1, 0.2, 0.5])), expected, rtol=1e-6)
    twice = load(tmp_path, resolution=80).train[0].camera
    assert (twice.width, twice.height) == (80, 60)
    np.testing.assert_allclose(project(twice, np.array([0.1, 0.2, 0.5])), np.array(expected) * 2, rtol=1e-6)
    np.testing.assert_allclose(camera.center.numpy(), [0, 0, 2], atol=1e-6)


def test_intrinsics_of_the_file_and_field_of_view(tmp_path: Path) -> None:
    bare = dict(fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None)
    frames = [
        frame(0, 0, **bare),
        frame(0, 1, **bare, camera_angle_x=1.0),
        frame(0, 2, **{**bare, "fl_x": 33.0}),
        frame(0, 3, **{**bare, "cx": 21.5}),
    ]
    data = load(write_rigged(tmp_path, {"train": frames}, fl_x=60.0, fl_y=61.0, cx=11.0, w=WIDTH, h=HEIGHT))
    got = [(v.camera.fx, v.camera.fy, v.camera.cx, v.camera.cy) for v in data.train]
    angle = 20.0 / math.tan(0.5)
    np.testing.assert_allclose(got, [(60, 61, 11, 15), (angle, angle, 11, 15), (33, 33, 11, 15), (60, 61, 21.5, 15)])
    data = load(write_rigged(tmp_path, {"train": [frame(0, 0, **bare)]}, camera_angle_x=1.0))  # size from the header
    camera = data.train[0].camera
    assert (camera.width, camera.height) == (WIDTH, HEIGHT)
    np.testing.assert_allclose((camera.fx, camera.fy, camera.cx, camera.cy), (angle, angle, 20, 15))


def test_image_extension_may_be_missing_or_another(tmp_path: Path) -> None:
    write_rigged(tmp_path, {"train": [frame(0, 0, file_path="images/00000_00"), frame(0, 1, file_path="images/a.jpg")]})
    assert [v.image_path.name for v in load(tmp_path).train] == ["00000_00.png", "a.jpg"]


def test_merged_set_points_into_siblings_and_nowhere_else(tmp_path: Path) -> None:
    write_rigged(tmp_path / "one")
    union = tmp_path / "union"
    frames = [frame(0, 0, file_path="../one/images/00003_00.png", flame_param_path="../one/flame_param/00003.npz")]
    write_rigged(union, {"train": frames})
    data = load(union)
    assert data.train[0].image_path.samefile(tmp_path / "one/images/00003_00.png")
    np.testing.assert_array_equal(data.flame["expr"][0], flame(3)["expr"][0])
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(union)  # `..` means what the operating system takes it for
    assert len(load(link).train) == 1
    write_rigged(union, {"train": [frame(0, 0)]})
    for key, path in [
        ("file_path", "../../secret.png"),
        ("file_path", str(tmp_path.parent / "x.png")),
        ("flame_param_path", "../../secret.npz"),
        ("fg_mask_path", "images/../../../m.png"),
        ("file_path", "images/\0.png"),
        ("file_path", "\ud800"),
        ("file_path", 3),
    ]:
        (union / "transforms_train.json").write_text(json.dumps({"frames": [frame(0, 0, **{key: path})]}))
        with pytest.raises(UserError, match=key):
            load(union)


def test_flame_file_is_read_once_per_timestep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scene.dataset.rigged as module

    read = []
    original = module.read_npz
    monkeypatch.setattr(module, "read_npz", lambda path, names: read.append(path.name) or original(path, names))
    load(write_rigged(tmp_path))
    assert sorted(read) == ["00003.npz", "00007.npz", "00012.npz"]


def test_dynamic_offset_and_canonical_fallback(tmp_path: Path) -> None:
    write_rigged(tmp_path)
    offset = np.full((1, VERTICES, 3), 2.0, np.float32)
    np.savez(tmp_path / "flame_param/00003.npz", **flame(3, shape=None, static_offset=None))
    np.savez(tmp_path / "flame_param/00007.npz", **flame(7, dynamic_offset=offset))
    data = load(tmp_path)
    assert data.flame["dynamic_offset"].shape == (3, VERTICES, 3)
    assert data.flame["dynamic_offset"].sum(axis=(1, 2)).tolist() == [0.0, 2.0 * VERTICES * 3, 0.0]
    np.testing.assert_array_equal(data.flame["shape"], flame(100)["shape"])


def test_target_brings_motion_and_cameras_but_not_the_person(tmp_path: Path) -> None:
    write_rigged(tmp_path / "me")
    write_rigged(tmp_path / "you", {"train": [frame(40, 5)], "test": [frame(41, 6)]})
    shutil.rmtree(tmp_path / "me/images")  # reenactment needs none of them
    data = load(tmp_path / "me", target=tmp_path / "you")
    assert data.timesteps == [40, 41] and data.train[0].camera_index == 5
    np.testing.assert_array_equal(data.flame["expr"][1], flame(41)["expr"][0])
    np.testing.assert_array_equal(data.flame["shape"], flame(3)["shape"])
    np.testing.assert_array_equal(data.flame["static_offset"], flame(3)["static_offset"][0])


def test_select_camera_and_extent(tmp_path: Path) -> None:
    data, chosen = load(write_rigged(tmp_path)), load(tmp_path, select_camera_id=2)
    assert [len(chosen.train), len(chosen.val), len(chosen.test)] == [0, 2, 0]
    centers = np.array([[math.sin(a), 0.3, math.cos(a)] for a in (0.0, 0.5)])
    assert data.extent == pytest.approx(1.1 * np.linalg.norm(centers[0] - centers[1]) / 2, rel=1e-5)
    assert chosen.extent == data.extent
    with pytest.raises(UserError, match="--select_camera_id 9"):
        load(tmp_path, select_camera_id=9)
    assert load(write_rigged(tmp_path / "mono", {"train": [frame(0, 0), frame(1, 0)]})).extent == 1.0


def test_transforms_json_alone_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rigged(tmp_path, {"train": [frame(0, 0)]})
    (tmp_path / "transforms_train.json").rename(tmp_path / "transforms.json")
    assert len(load(tmp_path).train) == 1
    assert "transforms.json" in capsys.readouterr().err
    (tmp_path / "transforms_val.json").write_text('{"frames": []}')  # now transforms.json would leak the val frames
    with pytest.raises(UserError, match="transforms_train.json does not exist"):
        load(tmp_path)


def test_files_under_another_extension_are_found(tmp_path: Path) -> None:
    write_rigged(tmp_path, {"train": [frame(0, 0, fg_mask_path="fg/0"), frame(0, 1, fg_mask_path="fg/1.png")]})
    (tmp_path / "fg").mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "fg/0.png")  # the JSON names no extension
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "fg/1.jpg")  # re-encoded
    image = tmp_path / "images/00000_01.png"
    Image.open(image).save(image.with_suffix(".jpg"))
    image.unlink()
    views = load(tmp_path).train
    assert [v.mask_path.name for v in views] == ["0.png", "1.jpg"]
    assert [v.image_path.name for v in views] == ["00000_00.png", "00000_01.jpg"]


def test_missing_masks_are_noted_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rigged(tmp_path, {"train": [frame(0, 0, fg_mask_path="fg/0.png"), frame(0, 1, fg_mask_path="fg/1.png")]})
    (tmp_path / "fg").mkdir()
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "fg/1.png")
    assert [v.mask_path is not None for v in load(tmp_path).train] == [False, True]
    assert "note: 1 of the masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("flame_param_path", None, "frame 1, 'flame_param_path' is missing"),
        ("flame_param_path", "flame_param/00003.npz", "another frame of timestep 0"),
        ("timestep_index", None, "frame 1, 'timestep_index' is missing"),
        ("timestep_index", 1.5, "whole number"),
        ("timestep_index", True, "finite number"),
        ("file_path", None, "frame 1, 'file_path' is missing"),
        ("file_path", "elsewhere/x.png", "x.png does not exist"),
        ("transform_matrix", None, "'transform_matrix' must be 4x4"),
        ("transform_matrix", [[1, 2], [3]], "'transform_matrix' must be 4x4"),
        ("transform_matrix", [[math.nan] * 4] * 4, "'transform_matrix' must be 4x4 finite"),
        ("transform_matrix", np.diag([1, 1, -1, 1]).tolist(), "not a rotation"),
        ("transform_matrix", np.zeros((4, 4)).tolist(), "not a rotation"),
        ("fl_x", 0, "must be positive"),
        ("fl_x", "50", "'fl_x' must be a finite number"),
        ("fl_y", 10**400, "'fl_y' must be a finite number"),
        ("cx", math.inf, "'cx' must be a finite number"),
        ("w", -4, "image size"),
        ("h", 10**8, "image size"),
        ("k1", 0.1, "'k1' is a lens distortion"),
    ],
)
def test_bad_frames(tmp_path: Path, key: str, value: Any, message: str) -> None:
    write_rigged(tmp_path, {"train": [frame(0, 0), frame(0, 1)]})
    np.savez(tmp_path / "flame_param/00003.npz", **flame(3))
    frames = [frame(0, 0), frame(0, 1, **{key: value})]
    (tmp_path / "transforms_train.json").write_text(json.dumps({"frames": frames}))
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_missing_flame_file(tmp_path: Path) -> None:
    write_rigged(tmp_path)
    (tmp_path / "flame_param/00007.npz").unlink()
    with pytest.raises(UserError, match="00007.npz does not exist"):
        load(tmp_path)


def test_neither_focal_length_nor_angle(tmp_path: Path) -> None:
    write_rigged(tmp_path, {"train": [frame(0, 0, fl_x=None)]})
    with pytest.raises(UserError, match="'fl_x' and 'camera_angle_x' are both missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        (b'{"frames": [\n  {"a": }]}', "line 2, column 9: JSON syntax error"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"frames": ' + b'{"a":' * 100_000, "nested too deeply"),
        (b"[]", "must hold a JSON object"),
        (b"{}", "no list 'frames'"),
        (b'{"frames": {}}', "no list 'frames'"),
        (b'{"frames": []}', "has no frames"),
        (b'{"frames": [7]}', "frame 0 must be a JSON object"),
        (b'{"frames": "\xff"}', "not a readable JSON"),
        (b'{"frames": ' + b"9" * 5000 + b"}", "not a readable JSON"),
    ],
)
def test_bad_json(tmp_path: Path, text: bytes, message: str) -> None:
    write_rigged(tmp_path)
    (tmp_path / "transforms_train.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


NAN_OFFSET = np.zeros((1, VERTICES, 3), np.float32)
NAN_OFFSET[0, 2, 1] = np.nan


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"expr": np.full((1, EXPRESSIONS), np.nan)}, "'expr' holds NaN"),
        ({"translation": np.array([[1.0, 1e300, 0.0]])}, "'translation' holds NaN or infinite"),
        ({"static_offset": NAN_OFFSET}, "'static_offset' holds NaN"),
        ({"jaw_pose": None}, "has no 'jaw_pose'"),
        ({"expr": None}, "has no 'expr'"),
        ({"expr": np.zeros((1, 4))}, "'expr' has 4 coefficients, but"),
        ({"eyes_pose": np.zeros((1, 3))}, "'eyes_pose' has the shape"),
        ({"rotation": np.zeros((3, 3))}, "'rotation' has the shape"),
        ({"expr": np.zeros((1, 0))}, "'expr' has the shape"),
        ({"static_offset": np.zeros((1, VERTICES))}, "'static_offset' has the shape"),
        ({"static_offset": np.zeros((2, VERTICES, 3))}, "'static_offset' has the shape"),
        ({"neck_pose": np.array([["a", "b", "c"]])}, "instead of numbers"),
        ({"neck_pose": np.array([{"a": 1}] * 3, dtype=object)}, "instead of numbers"),
    ],
)
def test_bad_flame_fields(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_rigged(tmp_path)
    np.savez(tmp_path / "flame_param/00007.npz", **flame(7, **changes))
    with pytest.raises(UserError, match=f"00007.npz.*{message}"):
        load(tmp_path)


def test_bad_npz_files(tmp_path: Path) -> None:
    write_rigged(tmp_path)
    path = tmp_path / "flame_param/00007.npz"
    whole = path.read_bytes()
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("expr.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("expr.npy", bytes(70 << 20))
    for content, message in [
        (whole[:200], "not a readable .npz"),
        (b"", "not a readable .npz"),
        (whole[:600] + b"xxxxxxxx" + whole[608:], "not a readable .npz"),
        ((tmp_path / "huge.npz").read_bytes(), "announced as"),
        ((tmp_path / "bomb.npz").read_bytes(), "larger than 64 MiB"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"00007.npz.*{message}"):
            load(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot read .*00007.npz"):
        load(tmp_path)


def test_dispatch_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--source_path .*gone is not a folder"):
        load(tmp_path / "gone")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="neither canonical_flame_param.npz .*sparse/0.*transforms_train.json"):
        load(empty, bind_to_mesh=False)
    with pytest.raises(UserError, match="not a rigged capture: it has no canonical_flame_param.npz"):
        load(empty)
    rigged = write_rigged(tmp_path / "rigged")
    with pytest.raises(UserError, match="add --bind_to_mesh"):
        load(rigged, bind_to_mesh=False)
    with pytest.raises(UserError, match="--target_path .*empty is not a rigged capture"):
        load(rigged, target=empty)
    with pytest.raises(UserError, match="--target_path .*needs --bind_to_mesh"):
        load(rigged, bind_to_mesh=False, target=rigged)
    with pytest.raises(UserError, match="--select_camera_id .*needs --bind_to_mesh"):
        load(empty, bind_to_mesh=False, select_camera_id=1)


def test_resolution_rule() -> None:
    assert training_size(802, 550, -1) == (802, 550)
    assert training_size(3208, 2200, -1) == (1600, round(2200 * 1600 / 3208))
    assert training_size(3208, 2200, 4) == (802, 550)
    assert training_size(3208, 2200, 1) == (3208, 2200)
    assert training_size(3208, 2200, 400) == (400, round(2200 * 400 / 3208))
    assert training_size(64, 100, 2) == (32, 50)
    assert training_size(3, 2, 1) == training_size(3, 2, 3) == (3, 2)  # small already
    for small in (3, 8):
        with pytest.raises(UserError, match=f"--resolution {small} would train 120x160 images at .* the width"):
            training_size(120, 160, small)
    for bad in (0, -2, 0.5, math.nan, math.inf, 1e9):
        with pytest.raises(UserError, match="--resolution"):
            training_size(100, 100, bad)


def test_real_capture() -> None:
    source = CAPTURE
    if not source.exists():
        pytest.skip("the shared capture is not here")
    data = load(source)
    assert [len(data.train), len(data.val), len(data.test)] == [500, 50, 30]
    assert data.timesteps == list(range(60)) and data.flame["static_offset"].shape == (5389, 3)
