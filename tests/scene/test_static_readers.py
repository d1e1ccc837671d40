"""Blender scenes and COLMAP reconstructions: projection of known points, splits, and damaged files."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_capture import look_at
from toy_datasets import HEIGHT, POINTS, WIDTH, load, project, write_colmap

from utils.errors import UserError


def write_blender(folder: Path) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        (folder / split).mkdir(parents=True)
        frames = []
        for index in range(count):
            Image.new("RGBA", (WIDTH, HEIGHT)).save(folder / split / f"r_{index}.png")
            position = np.array([3 * math.sin(index), 2.0, 3 * math.cos(index)])
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": look_at(position).tolist()})
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))
    return folder


def test_blender(tmp_path: Path) -> None:
    data = load(write_blender(tmp_path), bind_to_mesh=False, seed=3)
    assert [len(data.train), len(data.val), len(data.test)] == [3, 0, 2] and data.flame is None
    camera = data.train[1].camera
    focal = WIDTH / 2 / math.tan(0.4)
    assert (camera.width, camera.height, camera.fx, camera.fy) == (WIDTH, HEIGHT, *[pytest.approx(focal)] * 2)
    np.testing.assert_allclose(project(camera, np.zeros(3)), [WIDTH / 2, HEIGHT / 2], atol=1e-4)
    assert data.points.shape == data.colors.shape == (100_000, 3)
    assert 1.29 < np.abs(data.points).max() <= 1.3 and abs(data.points.mean()) < 0.01
    np.testing.assert_array_equal(data.points, load(tmp_path, bind_to_mesh=False, seed=3).points)
    assert (data.points != load(tmp_path, bind_to_mesh=False, seed=4).points).any()
    assert len(load(tmp_path, bind_to_mesh=False, eval_split=False).train) == 5


def test_blender_point_cloud(tmp_path: Path) -> None:
    path = write_blender(tmp_path) / "points3d.ply"
    head = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
    color = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    path.write_text(head.format(2) + color + "end_header\n0 1 2 255 0 51\n3 4 5 0 0 0\n")
    data = load(tmp_path, bind_to_mesh=False)
    np.testing.assert_allclose(data.points, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_allclose(data.colors, [[1, 0, 0.2], [0, 0, 0]])
    path.write_text(head.format(1) + "end_header\n0 1 2\n")
    np.testing.assert_allclose(load(tmp_path, bind_to_mesh=False).colors, 0.5)
    for text in (
        head.format(10**12) + "end_header\n0 1 2\n",
        head.format(2) + "end_header\n0 1 2\n",
        head.format(1) + "end_header\n0 1 nan\n",
        "ply\n",
        "",
        head.format(0) + "end_header\n",
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="points3d.ply"):
            load(tmp_path, bind_to_mesh=False)


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_colmap(tmp_path: Path, kind: str) -> None:
    data = load(write_colmap(tmp_path, kind), bind_to_mesh=False, eval_split=False)
    assert [v.camera.name for v in data.train] == ["a", "b"]
    a, b = (v.camera for v in data.train)
    assert (a.fx, a.fy, a.cx, a.cy) == (50, 45, 17, 19) and (b.fx, b.fy) == (50, 50)
    np.testing.assert_allclose(project(a, np.array([0.1, 0.2, 0.0])), [17 + 50 * 0.05, 19 + 45 * 0.1], rtol=1e-6)
    # A quarter turn about y takes (x, y, z) to (z, y, -x).
    np.testing.assert_allclose(
        project(b, np.array([0.5, 0.2, 0.3])), [17 + 50 * 0.4 / 2.5, 19 + 50 * 0.4 / 2.5], rtol=1e-6
    )
    np.testing.assert_allclose(data.points, [xyz for xyz, _ in POINTS])
    np.testing.assert_allclose(data.colors, [[1, 0, 0.2], [0, 1, 0]])
    assert data.extent == pytest.approx(1.1 * np.linalg.norm(a.center.numpy() - b.center.numpy()) / 2, rel=1e-5)


def test_colmap_holds_out_every_eighth(tmp_path: Path) -> None:
    poses = [(f"{i:02d}.png", 1, (1.0, 0.0, 0.0, 0.0), (0.1 * i, 0.0, 2.0)) for i in reversed(range(17))]
    data = load(write_colmap(tmp_path, "bin", poses), bind_to_mesh=False)
    assert [v.camera.name for v in data.test] == ["00", "08", "16"] and len(data.train) == 14


def test_colmap_reduced_pictures(tmp_path: Path) -> None:
    write_colmap(tmp_path, "bin", pictures="images_2", scale=2)
    camera = load(tmp_path, bind_to_mesh=False, images="images_2", eval_split=False).train[0].camera
    assert (camera.width, camera.height, camera.fx, camera.cx) == (WIDTH // 2, HEIGHT // 2, 25, 8.5)
    with pytest.raises(UserError, match="--images"):
        load(tmp_path, bind_to_mesh=False)
    Image.new("RGB", (WIDTH, WIDTH)).save(tmp_path / "images_2/a.png")
    with pytest.raises(UserError, match="a.png is 40x40 pixels, but COLMAP"):
        load(tmp_path, bind_to_mesh=False, images="images_2")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_damaged_colmap_binaries(tmp_path: Path, name: str) -> None:
    path = write_colmap(tmp_path, "bin") / f"sparse/0/{name}.bin"
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", struct.pack("<Q", 10**12) + whole[8:], struct.pack("<Q", 2**64 - 1)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.bin"):
            load(tmp_path, bind_to_mesh=False)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("cameras", "1 OPENCV 40 30 50 50 20 15 0 0 0 0\n", "OPENCV.*image_undistorter"),
        ("cameras", "1 PINHOLE 40 30 50\n", "cameras.txt, line 1"),
        ("cameras", "1 PINHOLE 40 30 nan 50 20 15\n", "valid size and intrinsics"),
        ("cameras", "1\n", "cameras.txt, line 1"),
        ("images", "1 1 0 0 0 0 0 2 9 a.png\n\n", "camera 9"),
        ("images", "1 0 0 0 0 0 0 2 1 a.png\n\n", "no valid pose"),
        ("images", "1 1 0 0 0 0 0 2 1 c.png\n\n", "c.png does not exist"),
        ("images", "1 1 0 0 0 0 0 2 1 ../../../c.png\n\n", "points outside"),
        ("images", "1 1 0 0\n", "images.txt, line 1"),
        ("images", "# none\n", "has no images"),
        ("points3D", "1 0 0\n", "points3D.txt, line 1"),
        ("points3D", "1 nan 0 0 1 2 3 0\n", "finite positions"),
        ("points3D", "", "at least one point"),
    ],
)
def test_bad_colmap_text(tmp_path: Path, name: str, text: str, message: str) -> None:
    (write_colmap(tmp_path, "txt") / f"sparse/0/{name}.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path, bind_to_mesh=False, eval_split=False)


def test_colmap_distorted_binary_and_missing_file(tmp_path: Path) -> None:
    write_colmap(tmp_path, "bin")
    os.remove(tmp_path / "sparse/0/points3D.bin")
    with pytest.raises(UserError, match="no points3D.bin or points3D.txt"):
        load(tmp_path, bind_to_mesh=False)
    (tmp_path / "sparse/0/cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 2, WIDTH, HEIGHT, 50, 20, 15, 0.1))
    with pytest.raises(UserError, match="SIMPLE_RADIAL.*image_undistorter"):
        load(tmp_path, bind_to_mesh=False)
