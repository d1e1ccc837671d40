"""The head's triangles: skin, eyeballs, mouth interior, teeth and ears, all from code.

`layout` triangulates one half of the skin in the chart; here each chart point
is traced onto the signed distance function of `shape`, the half is mirrored,
and the other parts are added.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from synthetic import layout, shape

Array = np.ndarray

SKIN, EYEBALL, MOUTH, TEETH, EAR = range(5)  # kinds of triangles
MOUTH_TEETH_Y = shape.MOUTH_Y + 0.0010  # height of the middle between the rows of teeth


@dataclass
class HeadMesh:
    """The template and what is known about its parts. V vertices, F triangles."""

    vertices: Array  # [V, 3] metres
    faces: Array  # [F, 3] int64, counter-clockwise seen from outside
    kind: Array  # [F] int64, one of SKIN...EAR
    chart: Array  # [V, 2] (theta in -pi..pi, h); meaningful on the skin
    parts: dict[str, Array] = field(default_factory=dict)  # name -> vertex ids


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


def _refined(points: Array, chart: Array, faces: Array, longest: float, below: float) -> tuple[Array, Array, Array]:
    """Splits edges `below` that height until none is over `longest` metres; new vertices come last.

    The chart stretches over the neck and the shoulders. Triangles of several
    centimetres there would be larger than what a trainer lets a Gaussian cover.
    """
    while True:
        edges = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2), axis=2)  # [F, 3, 2], from each corner
        long = np.linalg.norm(points[edges[..., 0]] - points[edges[..., 1]], axis=2) > longest
        long &= points[edges, 1].mean(axis=2) < below
        if not long.any():
            return points, chart, faces
        pairs, number = np.unique(edges[long], axis=0, return_inverse=True)
        middle = np.full(faces.shape, -1)
        middle[long] = len(points) + number.reshape(-1)
        a, b = pairs.T
        # Longitudes are averaged on the circle: the back seam is at both -pi and pi.
        theta = np.angle(np.exp(1j * chart[a, 0]) + np.exp(1j * chart[b, 0]))
        chart = np.vstack([chart, np.column_stack([theta, 0.5 * (chart[a, 1] + chart[b, 1])])])
        added = 0.5 * (points[a] + points[b])
        seam = np.abs(added[:, 0]) < 1e-9
        for _ in range(3):
            added -= 0.8 * shape.distance(added)[:, None] * shape.gradient(added)
        added[seam, 0] = 0.0
        points = np.vstack([points, added])
        split = []
        for corner in range(3):  # one split edge: turn the face so that it starts with that edge
            i, j, k = (faces[:, (corner + n) % 3] for n in range(3))
            m, n, o = (middle[:, (corner + n) % 3] for n in range(3))
            one = (m >= 0) & (n < 0) & (o < 0)
            split += [np.column_stack([i, m, k])[one], np.column_stack([m, j, k])[one]]
            two = (m >= 0) & (n >= 0) & (o < 0)
            split += [np.column_stack([m, j, n])[two], np.column_stack([i, m, n])[two], np.column_stack([i, n, k])[two]]
        i, j, k, m, n, o = *faces.T, *middle.T
        three = (middle >= 0).all(axis=1)
        split += [np.column_stack(corners)[three] for corners in ((i, m, o), (m, j, n), (o, n, k), (m, n, o))]
        faces = np.vstack([faces[(middle < 0).all(axis=1)], *split])


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

    def chart_of(self, ids: Array) -> Array:
        """Chart coordinates of vertices already added."""
        return np.vstack(self.charts)[ids]

    def add_faces(self, faces: Array, kind: int) -> None:
        self.faces.append(np.asarray(faces, dtype=np.int64))
        self.kinds.append(np.full(len(faces), kind))

    def strip(self, outer: Array, inner: Array, kind: int, closed: bool = True) -> None:
        """Two rows of equal length joined by triangles, facing the viewer who sees `outer` run counter-clockwise."""
        n = len(outer)
        i = np.arange(n if closed else n - 1)
        j = (i + 1) % n
        self.add_faces(
            np.vstack(
                [np.column_stack([outer[i], outer[j], inner[i]]), np.column_stack([outer[j], inner[j], inner[i]])]
            ),
            kind,
        )


def _sphere(rings: int, segments: int) -> tuple[Array, Array]:
    """Unit sphere with its pole on +z: vertices and triangles; the rings crowd towards the front pole."""
    polar = np.pi * (np.arange(1, rings) / rings) ** 1.25
    azimuth = 2.0 * np.pi * np.arange(segments) / segments
    grid = np.stack(
        np.broadcast_arrays(
            np.sin(polar)[:, None] * np.cos(azimuth),
            np.sin(polar)[:, None] * np.sin(azimuth),
            np.cos(polar)[:, None] * np.ones(segments),
        ),
        axis=-1,
    ).reshape(-1, 3)
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
    outer = _dental_arch(count, 0.0235, 0.0800, 0.0260)
    inner = _dental_arch(count, 0.0195, 0.0745, 0.0240)
    sign = 1.0 if upper else -1.0
    back = 0.0 if upper else -0.0026
    # The biting edge waves a little: one scallop per tooth.
    tooth = np.abs(np.sin(np.linspace(0, np.pi * 10, count)))
    edge = MOUTH_TEETH_Y + (-0.0022 if upper else -0.0030) + sign * 0.0007 * (1 - tooth)
    root = np.full(count, MOUTH_TEETH_Y + (0.0100 if upper else -0.0130))
    rows = []
    for arch, y, bulge in (
        (outer, root, 0.0),
        (outer, (root + edge) / 2, 0.0006),
        (outer, edge, 0.0003),
        (inner, edge, 0.0),
        (inner, root, 0.0),
    ):
        rows.append(builder.add_vertices(np.column_stack([arch[:, 0], y, arch[:, 1] + back + bulge * tooth])))
    for a, b in zip(rows[:-1], rows[1:]):
        if upper:
            builder.strip(b, a, TEETH, closed=False)
        else:
            builder.strip(a, b, TEETH, closed=False)
    return np.concatenate(rows)


def _ear(builder: _Builder) -> None:
    """The left ear: a relief over an ear-shaped outline, its back and a skirt into the head."""
    segments = 20
    angle = 2.0 * np.pi * np.arange(segments) / segments
    # Outline in the ear's own plane: u to the back of the head, v up; wide above, a lobe below.
    u = 0.0152 * np.cos(angle) * (1.0 + 0.22 * np.sin(angle)) + 0.0025 * np.sin(angle)
    v = 0.0285 * np.sin(angle) + 0.0015 * np.cos(angle)
    rows = []
    levels = np.array([0.0, 0.26, 0.5, 0.68, 0.82, 0.93, 1.0])
    front = np.clip((-np.cos(angle) - 0.2) / 0.8, 0.0, 1.0)  # 1 at the side that joins the cheek
    lobe = np.clip((-np.sin(angle) - 0.5) / 0.5, 0.0, 1.0)
    for level in levels[1:]:
        rim = 0.0042 * np.exp(-(((level - 0.90) / 0.10) ** 2)) * (1.0 - 0.6 * lobe)
        fold = 0.0030 * np.exp(-(((level - 0.56) / 0.13) ** 2)) * (1.0 - front) * (1.0 - lobe)
        bowl = -0.0075 * np.exp(-((level / 0.42) ** 2))
        height = rim * (1.0 - 0.5 * front) + fold + bowl + 0.0018 * lobe
        rows.append(np.column_stack([u * level, v * level, height]))
    center = np.array([[0.0, 0.0, -0.0075]])
    behind = [
        np.column_stack([u * 0.97, v * 0.97, np.full(segments, -0.0030)]),
        np.column_stack([u * 0.62, v * 0.70, np.full(segments, -0.0120)]),
        np.column_stack([u * 0.45, v * 0.55, np.full(segments, -0.0240)]),
    ]
    # The plane of the ear: faces outward and forward, leans back a little.
    outward = np.array([0.93, 0.0, 0.37])
    backward = np.array([0.37, 0.0, -0.93])
    up = np.array([0.0, 1.0, 0.0])
    lean = 0.18
    backward, up = (np.cos(lean) * backward - np.sin(lean) * up, np.sin(lean) * backward + np.cos(lean) * up)

    def place(local: Array) -> Array:
        return (
            np.array([0.0775, 0.0060, -0.0080]) + local[:, :1] * backward + local[:, 1:2] * up + local[:, 2:] * outward
        )

    middle = builder.add_vertices(place(center))
    ids = [builder.add_vertices(place(row)) for row in rows + behind]
    s = np.arange(segments)
    t = (s + 1) % segments
    builder.add_faces(np.column_stack([np.full(segments, middle[0]), ids[0][s], ids[0][t]]), EAR)
    for a, b in zip(ids[:-1], ids[1:]):
        builder.add_faces(np.vstack([np.column_stack([a[s], b[s], a[t]]), np.column_stack([a[t], b[s], b[t]])]), EAR)


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
        (0.0245, 0.0030, 0.0855, 0.0700),
        (0.0262, 0.0120, 0.0828, 0.0620),
        (0.0275, 0.0160, 0.0740, 0.0500),
        (0.0260, 0.0165, 0.0560, 0.0380),
        (0.0160, 0.0120, 0.0350, 0.0300),
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
    chart, triangles, eye_loop, mouth_loop = layout.skin_half(rng)
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
    fixed = np.zeros(builder.count, dtype=bool)
    fixed[eye_loop] = fixed[mouth_loop] = fixed[mirror[eye_loop]] = fixed[mirror[mouth_loop]] = True
    low = chart[:, 1] < shape.H_BOTTOM + 1e-9
    fixed[:half][low] = fixed[mirror[low]] = True
    everything = _relaxed(np.vstack(builder.vertices), np.vstack(builder.faces), fixed)
    everything[np.flatnonzero(on_middle), 0] = 0.0
    everything, polar, skin_faces = _refined(
        everything,
        _chart_after(everything, np.vstack(builder.charts)),
        np.vstack(builder.faces),
        longest=0.014,
        below=-0.12,
    )
    builder = _Builder()
    skin_ids = builder.add_vertices(everything, polar)
    builder.add_faces(skin_faces, SKIN)

    parts: dict[str, Array] = {"skin": skin_ids}
    # Lid margins: a ring on the eyeball and one behind it close the gap.
    sphere, sphere_faces = _sphere(12, 18)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        center = shape.EYE * [sign, 1.0, 1.0]
        loop = eye_loop if sign > 0 else mirror[eye_loop][::-1]
        outward = everything[loop] - center
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        margin = builder.add_vertices(center + outward * (shape.EYE_RADIUS + 0.0003), builder.chart_of(loop))
        squeezed = outward * [1.16, 1.35, 1.0]
        squeezed /= np.linalg.norm(squeezed, axis=1, keepdims=True)
        behind = builder.add_vertices(center + squeezed * (shape.EYE_RADIUS - 0.0006), builder.chart_of(loop))
        builder.strip(loop, margin, SKIN)
        builder.strip(margin, behind, SKIN)
        parts[f"{side}_lid_loop"] = loop
        parts[f"{side}_lid_margin"], parts[f"{side}_lid_back"] = margin, behind
        ball = builder.add_vertices(center + shape.EYE_RADIUS * sphere)
        builder.add_faces(ball[0] + sphere_faces, EYEBALL)
        parts[f"{side}_eyeball"] = ball

    # The mouth's rim as one counter-clockwise loop that starts at the left corner.
    n = len(mouth_loop)
    upper_left, lower_left = mouth_loop[: n // 2 + 1][::-1], mouth_loop[n // 2 + 1 :]
    rim = np.concatenate([upper_left, mirror[upper_left][::-1][1:], mirror[lower_left], lower_left[::-1][1:]])
    rows = _mouth_pocket(builder, rim, everything[rim])
    parts["mouth_rim"] = rim
    for depth, row in enumerate(rows[1:], start=1):
        parts[f"mouth_row_{depth}"] = row
    parts["upper_teeth"] = _teeth(builder, upper=True)
    parts["lower_teeth"] = _teeth(builder, upper=False)

    left_ear = _Builder()
    _ear(left_ear)
    ear_vertices = np.vstack(left_ear.vertices)
    ear_faces = np.vstack(left_ear.faces)
    parts["left_ear"] = builder.add_vertices(ear_vertices)
    builder.add_faces(parts["left_ear"][0] + ear_faces, EAR)
    parts["right_ear"] = builder.add_vertices(ear_vertices * [-1.0, 1.0, 1.0])
    builder.add_faces(parts["right_ear"][0] + ear_faces[:, ::-1], EAR)
    return HeadMesh(
        np.vstack(builder.vertices),
        np.vstack(builder.faces),
        np.concatenate(builder.kinds),
        np.vstack(builder.charts),
        parts,
    )
