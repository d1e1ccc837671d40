"""A ball of a head, rigged, and photographs of it that are computed in closed form: for the tests of the scripts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

WIDTH, HEIGHT = 41, 36  # odd on purpose
BALL = trimesh.creation.icosphere(subdivisions=2, radius=0.1)  # 162 vertices, 320 faces
TIMESTEPS = [3, 4, 7, 9]  # neither from 0 nor without gaps; the last one is the held-out sequence
POSES = (("rotation", 3), ("neck_pose", 3), ("jaw_pose", 3), ("eyes_pose", 6), ("translation", 3))


def look_at(position: np.ndarray, target: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """[4, 4] OpenGL camera-to-world."""
    back = (position - np.asarray(target)) / np.linalg.norm(position - np.asarray(target))
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
    pose[:3, 3] = position
    return pose


def pixel_rays(
    pose: np.ndarray, size: tuple[int, int], focal: tuple[float, float], center: tuple[float, float], samples: int = 1
) -> np.ndarray:
    """[height * samples, width * samples, 3] directions in world space, of length 1 along the camera's axis."""
    x, y = ((np.arange(side * samples) + 0.5) / samples for side in size)
    across, down = np.meshgrid((x - center[0]) / focal[0], (y - center[1]) / focal[1])
    return np.stack([across, -down, -np.ones_like(across)], axis=-1) @ pose[:3, :3].T


def hit_ellipsoid(origin: np.ndarray, rays: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """[...] distance along the rays to an ellipsoid around the world's origin, infinite where they miss it."""
    start, step = origin / radii, rays / radii
    a, b, c = (step**2).sum(-1), (step @ start), start @ start - 1.0
    root = b * b - a * c
    return np.where(root >= 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


def texture(points: np.ndarray) -> np.ndarray:
    """[..., 3] RGB 0..1, a smooth pattern in the unit ball."""
    return 0.5 + 0.35 * np.sin(points * [4.0, 5.0, 3.0] + points[..., [1, 2, 0]] * [2.0, -1.0, 3.0])


def photograph(pose: np.ndarray, radii: np.ndarray, frame: dict[str, float]) -> np.ndarray:
    """[h, w, 3] uint8, the ball of these radii on white; the texture moves with the surface."""
    rays = pixel_rays(pose, (frame["w"], frame["h"]), (frame["fl_x"], frame["fl_y"]), (frame["cx"], frame["cy"]))
    distance = hit_ellipsoid(pose[:3, 3], rays, radii)
    hit = np.isfinite(distance)
    surface = pose[:3, 3] + np.where(hit, distance, 0)[..., None] * rays
    return np.rint(255 * np.where(hit[..., None], texture(surface / radii), 1.0)).astype(np.uint8)


def write_head_model(path: Path) -> None:
    """A ball in FLAME's format: one identity mode (larger), one expression mode (taller), all turning with the root."""
    vertices = np.asarray(BALL.vertices)
    count = len(vertices)
    modes = np.zeros((count, 3, 2))
    modes[:, :, 0] = vertices
    modes[:, 1, 1] = vertices[:, 1]
    weights = np.zeros((count, 5))
    weights[:, 0] = 1.0
    model = {
        "v_template": vertices,
        "f": np.asarray(BALL.faces),
        "shapedirs": modes,
        "n_shape": 1,
        "posedirs": np.zeros((count, 3, 36)),
        "J_regressor": np.full((5, count), 1.0 / count),
        "weights": weights,
        "kintree_table": np.array([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
    }
    path.write_bytes(pickle.dumps(model))


def write_capture(
    folder: Path, timesteps: list[int], shape: float = 0.0, taller: float = 0.3, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Path:
    """Two training cameras (0 and 2), camera 1 for val, the last timestep for test; row n is n x `taller` higher."""
    (folder / "flame_param").mkdir(parents=True)
    (folder / "images").mkdir()
    write_head_model(folder / "head_model.pkl")
    zero = {name: np.zeros((1, width), np.float32) for name, width in POSES}
    identity = {
        "shape": np.array([shape], np.float32),
        "static_offset": np.zeros((1, len(BALL.vertices), 3), np.float32),
    }
    np.savez(folder / "canonical_flame_param.npz", **zero, **identity, expr=np.zeros((1, 1), np.float32))
    frames: dict[str, list] = {"train": [], "val": [], "test": []}
    for number, timestep in enumerate(timesteps):
        np.savez(
            folder / "flame_param" / f"{timestep:05d}.npz",
            **zero,
            **identity,
            expr=np.full((1, 1), taller * number, np.float32),
        )
        radii = 0.1 * np.array([1 + shape, 1 + shape + taller * number, 1 + shape])
        for camera in range(3):
            name = f"{timestep:05d}_{camera:02d}"
            angle = 0.5 * (camera - 1)
            pose = look_at(0.6 * np.array([np.sin(angle), 0.0, np.cos(angle)]))
            split = "test" if timestep == timesteps[-1] else "val" if camera == 1 else "train"
            # The principal point is off the centre, and pixels are not square.
            frame = {
                "w": size[0],
                "h": size[1],
                "fl_x": 60.0,
                "fl_y": 62.0,
                "cx": size[0] / 2 - 1.5,
                "cy": size[1] / 2 + 0.5,
            }
            Image.fromarray(photograph(pose, radii, frame)).save(folder / "images" / f"{name}.png")
            frames[split].append(
                {
                    **frame,
                    "timestep_index": timestep,
                    "timestep_id": str(timestep),
                    "camera_index": camera,
                    "camera_id": str(100 + camera),
                    "file_path": f"images/{name}.png",
                    "transform_matrix": pose.tolist(),
                    "flame_param_path": f"flame_param/{timestep:05d}.npz",
                }
            )
    for split, entries in frames.items():
        (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": entries}))
    return folder
