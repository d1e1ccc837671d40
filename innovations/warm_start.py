"""A start that need not be unlearned: colors from the photographs, smaller and more opaque Gaussians.

The classical start (near black, nearly transparent, as large as the triangle,
and a reset when the density control begins) is repaired by training, which
takes a large part of a short run. Here is the data of a better one; `train.py`
applies it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from ops.types import Camera
from ops.visibility import grid_size, see

MAX_VIEWS = 48  # more of them change the colors by less than a gray level
GRID_CELLS = 64  # along the longer side; only the speed depends on it
GRAY = 0.5  # where nothing at all is known
NEIGHBORS = 8  # that give a triangle which nobody sees its color
BACKGROUND_TOLERANCE = 4 / 255  # per channel; nearer to the background's color is background
COLOR_SCALE = 0.1  # residuals larger than this (highlights, a strand of hair, tracking errors) count little
# Where a triangle is sampled, as weights of its corners: the centroid and the middles of its three thirds.
SAMPLES = ((1 / 3, 1 / 3, 1 / 3), (2 / 3, 1 / 6, 1 / 6), (1 / 6, 2 / 3, 1 / 6), (1 / 6, 1 / 6, 2 / 3))


@dataclass(frozen=True)
class WarmStart:
    """How a run on a head mesh begins. Every part can be switched off by its classical value."""

    colors: bool  # of the photographs; else near black
    opacity: float  # of every Gaussian, 0..1
    scale: float  # one standard deviation in units of the triangle
    skip_resets: bool  # of the opacities: a start without floating fog has nothing to reset
    prune_opacity: float  # what is fainter is removed at once; more without resets
    feature_factor: float  # of the learning rate of the colors
    flame_expr_factor: float  # of the learning rates of FLAME's parameters: their own values fit
    flame_pose_factor: float  # 600,000 iterations, and hardly move in a short run
    flame_trans_factor: float
    gaussians: int = 0  # spread over the mesh by what the photographs show there; 0: one on each triangle

    @property
    def raw_opacity(self) -> float:
        """`opacity` before the sigmoid."""
        return math.log(self.opacity / (1 - self.opacity))

    @property
    def raw_scale(self) -> float:
        """`scale` before the exponential."""
        return math.log(self.scale)


CLASSICAL_START = WarmStart(
    colors=False,
    opacity=0.1,
    scale=1.0,
    skip_resets=False,
    feature_factor=1.0,
    prune_opacity=0.005,
    flame_expr_factor=1.0,
    flame_pose_factor=1.0,
    flame_trans_factor=1.0,
)


def spread_views(cameras: Sequence[Camera], limit: int = MAX_VIEWS) -> list[int]:
    """At most `limit` indices, ascending: every camera about equally often, and spread over time.

    A plain stride through a list ordered by time and camera may meet the same camera again and again.
    """
    if len(cameras) <= limit:
        return list(range(len(cameras)))
    by_camera: dict[str, list[int]] = {}
    for index in sorted(range(len(cameras)), key=lambda i: (cameras[i].timestep, i)):
        by_camera.setdefault(cameras[index].camera_id, []).append(index)
    chosen: list[int] = []
    for rank, indices in enumerate(by_camera.values()):
        # The limit is dealt out over the cameras; with more cameras than that, some get none.
        quota = min(len(indices), (rank + 1) * limit // len(by_camera) - rank * limit // len(by_camera))
        phase = (rank + 0.5) / len(by_camera)  # so that the cameras look at different moments
        chosen += [indices[int((k + phase) * len(indices) / quota)] for k in range(quota)]
    return sorted(chosen)


@torch.no_grad()
def triangle_colors(
    views: Iterable[tuple[Camera, Tensor, Tensor]],  # (camera, image [3, H, W] 0..1, vertices [V, 3] metres)
    faces: Tensor,  # [F, 3]  int64, counter-clockwise from outside
    background: Sequence[float] | None = None,  # RGB 0..1, what the images are composited over
    points: tuple[Tensor, Tensor] | None = None,  # [N] int64 triangles, [N, 3] weights of their corners
) -> tuple[Tensor, Tensor]:
    """The color of every triangle, or of `points` on them, as the images show it: ([F, 3] in 0..1, [F] bool whether it
    was seen).

    A robust mean over the views that see the triangle, weighted with the square
    of the cosine under which they do: the median first, then a mean that counts what is far from it
    little. Samples of the background's color are left out: there the mesh
    stands over. What is never seen gets the mean of the nearest that were, or, if there
    are none, the mean color of the foreground: the pixels unlike the background.

    All views are kept in memory as [F, 3]; choose some 50 with `spread_views`. Deterministic.
    """
    colors, weights, centers = [], [], None
    total = torch.zeros(3, dtype=torch.float64, device=faces.device)
    pixels = torch.zeros((), dtype=torch.int64, device=faces.device)
    for camera, image, vertices in views:
        image = image.float()
        behind = None
        if background is not None:
            behind = torch.tensor(list(background), dtype=torch.float32, device=image.device)[:, None, None]
            foreground = ((image - behind).abs() > BACKGROUND_TOLERANCE).any(dim=0)
            total += (image * foreground).sum(dim=(1, 2), dtype=torch.float64)
            pixels = pixels + foreground.sum()
        seen = see(camera, vertices, faces, *grid_size(camera.width, camera.height, GRID_CELLS))
        corners, visible, facing = vertices[faces], seen.visible, seen.facing
        if points is None:
            samples = inside(corners)
        else:
            triangle, weight = points
            samples = torch.einsum("nc,ncd->nd", weight, corners[triangle])[None]
            visible, facing = visible[triangle], facing[triangle]
        if centers is None:
            centers = corners.mean(dim=1) if points is None else samples[0]
        color, covered = sample(camera, image, samples, behind)
        weight = torch.where(visible & covered, facing, 0.0) ** 2
        colors.append(torch.where(weight[:, None] > 0, color, 0.0))
        weights.append(weight)
    if centers is None:
        count = len(faces if points is None else points[0])
        return (
            torch.full((count, 3), GRAY, device=faces.device),
            torch.zeros(count, dtype=torch.bool, device=faces.device),
        )

    mean, sums = _robust_mean(torch.stack(colors), torch.stack(weights))
    seen_at_all = sums > 0
    if seen_at_all.any():
        mean[~seen_at_all] = nearest_mean(centers[seen_at_all], mean[seen_at_all], centers[~seen_at_all])
    else:
        mean = (total / pixels if pixels else torch.full_like(total, GRAY)).float().expand_as(mean)
    return mean.clamp(0, 1), seen_at_all


def nearest_mean(known: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """[M, ...] at the points `wanted` [M, 3]: mean of the `values` [N, ...] at the nearest of `known` [N, 3], N > 0."""
    count = min(NEIGHBORS, len(known))
    nearest = cKDTree(known.cpu().numpy()).query(wanted.cpu().numpy(), k=list(range(1, count + 1)))[1]
    return values[torch.from_numpy(nearest).to(values.device)].mean(dim=1)


def project(camera: Camera, points: Tensor) -> Tensor:
    """[..., 2] the pixels at which the points [..., 3] (metres, world space) are seen."""
    pose = camera.world_to_camera.to(points)
    points = points @ pose[:3, :3].T + pose[:3, 3]
    depth = points[..., 2].clamp_min(1e-6)  # behind the camera nothing is visible anyway
    x = camera.fx * points[..., 0] / depth + camera.cx
    y = camera.fy * points[..., 1] / depth + camera.cy
    return torch.stack([x, y], dim=-1)


def inside(corners: Tensor) -> Tensor:
    """[S, F, 3] where triangles with these `corners` [F, 3, 3] are sampled."""
    return torch.einsum("sc,fcd->sfd", corners.new_tensor(SAMPLES), corners)


def sample(camera: Camera, image: Tensor, points: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean bilinear colors [N, 3] at the points [S, N, 3] of each, and whether all of them are foreground."""
    size = points.new_tensor([camera.width, camera.height])
    grid = (project(camera, points) / size * 2 - 1)[None]
    samples = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    if behind is None:
        covered = torch.ones_like(samples[0, 0], dtype=torch.bool)
    else:
        covered = ((samples - behind).abs() > BACKGROUND_TOLERANCE).any(dim=0).all(dim=0)
    return samples.mean(dim=1).T, covered


def _robust_mean(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """([F, 3], [F] sum of weights) of values [N, F, 3] with weights [N, F]; 0 where all weights are."""
    sums = weights.sum(dim=0)
    ordered, order = values.sort(dim=0)
    running = weights[..., None].expand_as(values).gather(0, order).cumsum(dim=0)
    median = ordered.gather(0, (running < 0.5 * sums[:, None]).sum(dim=0, keepdim=True))[0]
    # One step of Cauchy's weights from the median.
    distance = ((values - median) / COLOR_SCALE).square().sum(dim=-1)
    adapted = weights / (1 + distance)
    mean = (values * adapted[..., None]).sum(dim=0) / adapted.sum(dim=0).clamp_min(1e-12)[:, None]
    return mean, sums
