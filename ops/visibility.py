"""Which triangles of a mesh a camera sees, fast enough to ask for every training view.

Two questions, both answered exactly along one ray each, whatever the resolution
of the grid: of every triangle, is anything in front of its centroid? And of
every cell, which triangle is first at its centre? A triangle smaller than a cell
is therefore neither lost nor does it tear a hole. `gaussian_renderer.mesh_overlay` casts a
ray per pixel instead and draws pictures; this one needs no ray caster and takes
a fraction of a millisecond for a head.

On the CPU csrc/visibility.cpp does the work; elsewhere, and without a compiler,
its twin in PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ops import kernels
from ops.types import Camera

_NEAR_PLANE = kernels.CONSTANTS["kMeshNear"]  # metres
_FAR_AWAY = kernels.CONSTANTS["kFarAway"]  # cells
_OVERLAP = kernels.CONSTANTS["kOverlap"]  # cells
_SAME_DEPTH = kernels.CONSTANTS["kSameDepth"]  # relative


class Visibility(NamedTuple):
    """What a camera sees of a mesh with F triangles, on a grid over the whole image."""

    visible: Tensor  # [F] bool: turned to the camera, inside the image, nothing in front of the centroid
    facing: Tensor  # [F] float: cosine of the angle to the camera; negative from behind, 0 where it has none
    center_cell: Tensor  # [F] int64: flat index of the cell of the centroid, -1 outside the image
    first: Tensor  # [rows, columns] int64: nearest triangle (either side) at the cell's centre, -1 for none
    depth: Tensor  # [rows, columns] float: its depth along the optical axis in metres, inf for none


def grid_size(width: int, height: int, cells: int) -> tuple[int, int]:
    """(rows, columns) of a grid of about square cells, `cells` of them along the longer side of the image."""
    longer = max(width, height)
    return max(1, round(cells * height / longer)), max(1, round(cells * width / longer))


@torch.no_grad()
def see(
    camera: Camera,
    vertices: Tensor,  # [V, 3]  world space, metres
    faces: Tensor,  # [F, 3]  int64, counter-clockwise from outside
    rows: int,
    columns: int,
) -> Visibility:
    """The triangles that `camera` sees. Deterministic; not differentiable.

    A triangle is visible if it is turned to the camera and nothing of the mesh,
    from either side, lies before its centroid, or if it is the first at a cell's
    centre. What is nearer by less than 1e-5 of the depth hides nothing, so
    surfaces that coincide are both seen. Triangles that reach behind the camera, or have
    a corner that is not finite, neither are seen nor hide anything.

    The grid has `rows` x `columns` cells over the image, whatever its size in pixels. It also
    sorts the triangles: the time grows with their number per cell, so a very coarse one is slow.

    Raises:
        ValueError: shapes or types that do not fit, or an index beyond the vertices.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"expected vertices [V, 3] and faces [F, 3], got {tuple(vertices.shape)} and {tuple(faces.shape)}"
        )
    if faces.dtype != torch.int64 or rows < 1 or columns < 1:
        raise ValueError(f"expected int64 faces and a grid of at least one cell, got {faces.dtype}, {rows} x {columns}")
    intrinsics = (
        camera.fx * columns / camera.width,
        camera.fy * rows / camera.height,
        camera.cx * columns / camera.width,
        camera.cy * rows / camera.height,
    )
    if kernels.usable(vertices.float()):
        return _see_kernel(camera.world_to_camera, intrinsics, vertices, faces, rows, columns)
    return _see_torch(camera.world_to_camera, intrinsics, vertices, faces, rows, columns)


def _see_kernel(
    pose: Tensor, intrinsics: tuple[float, ...], vertices: Tensor, faces: Tensor, rows: int, columns: int
) -> Visibility:
    if faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
        raise ValueError(f"the faces name vertices beyond the {len(vertices)} there are")
    pose, vertices, faces = pose.cpu().float().contiguous(), vertices.float().contiguous(), faces.contiguous()
    count = len(faces)
    out = Visibility(
        torch.empty(count, dtype=torch.bool),
        torch.empty(count),
        torch.empty(count, dtype=torch.int64),
        torch.empty(rows, columns, dtype=torch.int64),
        torch.empty(rows, columns),
    )
    kernels.run("visibility_faces", pose, list(intrinsics), vertices, len(vertices), faces, count, rows, columns, *out)
    return out


def _see_torch(
    pose: Tensor, intrinsics: tuple[float, ...], vertices: Tensor, faces: Tensor, rows: int, columns: int
) -> Visibility:
    """The twin of csrc/visibility.cpp: any device. The host waits a few times for the sizes of lists."""
    device, cells = vertices.device, rows * columns
    fx, fy, cx, cy = intrinsics
    pose = pose.to(device, torch.float64)
    points = vertices.double() @ pose[:3, :3].T + pose[:3, 3]
    z = points[:, 2]
    uv = torch.stack([fx * points[:, 0] / z + cx, fy * points[:, 1] / z + cy], dim=1)
    usable = ((z > _NEAR_PLANE) & (uv.abs() < _FAR_AWAY).all(dim=1))[faces].all(dim=1)
    corners = points[faces]

    center = corners.mean(dim=1)
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = normal.norm(dim=1) * center.norm(dim=1)
    facing = torch.where(usable & (length > 0), -(normal * center).sum(dim=1) / length, 0.0)
    center_uv = torch.stack([fx * center[:, 0] / center[:, 2] + cx, fy * center[:, 1] / center[:, 2] + cy], dim=1)
    limits = torch.tensor([columns, rows], device=device)
    cell = torch.where(usable[:, None], center_uv, -1.0).floor()
    inside = ((cell >= 0) & (cell < limits)).all(dim=1)
    cell = torch.where(inside, cell[:, 1] * columns + cell[:, 0], -1.0).long()

    # Every (triangle, cell its bounding box touches), sorted by cell.
    flat = torch.where(usable[:, None, None], uv[faces], -2.0)  # unusable ones touch no cell
    low = (flat.amin(dim=1) - _OVERLAP).floor().clamp_min(0).minimum(limits).long()
    high = (flat.amax(dim=1) + _OVERLAP).floor().clamp_min(-1).minimum(limits - 1).long()
    size = (high - low + 1).clamp_min(0)
    face, place = _expand(size.prod(dim=1))
    box = size[face, 0]
    at = (low[face, 1] + place // box) * columns + low[face, 0] + place % box
    at, order = torch.sort(at, stable=True)
    face = face[order]

    # The triangles relative to the centre of their cell: edge functions, positive inside.
    offset = torch.stack([at % columns, at // columns], dim=1) + 0.5
    x, y = (uv[faces[face]] - offset[:, None]).unbind(dim=2)  # [E, 3]
    nx, ny, px, py = x.roll(-1, 1), y.roll(-1, 1), x.roll(-2, 1), y.roll(-2, 1)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    sign = torch.where(area < 0, -1.0, 1.0)[:, None]
    a, b = -sign * (py - ny), sign * (px - nx)
    c = -(a * nx + b * ny) + _OVERLAP * torch.hypot(a, b)
    inverse = (1 / corners[..., 2])[face]
    total = c.sum(dim=1, keepdim=True)
    edges = torch.stack([a, b, c], dim=2)  # [E, 3, 3]
    plane = (edges * (inverse / total)[:, :, None]).sum(dim=1)  # [E, 3]  1/depth = plane . (x, y, 1)
    real = total[:, 0] > 0

    # Who is first at the centre of each cell; of equals the one that comes first in the mesh.
    hit = real & (c >= 0).all(dim=1)
    value = torch.where(hit, plane[:, 2], 0.0)
    best = torch.zeros(cells, dtype=torch.float64, device=device).scatter_reduce(0, at, value, "amax")
    winner = torch.where(hit & (value >= best[at]), face, len(faces))
    first = torch.full((cells,), len(faces), device=device).scatter_reduce(0, at, winner, "amin")
    first = torch.where(first < len(faces), first, -1)

    # Whether anything is before each centroid: all pairs (centroid, triangle of its cell).
    asking = torch.nonzero((facing > 0) & inside)[:, 0]
    counts = torch.bincount(at, minlength=cells)
    query, place = _expand(counts[cell[asking]])
    entry = (counts.cumsum(0) - counts)[cell[asking]][query] + place
    query = asking[query]
    point = torch.cat([center_uv[query] - offset[entry], torch.ones(len(query), 1, device=device)], dim=1)
    covers = ((edges[entry] * point[:, None]).sum(dim=2) >= 0).all(dim=1) & real[entry] & (face[entry] != query)
    limit = (1 + _SAME_DEPTH) / center[query, 2]
    nearer = covers & ((plane[entry] * point).sum(dim=1) > limit)
    hidden = torch.zeros(len(faces), dtype=torch.bool, device=device)
    hidden[query[nearer]] = True
    visible = (facing > 0) & inside & ~hidden
    seen = first[first >= 0]
    visible[seen] |= facing[seen] > 0
    depth = torch.where(best > 0, 1 / best, torch.inf)
    return Visibility(visible, facing.float(), cell, first.view(rows, columns), depth.float().view(rows, columns))


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For every i, `counts[i]` rows: (i, 0), (i, 1), ... as two columns."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
