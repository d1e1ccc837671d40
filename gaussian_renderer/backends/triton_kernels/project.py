"""Triton: Gaussians on the image plane, with their colors and the number of tiles that each covers."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from gaussian_renderer.backends.triton_kernels.camera import NEAR, flatten, load_camera, towards
from gaussian_renderer.backends.triton_kernels.harmonics import basis
from gaussian_renderer.backends.triton_kernels.tiles import LOG2_MIN_ALPHA, MIN_ALPHA, RECORD, walk
from ops.kernels import CONSTANTS
from ops.triton_kernels.vectors import load_quat, load_vector, scaled

MIN_LENGTH = tl.constexpr(CONSTANTS["kMinLength"])
MAX_LENGTH = tl.constexpr(CONSTANTS["kMaxLength"])
HALF_LOG2E = tl.constexpr(0.5 / math.log(2.0))


@triton.jit
def load_color(sh, rows, live, values, BASES: tl.constexpr, ACTIVE: tl.constexpr):
    """SH + 0.5 of the basis functions' `values`, before it is clamped at 0."""
    at = sh + rows * (BASES * 3)
    red = tl.zeros_like(values[0]) + 0.5
    green, blue = red, red
    for k in tl.static_range(ACTIVE):
        red += values[k] * tl.load(at + 3 * k, live, 0.0)
        green += values[k] * tl.load(at + 3 * k + 1, live, 0.0)
        blue += values[k] * tl.load(at + 3 * k + 2, live, 0.0)
    return red, green, blue


@triton.jit(do_not_specialize=["count", "width", "height"])
def project(
    means,  # [N, 3]
    quats,  # [N, 4]
    scales,  # [N, 3]
    opacities,  # [N]
    sh,  # [N, BASES, 3]
    world,  # [4, 4] to camera
    count,  # N
    fx,
    fy,
    cx,
    cy,
    width,
    height,
    scale_modifier,
    records,  # [N, RECORD] out, of the visible ones
    depths,  # [N] out, of the visible ones
    covered,  # [N] int32 out: tiles, 0 = culled
    radii,  # [N] int32 out
    DEGREE: tl.constexpr,
    BASES: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < count
    rotation, shift, center = load_camera(world)
    mean, quat = load_vector(means, rows, live), load_quat(quats, rows, live)
    scale = load_vector(scales, rows, live)
    opacity = tl.load(opacities + rows, live, 0.0)
    norm, _, _, (camera, inverse_z), _, _, _, (xx, xy, yy), (p, slope, r) = flatten(
        mean, quat, scaled(scale, scale_modifier), rotation, shift, fx, fy, cx, cy, width, height
    )
    x, y = fx * (camera[0] * inverse_z) + cx, fy * (camera[1] * inverse_z) + cy
    log2_opacity = tl.minimum(tl.log2(opacity), 100.0)  # `exp2` must not overflow
    reach = log2_opacity - LOG2_MIN_ALPHA
    extent_x, extent_y = tl.sqrt(reach * xx * (1.0 / HALF_LOG2E)), tl.sqrt(reach * yy * (1.0 / HALF_LOG2E))
    y_of_extent_x = xy * tl.sqrt(reach * (1.0 / HALF_LOG2E) / xx)
    gap = 0.5 * (xx - yy)
    radius = 3.0 * tl.sqrt(0.5 * (xx + yy) + tl.sqrt(gap * gap + xy * xy))
    direction, _ = towards(mean, center)
    red, green, blue = load_color(sh, rows, live, basis(direction, DEGREE), BASES, (DEGREE + 1) * (DEGREE + 1))

    # 0 * value is 0 for every finite value and NaN otherwise: one test for all of them.
    finite = 0.0 * (mean[0] + mean[1] + mean[2]) + 0.0 * (scale[0] + scale[1] + scale[2]) + 0.0 * opacity
    finite += 0.0 * (x + y) + 0.0 * (extent_x + extent_y) + 0.0 * camera[2] + 0.0 * y_of_extent_x
    finite += 0.0 * radius + 0.0 * slope + 0.0 * red + 0.0 * green + 0.0 * blue
    shown = live & (finite == 0.0) & (norm >= MIN_LENGTH) & (norm <= MAX_LENGTH)
    shown = shown & (camera[2] > NEAR) & (opacity >= MIN_ALPHA) & (p > 0.0) & (r > 0.0)
    # A pixel center of the image must lie in the box.
    first_x, last_x = tl.maximum(tl.ceil(x - extent_x - 0.5), 0.0), tl.floor(x + extent_x - 0.5)
    first_y, last_y = tl.maximum(tl.ceil(y - extent_y - 0.5), 0.0), tl.floor(y + extent_y - 0.5)
    shown = shown & (first_x <= tl.minimum(last_x, width - 1)) & (first_y <= tl.minimum(last_y, height - 1))

    p, r = p * HALF_LOG2E, r * HALF_LOG2E
    shape, extents = (x, y, slope, p, r), (extent_x, extent_y, y_of_extent_x)
    tiles, _ = walk(shape, reach, extents, tl.zeros_like(rows), shown, width, height, TILE)
    tl.store(covered + rows, tiles, live)
    tl.store(radii + rows, tl.where(shown, tl.ceil(tl.minimum(radius, 1e9)), 0.0).to(tl.int32), live)
    tl.store(depths + rows, camera[2], shown)
    at = records + rows * RECORD
    tl.store(at, x, shown)
    tl.store(at + 1, y, shown)
    tl.store(at + 2, slope, shown)
    tl.store(at + 3, p, shown)
    tl.store(at + 4, r, shown)
    tl.store(at + 5, log2_opacity, shown)
    tl.store(at + 6, tl.maximum(red, 0.0), shown)
    tl.store(at + 7, tl.maximum(green, 0.0), shown)
    tl.store(at + 8, tl.maximum(blue, 0.0), shown)
    tl.store(at + 9, extent_x, shown)
    tl.store(at + 10, extent_y, shown)
    tl.store(at + 11, y_of_extent_x, shown)
