"""The head's triangles: skin, eyeballs, mouth interior, teeth and ears, all from code.

The skin is laid out in the chart of `shape` (longitude, arc length): loops of
points around the eyes and the mouth, then points whose spacing follows the
detail, then a Delaunay triangulation; each chart point is traced onto the
signed distance function. One half is made and mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import Delaunay, cKDTree

from scene.synthetic import shape

Array = np.ndarray

SKIN, EYEBALL, MOUTH, TEETH, EAR = range(5)   # kinds of triangles


@dataclass
class HeadMesh:
    """The template and what is known about its parts. V vertices, F triangles."""

    vertices: Array            # [V, 3] metres
    faces: Array               # [F, 3] int64, counter-clockwise seen from outside
    kind: Array                # [F] int64, one of SKIN...EAR
    chart: Array               # [V, 2] (theta in -pi..pi, h); meaningful on the skin
    parts: dict[str, Array] = field(default_factory=dict)  # name -> vertex ids


def _spacing(points: Array) -> Array:
    """Wanted distance (metres) between neighbours at chart points [N, 2] = (radius * theta, h), left half."""
    a, h = points[:, 0], points[:, 1]

    def near(centre_a: float, centre_h: float, inner: float, outer: float) -> Array:
        distance = np.hypot(a - centre_a, h - centre_h)
        return np.clip((distance - inner) / (outer - inner), 0.0, 1.0)

    eye_theta, _ = shape.to_chart(shape.EYE + np.array([0.0, 0.0, shape.EYE_RADIUS]))
    coarse = 0.0105
    spacing = np.full(len(a), coarse)
    for centre_a, centre_h, inner, outer, fine in (
        (shape.CHART_RADIUS * float(eye_theta), shape.EYE[1], 0.012, 0.060, 0.0030),
        (0.010, shape.MOUTH_Y, 0.016, 0.060, 0.0030),
        (0.006, -0.018, 0.018, 0.060, 0.0023),
        (0.004, 0.010, 0.010, 0.060, 0.0040),
        (0.000, -0.090, 0.025, 0.070, 0.0050),
    ):
        spacing = np.minimum(spacing, fine + (coarse - fine) * near(centre_a, centre_h, inner, outer))
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


def _boundary_and_interior(rng: np.random.Generator, taken: Array, clearance: Array,
                           inside: list[Array]) -> tuple[Array, Array]:
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
    # The finest first, so that coarse points do not sit where fine ones are wanted.
    accepted = [p for p in border_points]
    spacing = _spacing(candidates)
    grid: dict[tuple[int, int], list[tuple[float, float]]] = {}
    cell = 0.011

    def flat(p: Array) -> tuple[float, float]:
        return tuple(_flatten(p[None])[0])

    def insert(q: tuple[float, float]) -> None:
        grid.setdefault((int(q[0] // cell), int(q[1] // cell)), []).append(q)

    for p in accepted:
        insert(flat(p))
    free = []
    flattened = _flatten(candidates)
    for p, q, r in zip(candidates, flattened, spacing):
        i, j = int(q[0] // cell), int(q[1] // cell)
        close = any((q[0] - o[0]) ** 2 + (q[1] - o[1]) ** 2 < (0.86 * r) ** 2
                    for di in (-1, 0, 1) for dj in (-1, 0, 1) for o in grid.get((i + di, j + dj), ()))
        if not close:
            insert((q[0], q[1]))
            free.append(p)
    return border_points, np.array(free)


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


def _skin_half(rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """The left half of the skin: chart points [N, 2], triangles, ids of the eye loop, ids of the mouth loop."""
    eye_count, mouth_count = 30, 13
    eye_loops = [_eye_loop(eye_count, g) for g in (0.0, 0.0013, 0.0030, 0.0052)]
    mouth_loops = [_mouth_loop(mouth_count, g) for g in (0.0, 0.0016, 0.0036, 0.0060, 0.0090)]
    fixed = np.vstack(eye_loops + mouth_loops)
    clearance = np.concatenate(
        [np.full(eye_count, c) for c in (0.001, 0.001, 0.0013, 0.0020)]
        + [np.full(2 * mouth_count + 1, c) for c in (0.001, 0.001, 0.0014, 0.0018, 0.0022)])
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


def _relaxed(points: Array, faces: Array, fixed: Array) -> Array:
    """Spreads the vertices over the surface where tracing stretched the triangles (nose, under the chin)."""
    edges = np.vstack([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.vstack([edges, edges[:, ::-1]])
    degree = np.bincount(edges[:, 0], minlength=len(points))[:, None]
    points = points.copy()
    for _ in range(14):
        total = np.zeros_like(points)
        np.add.at(total, edges[:, 0], points[edges[:, 1]])
        move = 0.5 * (total / degree - points)
        normal = shape.gradient(points)
        move -= (move * normal).sum(1, keepdims=True) * normal
        moved = points + move
        moved -= 0.8 * shape.distance(moved)[:, None] * shape.gradient(moved)
        points[~fixed] = moved[~fixed]
    return points


def _chart_after(points: Array, chart: Array) -> Array:
    """Chart coordinates after the vertices slid; the strip around the back seam and the neck keep theirs."""
    theta, h = shape.to_chart(points)
    follows = (points[:, 1] > -0.0700) & (np.abs(chart[:, 0]) < 2.8) & (chart[:, 1] < shape.H_TOP - 0.03)
    return np.where(follows[:, None], np.column_stack([theta, h]), chart)


class _Builder:
    """Collects vertices and triangles of the parts."""

    def __init__(self) -> None:
        self.vertices: list[Array] = []
        self.charts: list[Array] = []
        self.faces: list[Array] = []
        self.kinds: list[Array] = []
        self.count = 0

    def add_vertices(self, vertices: Array, chart: Array | None = None) -> Array:
        ids = self.count + np.arange(len(vertices))
        self.vertices.append(np.asarray(vertices, dtype=np.float64))
        self.charts.append(np.zeros((len(vertices), 2)) if chart is None else chart)
        self.count += len(vertices)
        return ids

    def add_faces(self, faces: Array, kind: int) -> None:
        self.faces.append(np.asarray(faces, dtype=np.int64))
        self.kinds.append(np.full(len(faces), kind))

    def strip(self, outer: Array, inner: Array, kind: int, closed: bool = True) -> None:
        """Two rows of equal length joined by triangles, facing the viewer who sees `outer` run counter-clockwise."""
        n = len(outer)
        i = np.arange(n if closed else n - 1)
        j = (i + 1) % n
        self.add_faces(np.vstack([np.column_stack([outer[i], outer[j], inner[i]]),
                                  np.column_stack([outer[j], inner[j], inner[i]])]), kind)


def _sphere(rings: int, segments: int) -> tuple[Array, Array]:
    """Unit sphere with its pole on +z: vertices and triangles; the rings crowd towards the front pole."""
    polar = np.pi * (np.arange(1, rings) / rings) ** 1.25
    azimuth = 2.0 * np.pi * np.arange(segments) / segments
    grid = np.stack(np.broadcast_arrays(
        np.sin(polar)[:, None] * np.cos(azimuth), np.sin(polar)[:, None] * np.sin(azimuth),
        np.cos(polar)[:, None] * np.ones(segments)), axis=-1).reshape(-1, 3)
    vertices = np.vstack([[[0, 0, 1.0]], grid, [[0, 0, -1.0]]])
    faces = []
    s = np.arange(segments)
    t = (s + 1) % segments
    faces.append(np.column_stack([np.zeros_like(s), 1 + s, 1 + t]))
    for ring in range(rings - 2):
        a, b = 1 + ring * segments, 1 + (ring + 1) * segments
        faces.append(np.column_stack([a + s, b + s, a + t]))
        faces.append(np.column_stack([a + t, b + s, b + t]))
    last = 1 + (rings - 2) * segments
    faces.append(np.column_stack([last + s, np.full_like(s, len(vertices) - 1), last + t]))
    return vertices, np.vstack(faces)


def _dental_arch(count: int, width: float, front: float, depth: float) -> Array:
    """Points [count, 2] (x, z) along a parabola-like arch from the right to the left."""
    s = np.linspace(-1.0, 1.0, count)
    angle = s * 1.35
    return np.column_stack([width * np.sin(angle) / np.sin(1.35), front - depth * (1 - np.cos(angle))])


def _teeth(builder: _Builder, upper: bool) -> Array:
    """A row of teeth as a thin closed band along the arch; returns its vertex ids."""
    count = 29
    grown = _dental_arch(count, 0.0235, 0.0800, 0.0260)
    inner = _dental_arch(count, 0.0195, 0.0745, 0.0240)
    sign = 1.0 if upper else -1.0
    back = 0.0 if upper else -0.0026
    # The biting edge waves a little: one scallop per tooth.
    tooth = np.abs(np.sin(np.linspace(0, np.pi * 10, count)))
    edge = MOUTH_TEETH_Y + (-0.0022 if upper else -0.0030) + sign * 0.0007 * (1 - tooth)
    root = edge * 0 + MOUTH_TEETH_Y + (0.0100 if upper else -0.0130)
    rows = []
    for arch, y, bulge in ((grown, root, 0.0), (grown, (root + edge) / 2, 0.0006), (grown, edge, 0.0003),
                           (inner, edge, 0.0), (inner, root, 0.0)):
        rows.append(builder.add_vertices(np.column_stack([arch[:, 0], y, arch[:, 1] + back + bulge * tooth])))
    for a, b in zip(rows[:-1], rows[1:]):
        if upper:
            builder.strip(b, a, TEETH, closed=False)
        else:
            builder.strip(a, b, TEETH, closed=False)
    return np.concatenate(rows)


MOUTH_TEETH_Y = shape.MOUTH_Y + 0.0010


def _ear(builder: _Builder) -> Array:
    """The left ear: a relief over an ear-shaped outline, its back and a skirt into the head; returns vertex ids."""
    segments = 20
    angle = 2.0 * np.pi * np.arange(segments) / segments
    # Outline in the ear's own plane: u to the back of the head, v up; wide above, a lobe below.
    u = 0.0152 * np.cos(angle) * (1.0 + 0.22 * np.sin(angle)) + 0.0025 * np.sin(angle)
    v = 0.0285 * np.sin(angle) + 0.0015 * np.cos(angle)
    rows = []
    levels = np.array([0.0, 0.26, 0.5, 0.68, 0.82, 0.93, 1.0])
    front = np.clip((-np.cos(angle) - 0.2) / 0.8, 0.0, 1.0)      # 1 at the side that joins the cheek
    lobe = np.clip((-np.sin(angle) - 0.5) / 0.5, 0.0, 1.0)
    for level in levels[1:]:
        rim = 0.0042 * np.exp(-((level - 0.90) / 0.10) ** 2) * (1.0 - 0.6 * lobe)
        fold = 0.0030 * np.exp(-((level - 0.56) / 0.13) ** 2) * (1.0 - front) * (1.0 - lobe)
        bowl = -0.0075 * np.exp(-(level / 0.42) ** 2)
        height = rim * (1.0 - 0.5 * front) + fold + bowl + 0.0018 * lobe
        rows.append(np.column_stack([u * level, v * level, height]))
    centre = np.array([[0.0, 0.0, -0.0075]])
    behind = [np.column_stack([u * 0.97, v * 0.97, np.full(segments, -0.0030)]),
              np.column_stack([u * 0.62, v * 0.70, np.full(segments, -0.0120)]),
              np.column_stack([u * 0.45, v * 0.55, np.full(segments, -0.0240)])]
    # The plane of the ear: faces outward and forward, leans back a little.
    outward = np.array([0.93, 0.0, 0.37])
    backward = np.array([0.37, 0.0, -0.93])
    up = np.array([0.0, 1.0, 0.0])
    lean = 0.18
    backward, up = (np.cos(lean) * backward - np.sin(lean) * up, np.sin(lean) * backward + np.cos(lean) * up)

    def place(local: Array) -> Array:
        return (np.array([0.0775, 0.0060, -0.0080]) + local[:, :1] * backward + local[:, 1:2] * up
                + local[:, 2:] * outward)

    middle = builder.add_vertices(place(centre))
    ids = [builder.add_vertices(place(row)) for row in rows + behind]
    s = np.arange(segments)
    t = (s + 1) % segments
    builder.add_faces(np.column_stack([np.full(segments, middle[0]), ids[0][s], ids[0][t]]), EAR)
    for a, b in zip(ids[:-1], ids[1:]):
        builder.add_faces(np.vstack([np.column_stack([a[s], b[s], a[t]]), np.column_stack([a[t], b[s], b[t]])]), EAR)
    return np.concatenate([middle, *ids])


def _mouth_pocket(builder: _Builder, rim: Array, rim_points: Array) -> list[Array]:
    """The inside of the mouth behind the closed loop `rim` (left corner first, counter-clockwise): rows of ids."""
    n = len(rim)
    angle = 2.0 * np.pi * np.arange(n) / n
    corner = rim_points[0]
    rows = [rim]
    across = rim_points[:, 0] / corner[0]
    upward = np.sin(angle)
    # Each row: width, height, forward shift at the middle, curvature of the arch. Behind the lips first,
    # then around the teeth, then the throat.
    for width, height, z_front, z_side in (
        (0.0245, 0.0030, 0.0855, 0.0700), (0.0262, 0.0120, 0.0828, 0.0620),
        (0.0275, 0.0160, 0.0740, 0.0500), (0.0260, 0.0165, 0.0560, 0.0380), (0.0160, 0.0120, 0.0350, 0.0300),
    ):
        x = width * (np.cos(angle) if height > 0.01 else across)
        y = MOUTH_TEETH_Y - 0.0008 + height * upward
        z = z_front + (z_side - z_front) * np.abs(x / width) ** 2
        rows.append(builder.add_vertices(np.column_stack([x, y, z])))
    for outer, inner in zip(rows[:-1], rows[1:]):
        builder.strip(outer, inner, MOUTH)
    end = builder.add_vertices(np.array([[0.0, MOUTH_TEETH_Y, 0.0300]]))
    s = np.arange(n)
    builder.add_faces(np.column_stack([rows[-1][s], rows[-1][(s + 1) % n], np.full(n, end[0])]), MOUTH)
    rows.append(end)
    return rows


def build_mesh(seed: int = 0) -> HeadMesh:
    """Builds the template; the same `seed` gives the same arrays."""
    rng = np.random.default_rng([seed, 1])
    chart, triangles, eye_loop, mouth_loop = _skin_half(rng)
    half = len(chart)
    theta = chart[:, 0] / shape.CHART_RADIUS
    points = shape.trace(*shape.chart_rays(theta, chart[:, 1]))
    on_middle = (chart[:, 0] < 1e-9) | (chart[:, 0] > shape.CHART_RADIUS * np.pi - 1e-9)
    on_middle |= chart[:, 1] >= shape.H_TOP - 1e-9
    points[on_middle, 0] = 0.0

    mirror = np.arange(half)
    mirror[~on_middle] = half + np.arange(int((~on_middle).sum()))
    twins = points[~on_middle] * [-1.0, 1.0, 1.0]
    builder = _Builder()
    # The crown's longitude is arbitrary; 0 keeps it off the seam.
    polar = np.column_stack([np.where(chart[:, 1] >= shape.H_TOP - 1e-9, 0.0, theta), chart[:, 1]])
    builder.add_vertices(points, polar)
    builder.add_vertices(twins, polar[~on_middle] * [-1.0, 1.0])
    builder.add_faces(triangles, SKIN)
    builder.add_faces(mirror[triangles][:, ::-1], SKIN)
    skin_ids = np.arange(builder.count)
    fixed = np.zeros(builder.count, dtype=bool)
    fixed[eye_loop] = fixed[mouth_loop] = fixed[mirror[eye_loop]] = fixed[mirror[mouth_loop]] = True
    low = chart[:, 1] < shape.H_BOTTOM + 1e-9
    fixed[:half][low] = fixed[mirror[low]] = True
    everything = _relaxed(np.vstack(builder.vertices), np.vstack(builder.faces), fixed)
    everything[np.flatnonzero(on_middle), 0] = 0.0
    builder.vertices = [everything]
    builder.charts = [_chart_after(everything, np.vstack(builder.charts))]

    parts: dict[str, Array] = {"skin": skin_ids}
    # Lid margins: a ring on the eyeball and one behind it close the gap.
    sphere, sphere_faces = _sphere(12, 18)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        centre = shape.EYE * [sign, 1.0, 1.0]
        loop = eye_loop if sign > 0 else mirror[eye_loop][::-1]
        outward = everything[loop] - centre
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        margin = builder.add_vertices(centre + outward * (shape.EYE_RADIUS + 0.0003), builder_chart(builder, loop))
        squeezed = outward * [1.16, 1.35, 1.0]
        squeezed /= np.linalg.norm(squeezed, axis=1, keepdims=True)
        behind = builder.add_vertices(centre + squeezed * (shape.EYE_RADIUS - 0.0006), builder_chart(builder, loop))
        builder.strip(loop, margin, SKIN)
        builder.strip(margin, behind, SKIN)
        parts[f"{side}_lid_loop"] = loop
        parts[f"{side}_lid_margin"], parts[f"{side}_lid_back"] = margin, behind
        ball = builder.add_vertices(centre + shape.EYE_RADIUS * sphere)
        builder.add_faces(ball[0] + sphere_faces, EYEBALL)
        parts[f"{side}_eyeball"] = ball

    # The mouth's rim as one counter-clockwise loop that starts at the left corner.
    n = len(mouth_loop)
    upper_left, lower_left = mouth_loop[: n // 2 + 1][::-1], mouth_loop[n // 2 + 1:]
    rim = np.concatenate([upper_left, mirror[upper_left][::-1][1:], mirror[lower_left], lower_left[::-1][1:]])
    rows = _mouth_pocket(builder, rim, everything[rim])
    parts["mouth_rim"] = rim
    for depth, row in enumerate(rows[1:], start=1):
        parts[f"mouth_row_{depth}"] = row
    parts["upper_teeth"] = _teeth(builder, upper=True)
    parts["lower_teeth"] = _teeth(builder, upper=False)

    left_ear = _Builder()
    local = _ear(left_ear)
    ear_vertices = np.vstack(left_ear.vertices)
    ear_faces = np.vstack(left_ear.faces)
    parts["left_ear"] = builder.add_vertices(ear_vertices)
    builder.add_faces(parts["left_ear"][0] + ear_faces, EAR)
    parts["right_ear"] = builder.add_vertices(ear_vertices * [-1.0, 1.0, 1.0])
    builder.add_faces(parts["right_ear"][0] + ear_faces[:, ::-1], EAR)
    del local

    return HeadMesh(np.vstack(builder.vertices), np.vstack(builder.faces), np.concatenate(builder.kinds),
                    np.vstack(builder.charts), parts)


def builder_chart(builder: _Builder, ids: Array) -> Array:
    """Chart coordinates of vertices already added."""
    return np.vstack(builder.charts)[ids]
