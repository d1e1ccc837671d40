"""Hair strands: ribbons that the ground truth shows and the head model does not carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from synthetic import shape
from synthetic.mesh import SKIN, HeadMesh
from synthetic.texture import Palette, to_linear

Array = np.ndarray

HAIR_STYLES = ("short", "long", "none")
WHORL = np.array([0.012, 0.1250, -0.0480])  # where the hair parts, on the back of the crown


@dataclass(frozen=True)
class Strands:
    """Ribbons in the template's rest pose. S strands of P cross-sections with two vertices each."""

    vertices: Array  # [S * P * 2, 3] metres
    faces: Array  # [F, 3]
    normals: Array  # [S * P * 2, 3] for shading: out of the head, tilted per strand
    tangents: Array  # [S * P * 2, 3] along the strand
    colors: Array  # [S * P * 2, 3] linear
    occlusion: Array  # [S * P * 2] 0..1, 1 = open
    nearest: Array  # [S * P * 2] template vertex that each ribbon vertex follows


def grow_strands(mesh: HeadMesh, colors: Palette, seed: int, style: str = "short", count: int = 5200) -> Strands:
    """Grows combed hair of one of `HAIR_STYLES` over the scalp; deterministic by `seed`."""
    if style == "none":
        nothing = np.zeros((0, 3))
        return Strands(nothing, nothing.astype(int), nothing, nothing, nothing, np.zeros(0), np.zeros(0, int))
    rng = np.random.default_rng([seed, 5])
    faces = mesh.faces[mesh.kind == SKIN]
    depth = shape.hair_depth(mesh.chart[:, 0], mesh.chart[:, 1])
    faces = faces[(depth[faces] > -0.002).all(1)]
    corners = mesh.vertices[faces]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    # More hair at the edge, where single strands are seen.
    edge = np.exp(-depth[faces].mean(1) / 0.020)
    chance = area * (1.0 + 0.8 * edge)
    chosen = rng.choice(len(faces), count, p=chance / chance.sum())
    u, v = rng.random(count), rng.random(count)
    flip = u + v > 1
    u[flip], v[flip] = 1 - u[flip], 1 - v[flip]
    point = (
        corners[chosen, 0] * (1 - u - v)[:, None] + corners[chosen, 1] * u[:, None] + corners[chosen, 2] * v[:, None]
    )
    root_depth = (depth[faces[chosen]] * np.stack([1 - u - v, u, v], axis=1)).sum(1)

    comb = _comb_long if style == "long" else _comb_short
    line, normal, tangent, lift = comb(rng, point, root_depth, seed)
    points = line.shape[1]
    side = np.cross(normal, tangent)
    taper = np.linspace(1.0, 0.25, points)[None, :, None]
    width = rng.uniform(0.0006, 0.0011, count)[:, None, None] * taper
    tilt = normal + 0.45 * rng.normal(0, 1, (count, 1, 1)) * side
    tilt /= np.linalg.norm(tilt, axis=2, keepdims=True)

    def doubled(a: Array) -> Array:
        return np.repeat(a, 2, axis=1).reshape(-1, a.shape[-1])

    vertices = np.stack([line - side * width, line + side * width], axis=2).reshape(-1, 3)
    tone = colors.hair * rng.uniform(0.75, 1.35, (count, 1)) * (1.0 + 0.05 * rng.normal(0, 1, (count, 3)))
    tone = to_linear(np.clip(tone, 0.02, 0.95))[:, None] * np.linspace(0.75, 1.2, points)[None, :, None]
    open_ = np.linspace(0.45, 1.0, points)[None] * (0.55 + 0.45 * (lift / lift.max()))[:, None]
    base = (np.arange(count)[:, None] * points + np.arange(points - 1)[None]).reshape(-1, 1) * 2
    quads = np.concatenate([base + [0, 1, 2], base + [1, 3, 2]])
    _, nearest = cKDTree(mesh.vertices[mesh.parts["skin"]]).query(np.repeat(point, 2 * points, axis=0))
    return Strands(
        vertices,
        quads,
        doubled(tilt),
        doubled(tangent),
        doubled(np.broadcast_to(tone, line.shape)),
        doubled(open_[..., None])[:, 0],
        mesh.parts["skin"][nearest],
    )


def _comb_short(rng: np.random.Generator, point: Array, root_depth: Array, seed: int) -> tuple[Array, ...]:
    """Strands that lie along the skull, away from the whorl.

    Args:
        point: [S, 3] roots.
        root_depth: [S] how far they are inside the hairline, metres.

    Returns:
        Middle lines, normals and tangents [S, 8, 3], height of the strands above the skin [S] (metres).
    """
    count, points = len(point), 8
    top = shape.smoothstep(point[:, 1], 0.060, 0.110)
    front = shape.smoothstep(point[:, 2], 0.010, 0.060) * shape.smoothstep(point[:, 1], 0.050, 0.085)
    length = (0.016 + 0.022 * top + 0.006 * front) * rng.uniform(0.7, 1.2, count)
    # Short at the neck and at the temples.
    length *= 0.45 + 0.55 * shape.smoothstep(root_depth, 0.0, 0.030)
    length = np.maximum(length, 0.30 * (0.018 + 0.022 * front)) + 0.008 * front
    lift = (0.0062 + 0.0042 * rng.random(count)) * (0.35 + 0.65 * shape.smoothstep(root_depth, -0.002, 0.016))
    shared = _tuft_direction(point, seed)
    tuft = rng.normal(0, 0.16, (count, 3)) + 0.35 * shared
    length *= np.clip(1.0 + 0.35 * shared[:, 0], 0.7, 1.35)
    step = length / (points - 1)
    path, normals, tangents = [], [], []
    position = point + shape.gradient(point) * (0.35 * lift)[:, None]
    for i in range(points):
        normal = shape.gradient(position)
        flow = position - WHORL
        flow /= np.linalg.norm(flow, axis=1, keepdims=True)
        flow = flow + np.array([0.0, -0.35, 0.0]) + front[:, None] * np.array([-0.45, -0.30, 0.30]) + tuft
        flow -= (flow * normal).sum(1, keepdims=True) * normal
        flow /= np.maximum(np.linalg.norm(flow, axis=1, keepdims=True), 1e-9)
        path.append(position)
        normals.append(normal)
        tangents.append(flow)
        share = (i + 1) / (points - 1)
        wanted = lift * (0.35 + 0.65 * np.sin(np.pi / 2 * min(1.0, 2.2 * share))) - 0.0012 * share * share
        position = position + flow * step[:, None]
        position = position + normal * (wanted - shape.distance(position))[:, None]
    return np.stack(path, axis=1), np.stack(normals, axis=1), np.stack(tangents, axis=1), lift


def _comb_long(rng: np.random.Generator, point: Array, root_depth: Array, seed: int) -> tuple[Array, ...]:
    """Strands parted in the middle that leave the head at the temples and fall to the shoulders; see `_comb_short`.

    They keep clear of the face: what grows above the forehead is led to the sides first.
    """
    count, points = len(point), 20
    shared = _tuft_direction(point, seed)
    top = shape.smoothstep(point[:, 1], 0.000, 0.110)
    length = (
        (0.110 + 0.130 * top) * rng.uniform(0.80, 1.05, count) * (0.5 + 0.5 * shape.smoothstep(root_depth, 0, 0.02))
    )
    lift = (0.007 + 0.010 * rng.random(count)) * (0.40 + 0.60 * shape.smoothstep(root_depth, -0.002, 0.025))
    step = length / (points - 1)
    sideways = np.where(np.abs(point[:, 0]) < 0.002, rng.choice([-1.0, 1.0], count), np.sign(point[:, 0]))
    tuft = rng.normal(0, 0.05, (count, 3)) + 0.10 * shared
    position = point + shape.gradient(point) * (0.35 * lift)[:, None]
    path, normals, tangents = [], [], []
    for i in range(points):
        normal = shape.gradient(position)
        # Above the ears along the skull, to the side and back; below, with the weight.
        upper = shape.smoothstep(position[:, 1], 0.020, 0.090)
        ahead = shape.smoothstep(position[:, 2], -0.010, 0.040)
        flow = tuft + np.column_stack([sideways * 0.9 * upper, -1.0 + 0.35 * upper, -(0.12 + 0.80 * upper) * ahead])
        # Slides over what it touches.
        near = shape.smoothstep(shape.distance(position), 0.025, 0.008)
        flow -= (near * np.minimum((flow * normal).sum(1), 0.0))[:, None] * normal
        flow /= np.maximum(np.linalg.norm(flow, axis=1, keepdims=True), 1e-9)
        path.append(position)
        normals.append(normal)
        tangents.append(flow)
        wanted = lift * (0.35 + 0.65 * np.sin(np.pi / 2 * min(1.0, 4.0 * (i + 1) / (points - 1))))
        position = position + flow * step[:, None]
        # Out of the head, but not back to it: below the widest part the hair hangs free.
        correction = wanted - shape.distance(position)
        correction *= np.where(correction < 0.0, upper, 1.0)
        position = position + np.clip(correction, -0.010, 0.010)[:, None] * shape.gradient(position)
    return np.stack(path, axis=1), np.stack(normals, axis=1), np.stack(tangents, axis=1), lift


def _tuft_direction(points: Array, seed: int) -> Array:
    """[N, 3] a direction shared by strands that grow close together, so that they clump."""
    rng = np.random.default_rng([seed, 6])
    centers = points[rng.choice(len(points), 160, replace=False)]
    _, owner = cKDTree(centers).query(points)
    return rng.normal(0, 1, (len(centers), 3))[owner] * 0.6
