"""Rotations: axis-angle, matrices and quaternions (wxyz), differentiable everywhere they are used."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this squared angle the series is exact to the last bit even in float64.
_SMALL = 1e-6


def axis_angle_to_matrix(rotvec: Tensor) -> Tensor:
    """[..., 3] rotation vectors in radians to [..., 3, 3] (Rodrigues' formula), smooth at zero."""
    square = (rotvec * rotvec).sum(-1, keepdim=True)
    small = square < _SMALL
    # The angle of a small rotation is replaced BEFORE the root: its derivative
    # at zero is infinite and would turn the masked branch's gradient into NaN.
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1 - square / 6 + square * square / 120, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - square / 24 + square * square / 720, 2 * ((0.5 * angle).sin() / angle) ** 2)
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return identity + sine[..., None] * skew + cosine[..., None] * (skew @ skew)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """[..., 3, 3] proper rotations to [..., 4] unit quaternions, wxyz; the sign is arbitrary.

    Divides by the largest of the four components (never below 1/2), so the
    value and the gradient stay accurate for every rotation.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
    )  # 4 q_i^2
    products = torch.stack(
        [
            torch.stack([squares[..., 0], m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, squares[..., 1], m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, squares[..., 2], m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, squares[..., 3]], -1),
        ],
        -2,
    )  # 4 q_i q_j
    largest = squares.argmax(-1, keepdim=True)
    row = products.gather(-2, largest[..., None].expand(*largest.shape, 4)).squeeze(-2)
    return torch.nn.functional.normalize(row, dim=-1)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """[..., 4] wxyz: the rotation `b` followed by the rotation `a`."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """[..., 3] `vectors` turned by unit quaternions [..., 4] wxyz."""
    w, axis = quats[..., :1], quats[..., 1:]
    cross = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * cross + torch.linalg.cross(axis, cross)
