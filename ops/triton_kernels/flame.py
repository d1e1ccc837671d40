"""Triton: FLAME for one timestep, forward and backward.

The formulas are those of ops/csrc/flame.cpp; ops/flame.py says what they mean. One program poses the skeleton; many
displace and skin the vertices. Back, each of these writes its share of the sums over vertices, which PyTorch adds up,
and one program goes back along the joints. All in float32, as the twin in PyTorch is on a GPU.

A matrix is a tuple of its three rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.triton_kernels.launch import launch
from ops.triton_kernels.vectors import added, dot, less, load_vector, rotate, rotate_back, scaled, store_vector

PARENTS = (-1, 0, 1, 1, 1)  # that the kernels are written for
JOINTS = tl.constexpr(5)
POSE = tl.constexpr(36)  # entries of R_j - I, joints 1 to 4
TRANSFORM = tl.constexpr(12)  # numbers of a joint: its rotation row by row, each row with its shift behind
SMALL = tl.constexpr(0.05)  # squared angle, below which the series are exact in float32
BLOCK = 32  # vertices of a program
MODES = 32  # that it takes at a time


@triton.jit
def times(a, b):
    """Product of two matrices."""
    return rotate_back(b, a[0]), rotate_back(b, a[1]), rotate_back(b, a[2])


@triton.jit
def transposed(a):
    return (a[0][0], a[1][0], a[2][0]), (a[0][1], a[1][1], a[2][1]), (a[0][2], a[1][2], a[2][2])


@triton.jit
def plus(a, b):
    """Sum of two matrices."""
    return added(a[0], b[0]), added(a[1], b[1]), added(a[2], b[2])


@triton.jit
def outer(a, b):
    return scaled(b, a[0]), scaled(b, a[1]), scaled(b, a[2])


@triton.jit
def rodrigues(r):
    """a, b of R = I + a K + b K^2, K the cross product with the rotation vector; and their slopes over the angle."""
    square = dot(r, r)
    near = square < SMALL
    angle = tl.sqrt(tl.where(near, 1.0, square))
    half = tl.sin(0.5 * angle) / angle
    a, b = tl.sin(angle) / angle, 2.0 * half * half
    da, db = (tl.cos(angle) - a) / (angle * angle), (a - 2.0 * b) / (angle * angle)
    a = tl.where(near, 1.0 - square * (1.0 / 6.0 - square * (1.0 / 120.0 - square / 5040.0)), a)
    b = tl.where(near, 0.5 - square * (1.0 / 24.0 - square * (1.0 / 720.0 - square / 40320.0)), b)
    da = tl.where(near, -1.0 / 3.0 + square * (1.0 / 30.0 - square * (1.0 / 840.0 - square / 45360.0)), da)
    db = tl.where(near, -1.0 / 12.0 + square * (1.0 / 180.0 - square * (1.0 / 6720.0 - square / 453600.0)), db)
    return a, b, da, db


@triton.jit
def rotation(r):
    """The matrix of a rotation vector."""
    x, y, z = r
    a, b, _, _ = rodrigues(r)
    return (
        (1.0 - b * (y * y + z * z), b * x * y - a * z, b * x * z + a * y),
        (b * x * y + a * z, 1.0 - b * (x * x + z * z), b * y * z - a * x),
        (b * x * z - a * y, b * y * z + a * x, 1.0 - b * (x * x + y * y)),
    )


@triton.jit
def pull_back_rotation(r, g):
    """From the gradient of the matrix to that of the rotation vector."""
    x, y, z = r
    a, b, da, db = rodrigues(r)
    turn = g[2][1] - g[1][2], g[0][2] - g[2][0], g[1][0] - g[0][1]  # what K takes of it
    xy, xz, yz = g[0][1] + g[1][0], g[0][2] + g[2][0], g[1][2] + g[2][1]
    by_x, by_y, by_z = g[1][1] + g[2][2], g[0][0] + g[2][2], g[0][0] + g[1][1]
    along_b = x * y * xy + x * z * xz + y * z * yz - x * x * by_x - y * y * by_y - z * z * by_z
    radial = da * dot(turn, r) + db * along_b
    return (
        a * turn[0] + b * (y * xy + z * xz - 2.0 * x * by_x) + x * radial,
        a * turn[1] + b * (x * xy + z * yz - 2.0 * y * by_y) + y * radial,
        a * turn[2] + b * (x * xz + y * yz - 2.0 * z * by_z) + z * radial,
    )


@triton.jit
def rest_joint(joints, joint_modes, row, expr, j: tl.constexpr, EXPR: tl.constexpr):
    """Joint j before posing."""
    d = tl.arange(0, EXPR)
    coefficients = tl.load(row + d, d < expr, 0.0)
    at = joint_modes + 3 * j * expr + d
    return (
        tl.load(joints + 3 * j) + tl.sum(coefficients * tl.load(at, d < expr, 0.0), 0),
        tl.load(joints + 3 * j + 1) + tl.sum(coefficients * tl.load(at + expr, d < expr, 0.0), 0),
        tl.load(joints + 3 * j + 2) + tl.sum(coefficients * tl.load(at + 2 * expr, d < expr, 0.0), 0),
    )


@triton.jit
def three(at):
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit
def skeleton(joints, joint_modes, row, expr, EXPR: tl.constexpr):
    """Of the five joints the rest positions, the axis-angles, the local and the world's rotations, the positions."""
    rest, turns, locals_, worlds, places = (), (), (), (), ()
    for j in tl.static_range(JOINTS):
        at, turn = rest_joint(joints, joint_modes, row, expr, j, EXPR), three(row + expr + 3 * j)
        local = rotation(turn)
        world, place = local, at
        if j == 1:
            world = times(worlds[0], local)
            place = added(places[0], rotate(worlds[0], less(at, rest[0])))
        if j > 1:
            world = times(worlds[1], local)
            place = added(places[1], rotate(worlds[1], less(at, rest[1])))
        rest, turns, locals_ = rest + (at,), turns + (turn,), locals_ + (local,)
        worlds, places = worlds + (world,), places + (place,)
    return rest, turns, locals_, worlds, places


@triton.jit(do_not_specialize=["expr"], do_not_specialize_on_alignment=["row"])
def pose_skeleton(
    joints,  # [5, 3]
    joint_modes,  # [5, 3, expr]
    row,  # [expr + 18]
    expr,
    coefficients,  # [expr + 36] out
    transforms,  # [5, 12] out: what each joint does to a vertex
    EXPR: tl.constexpr,
):
    rest, _, locals_, worlds, places = skeleton(joints, joint_modes, row, expr, EXPR)
    d = tl.arange(0, EXPR)
    tl.store(coefficients + d, tl.load(row + d, d < expr, 0.0), d < expr)
    for j in tl.static_range(JOINTS):
        shift = less(places[j], rotate(worlds[j], rest[j]))
        for i in tl.static_range(3):
            at = transforms + TRANSFORM * j + 4 * i
            tl.store(at + 3, shift[i])
            for k in tl.static_range(3):
                tl.store(at + k, worlds[j][i][k])
                if j > 0:
                    feature = locals_[j][i][k] - (1.0 if i == k else 0.0)
                    tl.store(coefficients + expr + 9 * (j - 1) + 3 * i + k, feature)


@triton.jit
def transform(at):
    """A joint's rotation and shift."""
    return (three(at), three(at + 4), three(at + 8)), (tl.load(at + 3), tl.load(at + 7), tl.load(at + 11))


@triton.jit
def blended(transforms, weights, vertex, live):
    """Of each vertex the joints' rotations and shifts, weighted."""
    zero = tl.zeros_like(vertex).to(tl.float32)
    shift = (zero, zero, zero)
    turn = (shift, shift, shift)
    for j in tl.static_range(JOINTS):
        weight = tl.load(weights + vertex * JOINTS + j, live, 0.0)
        own, moved = transform(transforms + TRANSFORM * j)
        turn = plus(turn, (scaled(own[0], weight), scaled(own[1], weight), scaled(own[2], weight)))
        shift = added(shift, scaled(moved, weight))
    return turn, shift


@triton.jit(do_not_specialize=["count", "expr"], do_not_specialize_on_alignment=["row"])
def skin(
    base,  # [V, 3] vertices of the identity
    displacements,  # [3 V, expr + 36]
    weights,  # [V, 5]
    coefficients,  # [expr + 36]
    transforms,  # [5, 12]
    row,  # [expr + 18]
    count,  # V
    expr,
    shaped,  # [V, 3] out: before skinning
    vertices,  # [V, 3] out
    BLOCK: tl.constexpr,
    MODES: tl.constexpr,
):
    vertex = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = vertex < count
    modes = expr + POSE
    x, y, z = load_vector(base, vertex, live)
    for first in range(0, modes, MODES):
        mode = first + tl.arange(0, MODES)
        coefficient = tl.load(coefficients + mode, mode < modes, 0.0)[None, :]
        at = displacements + (3 * vertex * modes)[:, None] + mode[None, :]
        here = live[:, None] & (mode < modes)[None, :]
        x += tl.sum(coefficient * tl.load(at, here, 0.0), 1)
        y += tl.sum(coefficient * tl.load(at + modes, here, 0.0), 1)
        z += tl.sum(coefficient * tl.load(at + 2 * modes, here, 0.0), 1)
    store_vector(shaped, vertex, live, (x, y, z))
    turn, shift = blended(transforms, weights, vertex, live)
    translation = three(row + expr + 3 * JOINTS)
    store_vector(vertices, vertex, live, added(added(rotate(turn, (x, y, z)), shift), translation))


@triton.jit(do_not_specialize=["count", "expr"])
def pull_back_skin(
    displacements,  # [3 V, expr + 36]
    weights,  # [V, 5]
    transforms,  # [5, 12]
    shaped,  # [V, 3]
    grad,  # [V, 3]
    count,  # V
    expr,
    sums,  # [programs, 60 + 3 + expr + 36] out: shares of the gradients of transforms, translation and coefficients
    BLOCK: tl.constexpr,
    MODES: tl.constexpr,
):
    program = tl.program_id(0)
    vertex = program * BLOCK + tl.arange(0, BLOCK)
    live = vertex < count
    modes = expr + POSE
    to = sums + program * (TRANSFORM * JOINTS + 3 + modes)
    v, g = load_vector(shaped, vertex, live), load_vector(grad, vertex, live)
    for j in tl.static_range(JOINTS):
        weight = tl.load(weights + vertex * JOINTS + j, live, 0.0)
        for i in tl.static_range(3):
            own = weight * g[i]
            for k in tl.static_range(3):
                tl.store(to + TRANSFORM * j + 4 * i + k, tl.sum(own * v[k], 0))
            tl.store(to + TRANSFORM * j + 4 * i + 3, tl.sum(own, 0))
    for i in tl.static_range(3):
        tl.store(to + TRANSFORM * JOINTS + i, tl.sum(g[i], 0))

    turn, _ = blended(transforms, weights, vertex, live)
    back = rotate_back(turn, g)
    for first in range(0, modes, MODES):
        mode = first + tl.arange(0, MODES)
        at = displacements + (3 * vertex * modes)[:, None] + mode[None, :]
        here = live[:, None] & (mode < modes)[None, :]
        share = back[0][:, None] * tl.load(at, here, 0.0) + back[1][:, None] * tl.load(at + modes, here, 0.0)
        share += back[2][:, None] * tl.load(at + 2 * modes, here, 0.0)
        tl.store(to + TRANSFORM * JOINTS + 3 + mode, tl.sum(share, 0), mode < modes)


@triton.jit(do_not_specialize=["expr"], do_not_specialize_on_alignment=["row"])
def pull_back_skeleton(
    joints,  # [5, 3]
    joint_modes,  # [5, 3, expr]
    row,  # [expr + 18]
    sums,  # [60 + 3 + expr + 36] of `pull_back_skin`, all programs together
    expr,
    grad_row,  # [expr + 18] out
    EXPR: tl.constexpr,
):
    rest, turns, locals_, worlds, places = skeleton(joints, joint_modes, row, expr, EXPR)
    of_modes = sums + TRANSFORM * JOINTS + 3

    # W v + (place - W rest): what reaches a joint's rotation, position and rest position
    g_worlds, g_places, g_rests = (), (), ()
    for j in tl.static_range(JOINTS):
        turn, shift = transform(sums + TRANSFORM * j)
        g_worlds = g_worlds + (plus(turn, outer(shift, scaled(rest[j], -1.0))),)
        g_places = g_places + (shift,)
        g_rests = g_rests + (scaled(rotate_back(worlds[j], shift), -1.0),)

    # children before parents: jaw and eyes pass on to the neck, the neck to the root
    g_neck, g_neck_place, g_neck_rest = g_worlds[1], g_places[1], g_rests[1]
    for j in tl.static_range(2, JOINTS):
        g_neck_place = added(g_neck_place, g_places[j])
        g_neck = plus(g_neck, times(g_worlds[j], transposed(locals_[j])))
        g_neck = plus(g_neck, outer(g_places[j], less(rest[j], rest[1])))
        g_neck_rest = less(g_neck_rest, rotate_back(worlds[1], g_places[j]))
    g_root = plus(g_worlds[0], times(g_neck, transposed(locals_[1])))
    g_root = plus(g_root, outer(g_neck_place, less(rest[1], rest[0])))
    lever = rotate_back(worlds[0], g_neck_place)
    g_root_rest = added(less(g_rests[0], lever), added(g_places[0], g_neck_place))
    g_neck_rest = added(g_neck_rest, lever)

    d = tl.arange(0, EXPR)
    g_expr = tl.load(of_modes + d, d < expr, 0.0)
    for j in tl.static_range(JOINTS):
        g_rest, g_local = g_root_rest, g_root
        if j == 1:
            g_rest, g_local = g_neck_rest, times(transposed(worlds[0]), g_neck)
        if j > 1:
            g_rest = added(g_rests[j], rotate_back(worlds[1], g_places[j]))
            g_local = times(transposed(worlds[1]), g_worlds[j])
        for i in tl.static_range(3):
            g_expr += g_rest[i] * tl.load(joint_modes + (3 * j + i) * expr + d, d < expr, 0.0)
        if j > 0:
            at = of_modes + expr + 9 * (j - 1)
            g_local = plus(g_local, (three(at), three(at + 3), three(at + 6)))
        g_turn = pull_back_rotation(turns[j], g_local)
        for i in tl.static_range(3):
            tl.store(grad_row + expr + 3 * j + i, g_turn[i])
    tl.store(grad_row + d, g_expr, d < expr)
    for i in tl.static_range(3):
        tl.store(grad_row + expr + 3 * JOINTS + i, tl.load(sums + TRANSFORM * JOINTS + i))


class Vertices(torch.autograd.Function):
    """`ops.flame.Modes.vertices` of float32, of a head with `PARENTS`."""

    @staticmethod
    def forward(ctx, row: Tensor, base: Tensor, joints: Tensor, modes: Any) -> Tensor:
        row, base, joints = row.contiguous(), base.contiguous(), joints.contiguous()
        count, expr = len(base), modes.joint_modes.shape[2]
        fitted = {"EXPR": triton.next_power_of_2(max(expr, 1)), "num_warps": 1}
        coefficients, transforms = row.new_empty(expr + POSE.value), row.new_empty(5, TRANSFORM.value)
        shaped, vertices = torch.empty_like(base), torch.empty_like(base)
        launch(pose_skeleton, 1, joints, modes.joint_modes, row, expr, coefficients, transforms, **fitted)
        launch(
            skin,
            triton.cdiv(count, BLOCK),
            *(base, modes.displacements, modes.weights, coefficients, transforms, row, count, expr, shaped, vertices),
            BLOCK=BLOCK,
            MODES=MODES,
        )
        ctx.save_for_backward(row, joints, transforms, shaped)
        ctx.modes, ctx.fitted = modes, fitted
        return vertices

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, joints, transforms, shaped = ctx.saved_tensors
        modes = ctx.modes
        count, expr = len(shaped), modes.joint_modes.shape[2]
        programs = triton.cdiv(count, BLOCK)
        sums = row.new_empty(programs, TRANSFORM.value * 5 + 3 + expr + POSE.value)
        fields = (modes.displacements, modes.weights, transforms, shaped, grad.contiguous())
        launch(pull_back_skin, programs, *fields, count, expr, sums, BLOCK=BLOCK, MODES=MODES)
        grad_row = torch.empty_like(row)
        launch(pull_back_skeleton, 1, joints, modes.joint_modes, row, sums.sum(0), expr, grad_row, **ctx.fitted)
        return grad_row, None, None, None
