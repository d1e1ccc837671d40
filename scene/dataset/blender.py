"""Reader of static Blender / NeRF-synthetic scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scene.dataset.common import LARGEST_POSITION, Dataset, scene_extent, training_splits
from scene.dataset.transforms import read_frames
from scene.ply import read_vertices
from utils.errors import UserError

RANDOM_POINTS = 100_000
RANDOM_REACH = 1.3  # scene units; the objects of NeRF-synthetic lie within +-1.3


def read_blender(
    source: Path, *, eval_split: bool, background: tuple[float, float, float], resolution: float, seed: int
) -> Dataset:
    """The scene in `source` (absolute): `transforms_train.json`, and `_val` and `_test` where they exist.

    Raises:
        UserError: anything in the files that is not as it must be.
    """
    splits = {
        split: [frame.view(source, resolution, 0)[0] for frame in read_frames(source / f"transforms_{split}.json")]
        for split in ("train", "val", "test")
    }
    if not splits["train"]:
        raise UserError(f"{source / 'transforms_train.json'} has no frames")
    splits = training_splits(splits, eval_split)
    points_file = source / "points3d.ply"
    points, colors = read_points(points_file) if points_file.exists() else random_points(seed)
    extent = scene_extent(splits["train"])
    return Dataset(*splits.values(), extent=extent, background=background, points=points, colors=colors)


def random_points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """100,000 grey points, uniform in a cube around the origin: [P, 3] positions, [P, 3] RGB 0..1."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-RANDOM_REACH, RANDOM_REACH, (RANDOM_POINTS, 3)).astype(np.float32)
    return points, np.full_like(points, 0.5)


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[P, 3] positions and [P, 3] RGB 0..1 (grey where the file has no colours) of a PLY point cloud.

    Raises:
        UserError: not a PLY file, one that announces more than it holds, or without x, y, z.
    """
    vertices = read_vertices(path)
    names = vertices.dtype.names or ()
    if not {"x", "y", "z"} <= set(names) or any(vertices.dtype[axis].hasobject for axis in "xyz"):
        raise UserError(f"{path} has no numbers x, y and z, so it is not a point cloud")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, reported below
        points = np.stack([np.asarray(vertices[axis], dtype=np.float32) for axis in "xyz"], axis=1)
    if not len(points) or not (np.abs(points) < LARGEST_POSITION).all():
        raise UserError(f"{path} must hold at least one point, and only finite positions below {LARGEST_POSITION:g}")
    colored = {"red", "green", "blue"} <= set(names)
    if not colored or any(vertices.dtype[channel].hasobject for channel in ("red", "green", "blue")):
        return points, np.full_like(points, 0.5)
    channels = np.stack([np.asarray(vertices[channel]) for channel in ("red", "green", "blue")], axis=1)
    full = 255.0 if channels.dtype.kind in "iu" else 1.0
    with np.errstate(over="ignore"):
        channels = channels.astype(np.float32)
    return points, np.clip(np.nan_to_num(channels) / full, 0.0, 1.0)
