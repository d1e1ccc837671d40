"""Where to stand so that the first thing seen is a face, upright, filling two thirds of the window."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ops.types import Camera
from scene import Avatar
from scene.cameras import Viewpoint
from scene.view_path import FILLED, centered_front, place_of_head

Array = np.ndarray

CLOSEST = 0.25  # metres; the rasterizers draw nothing nearer than 0.2


class Stand(NamedTuple):
    """A camera and what it turns around; world space."""

    position: Array  # [3] metres
    target: Array  # [3] metres
    up: Array  # [3] unit vector
    fov: float  # vertical, radians

    @property
    def view(self) -> Viewpoint:
        """Its axes: x right, y down, z forward."""
        forward = (self.target - self.position) / np.linalg.norm(self.target - self.position)
        right = np.cross(forward, self.up)
        right = right / np.linalg.norm(right)
        return Viewpoint(self.position, np.stack([right, np.cross(forward, right), forward], axis=1), self.fov)

    def with_fov(self, fov: float) -> Stand:
        """Nearer or farther, so that what it looks at stays as large."""
        distance = math.tan(self.fov / 2) / math.tan(fov / 2)
        return self._replace(position=self.target + (self.position - self.target) * distance, fov=fov)


def before(avatar: Avatar, cameras: list[Camera], width: int, height: int) -> Stand:
    """The first look at an avatar in a window of `width` x `height` pixels.

    Args:
        cameras: of the capture; only a static scene needs them.
    """
    if avatar.model.flame_parameters is None:
        return _before_scene(avatar, cameras, width, height)
    values = avatar.motion().values[:1].detach().double().cpu().numpy()  # as the head is held where the motion begins
    head = place_of_head(avatar, values)
    view, target = centered_front(head, width, height)
    return Stand(view.position, target, head.up, view.fov)


def _before_scene(avatar: Avatar, cameras: list[Camera], width: int, height: int) -> Stand:
    """A static scene: from its first camera at what all cameras look at, else from +z at the middle of it."""
    means = avatar.model(0)[0].means.detach().double().cpu().numpy()
    if not cameras:
        center = np.median(means, axis=0)
        radius = float(np.quantile(np.linalg.norm(means - center, axis=1), 0.9))
        fov = math.radians(40)
        across = 2 * radius / FILLED / min(1.0, width / height)
        offset = np.array([0.0, 0.0, across / (2 * math.tan(fov / 2)) + radius])
        return Stand(center + offset, center, np.array([0.0, 1.0, 0.0]), fov)
    views = [Viewpoint.of(camera) for camera in cameras]
    first = views[0]
    origins, axes = np.stack([view.position for view in views]), np.stack([view.rotation[:, 2] for view in views])
    # The point nearest to all optical axes, held to the first of them where they are parallel.
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    depth = max(float(np.median((means - origins[0]) @ axes[0])), CLOSEST)
    start = origins[0] + depth * axes[0]
    pull = 1e-2 * len(views)
    point = np.linalg.solve(across.sum(0) + pull * np.eye(3), np.einsum("nij,nj->i", across, origins) + pull * start)
    # On the first camera's own axis, so that the first look is its photograph's.
    target = origins[0] + max(float((point - origins[0]) @ axes[0]), CLOSEST) * axes[0]
    return Stand(first.position, target, -first.rotation[:, 1], first.fov)
