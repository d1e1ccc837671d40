"""From where the page shows an avatar first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ops.rotations import axis_angle_to_matrix
from ops.types import Camera
from scene import Avatar

ASPECT = 3 / 4  # width by height of the picture that is always seen whole
MARGIN = 1.12  # of the picture around the avatar
DISTANCE = 1.0  # meters from a head whose training cameras are not known
# Single Gaussians may lie far out; so many percent on each side do not count.
OUTLIERS = 0.5


def first_view(avatar: Avatar) -> dict[str, Any]:
    """What the page's orbit begins with: `target` [3], `back` and `up` [3] (unit), `distance`, `height` (meters).

    `height` is what is seen at the target's distance. The camera stands in front of the face, or of a static scene
    where its training cameras are, and as far away as those.
    """
    points = _points(avatar)
    cameras = _cameras(avatar.path.parents[2] / "cameras.json")
    low, high = np.percentile(points, [OUTLIERS, 100 - OUTLIERS], axis=0)
    target = (low + high) / 2
    if avatar.head is not None:
        motion = avatar.motion()
        parts = motion.split(motion.values.detach().cpu().double().mean(0))
        turn = axis_angle_to_matrix(parts["rotation"]) @ axis_angle_to_matrix(parts["neck_pose"])
        back, up = turn[:, 2].numpy(), turn[:, 1].numpy()
    elif cameras is not None:
        back, up = cameras[0].mean(0) - target, cameras[1].mean(0)
    else:
        back, up = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    back, up = _unit(back, [0, 0, 1]), _unit(up, [0, 1, 0])
    right = _unit(np.cross(up, back), [1, 0, 0])
    up = np.cross(back, right)
    seen = (points - target) @ np.stack([right, up], axis=1)
    extents = np.percentile(seen, [OUTLIERS, 100 - OUTLIERS], axis=0)
    width, height = extents[1] - extents[0]
    target = target + right * extents[:, 0].mean() + up * extents[:, 1].mean()
    height = MARGIN * max(height, width / ASPECT)
    distance = DISTANCE if avatar.head is not None else 3 * height
    if cameras is not None:
        distance = float(np.median(np.linalg.norm(cameras[0] - target, axis=1)))
    return {
        "target": target.tolist(),
        "back": back.tolist(),
        "up": up.tolist(),
        "distance": distance,
        "height": float(height),
        "aspect": ASPECT,
    }


def poster_camera(view: dict[str, Any], height: int) -> Camera:
    """The camera of that view, for a picture so many pixels high."""
    back, up = np.array(view["back"]), np.array(view["up"])
    rotation = np.stack([np.cross(up, back), -up, -back])  # rows: right, down, forward
    center = np.array(view["target"]) + view["distance"] * back
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation, -rotation @ center
    focal = height * view["distance"] / view["height"]
    width = round(ASPECT * height)
    return Camera(torch.from_numpy(world).float(), focal, focal, width / 2, height / 2, width, height)


def _points(avatar: Avatar) -> np.ndarray:
    """[n, 3] means of the visible Gaussians at the first timestep, meters."""
    gaussians, _ = avatar.gaussians(None if avatar.head is None else avatar.motion().values[0])
    seen = gaussians.opacities >= 0.05
    return (gaussians.means[seen] if seen.any() else gaussians.means).detach().cpu().double().numpy()


def _cameras(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Centers and upward axes [n, 3] of the cameras it was trained with; None where their list is missing or broken."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        centers = np.array([entry["position"] for entry in entries], dtype=np.float64).reshape(-1, 3)
        turns = np.array([entry["rotation"] for entry in entries], dtype=np.float64).reshape(-1, 3, 3)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    known = len(centers) and len(centers) == len(turns) and np.isfinite(centers).all() and np.isfinite(turns).all()
    return (centers, -turns[:, :, 1]) if known else None


def _unit(vector: np.ndarray, otherwise: list[int]) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-9 else np.array(otherwise, dtype=float)
