"""Triton: from the sums over each Gaussian's pixels to the gradients of its mean, rotation, scale, opacity and color.

The formulas are those of `project_backward` in ops/csrc/splat_project.cpp.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from gaussian_renderer.backends.triton_kernels.camera import LOW_PASS, flatten, load_camera, towards
from gaussian_renderer.backends.triton_kernels.harmonics import basis, basis_backward
from gaussian_renderer.backends.triton_kernels.tiles import RECORD
from ops.triton_kernels.vectors import (
    added,
    cross,
    dot,
    either,
    load_quat,
    load_vector,
    rotate_back,
    scaled,
    store_vector,
)

TWO_LN2 = tl.constexpr(2.0 * math.log(2.0))


@triton.jit
def store_shown(field, rows, live, shown, value):
    """Rows of a tensor [N, 3]: what is not shown becomes 0."""
    zero = tl.zeros_like(value[0])
    store_vector(field, rows, live, either(shown, value, (zero, zero, zero)))


@triton.jit
def add_pairs(sums, first, pairs, SUMS: tl.constexpr):
    """The rows of `sums` [pairs, SUMS] of each Gaussian, from `first` on, added up in their order."""
    red = tl.zeros_like(pairs).to(tl.float32)
    green, blue, one, w, y, ww, wy, yy, size_x, size_y = red, red, red, red, red, red, red, red, red, red
    for j in range(0, tl.max(pairs, 0)):
        at, here = sums + (first + j) * SUMS, j < pairs
        red += tl.load(at, here, 0.0)
        green += tl.load(at + 1, here, 0.0)
        blue += tl.load(at + 2, here, 0.0)
        one += tl.load(at + 3, here, 0.0)
        w += tl.load(at + 4, here, 0.0)
        y += tl.load(at + 5, here, 0.0)
        ww += tl.load(at + 6, here, 0.0)
        wy += tl.load(at + 7, here, 0.0)
        yy += tl.load(at + 8, here, 0.0)
        if SUMS > 9:
            size_x += tl.load(at + 9, here, 0.0)
            size_y += tl.load(at + 10, here, 0.0)
    return (red, green, blue), (one, w, y, ww, wy, yy), (size_x, size_y)


@triton.jit
def pull_back_color(sh, grad_sh, rows, live, shown, values, color, BASES: tl.constexpr, ACTIVE: tl.constexpr):
    """Writes the gradient of the coefficients; returns that of the basis functions' values."""
    at, to = sh + rows * (BASES * 3), grad_sh + rows * (BASES * 3)
    grads = ()
    for k in tl.static_range(ACTIVE):
        coefficient = (
            tl.load(at + 3 * k, shown, 0.0),
            tl.load(at + 3 * k + 1, shown, 0.0),
            tl.load(at + 3 * k + 2, shown, 0.0),
        )
        grads = grads + (dot(coefficient, color),)
        store_shown(to + 3 * k, rows * 0, live, shown, scaled(color, values[k]))
    for k in tl.static_range(ACTIVE, BASES):
        store_shown(to + 3 * k, rows * 0, live, live, scaled(color, 0.0))
    return grads


@triton.jit
def pull_back_quat(q, axes, norm):
    """From the gradients of the three axes, world space, to that of the quaternion, without its part along it."""
    w, x, y, z = q
    c0, c1, c2 = axes
    turn_x, turn_y, turn_z = c1[2] - c2[1], c2[0] - c0[2], c0[1] - c1[0]
    sum_01, sum_02, sum_12 = c1[0] + c0[1], c2[0] + c0[2], c2[1] + c1[2]
    gw = 2.0 * (x * turn_x + y * turn_y + z * turn_z)
    gx = 2.0 * (w * turn_x + y * sum_01 + z * sum_02 - 2.0 * x * (c1[1] + c2[2]))
    gy = 2.0 * (w * turn_y + x * sum_01 + z * sum_12 - 2.0 * y * (c0[0] + c2[2]))
    gz = 2.0 * (w * turn_z + x * sum_02 + y * sum_12 - 2.0 * z * (c0[0] + c1[1]))
    along = gw * w + gx * x + gy * y + gz * z
    return (gw - w * along) / norm, (gx - x * along) / norm, (gy - y * along) / norm, (gz - z * along) / norm


@triton.jit(do_not_specialize=["count", "width", "height"])
def project_backward(
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
    records,  # [N, RECORD]
    covered,  # [N] int32
    ends,  # [N] int64 running sum of them
    sums,  # [pairs, SUMS] see `blend_backward`
    grad_means,  # and these out
    grad_quats,
    grad_scales,
    grad_opacities,
    grad_sh,
    grad_means2d,  # [N, 2] in NDC units
    DEGREE: tl.constexpr,
    BASES: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < count
    pairs = tl.load(covered + rows, live, 0)
    shown = pairs > 0
    color, moments, sizes = add_pairs(sums, tl.load(ends + rows, live, 0) - pairs, pairs, SUMS)

    rotation, shift, center = load_camera(world)
    mean, quat = load_vector(means, rows, live), load_quat(quats, rows, live)
    scale = scaled(load_vector(scales, rows, live), scale_modifier)
    norm, q, axes, (camera, inverse_z), (ux, uy, free_x, free_y), u, v, _, (p, slope, r) = flatten(
        mean, quat, scale, rotation, shift, fx, fy, cx, cy, width, height
    )

    # the color, where it was not clamped at 0, and the direction it depends on
    drawn = records + rows * RECORD + 6
    color = (
        tl.where(tl.load(drawn, shown, 0.0) > 0.0, color[0], 0.0),
        tl.where(tl.load(drawn + 1, shown, 0.0) > 0.0, color[1], 0.0),
        tl.where(tl.load(drawn + 2, shown, 0.0) > 0.0, color[2], 0.0),
    )
    direction, inverse_length = towards(mean, center)
    values = basis(direction, DEGREE)
    grads = pull_back_color(sh, grad_sh, rows, live, shown, values, color, BASES, (DEGREE + 1) * (DEGREE + 1))
    g = basis_backward(direction, grads, DEGREE)
    g_mean = scaled(added(g, scaled(direction, -dot(g, direction))), inverse_length)

    # the 2-D Gaussian: with E the exponent -(p w^2 + r dy^2)/2, the moments are the sums of dL/dE times
    # 1, w, dy, w^2, w dy, dy^2
    one, sum_w, sum_y, sum_ww, sum_wy, sum_yy = moments
    g_x = p * sum_w
    g_y = r * sum_y - slope * g_x
    g_p, g_slope, g_r = -0.5 * sum_ww, p * sum_wy, -0.5 * sum_yy
    # p, slope, r -> u, v. What remains of u without its part along v, u - slope v, is all that the width
    # depends on; as v x (u x v) it keeps its digits for needles, whose u and v are long and nearly parallel.
    across = scaled(added(cross(v, cross(u, v)), scaled(u, LOW_PASS)), r)
    narrow, lean = 2.0 * p * p * g_p, r * g_slope
    g_u = added(scaled(v, lean), scaled(across, -narrow))
    g_v = added(scaled(across, slope * narrow + lean), scaled(v, -(slope * lean + 2.0 * r * r * g_r)))

    # u, v -> the axes in camera space, and the Jacobian's own dependence on the mean
    a0, b0 = fx * inverse_z * g_u[0], fy * inverse_z * g_v[0]
    a1, b1 = fx * inverse_z * g_u[1], fy * inverse_z * g_v[1]
    a2, b2 = fx * inverse_z * g_u[2], fy * inverse_z * g_v[2]
    g0, g1, g2 = (a0, b0, -(ux * a0 + uy * b0)), (a1, b1, -(ux * a1 + uy * b1)), (a2, b2, -(ux * a2 + uy * b2))
    ahead = axes[0][2] * scale[0], axes[1][2] * scale[1], axes[2][2] * scale[2]
    g_tan_x = fx * g_x - tl.where(free_x, dot((a0, a1, a2), ahead), 0.0)
    g_tan_y = fy * g_y - tl.where(free_y, dot((b0, b1, b2), ahead), 0.0)
    # by x/z and y/z: products with x, y or z themselves overflow for a Gaussian very far away
    g_log_z = dot(g_u, u) + dot(g_v, v) + camera[0] * inverse_z * g_tan_x + camera[1] * inverse_z * g_tan_y
    g_mean = added(g_mean, rotate_back(rotation, scaled((g_tan_x, g_tan_y, -g_log_z), inverse_z)))
    g_scale = scaled((dot(g0, axes[0]), dot(g1, axes[1]), dot(g2, axes[2])), scale_modifier)
    g_quat = pull_back_quat(
        q,
        (
            rotate_back(rotation, scaled(g0, scale[0])),
            rotate_back(rotation, scaled(g1, scale[1])),
            rotate_back(rotation, scaled(g2, scale[2])),
        ),
        norm,
    )

    store_shown(grad_means, rows, live, shown, g_mean)
    store_shown(grad_scales, rows, live, shown, g_scale)
    at = grad_quats + rows * 4
    tl.store(at, tl.where(shown, g_quat[0], 0.0), live)
    tl.store(at + 1, tl.where(shown, g_quat[1], 0.0), live)
    tl.store(at + 2, tl.where(shown, g_quat[2], 0.0), live)
    tl.store(at + 3, tl.where(shown, g_quat[3], 0.0), live)
    opacity = tl.load(opacities + rows, live, 1.0)
    tl.store(grad_opacities + rows, tl.where(shown, one / opacity, 0.0), live)
    if SUMS > 9:  # summed in the tiles' units, in which p and r carry log2(e)/2
        g_x, g_y = sizes[0] * TWO_LN2, sizes[1] * TWO_LN2
    tl.store(grad_means2d + rows * 2, tl.where(shown, g_x * (0.5 * width), 0.0), live)
    tl.store(grad_means2d + rows * 2 + 1, tl.where(shown, g_y * (0.5 * height), 0.0), live)
