"""Debris: what the usual metrics do not see, because it has the color of the background that they look at.

An avatar trained over white alone may wear white flakes, along its outline and where no camera looks: over white they
cost nothing, over any other background they are all that one sees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from innovations.unseen_colors import hidden_parts
from ops.sh import C0
from ops.types import Camera
from scene.gaussian_model import GaussianModel

# A speck is at most so far from the background (Euclidean, RGB 0..1): a lip beside the dark mouth is none ...
NEAR = 0.35
# ... and at least so far from that of its neighbors: on a white blouse there is no telling.
APART = 0.25


@torch.no_grad()
def speck_share(model: GaussianModel, background: Tensor) -> float | None:
    """The share of specks in the area of all Gaussians; None for a static scene, whose Gaussians have no neighbors.

    A Gaussian's neighbors are those on all triangles that touch its own; areas are opacity times the product of the
    two larger standard deviations, colors those of the constant spherical harmonic. Eyes and mouth, where white lies
    beside dark, do not count.

    Args:
        background: [3] what the avatar was trained over.
    """
    if model.binding is None or model.flame is None:
        return None
    gaussians, vertices = model(0)
    corners = model.flame.faces[model.binding]  # [N, 3]
    colors = (gaussians.sh[:, 0] * C0 + 0.5).clamp(0, 1)
    areas = gaussians.opacities * gaussians.scales.sort(dim=1).values[:, 1:].prod(dim=1)
    weighted = torch.cat([colors, torch.ones_like(areas)[:, None]], dim=1) * areas[:, None]
    at_vertex = weighted.new_zeros(len(model.flame.v_template), 4)
    for corner in corners.unbind(1):
        at_vertex.index_add_(0, corner, weighted)
    around = at_vertex[corners].sum(dim=1) - 3 * weighted  # without itself
    around = around[:, :3] / around[:, 3:].clamp_min(1e-30)

    near = (colors - background.to(colors)).norm(dim=1) <= NEAR
    speck = near & ((colors - around).norm(dim=1) >= APART)
    counted = ~hidden_parts(model.flame.masks, corners, len(at_vertex))
    return float(areas[speck & counted].sum() / areas[counted].sum().clamp_min(1e-30))


def cameras_around(vertices: Tensor, size: int = 256) -> list[Camera]:
    """Ten views of a head with `vertices` [V, 3] (y up, facing +z): eight around it, from above, from above behind."""
    low, high = vertices.detach().cpu().amin(dim=0), vertices.detach().cpu().amax(dim=0)
    distance, focal = 2.3 * float((high - low).norm()), 2.8 * size
    turns = [2 * math.pi * k / 8 for k in range(8)]
    directions = [(math.sin(turn), 0.1, math.cos(turn)) for turn in turns] + [(0.0, 1.0, 0.05), (0.0, 0.8, -0.8)]
    return [_looking((low + high) / 2, direction, distance, focal, size) for direction in directions]


def _looking(at: Tensor, direction: tuple[float, float, float], distance: float, focal: float, size: int) -> Camera:
    """The camera that sees the point `at` [3] from a `direction`, upright."""
    forward = -torch.nn.functional.normalize(torch.tensor(direction), dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0])), dim=0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ (at - distance * forward)
    return Camera(pose, focal, focal, size / 2, size / 2, size, size)
