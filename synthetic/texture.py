"""The paint: an albedo picture over the chart of the skin, and the colours of eyes, teeth, mouth and ears.

The picture is evaluated once (about 0.26 mm per texel); a ray that hits the
skin looks it up at its template position, so the paint moves with the skin.
Colours are sRGB, 0..1, until `to_linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import LinearNDInterpolator

from synthetic import shape
from synthetic.mesh import EAR, EYEBALL, MOUTH, TEETH, HeadMesh

Array = np.ndarray

WIDTH, HEIGHT = 2048, 1840
SKIN_TONES = ((0.87, 0.70, 0.61), (0.83, 0.62, 0.50), (0.93, 0.75, 0.66), (0.70, 0.48, 0.37))
HAIR_TONES = ((0.24, 0.15, 0.10), (0.16, 0.11, 0.09), (0.42, 0.28, 0.16), (0.10, 0.08, 0.08))
IRIS_TONES = ((0.33, 0.48, 0.58), (0.42, 0.30, 0.16), (0.36, 0.45, 0.30))
CLOTH_TONES = ((0.26, 0.34, 0.46), (0.45, 0.22, 0.22), (0.30, 0.36, 0.30))


@dataclass(frozen=True)
class Palette:
    """The colours of one person, sRGB 0..1."""

    skin: Array
    hair: Array
    iris: Array
    cloth: Array


def palette(seed: int) -> Palette:
    """The colours of `seed`; seed 0 is the first of each row."""
    rng = np.random.default_rng([seed, 2])
    pick = [int(rng.integers(len(t))) if seed else 0 for t in (SKIN_TONES, HAIR_TONES, IRIS_TONES, CLOTH_TONES)]
    rows = (SKIN_TONES[pick[0]], HAIR_TONES[pick[1]], IRIS_TONES[pick[2]], CLOTH_TONES[pick[3]])
    return Palette(*(np.array(row) for row in rows))


def to_linear(color: Array) -> Array:
    """sRGB 0..1 to linear light (the plain power 2.2)."""
    return np.clip(color, 0.0, 1.0) ** 2.2


def chart_noise(rng: np.random.Generator, cells_across: int, cells_down: int | None = None) -> Array:
    """[HEIGHT, WIDTH] float32 smooth noise, about unit variance, with that many cells over the picture."""
    down = cells_down if cells_down is not None else max(2, round(cells_across * HEIGHT / WIDTH))
    small = rng.standard_normal((down, cells_across)).astype(np.float32)
    picture = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(picture) * 1.2


def texel(theta: Any, h: Any) -> tuple[Any, Any]:
    """Column and row (float) of chart positions, arrays or numbers, in the picture."""
    return ((theta / (2 * np.pi) + 0.5) * WIDTH, (shape.H_TOP - h) / (shape.H_TOP - shape.H_BOTTOM) * HEIGHT)


def front_position(mesh: HeadMesh) -> tuple[Array, Array]:
    """[HEIGHT, WIDTH] each: the template's x and z under every texel (the back of the head counts as z < 0)."""
    skin = mesh.parts["skin"]
    rows, columns = np.linspace(0.5, HEIGHT - 0.5, 230), np.linspace(0.5, WIDTH - 0.5, 256)
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)
    known = np.column_stack(texel(mesh.chart[skin, 0], mesh.chart[skin, 1]))
    # Only where the face can be: points outside the known ones are found slowly.
    tall = (rows > texel(0, 0.13)[1]) & (rows < texel(0, -0.20)[1])
    near = tall[:, None] & (np.abs(columns / WIDTH - 0.5) < 0.25)[None]
    coarse = np.full((*near.shape, 2), -0.1)
    coarse[near] = LinearNDInterpolator(known, mesh.vertices[skin][:, [0, 2]], fill_value=-0.1)(grid[near])

    def enlarge(a: Array) -> Array:
        return np.asarray(Image.fromarray(a.astype(np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))

    return enlarge(coarse[..., 0]), enlarge(coarse[..., 1])


def blob(x: Array, y: Array, cx: float, cy: float, sx: float, sy: float) -> Array:
    """A Gaussian spot on both sides of the face."""
    return np.exp(-0.5 * (((np.abs(x) - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))


def _strokes(
    rng: np.random.Generator, starts: Array, ends: Array, width: tuple[int, int], opacity: tuple[int, int]
) -> Array:
    """[HEIGHT, WIDTH] 0..1 coverage of fine curved strokes between texel positions [N, 2]."""
    layer = Image.new("L", (WIDTH, HEIGHT), 0)
    draw = ImageDraw.Draw(layer)
    bend = rng.normal(0, 1.5, (len(starts), 2))
    for a, b, c in zip(starts, ends, bend):
        middle = (a + b) / 2 + c
        draw.line(
            [tuple(a), tuple(middle), tuple(b)],
            fill=int(rng.integers(*opacity)),
            width=int(rng.integers(width[0], width[1] + 1)),
        )
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32) / 255.0


def _brow_strokes(rng: np.random.Generator) -> Array:
    count = 420
    layers = []
    for sign in (1.0, -1.0):
        t = np.sort(rng.random(count)) ** 0.9
        x = 0.0110 + 0.0360 * t
        arch = 0.0398 + 0.0062 * np.sin(np.pi * np.clip(t * 0.80 + 0.10, 0, 1)) - 0.0030 * t
        thickness = 0.0040 * (1.0 - 0.72 * t) * (0.55 + 0.45 * shape.smoothstep(t, 0.0, 0.12))
        y = arch + thickness * rng.uniform(-1, 1, count)
        z = np.interp(x, [0.010, 0.03, 0.05], [0.091, 0.081, 0.064])
        theta = sign * np.arctan2(x, z)
        length = rng.uniform(0.0045, 0.0085, count)
        lean = np.interp(t, [0, 0.25, 1.0], [1.25, 0.55, -0.25]) + rng.normal(0, 0.18, count)
        end_theta = theta + sign * length * np.cos(lean) / shape.CHART_RADIUS
        end_h = y + length * np.sin(lean) - 0.001 - np.sign(y - arch) * 0.0012
        start, end = np.column_stack(texel(theta, y)), np.column_stack(texel(end_theta, end_h))
        layers.append(_strokes(rng, start, end, (1, 2), (110, 235)))
    return np.maximum(*layers)


def _lash_layer(mesh: HeadMesh) -> Array:
    layer = Image.new("L", (WIDTH, HEIGHT), 0)
    draw = ImageDraw.Draw(layer)
    for side in ("left", "right"):
        loop = mesh.chart[mesh.parts[f"{side}_lid_loop"]]
        column, row = texel(loop[:, 0], loop[:, 1])
        upper = row < row.mean() + 3
        for i in range(len(loop)):
            j = (i + 1) % len(loop)
            strong = upper[i] and upper[j]
            if strong:
                crease = [(column[k] * 1.0, row[k] - 13 - 0.25 * (row.mean() - row[k])) for k in (i, j)]
                draw.line(crease, fill=70, width=3)
            draw.line([(column[i], row[i]), (column[j], row[j])], fill=225 if strong else 80, width=5 if strong else 2)
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(1.1)), dtype=np.float32) / 255.0


def skin_picture(mesh: HeadMesh, colors: Palette, seed: int, bald: bool = False) -> Array:
    """[HEIGHT, WIDTH, 3] uint8 sRGB albedo over the chart: row 0 is the crown, column 0 the back seam."""
    rng = np.random.default_rng([seed, 3])
    column, row = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    theta = ((column / WIDTH - 0.5) * 2 * np.pi).astype(np.float32)
    y = (shape.H_TOP - row / HEIGHT * (shape.H_TOP - shape.H_BOTTOM)).astype(np.float32)
    x, z = front_position(mesh)
    front = (z > 0).astype(np.float32)
    fine, middle, coarse = chart_noise(rng, 900), chart_noise(rng, 200), chart_noise(rng, 36)

    def mix(color: Array, target: tuple | Array, weight: Array) -> Array:
        return color + np.clip(weight, 0, 1)[..., None] * (np.asarray(target, dtype=np.float32) - color)

    skin: Array = np.broadcast_to(colors.skin.astype(np.float32), (HEIGHT, WIDTH, 3)).copy()
    skin *= (1.0 + 0.018 * fine + 0.022 * middle + 0.020 * coarse)[..., None]
    red = colors.skin * np.array([0.96, 0.72, 0.70])
    skin = mix(skin, red, 0.10 + 0.035 * middle)
    flush = (
        0.42 * blob(x, y, 0.040, -0.012, 0.015, 0.014)
        + 0.45 * blob(x, y, 0.0, -0.016, 0.011, 0.011)
        + 0.4 * blob(x, y, 0.013, -0.022, 0.005, 0.006)
        + 0.3 * blob(x, y, 0.0, -0.078, 0.014, 0.010)
        + 0.2 * blob(x, y, 0.0, 0.070, 0.030, 0.018)
    )
    skin = mix(skin, red * np.array([1.0, 0.93, 0.92]), front * flush * (0.85 + 0.12 * middle))
    shade = colors.skin * np.array([0.80, 0.72, 0.76])
    skin = mix(
        skin,
        shade,
        front * (0.45 * blob(x, y, 0.026, 0.012, 0.011, 0.0045) + 0.55 * blob(x, y, 0.032, 0.0345, 0.014, 0.0040)),
    )
    # A faint beard shadow, made of tiny dots.
    beard = front * shape.smoothstep(y, -0.030, -0.060) * shape.smoothstep(y, -0.125, -0.095)
    beard = np.maximum(beard, 0.6 * front * blob(x, y, 0.0, -0.037, 0.018, 0.004))
    skin = mix(skin, colors.skin * np.array([0.66, 0.64, 0.66]), beard * (0.16 + 0.10 * np.maximum(fine, 0)))

    freckles = Image.new("L", (WIDTH, HEIGHT), 0)
    draw = ImageDraw.Draw(freckles)
    for _ in range(620):
        fx, fy = rng.normal(0, 0.034), rng.normal(-0.004, 0.020)
        if rng.random() < 0.15:
            fx, fy = rng.uniform(-0.2, 0.2), rng.uniform(-0.16, 0.09)
        c, r = texel(fx / shape.CHART_RADIUS, fy)
        size = rng.uniform(0.6, 1.9)
        draw.ellipse([c - size, r - size, c + size, r + size], fill=int(rng.integers(50, 190)))
    speckle = np.asarray(freckles.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) / 255.0
    skin = mix(skin, colors.skin * np.array([0.66, 0.50, 0.42]), 0.62 * speckle)

    lines = chart_noise(rng, 1300, 60)
    depth = shape.lip_depth(x, y) + 0.0003 * middle
    lip = front * shape.smoothstep(depth, -0.0008, 0.0010)
    lip_color = colors.skin * np.array([0.82, 0.55, 0.56])
    lip_paint = lip_color.astype(np.float32) * (1.0 + 0.05 * lines + 0.03 * middle)[..., None]
    skin = skin + (0.85 * lip)[..., None] * (lip_paint - skin)
    seam = front * np.exp(-(((y - shape.mouth_line(x)) / 0.0011) ** 2)) * (np.abs(x) < shape.MOUTH_CORNER_X + 0.002)
    skin = mix(skin, lip_color * 0.45, 0.55 * seam)

    brow = _brow_strokes(rng)
    brow_bed = front * np.clip(0.35 * blob(x, y, 0.026, 0.0438, 0.010, 0.0022), 0, 1)
    skin = mix(skin, colors.hair * 1.05, brow_bed)
    skin = mix(skin, colors.hair * 0.85, 0.92 * brow)
    skin = mix(skin, (0.08, 0.05, 0.05), 0.9 * _lash_layer(mesh))

    # Below the strands: dark roots with streaks along the fall of the hair, a ragged edge; or stubble.
    streaks = chart_noise(rng, 1000, 36)
    hair = shape.smoothstep(shape.hair_depth(theta, y) + 0.0022 * streaks + 0.0016 * middle, -0.003, 0.006)
    hair_paint = colors.hair.astype(np.float32) * (0.85 + 0.16 * streaks + 0.05 * fine)[..., None]
    if bald:
        skin = mix(skin, colors.skin * np.array([0.66, 0.64, 0.66]), hair * (0.22 + 0.10 * np.maximum(fine, 0)))
    else:
        skin = skin + hair[..., None] * (np.clip(hair_paint, 0.02, 1) - skin)

    collar = -0.1500 - 0.0180 * np.cos(theta)
    cloth = shape.smoothstep(y - collar, 0.0006, -0.0006)
    knit = np.sin(column * 0.9) * np.sin(row * 0.9)
    rib = 0.10 * np.sign(np.sin(column * 0.45)) * shape.smoothstep(y - collar, -0.013, -0.011)
    hem = np.exp(-(((y - collar + 0.0125) / 0.0010) ** 2))
    cloth_paint = (
        colors.cloth.astype(np.float32)
        * (1.0 + 0.05 * knit + rib + 0.04 * middle + 0.03 * coarse - 0.35 * hem)[..., None]
    )
    skin = skin + cloth[..., None] * (cloth_paint - skin)
    return (np.clip(skin, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def vertex_colors(mesh: HeadMesh, colors: Palette) -> Array:
    """[V, 3] linear colours of the parts that the picture does not cover (mouth, teeth, ears)."""
    result = np.tile(to_linear(colors.skin), (len(mesh.vertices), 1))

    def ids(kind: int) -> Array:
        return np.unique(mesh.faces[mesh.kind == kind])

    depth = np.clip((0.0850 - mesh.vertices[:, 2]) / 0.05, 0.0, 1.0)[:, None]
    inside = to_linear(np.array([0.62, 0.27, 0.27])) * (1 - depth) + to_linear(np.array([0.20, 0.06, 0.07])) * depth
    mouth = np.setdiff1d(ids(MOUTH), mesh.parts["mouth_rim"])
    result[mouth] = inside[mouth]
    result[mesh.parts["mouth_rim"]] = to_linear(colors.skin * np.array([0.60, 0.36, 0.37]))
    teeth = ids(TEETH)
    gum = shape.smoothstep(np.abs(mesh.vertices[teeth, 1] - shape.MOUTH_Y + 0.0010), 0.0075, 0.0100)[:, None]
    result[teeth] = to_linear(np.array([0.93, 0.90, 0.83])) * (1 - gum) + to_linear(np.array([0.70, 0.36, 0.36])) * gum
    ears = ids(EAR)
    relief = np.linalg.norm(mesh.vertices[ears] - np.array([0.0, 0.0060, -0.0080]), axis=1)
    warm = to_linear(colors.skin * np.array([0.98, 0.80, 0.78]))
    result[ears] = warm * (1.0 + 4.0 * (relief - relief.mean()))[:, None]
    result[ids(EYEBALL)] = to_linear(np.array([0.88, 0.86, 0.84]))
    return result.astype(np.float32)


def eye_color(direction: Array, colors: Palette, seed: int) -> Array:
    """[N, 3] linear colour of the eyeball at unit rest directions [N, 3] from its centre (+z looks ahead)."""
    across = np.hypot(direction[:, 0], direction[:, 1])
    polar = np.where(direction[:, 2] > 0, across, 2.0 - across)  # 0 at the pupil's centre
    angle = np.arctan2(direction[:, 1], direction[:, 0])
    iris_edge, pupil_edge = 0.420, 0.150
    phase = np.random.default_rng([seed, 4]).uniform(0, 2 * np.pi, 4)
    fibre = sum(np.sin(angle * n + phase[i]) for i, n in enumerate((17, 29, 47, 71))) / 4.0
    t = np.clip((polar - pupil_edge) / (iris_edge - pupil_edge), 0.0, 1.0)
    tone = colors.iris * (1.0 + 0.30 * fibre * (1 - 0.4 * t) + 0.25 * (1 - t))[:, None]
    tone = tone + (np.exp(-(((t - 0.18) / 0.16) ** 2)) * 0.16)[:, None] * (np.array([0.75, 0.55, 0.30]) - tone)
    tone = tone * (1.0 - 0.70 * shape.smoothstep(t, 0.72, 1.0))[:, None]  # the limbal ring
    white = np.array([0.95, 0.93, 0.91]) - 0.28 * shape.smoothstep(across, 0.55, 1.0)[:, None] * np.array([0.2, 1, 1])
    edge = shape.smoothstep(polar, iris_edge - 0.02, iris_edge + 0.025)[:, None]
    result = tone * (1 - edge) + white * edge
    pupil = shape.smoothstep(polar, pupil_edge + 0.02, pupil_edge - 0.02)[:, None]
    return to_linear(result * (1 - pupil) + 0.015 * pupil).astype(np.float32)
