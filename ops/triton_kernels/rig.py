"""Triton: the rig, Gaussians carried from their triangle into the world, forward and backward.

The formulas are those of ops/csrc/rig.cpp; ops/rig.py says what they mean. A Gaussian computes the frame of its
triangle anew: that is less to read than the frame itself. What Gaussians pass to a triangle, and triangles to a vertex,
is written and added up in one order, that of their numbers, so the same inputs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from ops.kernels import CONSTANTS
from ops.triton_kernels.launch import launch
from ops.triton_kernels.vectors import (
    added,
    cross,
    dot,
    either,
    less,
    load_quat,
    load_vector,
    quat_product,
    scaled,
    store_quat,
    store_vector,
)

MIN_EDGE = tl.constexpr(CONSTANTS["kMinEdge"])
MIN_SINE = tl.constexpr(CONSTANTS["kMinSine"])
LOAD = tl.constexpr(7)  # numbers that a Gaussian passes to its triangle: see `pull_back_bound`
BLOCK = 128  # Gaussians of a program
FEW = 32  # triangles or vertices of a program: all wait for the one with the most to add up


@triton.jit
def frame(vertices, faces, triangle, live):
    """The frames of triangles.

    Returns:
        the origin; three axes, the columns of R; its quaternion; the scale; and length, height and the second edge's
        part along the first, for the gradient. A triangle without orientation has a length of 0.
    """
    at = faces + triangle * 3
    v0 = load_vector(vertices, tl.load(at, live, 0), live)
    v1 = load_vector(vertices, tl.load(at + 1, live, 0), live)
    v2 = load_vector(vertices, tl.load(at + 2, live, 0), live)
    e1, e2 = less(v1, v0), less(v2, v0)
    normal = cross(e1, e2)
    length, other, area = tl.sqrt(dot(e1, e1)), tl.sqrt(dot(e2, e2)), tl.sqrt(dot(normal, normal))
    flat = (length < MIN_EDGE) | (other < MIN_EDGE) | (area < MIN_SINE * length * other)
    one, zero = tl.full(length.shape, 1.0, tl.float32), tl.zeros_like(length)
    a0 = either(flat, (one, zero, zero), scaled(e1, 1.0 / tl.where(flat, one, length)))
    a1 = either(flat, (zero, one, zero), scaled(normal, 1.0 / tl.where(flat, one, area)))
    a2 = cross(a0, a1)
    height, along = -dot(a2, e2), dot(a0, e2)
    scale = tl.where(flat, 0.5 * length, 0.5 * (length + tl.abs(height)))
    origin = scaled(added(v0, added(v1, v2)), 1.0 / 3.0)
    return origin, (a0, a1, a2), quaternion(a0, a1, a2), scale, (tl.where(flat, zero, length), height, along)


@triton.jit
def quaternion(a, b, c):
    """Of the rotation with these columns; divides by the largest component, which is at least 1/2."""
    w, x = 1.0 + a[0] + b[1] + c[2], 1.0 + a[0] - b[1] - c[2]
    y, z = 1.0 - a[0] + b[1] - c[2], 1.0 - a[0] - b[1] + c[2]
    wx, wy, wz = b[2] - c[1], c[0] - a[2], a[1] - b[0]
    xy, xz, yz = a[1] + b[0], c[0] + a[2], b[2] + c[1]
    by_w = (w >= x) & (w >= y) & (w >= z)
    by_x, by_y = (x >= y) & (x >= z), y >= z
    q0 = tl.where(by_w, w, tl.where(by_x, wx, tl.where(by_y, wy, wz)))
    q1 = tl.where(by_w, wx, tl.where(by_x, x, tl.where(by_y, xy, xz)))
    q2 = tl.where(by_w, wy, tl.where(by_x, xy, tl.where(by_y, y, yz)))
    q3 = tl.where(by_w, wz, tl.where(by_x, xz, tl.where(by_y, yz, z)))
    inverse = 1.0 / tl.sqrt(q0 * q0 + q1 * q1 + q2 * q2 + q3 * q3)
    return q0 * inverse, q1 * inverse, q2 * inverse, q3 * inverse


@triton.jit
def turned(axes, v):
    """A vector of the triangle's frame in the world."""
    return added(scaled(axes[0], v[0]), added(scaled(axes[1], v[1]), scaled(axes[2], v[2])))


@triton.jit
def unit(quat):
    """Of length 1; the inverse of its length; and whether that was kept from becoming infinite."""
    w, x, y, z = quat
    length = tl.sqrt(w * w + x * x + y * y + z * z)
    short = length <= 1e-12  # as torch.nn.functional.normalize
    inverse = 1.0 / tl.where(short, 1e-12, length)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse, short


@triton.jit(do_not_specialize=["count"])
def bind(
    vertices,  # [V, 3]
    faces,  # [F, 3] int64
    xyz,  # [N, 3]
    rotation,  # [N, 4]
    scaling,  # [N, 3] logarithms
    opacity,  # [N] logits
    binding,  # [N] int64
    count,  # N
    means,  # [N, 3] out
    quats,  # [N, 4] out
    scales,  # [N, 3] out
    opacities,  # [N] out
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < count
    origin, axes, quat, scale, _ = frame(vertices, faces, tl.load(binding + rows, live, 0), live)
    store_vector(means, rows, live, added(scaled(turned(axes, load_vector(xyz, rows, live)), scale), origin))
    raw, _, _ = unit(load_quat(rotation, rows, live))
    store_quat(quats, rows, live, quat_product(quat, raw))
    size = load_vector(scaling, rows, live)
    store_vector(scales, rows, live, scaled((tl.exp(size[0]), tl.exp(size[1]), tl.exp(size[2])), scale))
    tl.store(opacities + rows, tl.sigmoid(tl.load(opacity + rows, live, 0.0)), live)


@triton.jit(do_not_specialize=["count"])
def pull_back_bound(
    vertices,  # [V, 3]
    faces,  # [F, 3] int64
    xyz,  # [N, 3]
    rotation,  # [N, 4]
    scaling,  # [N, 3]
    binding,  # [N] int64
    opacities,  # [N] of `bind`
    grad_means,  # [N, 3]
    grad_quats,  # [N, 4]
    grad_scales,  # [N, 3]
    grad_opacities,  # [N]
    count,  # N
    grad_xyz,  # [N, 3] out
    grad_rotation,  # [N, 4] out
    grad_scaling,  # [N, 3] out
    grad_opacity,  # [N] out
    loads,  # [N, LOAD] out: gradients of the triangle's origin, of a turn of its frame in world axes, and of its scale
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < count
    _, axes, quat, scale, _ = frame(vertices, faces, tl.load(binding + rows, live, 0), live)
    local, size = load_vector(xyz, rows, live), load_vector(scaling, rows, live)
    size = tl.exp(size[0]), tl.exp(size[1]), tl.exp(size[2])
    g_mean, g_size = load_vector(grad_means, rows, live), load_vector(grad_scales, rows, live)
    back = dot(axes[0], g_mean), dot(axes[1], g_mean), dot(axes[2], g_mean)
    store_vector(grad_xyz, rows, live, scaled(back, scale))
    stretch = g_size[0] * size[0], g_size[1] * size[1], g_size[2] * size[2]
    store_vector(grad_scaling, rows, live, scaled(stretch, scale))

    raw, inverse, short = unit(load_quat(rotation, rows, live))
    g = load_quat(grad_quats, rows, live)
    b = quat_product((quat[0], -quat[1], -quat[2], -quat[3]), g)
    radial = tl.where(short, 0.0, b[0] * raw[0] + b[1] * raw[1] + b[2] * raw[2] + b[3] * raw[3])
    g_raw = (
        inverse * (b[0] - radial * raw[0]),
        inverse * (b[1] - radial * raw[1]),
        inverse * (b[2] - radial * raw[2]),
        inverse * (b[3] - radial * raw[3]),
    )
    store_quat(grad_rotation, rows, live, g_raw)
    shown = tl.load(opacities + rows, live, 0.0)
    tl.store(grad_opacity + rows, tl.load(grad_opacities + rows, live, 0.0) * shown * (1.0 - shown), live)

    # the gradient of half a turn times the world's quaternion, and of the mean's lever
    q, arm = quat_product(quat, raw), turned(axes, local)
    turn = (
        g[1] * q[0] - g[0] * q[1] - g[2] * q[3] + g[3] * q[2],
        g[2] * q[0] - g[0] * q[2] - g[3] * q[1] + g[1] * q[3],
        g[3] * q[0] - g[0] * q[3] - g[1] * q[2] + g[2] * q[1],
    )
    torque = added(scaled(turn, 0.5), scaled(cross(arm, g_mean), scale))
    at = loads + rows * LOAD
    tl.store(at, g_mean[0], live)
    tl.store(at + 1, g_mean[1], live)
    tl.store(at + 2, g_mean[2], live)
    tl.store(at + 3, torque[0], live)
    tl.store(at + 4, torque[1], live)
    tl.store(at + 5, torque[2], live)
    tl.store(at + 6, dot(arm, g_mean) + stretch[0] + stretch[1] + stretch[2], live)


@triton.jit(do_not_specialize=["count"])
def pull_back_frames(
    vertices,  # [V, 3]
    faces,  # [F, 3] int64
    loads,  # [N, LOAD]
    order,  # [N] int32 the Gaussians by triangle
    starts,  # [F + 1] int32
    count,  # F
    corners,  # [3 F, 3] out: what each triangle passes to its vertices
    BLOCK: tl.constexpr,
):
    triangle = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = triangle < count
    first = tl.load(starts + triangle, live, 0)
    pairs = tl.load(starts + triangle + 1, live, 0) - first
    x = tl.zeros([BLOCK], tl.float32)
    y, z, turn_x, turn_y, turn_z, size = x, x, x, x, x, x
    for j in range(0, tl.max(pairs, 0)):
        here = j < pairs
        at = loads + tl.load(order + first + j, here, 0) * LOAD
        x += tl.load(at, here, 0.0)
        y += tl.load(at + 1, here, 0.0)
        z += tl.load(at + 2, here, 0.0)
        turn_x += tl.load(at + 3, here, 0.0)
        turn_y += tl.load(at + 4, here, 0.0)
        turn_z += tl.load(at + 5, here, 0.0)
        size += tl.load(at + 6, here, 0.0)

    _, (a0, a1, a2), _, _, (length, height, along) = frame(vertices, faces, triangle, live)
    third, torque = scaled((x, y, z), 1.0 / 3.0), (turn_x, turn_y, turn_z)
    about0, about1, about2 = dot(a0, torque), dot(a1, torque), dot(a2, torque)
    oriented = live & ~(length == 0.0)
    length, height = tl.where(oriented, length, 1.0), tl.where(oriented, height, 1.0)
    half, slope = 0.5 * size, along / length
    g1 = added(
        scaled(a0, half),
        added(scaled(a1, about2 / length - slope * about0 / height), scaled(a2, half * slope - about1 / length)),
    )
    g2 = less(scaled(a1, about0 / height), scaled(a2, half))
    nothing = (tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x))
    g1, g2 = either(oriented, g1, nothing), either(oriented, g2, nothing)
    store_vector(corners, triangle * 3, live, less(third, added(g1, g2)))
    store_vector(corners, triangle * 3 + 1, live, added(third, g1))
    store_vector(corners, triangle * 3 + 2, live, added(third, g2))


@triton.jit(do_not_specialize=["count"])
def add_corners(
    corners,  # [3 F, 3]
    order,  # [3 F] int32 the corners by vertex
    starts,  # [V + 1] int32
    count,  # V
    grad_vertices,  # [V, 3] out
    BLOCK: tl.constexpr,
):
    vertex = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = vertex < count
    first = tl.load(starts + vertex, live, 0)
    pairs = tl.load(starts + vertex + 1, live, 0) - first
    x = tl.zeros([BLOCK], tl.float32)
    y, z = x, x
    for j in range(0, tl.max(pairs, 0)):
        here = j < pairs
        part = load_vector(corners, tl.load(order + first + j, here, 0), here)
        x, y, z = x + part[0], y + part[1], z + part[2]
    store_vector(grad_vertices, vertex, live, (x, y, z))


# Which Gaussians a triangle has, and which corners a vertex, by the tensor that says it the other way round: it changes
# at a densification, or never.
_inverse: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def inverse(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The places of 0, of 1, ... of `count` - 1 in `index`, in order, and where those of each begin; both int32."""
    version, found = _inverse.get(index, (None, None))
    if version != (index._version, count):
        ordered, places = torch.sort(index.flatten(), stable=True)
        numbers = torch.arange(count + 1, device=index.device)
        found = places.int(), torch.searchsorted(ordered, numbers, out_int32=True)
        _inverse[index] = (index._version, count), found
    return found


class Bind(torch.autograd.Function):
    """`ops.rig.bind` of float32."""

    @staticmethod
    def forward(
        ctx,
        vertices: Tensor,
        faces: Tensor,
        xyz: Tensor,
        rotation: Tensor,
        scaling: Tensor,
        opacity: Tensor,
        binding: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        fields = [field.contiguous() for field in (vertices, faces, xyz, rotation, scaling, opacity, binding)]
        means, quats, scales = (torch.empty_like(field) for field in fields[2:5])
        opacities = xyz.new_empty(len(xyz))
        count = len(xyz)
        launch(bind, triton.cdiv(count, BLOCK), *fields, count, means, quats, scales, opacities, BLOCK=BLOCK)
        ctx.save_for_backward(*fields[:5], fields[6], opacities)
        ctx.shape, ctx.indices = opacity.shape, (binding, faces)  # as they came: `inverse` knows them
        return means, quats, scales, opacities

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        vertices, triangles, xyz, rotation, scaling, binding, opacities = ctx.saved_tensors
        count, faces = len(xyz), len(triangles)
        out = [torch.empty_like(field) for field in (xyz, rotation, scaling, opacities)]
        loads = xyz.new_empty(count, LOAD.value)
        launch(
            pull_back_bound,
            triton.cdiv(count, BLOCK),
            *(vertices, triangles, xyz, rotation, scaling, binding, opacities),
            *(*(grad.contiguous() for grad in grads), count, *out, loads),
            BLOCK=BLOCK,
        )
        grad_vertices = None
        if ctx.needs_input_grad[0]:
            grad_vertices, corners = torch.empty_like(vertices), xyz.new_empty(3 * faces, 3)
            own, incident = inverse(ctx.indices[0], faces), inverse(ctx.indices[1], len(vertices))
            few = {"BLOCK": FEW, "num_warps": 1}
            launch(pull_back_frames, triton.cdiv(faces, FEW), vertices, triangles, loads, *own, faces, corners, **few)
            programs = triton.cdiv(len(vertices), FEW)
            launch(add_corners, programs, corners, *incident, len(vertices), grad_vertices, **few)
        grad_xyz, grad_rotation, grad_scaling, grad_opacity = out
        return grad_vertices, None, grad_xyz, grad_rotation, grad_scaling, grad_opacity.view(ctx.shape), None
