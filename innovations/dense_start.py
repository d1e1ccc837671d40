"""A start with as many Gaussians as the pictures have use for: spread over the mesh before the first step.

One Gaussian per triangle is too few where triangles are large on screen and the photographs have detail, and waiting
for the density control to grow them takes a large part of a short run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from innovations.warm_start import GRID_CELLS, inside, project, sample
from ops.types import Camera
from ops.visibility import grid_size, see

FLAT = 0.02  # of the gradient, per pixel: what counts where the photographs are even
LEVELS = 8  # of halving a triangle: 65,536 points on it


class Placement(NamedTuple):
    """Where Gaussians are on a mesh; sorted by triangle."""

    binding: Tensor  # [N] int64, the triangle
    weights: Tensor  # [N, 3] of its corners, sum 1
    share: Tensor  # [N] of the triangle's area that is the Gaussian's own


@torch.no_grad()
def detail(views: Iterable[tuple[Camera, Tensor, Tensor]], faces: Tensor) -> Tensor:
    """[F] how much there is to draw on each triangle: pixels times the images' gradient there, mean over the views.

    Args:
        views: (camera, image [3, H, W] 0..1, vertices [V, 3] metres).
    """
    total = torch.zeros(len(faces), device=faces.device)
    for camera, image, vertices in views:
        corners = vertices[faces]
        seen = see(camera, vertices, faces, *grid_size(camera.width, camera.height, GRID_CELLS))
        x, y = project(camera, corners).unbind(dim=-1)  # [F, 3]
        area = 0.5 * ((x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])).abs()
        luma = image.float().mean(dim=0)
        slope = torch.zeros_like(luma)
        slope[:, 1:-1] += (luma[:, 2:] - luma[:, :-2]).abs()
        slope[1:-1] += (luma[2:] - luma[:-2]).abs()
        slope, _ = sample(camera, slope[None], inside(corners), None)
        total += torch.where(seen.visible, area * (FLAT + slope[:, 0]), 0.0)
    return total


def place(detail: Tensor, count: int) -> Placement:
    """One Gaussian on every triangle, and the rest of `count` where there is most `detail` [F]."""
    faces = len(detail)
    extra = max(count - faces, 0)
    # Every triangle gets its share rounded down or up, and what the rounding takes from one the next one gets.
    sums = detail.double().cumsum(0)
    steps = torch.floor(sums / sums[-1].clamp_min(1e-30) * extra + 0.5).long()
    number = 1 + torch.diff(steps, prepend=torch.zeros_like(steps[:1]))
    binding = torch.repeat_interleave(number)
    rank = torch.arange(len(binding), device=detail.device) - (number.cumsum(0) - number)[binding]
    return Placement(binding, _spread(rank), 1.0 / number[binding].float())


def _spread(rank: Tensor) -> Tensor:
    """[N, 3] weights of a triangle's corners: where the first, the second, ... of its points is.

    However many there are, they are even (Basu & Owen 2015, the triangular van der Corput sequence): of the four
    triangles that the middles of the edges make, the first is in the inner one, the next three in the outer ones, each
    at the center, and the next four again so, one level further down.
    """
    corners = torch.eye(3, device=rank.device) - 1 / 3
    steps = torch.cat([torch.zeros(1, 3, device=rank.device), corners])  # the inner one has the same center
    weights = torch.full((len(rank), 3), 1 / 3, device=rank.device)
    size = torch.ones(len(rank), 1, device=rank.device)
    for _ in range(LEVELS):
        digit, rank = rank % 4, rank // 4
        size = torch.where(digit[:, None] == 0, -0.5, 0.5) * size  # the inner one is upside down
        weights += size * steps[digit]
    return weights.clamp(0, 1)
