"""Reader of static Blender / NeRF-synthetic scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyParseError

from scene.dataset_common import Dataset, View, scene_extent
from scene.dataset_transforms import read_frames
from utils.errors import UserError

RANDOM_POINTS = 100_000
RANDOM_REACH = 1.3   # scene units; the objects of NeRF-synthetic lie within +-1.3


def read_blender(source: Path, *, eval_split: bool, background: tuple[float, float, float], resolution: float,
                 seed: int) -> Dataset:
    """The scene in `source` (absolute): `transforms_train.json`, and `_val` and `_test` where they exist.

    Raises:
        UserError: anything in the files that is not as it must be.
    """
    splits: dict[str, list[View]] = {}
    for split in ("train", "val", "test"):
        frames = read_frames(source / f"transforms_{split}.json")
        splits[split] = [frame.view(source, resolution, 0)[0] for frame in frames]
    if not splits["train"]:
        raise UserError(f"{source / 'transforms_train.json'} has no frames")
    if not eval_split:
        splits = {"train": splits["train"] + splits["val"] + splits["test"], "val": [], "test": []}
    points_file = source / "points3d.ply"
    points, colors = read_points(points_file) if points_file.exists() else random_points(seed)
    return Dataset(**splits, extent=scene_extent(splits["train"]), background=background, points=points, colors=colors)


def random_points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """100,000 grey points, uniform in a cube around the origin: [P, 3] positions, [P, 3] RGB 0..1."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-RANDOM_REACH, RANDOM_REACH, (RANDOM_POINTS, 3)).astype(np.float32)
    return points, np.full_like(points, 0.5)


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[P, 3] positions and [P, 3] RGB 0..1 (grey where the file has no colours) of a PLY point cloud.

    Raises:
        UserError: not a PLY file, one that announces more than it holds, or without finite x, y, z.
    """
    try:
        size = path.stat().st_size
        announced = _announced(path)
        if announced > size:  # every row takes at least a byte; plyfile would allocate first
            raise UserError(f"{path} announces {announced} rows but has only {size} bytes")
        vertices = PlyData.read(str(path))["vertex"]
        points = np.stack([np.asarray(vertices[axis], dtype=np.float32) for axis in "xyz"], axis=1)
    except (PlyParseError, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        raise UserError(f"{path} is not a readable PLY point cloud with x, y and z: {error}") from error
    if not len(points) or not np.isfinite(points).all():
        raise UserError(f"{path} must hold at least one point, and only finite positions")
    names = {item.name for item in vertices.properties}
    if not {"red", "green", "blue"} <= names:
        return points, np.full_like(points, 0.5)
    channels = np.stack([np.asarray(vertices[channel]) for channel in ("red", "green", "blue")], axis=1)
    full = 255.0 if channels.dtype.kind in "iu" else 1.0
    return points, np.clip(np.nan_to_num(channels.astype(np.float32) / full), 0.0, 1.0)


def _announced(path: Path) -> int:
    """The largest number of rows that the header announces for an element; `ValueError` if there is no header."""
    with open(path, "rb") as file:
        header = file.read(1 << 16).split(b"end_header", 1)
    if len(header) != 2:
        raise ValueError("no end_header in the first 64 KiB")
    lines = [line.split() for line in header[0].splitlines()]
    return max([int(words[2]) for words in lines if words[:1] == [b"element"] and len(words) == 3], default=0)
