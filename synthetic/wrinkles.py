"""Wrinkles and blush: what skin shows only while a face moves, over the same chart as the paint.

Each fold belongs to one expression. Its picture is 1 at the bottom of a line and below 0 on the banks beside
it; the strength of the moment scales it into a height, which bends the normals, and into a darkening.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthetic import layout, shape, texture
from synthetic.mesh import HeadMesh
from synthetic.modes import EXPRESSION_NAMES

Array = np.ndarray

DEPTH = 0.00075  # metres of a fold at strength 1
DARKENING = np.array([0.42, 0.52, 0.52], dtype=np.float32)  # share of linear red, green, blue lost at its bottom
BLUSH = np.array([0.00, 0.26, 0.22], dtype=np.float32)  # the same where the blood is

# Fold -> how strong one unit of an expression makes it; what falls below rest makes none.
OWNERS = {
    "forehead_left": {"brow_up_left": 1.0},
    "forehead_right": {"brow_up_right": 1.0},
    "brow": {"brow_down": 1.0},
    "crows_feet": {"smile": 0.6, "squint": 0.8},
    "smile_lines": {"smile": 1.0},
    "blush": {"smile": 0.9},
}
STRONGEST = 1.25


@dataclass(frozen=True)
class Wrinkles:
    """The folds of one person, over the part of the chart that is the face."""

    top: int  # row and column of the window in the picture of the skin
    left: int
    layers: Array  # [K, h, w] float16 in the order of OWNERS, the last is the blush


@dataclass(frozen=True)
class Folded:
    """The folds of one moment over the window: `slope` [h, w, 2] metres per texel (column, row), `kept` [h, w, 3]."""

    top: int
    left: int
    slope: Array
    kept: Array  # factor of the linear albedo

    def at(self, column: Array, row: Array) -> tuple[Array, Array, Array]:
        """Which of the texels [N] are changed, their slopes [M, 2] and their factors [M, 3]."""
        height, width = self.kept.shape[:2]
        y, x = row - self.top, column - self.left
        chosen = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        slope, kept = self.slope[y[chosen], x[chosen]], self.kept[y[chosen], x[chosen]]
        changed = slope.any(1) | (kept != 1.0).any(1)
        return chosen[changed], slope[changed], kept[changed]


def strengths(expression: Array) -> Array:
    """[K] strength of every fold in the order of OWNERS, 0 at rest, for coefficients [17 or more]."""
    values = dict(zip(EXPRESSION_NAMES, np.ravel(expression)))
    total = [sum(weight * max(float(values[n]), 0.0) for n, weight in owner.items()) for owner in OWNERS.values()]
    return np.minimum(np.array(total, dtype=np.float32), STRONGEST)


def make_wrinkles(mesh: HeadMesh, seed: int) -> Wrinkles:
    """The folds of `seed`; every person's run a little differently."""
    rng = np.random.default_rng([seed, 11])
    left, right = (int(texture.texel(np.radians(a), 0.0)[0]) for a in (-80, 80))
    top, bottom = (int(texture.texel(0.0, h)[1]) for h in (0.1020, -0.0800))
    window = (slice(top, bottom), slice(left, right))
    x, z = (a[window].astype(np.float32) for a in texture.front_position(mesh))
    column, row = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    h = (shape.H_TOP - row / texture.HEIGHT * (shape.H_TOP - shape.H_BOTTOM)).astype(np.float32)
    arc = (np.abs(column / texture.WIDTH - 0.5) * 2 * np.pi * shape.CHART_RADIUS).astype(np.float32)
    wobble = 0.0004 * texture.chart_noise(rng, 160)[window]
    forehead = _forehead(rng, x, h + wobble)
    on_left = shape.smoothstep(x, -0.008, 0.008)
    blush = texture.blob(x, h, 0.038, -0.010, 0.014, 0.012) + 0.35 * texture.blob(x, h, 0.0, -0.017, 0.010, 0.008)
    layers = {
        "forehead_left": forehead * on_left,
        "forehead_right": forehead * (1.0 - on_left),
        "brow": _between_brows(x + wobble, h),
        "crows_feet": _crows_feet(rng, arc, h + wobble),
        "smile_lines": _smile_lines(x + wobble, h),
        "blush": np.where(blush > 0.01, blush, 0.0),
    }
    front = z > 0
    return Wrinkles(top, left, np.stack([np.where(front, layers[name], 0.0) for name in OWNERS]).astype(np.float16))


def folded(wrinkles: Wrinkles, expression: Array) -> Folded | None:
    """The folds at an expression; None at rest."""
    strength = strengths(expression)
    if not strength.any():
        return None
    *folds, blush = (s * layer.astype(np.float32) for s, layer in zip(strength, wrinkles.layers))
    fold = sum(folds)  # in order, unlike BLAS, whose sums depend on the number of threads
    down, across = np.gradient(-DEPTH * fold)
    kept = (1.0 - np.clip(fold, 0.0, 1.3)[..., None] * DARKENING) * (1.0 - blush[..., None] * BLUSH)
    return Folded(wrinkles.top, wrinkles.left, np.stack([across, down], axis=-1), kept)


def _line(distance: Array, width: float) -> Array:
    """A fold at `distance` metres from its middle: a valley of standard deviation `width` between two banks."""
    valley, banks = np.exp(-0.5 * (distance / width) ** 2), np.exp(-0.5 * (distance / (2.2 * width)) ** 2)
    result = 1.4 * valley - 0.5 * banks
    return np.where(np.abs(distance) < 7.0 * width, result, 0.0)


def _forehead(rng: np.random.Generator, x: Array, h: Array) -> Array:
    """Lines that follow the brows: higher over each of them than between."""
    total = np.zeros_like(x)
    for height in (0.0590, 0.0665, 0.0745, 0.0830):
        middle = height + 0.0016 * np.cos(2 * np.pi * (np.abs(x) - 0.026) / 0.060) + rng.normal(0, 0.0004)
        ends = shape.smoothstep(np.abs(x + rng.normal(0, 0.002)), rng.uniform(0.042, 0.048), 0.030)
        total += rng.uniform(0.75, 1.05) * ends * _line(h - middle, 0.0011)
    return total


def _between_brows(x: Array, h: Array) -> Array:
    """Two upright lines between the brows and one across the root of the nose."""
    upright = _line(np.abs(x) - 0.0058 - 0.12 * (h - 0.040), 0.0011)
    upright = upright * shape.smoothstep(h, 0.0300, 0.0390) * shape.smoothstep(h, 0.0620, 0.0500)
    across = _line(h - 0.0270 - 8.0 * x * x, 0.0010) * shape.smoothstep(np.abs(x), 0.0100, 0.0050)
    return upright + 0.7 * across


def _crows_feet(rng: np.random.Generator, arc: Array, h: Array) -> Array:
    """A fan that opens from the outer corners of the eyes; `arc` is metres of longitude from the middle."""
    corner = layout.outer_eye_corner()
    dx, dy = arc - (corner[0] - 0.008), h - corner[1]
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    total = np.zeros_like(arc)
    for direction in (-34, -13, 8, 28):
        turn = np.radians(direction + rng.normal(0, 2.0)) - 6.0 * (radius - 0.015)
        reach = shape.smoothstep(radius, 0.0120, 0.0160) * shape.smoothstep(radius, rng.uniform(0.028, 0.033), 0.022)
        total += rng.uniform(0.75, 1.0) * reach * _line(radius * (angle - turn), 0.0009)
    return total * shape.smoothstep(dx, 0.002, 0.008)  # nothing on the lids


def _smile_lines(x: Array, h: Array) -> Array:
    """From the wings of the nose around the corners of the mouth."""
    line = [(-0.060, 0.0355), (-0.050, 0.0350), (-0.038, 0.0305), (-0.026, 0.0235), (-0.016, 0.0165)]
    middle = np.interp(h, *np.array(line).T)
    ends = shape.smoothstep(h, -0.0620, -0.0500) * shape.smoothstep(h, -0.0140, -0.0200)
    return ends * _line(0.82 * (np.abs(x) - middle), 0.0014)
