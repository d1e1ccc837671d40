"""From where an avatar is shown first, and from all around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ops.types import Camera
from scene import Avatar
from scene.cameras import CAMERAS_NAME, Viewpoint, read_cameras_json
from scene.view_path import centered_front, place_of_head

ASPECT = (3, 4)  # width and height of the picture that is always seen whole
# Of a static scene: how much more than its Gaussians is seen, of which so many percent on each side do not count.
MARGIN, OUTLIERS = 1.1, 2.0


def first_view(avatar: Avatar, rows: np.ndarray) -> dict[str, Any]:
    """What the page's orbit begins with: `target` [3], `back` and `up` [3] (unit), `distance`, `height` (meters).

    `height` is what is seen at the target's distance, in a picture of `aspect`. It is `--camera front` of render.py; a
    static scene is seen from the middle of its training cameras.

    Args:
        rows: [T, D] the motion that will be played.

    Raises:
        UserError: the avatar's list of cameras is broken.
    """
    if avatar.head is None:
        return _scene_view(avatar)
    view, target = centered_front(place_of_head(avatar, rows), *ASPECT)
    _, down, forward = view.rotation.T
    distance = float(np.linalg.norm(view.position - target))
    return _described(target, -forward, -down, distance, 2 * distance * math.tan(view.fov / 2))


def _scene_view(avatar: Avatar) -> dict[str, Any]:
    gaussians, _ = avatar.gaussians()
    points = gaussians.means.detach().cpu().double().numpy()
    low, high = np.percentile(points, [OUTLIERS, 100 - OUTLIERS], axis=0)
    target, size = (low + high) / 2, float(np.linalg.norm(high - low))
    list_of_cameras = avatar.folder / CAMERAS_NAME
    if not list_of_cameras.is_file():
        return _described(target, np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]), 2.5 * size, MARGIN * size)
    views = [Viewpoint.of(camera) for camera in read_cameras_json(list_of_cameras).values()]
    middle = np.mean([view.position for view in views], axis=0)
    back, up = middle - target, -np.mean([view.rotation[:, 1] for view in views], axis=0)
    if np.linalg.norm(np.cross(up, back)) < 1e-6 * size:  # from all sides: then as one of them sees it
        back, up = views[0].position - target, -views[0].rotation[:, 1]
    back /= np.linalg.norm(back)
    up -= (up @ back) * back
    distance = float(np.median([np.linalg.norm(view.position - target) for view in views]))
    height = 2 * distance * math.tan(float(np.median([view.fov for view in views])) / 2)
    return _described(target, back, up / np.linalg.norm(up), distance, height)


def _described(target: np.ndarray, back: np.ndarray, up: np.ndarray, distance: float, height: float) -> dict[str, Any]:
    return {
        "target": target.tolist(),
        "back": back.tolist(),
        "up": up.tolist(),
        "distance": distance,
        "height": float(height),
        "aspect": ASPECT[0] / ASPECT[1],
    }


def poster_camera(view: dict[str, Any], height: int) -> Camera:
    """The camera of that view, for a picture so many pixels high."""
    return _viewpoint(view).camera(round(view["aspect"] * height), height)


def around(view: dict[str, Any], height: int, yaws: Sequence[float], pitches: Sequence[float]) -> list[Camera]:
    """The cameras to its sides and above, by these angles in radians."""
    first, target, up = _viewpoint(view), np.array(view["target"]), np.array(view["up"])
    size = (round(view["aspect"] * height), height)
    return [first.turned(target, up, yaw, pitch).camera(*size) for pitch in pitches for yaw in yaws]


def _viewpoint(view: dict[str, Any]) -> Viewpoint:
    back, up = np.array(view["back"]), np.array(view["up"])
    axes = np.stack([np.cross(up, back), -up, -back], axis=1)  # right, down, forward
    position = np.array(view["target"]) + view["distance"] * back
    return Viewpoint(position, axes, 2 * math.atan(0.5 * view["height"] / view["distance"]))
