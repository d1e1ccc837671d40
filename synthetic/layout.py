"""Where the skin's vertices lie in the chart: loops around eyes and mouth, graded points, a Delaunay triangulation.

One half is laid out (x >= 0); `mesh` mirrors it. Chart points are
(CHART_RADIUS * longitude, h) in metres, see `shape`.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import Delaunay, cKDTree

from synthetic import shape

Array = np.ndarray


def _spacing(points: Array) -> Array:
    """Wanted distance (metres) between neighbours at chart points [N, 2] = (radius * theta, h), left half."""
    a, h = points[:, 0], points[:, 1]

    def near(center_a: float, center_h: float, inner: float, outer: float) -> Array:
        distance = np.hypot(a - center_a, h - center_h)
        return np.clip((distance - inner) / (outer - inner), 0.0, 1.0)

    eye_theta, _ = shape.to_chart(shape.EYE + np.array([0.0, 0.0, shape.EYE_RADIUS]))
    coarse = 0.0105
    spacing = np.full(len(a), coarse)
    for center_a, center_h, inner, outer, fine in (
        (shape.CHART_RADIUS * float(eye_theta), shape.EYE[1], 0.012, 0.060, 0.0030),
        (0.010, shape.MOUTH_Y, 0.016, 0.060, 0.0030),
        (0.006, -0.018, 0.018, 0.060, 0.0023),
        (0.004, 0.010, 0.010, 0.060, 0.0040),
        (0.000, -0.090, 0.025, 0.070, 0.0050),
    ):
        spacing = np.minimum(spacing, fine + (coarse - fine) * near(center_a, center_h, inner, outer))
    return spacing


def _eye_loop(count: int, grow: float = 0.0) -> Array:
    """Chart points [count, 2] of the lid margin of the left eye (`grow` metres outside it)."""
    angle = 2.0 * np.pi * np.arange(count) / count
    across, up = np.cos(angle), np.sin(angle)
    half_width, upper, lower = 0.0140, 0.0066, 0.0052
    # An almond: the upper lid peaks nearer to the nose, the outer corner sits higher than the inner one.
    x = half_width * across
    y = np.where(up > 0, upper, lower) * np.sign(up) * np.abs(up) ** 1.15 + 0.0010 * across
    y = y + 0.0006
    scale_x, scale_y = 1.0 + grow / half_width, 1.0 + grow / 0.0050
    position = np.stack([x * scale_x, y * scale_y], axis=-1)
    reach = np.sqrt(np.maximum((shape.EYE_RADIUS + shape.LID) ** 2 - (position**2).sum(-1), 1e-6))
    points = shape.EYE + np.column_stack([position, reach])
    theta, h = shape.to_chart(points)
    return np.column_stack([shape.CHART_RADIUS * theta, h])


def outer_eye_corner() -> Array:
    """Chart point [2] (metres of longitude, h) where the lids of the left eye meet beside the temple."""
    return _eye_loop(30)[0]


def _mouth_loop(count: int, grow: float = 0.0) -> Array:
    """Chart points [2 * count + 1, 2] of the left half of the mouth's rim: upper middle, corner, lower middle."""
    t = np.linspace(0.0, 1.0, count + 1)
    x = (shape.MOUTH_CORNER_X + grow) * np.sin(t * np.pi / 2)
    half = 0.00035 * np.sqrt(np.maximum(1 - t**4, 0.0)) + grow * np.cos(t * np.pi / 2)
    upper = np.column_stack([x, shape.mouth_line(x) + half])
    lower = np.column_stack([x, shape.mouth_line(x) - half])[:-1][::-1]
    points = np.vstack([upper, lower])
    depth = np.interp(np.abs(points[:, 0]), [0.0, 0.012, 0.025, 0.04], [0.0895, 0.0870, 0.0770, 0.0660])
    theta = np.arctan2(points[:, 0], depth)
    return np.column_stack([shape.CHART_RADIUS * theta, points[:, 1]])


def _boundary_and_interior(
    rng: np.random.Generator, taken: Array, clearance: Array, inside: list[Array]
) -> tuple[Array, Array]:
    """Chart points that fill the half domain around the loops: fixed (on its border) and free."""
    back = shape.CHART_RADIUS * np.pi
    blocked = cKDTree(taken)

    def is_free(points: Array) -> Array:
        distance, nearest = blocked.query(points)
        free = distance > np.maximum(clearance[nearest], 0.7 * np.minimum(_spacing(points), 2.0 * clearance[nearest]))
        for loop in inside:
            free &= ~_in_polygon(points, loop)
        return free

    border = []
    for a in (0.0, back):
        h = shape.H_BOTTOM
        while h < shape.H_TOP - 0.006:
            border.append((a, h))
            h += float(_spacing(np.array([[a, h]]))[0]) * (1.0 if a == 0.0 else 1.2)
    a = 0.012
    while a < back - 0.006:
        border.append((a, shape.H_BOTTOM))
        a += 0.012
    border_points = np.array(border)
    border_points = border_points[is_free(border_points)]
    border_points = np.vstack([border_points, [[shape.CHART_RADIUS * np.pi / 2, shape.H_TOP]]])

    candidates = rng.random((30000, 2)) * [back, shape.H_TOP - shape.H_BOTTOM] + [0.0, shape.H_BOTTOM]
    squeeze = _squeeze(candidates)
    candidates = candidates[(rng.random(len(candidates)) < squeeze) & is_free(candidates)]
    return border_points, _thinned(candidates, border_points)


def _thinned(candidates: Array, kept: Array) -> Array:
    """The `candidates` [N, 2], taken in order, that keep the wanted distance to `kept` and to those taken before."""
    cell = 0.011  # metres, at least the coarsest spacing
    grid: dict[tuple[int, int], list[Array]] = {}

    def insert(q: Array) -> None:
        grid.setdefault((int(q[0] // cell), int(q[1] // cell)), []).append(q)

    for q in _flatten(kept):
        insert(q)
    taken = []
    for p, q, wanted in zip(candidates, _flatten(candidates), 0.86 * _spacing(candidates)):
        i, j = int(q[0] // cell), int(q[1] // cell)
        others = [o for di in (-1, 0, 1) for dj in (-1, 0, 1) for o in grid.get((i + di, j + dj), ())]
        if all((q[0] - o[0]) ** 2 + (q[1] - o[1]) ** 2 >= wanted * wanted for o in others):
            insert(q)
            taken.append(p)
    return np.array(taken)


def _squeeze(points: Array) -> Array:
    """Ratio of true to chart width at chart points [N, 2]: cosine of the elevation on the skull's top."""
    elevation = np.clip((points[:, 1] - shape.CROWN_Y) / shape.SKULL_ARC, 0.0, np.pi / 2)
    return np.cos(elevation)


def _flatten(points: Array) -> Array:
    """Chart points [N, 2] in the sinusoidal projection, where distances near the crown are true."""
    middle = shape.CHART_RADIUS * np.pi / 2
    return np.column_stack([(points[:, 0] - middle) * _squeeze(points), points[:, 1]])


def _in_polygon(points: Array, polygon: Array) -> Array:
    """Which of `points` [N, 2] lie inside the closed `polygon` [M, 2] (even-odd rule)."""
    inside = np.zeros(len(points), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        crosses = (y0 > points[:, 1]) != (y1 > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (points[:, 0] < (x1 - x0) * (points[:, 1] - y0) / (y1 - y0) + x0)
    return inside


def skin_half(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """The left half of the skin: chart points [N, 2], triangles, ids of the eye loop, ids of the mouth loop."""
    eye_count, mouth_count = 30, 13
    eye_loops = [_eye_loop(eye_count, g) for g in (0.0, 0.0013, 0.0030, 0.0052)]
    mouth_loops = [_mouth_loop(mouth_count, g) for g in (0.0, 0.0016, 0.0036, 0.0060, 0.0090)]
    fixed = np.vstack(eye_loops + mouth_loops)
    clearance = np.concatenate(
        [np.full(eye_count, c) for c in (0.001, 0.001, 0.0013, 0.0020)]
        + [np.full(2 * mouth_count + 1, c) for c in (0.001, 0.001, 0.0014, 0.0018, 0.0022)]
    )
    border, free = _boundary_and_interior(rng, fixed, clearance, [eye_loops[-1], mouth_loops[-1]])
    chart = np.vstack([fixed, border, free])
    loose = slice(len(fixed) + len(border), None)
    for _ in range(12):
        triangles = Delaunay(_flatten(chart)).simplices
        total, degree = np.zeros_like(chart), np.zeros(len(chart))
        for i in range(3):
            for j in range(3):
                if i != j:
                    np.add.at(total, triangles[:, i], chart[triangles[:, j]])
                    np.add.at(degree, triangles[:, i], 1.0)
        chart[loose] += 0.5 * (total[loose] / degree[loose, None] - chart[loose])
    flat = _flatten(chart)
    triangles = Delaunay(flat).simplices.astype(np.int64)
    p0, p1, p2 = (flat[triangles[:, i]] for i in range(3))
    area = 0.5 * ((p1[:, 0] - p0[:, 0]) * (p2[:, 1] - p0[:, 1]) - (p1[:, 1] - p0[:, 1]) * (p2[:, 0] - p0[:, 0]))
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    eye = np.arange(eye_count)
    mouth = 4 * eye_count + np.arange(2 * mouth_count + 1)
    in_hole = np.isin(triangles, eye).all(1) | np.isin(triangles, mouth).all(1)
    keep = ~in_hole & (np.abs(area) > 1e-9)
    return chart, triangles[keep], eye, mouth
