"""Walls of triangles before a camera."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ops.types import Camera


def front_camera(width: int = 64, height: int = 48) -> Camera:
    """At the origin, looking along +z; 90 degrees wide."""
    return Camera(torch.eye(4), fx=width / 2, fy=width / 2, cx=width / 2, cy=height / 2, width=width, height=height)


def patch(depth: float, x: float = 0.0, half: float = 1.0, pieces: int = 8) -> tuple[Tensor, Tensor]:
    """A square of 2 pieces^2 triangles across the view of `front_camera`, turned to it."""
    line = torch.linspace(-half, half, pieces + 1)
    grid = torch.stack([line[None].expand(pieces + 1, -1) + x, line[:, None].expand(-1, pieces + 1)], dim=-1)
    vertices = torch.cat([grid.reshape(-1, 2), torch.full(((pieces + 1) ** 2, 1), depth)], dim=1)
    i = (torch.arange(pieces)[:, None] * (pieces + 1) + torch.arange(pieces)).flatten()
    below = i + pieces + 1
    faces = torch.cat([torch.stack([i, below, i + 1], dim=1), torch.stack([i + 1, below, below + 1], dim=1)])
    return vertices, faces


def joined(*meshes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    starts = np.cumsum([0] + [len(v) for v, _ in meshes])
    return torch.cat([v for v, _ in meshes]), torch.cat([f + int(s) for (_, f), s in zip(meshes, starts)])
