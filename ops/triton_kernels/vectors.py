"""Triton: vectors of three as tuples of blocks, a value for each of a program's rows; quaternions wxyz likewise."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
def scaled(a, factor):
    return a[0] * factor, a[1] * factor, a[2] * factor


@triton.jit
def added(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def less(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@triton.jit
def either(condition, a, b):
    """`a` where the condition holds, else `b`."""
    return tl.where(condition, a[0], b[0]), tl.where(condition, a[1], b[1]), tl.where(condition, a[2], b[2])


@triton.jit
def rotate(rotation, v):
    """By a matrix that is given by its rows."""
    return dot(rotation[0], v), dot(rotation[1], v), dot(rotation[2], v)


@triton.jit
def rotate_back(rotation, v):
    """By the transpose of a matrix that is given by its rows."""
    a, b, c = rotation
    return (
        v[0] * a[0] + v[1] * b[0] + v[2] * c[0],
        v[0] * a[1] + v[1] * b[1] + v[2] * c[1],
        v[0] * a[2] + v[1] * b[2] + v[2] * c[2],
    )


@triton.jit
def load_vector(field, rows, live):
    """Rows of a tensor [N, 3]; those that are not live are 0."""
    at = field + rows * 3
    return tl.load(at, live, 0.0), tl.load(at + 1, live, 0.0), tl.load(at + 2, live, 0.0)


@triton.jit
def store_vector(field, rows, live, value):
    """Rows of a tensor [N, 3], those that are live."""
    at = field + rows * 3
    tl.store(at, value[0], live)
    tl.store(at + 1, value[1], live)
    tl.store(at + 2, value[2], live)


@triton.jit
def load_quat(quats, rows, live):
    """Rows of a tensor [N, 4]; those that are not live are 0."""
    at = quats + rows * 4
    w, x = tl.load(at, live, 0.0), tl.load(at + 1, live, 0.0)
    y, z = tl.load(at + 2, live, 0.0), tl.load(at + 3, live, 0.0)
    return w, x, y, z


@triton.jit
def store_quat(quats, rows, live, value):
    """Rows of a tensor [N, 4], those that are live."""
    at = quats + rows * 4
    tl.store(at, value[0], live)
    tl.store(at + 1, value[1], live)
    tl.store(at + 2, value[2], live)
    tl.store(at + 3, value[3], live)


@triton.jit
def quat_product(a, b):
    """The rotation `b` followed by the rotation `a`."""
    return (
        a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
        a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
        a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
        a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
    )
