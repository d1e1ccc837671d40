"""The form of the procedural head: one signed distance function and the landmarks it is built around.

Frame: metres, x to the subject's left, y up, z forward; the head is about as
large as a real one. The function is a smooth union of ellipsoids and tapered
capsules (the primitives and the polynomial smooth minimum are those of
I. Quilez, "Distance functions"); it is symmetric in x and only approximately a
distance, which is enough for tracing with a step factor below one.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray

EYE = np.array([0.0318, 0.0250, 0.0593])  # centre of the left eyeball
EYE_RADIUS = 0.0145
LID = 0.0016  # thickness of the eyelid
MOUTH_CORNER_X = 0.0245
MOUTH_Y = -0.0490  # height of the line between the lips
CROWN_Y = 0.0550  # above: rays fan out from this point of the axis


def _smooth_min(a: Array, b: Array, k: float) -> Array:
    h = np.maximum(k - np.abs(a - b), 0.0) / k
    return np.minimum(a, b) - h * h * k * 0.25


def _smooth_max(a: Array, b: Array, k: float) -> Array:
    return -_smooth_min(-a, -b, k)


def _ellipsoid(p: Array, center: tuple, radii: tuple) -> Array:
    q = p - np.asarray(center)
    r = np.asarray(radii)
    k0 = np.linalg.norm(q / r, axis=-1)
    k1 = np.linalg.norm(q / (r * r), axis=-1)
    return k0 * (k0 - 1.0) / np.maximum(k1, 1e-9)


def _capsule(p: Array, a: tuple, b: tuple, radius_a: float, radius_b: float | None = None) -> Array:
    start, axis = np.asarray(a), np.asarray(b) - np.asarray(a)
    t = np.clip(((p - start) @ axis) / (axis @ axis), 0.0, 1.0)
    radius = radius_a + t * ((radius_a if radius_b is None else radius_b) - radius_a)
    return np.linalg.norm(p - start - t[..., None] * axis, axis=-1) - radius


def distance(points: Array) -> Array:
    """Signed distance (metres, negative inside) of `points` [..., 3] to the head without ears and eyeballs."""
    p = np.array(points, dtype=np.float64)
    # A rounded |x|: the sides meet without a crease on the midline.
    p[..., 0] = np.sqrt(p[..., 0] ** 2 + 0.0010**2)

    d = _ellipsoid(p, (0.0, 0.0500, -0.0100), (0.0755, 0.0850, 0.0960))  # skull
    d = _smooth_min(d, _ellipsoid(p, (0.0, 0.0520, 0.0300), (0.0600, 0.0560, 0.0555)), 0.02)  # forehead
    d = _smooth_min(d, _capsule(p, (0.0, 0.0050, 0.0280), (0.0, -0.0450, 0.0380), 0.0560, 0.0400), 0.03)
    d = _smooth_min(d, _ellipsoid(p, (0.0440, 0.0020, 0.0480), (0.0210, 0.0180, 0.0220)), 0.025)  # cheekbone
    d = _smooth_min(d, _ellipsoid(p, (0.0310, -0.0270, 0.0520), (0.0230, 0.0260, 0.0230)), 0.025)  # cheek
    d = _smooth_min(d, _capsule(p, (0.0490, -0.0360, 0.0100), (0.0120, -0.0760, 0.0640), 0.0140, 0.0150), 0.035)
    d = _smooth_min(d, _capsule(p, (0.0, -0.0450, -0.0330), (0.0, -0.2600, -0.0480), 0.0580, 0.0720), 0.035)  # neck
    d = _smooth_min(d, _capsule(p, (0.0300, -0.2020, -0.0450), (0.2000, -0.2380, -0.0450), 0.0620, 0.0600), 0.065)
    d = _smooth_min(d, _capsule(p, (0.0090, -0.1820, 0.0000), (0.0450, -0.0600, -0.0300), 0.0080, 0.0080), 0.020)
    d = _smooth_min(d, _ellipsoid(p, (0.0, -0.0780, 0.0710), (0.0200, 0.0140, 0.0165)), 0.016)  # chin
    d = _smooth_min(d, _ellipsoid(p, (0.0, -0.0470, 0.0590), (0.0320, 0.0240, 0.0285)), 0.014)  # mouth
    d = _smooth_min(d, _capsule(p, (0.0080, 0.0410, 0.0760), (0.0420, 0.0430, 0.0600), 0.0105), 0.014)  # brow

    socket = _ellipsoid(p, (0.0320, 0.0255, 0.0920), (0.0190, 0.0125, 0.0185))
    d = _smooth_max(d, -socket, 0.014)

    d = _smooth_min(d, _capsule(p, (0.0, 0.0300, 0.0775), (0.0, -0.0160, 0.1008), 0.0066, 0.0096), 0.013)  # nose
    d = _smooth_min(d, _ellipsoid(p, (0.0118, -0.0210, 0.0890), (0.0064, 0.0068, 0.0105)), 0.0095)  # nostril wing
    d = _smooth_min(d, _capsule(p, (0.0, -0.0225, 0.1000), (0.0, -0.0300, 0.0880), 0.0046), 0.005)  # columella
    d = _smooth_max(d, -_ellipsoid(p, (0.0078, -0.0300, 0.0930), (0.0034, 0.0040, 0.0062)), 0.003)  # nostril

    lid = np.linalg.norm(p - EYE, axis=-1) - (EYE_RADIUS + LID)
    d = _smooth_min(d, lid, 0.0050)

    philtrum = _capsule(p, (0.0, -0.0340, 0.0985), (0.0, -0.0400, 0.0980), 0.0055)
    d = _smooth_max(d, -philtrum, 0.004)
    upper = _smooth_min(
        _capsule(p, (0.0, -0.0452, 0.0892), (0.0075, -0.0440, 0.0884), 0.0044, 0.0050),
        _capsule(p, (0.0075, -0.0440, 0.0884), (0.0235, -0.0482, 0.0765), 0.0050, 0.0018),
        0.002,
    )
    lower = _smooth_min(
        _capsule(p, (0.0, -0.0552, 0.0872), (0.0100, -0.0545, 0.0852), 0.0064, 0.0060),
        _capsule(p, (0.0100, -0.0545, 0.0852), (0.0235, -0.0494, 0.0762), 0.0060, 0.0018),
        0.002,
    )
    d = _smooth_min(d, upper, 0.0030)
    d = _smooth_min(d, lower, 0.0030)
    return d


def gradient(points: Array) -> Array:
    """Unit outward directions [..., 3] at `points` [..., 3], by central differences."""
    step = 2e-4
    columns = []
    for axis in range(3):
        offset = np.zeros(3)
        offset[axis] = step
        columns.append(distance(points + offset) - distance(points - offset))
    g = np.stack(columns, axis=-1)
    return g / np.maximum(np.linalg.norm(g, axis=-1, keepdims=True), 1e-12)


def trace(origins: Array, directions: Array, reach: float = 0.4) -> Array:
    """First surface points [N, 3] met coming from `reach` metres outside towards `origins` [N, 3]."""
    t = np.full(len(origins), reach)
    for _ in range(90):
        t = np.maximum(t - 0.7 * distance(origins + t[:, None] * directions), 0.0)
    return origins + t[:, None] * directions


# --- The chart: longitude and arc length, in which the mesh is laid out and the skin is painted. ---

CHART_RADIUS = 0.085  # metres per radian of longitude
SKULL_ARC = 0.085  # metres per radian of elevation above CROWN_Y
H_TOP = CROWN_Y + SKULL_ARC * np.pi / 2  # the crown
H_BOTTOM = -0.2900
# The front under the chin is nearly horizontal; there the chart's h runs ahead of y, so that it still
# resembles arc length. At the back h and y agree up to a gentle slope.
_H_KNOTS = np.array([-0.0860, -0.1080, H_BOTTOM])
_Y_FRONT = np.array([-0.0860, -0.1010, -0.2500])
_Y_BACK = np.array([-0.0860, -0.1020, -0.2500])


def _neck_axis(y: Array) -> Array:
    """z of the ray origins: the axis leans back with the neck."""
    t = np.clip((-0.0500 - y) / 0.0700, 0.0, 1.0)
    return -0.0250 * t * t * (3.0 - 2.0 * t)


def chart_rays(theta: Array, h: Array) -> tuple[Array, Array]:
    """Ray origins and unit directions [N, 3] for longitudes `theta` (0 front, pi back) and heights `h`."""
    elevation = np.clip((h - CROWN_Y) / SKULL_ARC, 0.0, np.pi / 2)
    front = np.interp(h[...] * -1.0, -_H_KNOTS, _Y_FRONT)
    back = np.interp(h[...] * -1.0, -_H_KNOTS, _Y_BACK)
    side = np.clip((theta - 1.0) / 0.8, 0.0, 1.0)
    below = front + (back - front) * side * side * (3.0 - 2.0 * side)
    y = np.where(h > CROWN_Y, CROWN_Y, np.where(h < _H_KNOTS[0], below, h))
    # The last rows tilt down so that they meet the shoulders, which flare out.
    tilt = -0.9 * np.clip((-0.1500 - h) / 0.1400, 0.0, 1.0)
    pitch = elevation + tilt
    origins = np.stack([np.zeros_like(y), y, _neck_axis(y)], axis=-1)
    directions = np.stack([np.sin(theta) * np.cos(pitch), np.sin(pitch), np.cos(theta) * np.cos(pitch)], axis=-1)
    return origins, directions


def to_chart(points: Array) -> tuple[Array, Array]:
    """(theta, h) of surface points [..., 3] between the chin and the crown."""
    q = points - np.array([0.0, CROWN_Y, 0.0])
    horizontal = np.hypot(q[..., 0], q[..., 2])
    theta = np.arctan2(points[..., 0], points[..., 2] - _neck_axis(points[..., 1]))
    h = np.where(q[..., 1] > 0.0, CROWN_Y + SKULL_ARC * np.arctan2(q[..., 1], horizontal), points[..., 1])
    return theta, h


# --- Outlines on the chart, shared by the region masks, the modes and the paint. ---


def mouth_line(x: Array) -> Array:
    """Height (metres) of the line between the closed lips at |x|: a slight bow, its ends a little higher."""
    t = np.clip(np.abs(x) / MOUTH_CORNER_X, 0.0, 1.0)
    return MOUTH_Y - 0.0006 * np.cos(2.0 * np.pi * t) * (1.0 - t) + 0.0006 * t * t


def lip_depth(x: Array, y: Array) -> Array:
    """Metres inside the red of the lips (negative outside) for front-view positions."""
    t = np.clip(np.abs(x) / (MOUTH_CORNER_X + 0.0005), 0.0, 1.0)
    fall = np.sqrt(np.maximum(1.0 - t**2.2, 0.0))
    bow = 0.0012 * np.exp(-(((np.abs(x) - 0.0062) / 0.0035) ** 2)) - 0.0008 * np.exp(-((x / 0.0028) ** 2))
    line = mouth_line(x)
    top = line + 0.0068 * fall**1.3 + bow
    bottom = line - 0.0105 * fall**1.2
    inside = np.minimum(top - y, y - bottom)
    return np.where(np.abs(x) > MOUTH_CORNER_X + 0.0005, -np.abs(np.abs(x) - MOUTH_CORNER_X), inside)


# Degrees of longitude, chart metres.
_HAIRLINE = np.array(
    [
        (0, 0.1020),
        (18, 0.1010),
        (36, 0.0960),
        (50, 0.0860),
        (58, 0.0600),
        (64, 0.0150),
        (70, -0.0020),
        (78, -0.0010),
        (84, 0.0300),
        (100, 0.0330),
        (112, 0.0080),
        (125, -0.0350),
        (140, -0.0620),
        (180, -0.0700),
    ]
)


def hair_depth(theta: Array, h: Array) -> Array:
    """Chart metres above the hairline (negative on bare skin)."""
    return h - np.interp(np.abs(theta), np.radians(_HAIRLINE[:, 0]), _HAIRLINE[:, 1])


def smoothstep(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a cubic between; `low` may exceed `high`."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
