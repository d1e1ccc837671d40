"""Captures of each of the three formats, small and random, for the tests of the readers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from toy_capture import look_at

from scene.dataset import load_dataset
from scene.dataset.colmap import MODELS
from scene.flame.parameters import MOTION

WIDTH, HEIGHT = 40, 30
VERTICES, EXPRESSIONS = 7, 5


def flame(seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    """The content of a timestep's file; None takes a field out."""
    generator = np.random.default_rng(seed)
    shapes = {name: (1, width) for name, width in {**MOTION, "expr": EXPRESSIONS}.items()}
    shapes.update(shape=(4,), static_offset=(1, VERTICES, 3))
    fields = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    fields.update(changes)
    return {name: value for name, value in fields.items() if value is not None}


def frame(timestep: int, camera: int, **changes: Any) -> dict[str, Any]:
    """An entry of `frames`; None takes a field out."""
    angle = 0.5 * camera
    fields = {
        "timestep_index": timestep,
        "camera_index": camera,
        "camera_id": f"cam{camera}",
        "w": WIDTH,
        "h": HEIGHT,
        "fl_x": 50.0,
        "fl_y": 45.0,
        "cx": 17.0,
        "cy": 19.0,
        "file_path": f"images/{timestep:05d}_{camera:02d}.png",
        "transform_matrix": look_at(np.array([math.sin(angle), 0.3, math.cos(angle)])).tolist(),
        "flame_param_path": f"flame_param/{timestep:05d}.npz",
    }
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


def write_rigged(folder: Path, splits: dict[str, list[dict[str, Any]]] | None = None, **shared: Any) -> Path:
    """A capture whose timesteps are 3, 7 and 12; camera 2 is val, timestep 12 is test."""
    splits = splits or {
        "train": [frame(t, c) for t in (7, 3) for c in (0, 1)],
        "val": [frame(3, 2), frame(7, 2)],
        "test": [frame(12, 0)],
    }
    for name in ("images", "flame_param"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, frames in splits.items():
        (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": frames, **shared}))
        for entry in frames:
            if str(entry.get("file_path", "")).startswith("images/"):
                path = folder / entry["file_path"]
                Image.new("RGB", (WIDTH, HEIGHT), "white").save(path if path.suffix else f"{path}.png")
            if str(entry.get("flame_param_path", "")).startswith("flame_param/"):
                np.savez(folder / entry["flame_param_path"], **flame(entry.get("timestep_index", 0)))
    np.savez(folder / "canonical_flame_param.npz", **flame(100))
    return folder


def load(folder: Path, **options: Any) -> Any:
    return load_dataset(folder, **{"bind_to_mesh": True, "eval_split": True, "white_background": True, **options})


def project(camera: Any, point: np.ndarray) -> np.ndarray:
    x, y, z, _ = camera.world_to_camera.double().numpy() @ [*point, 1.0]
    assert z > 0
    return np.array([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy])


# ---- COLMAP

CAMERAS = (f"1 SIMPLE_PINHOLE {WIDTH} {HEIGHT} 50 17 19", f"2 PINHOLE {WIDTH} {HEIGHT} 50 45 17 19")
# name, camera, quaternion wxyz, translation: a quarter turn about y, and the identity
POSES = [
    ("b.png", 1, (math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0), (0.1, 0.2, 3.0)),
    ("a.png", 2, (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 2.0)),
]
POINTS = [((0.5, -0.25, 1.5), (255, 0, 51)), ((1.0, 2.0, 3.0), (0, 255, 0))]


def write_colmap(
    folder: Path,
    kind: str,  # "bin" or "txt"
    poses: list[tuple] = POSES,
    points: list[tuple] = POINTS,  # position, colour
    cameras: tuple[str, ...] = CAMERAS,
    pictures: str = "images",
    scale: int = 1,  # the pictures are so many times smaller than the cameras
) -> Path:
    """A reconstruction and black pictures; every image but the first has a 2-D point, point i a track of i images."""
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    (folder / pictures).mkdir()
    for name, *_ in poses:
        Image.new("RGB", (WIDTH // scale, HEIGHT // scale)).save(folder / pictures / name)
    if kind == "txt":
        lines = ["# comment"]
        for index, (name, camera, quaternion, translation) in enumerate(poses):
            lines.append(" ".join(map(str, (index + 1, *quaternion, *translation, camera, name))))
            lines.append("1.5 2.5 -1 3.5 4.5 7" if index else "")
        (sparse / "cameras.txt").write_text("\n".join(["# comment", *cameras, ""]))
        (sparse / "images.txt").write_text("\n".join(lines) + "\n\n")
        rows = [" ".join(map(str, (i, *xyz, *rgb, 0.5, 1, 0, 2, 3))) for i, (xyz, rgb) in enumerate(points)]
        (sparse / "points3D.txt").write_text("\n".join(["# comment", *rows, ""]))
        return folder
    data = struct.pack("<Q", len(cameras))
    for number, model, width, height, *params in map(str.split, cameras):
        data += struct.pack("<iiQQ", int(number), MODELS.index(model), int(width), int(height))
        data += struct.pack(f"<{len(params)}d", *map(float, params))
    (sparse / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(poses))
    for index, (name, camera, quaternion, translation) in enumerate(poses):
        data += struct.pack("<i7di", index + 1, *quaternion, *translation, camera) + name.encode() + b"\0"
        seen = index > 0
        data += struct.pack("<Q", seen) + struct.pack("<ddq", 1.5, 2.5, -1) * seen
    (sparse / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for i, (xyz, rgb) in enumerate(points):
        data += struct.pack("<Q3d3BdQ", i, *xyz, *rgb, 0.5, i) + struct.pack("<ii", 1, 0) * i
    (sparse / "points3D.bin").write_bytes(data)
    return folder
