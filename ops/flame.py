"""FLAME for one timestep and one identity: linear blend skinning of a mesh displaced by modes.

    joints   = joints of the identity + J_modes expr
    posed    = vertices of the identity + modes (expr, R_1 - I, ..., R_4 - I)
    vertices = linear blend skinning of `posed` along the joint chain + translation

A row is: expression (n_expr), then rotation, neck, jaw, left eye, right eye
(3 each, axis-angle, radians), then the translation (3, metres).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ops import fused, kernels
from ops.rotations import axis_angle_to_matrix

_LANES = int(kernels.CONSTANTS["kLanes"])  # 16, vertices per block of the kernel
_MAX_EXPR = kernels.CONSTANTS["kMaxExpr"]  # that the kernel takes

Identity = tuple[Tensor, Tensor]  # the vertices and joints that an avatar never changes, in the layout of its `Modes`


def pose_feature(matrices: Tensor) -> Tensor:
    """[B, 5, 3, 3] to the 36 entries [B, 36] of R_j - I, joints 1 to 4."""
    identity = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    return (matrices[:, 1:] - identity).flatten(1)


def skin(
    posed: Tensor,  # [B, V, 3]
    joints: Tensor,  # [B, 5, 3]  rest positions
    matrices: Tensor,  # [B, 5, 3, 3]  local rotations
    translation: Tensor,  # [B, 3]
    weights: Tensor,  # [V, 5]
    parents: Sequence[int],  # of each joint; the first is the root
) -> Tensor:  # [B, V, 3]
    """Linear blend skinning."""
    world, position = [matrices[:, 0]], [joints[:, 0]]
    for joint in range(1, len(parents)):
        parent = parents[joint]
        world.append(world[parent] @ matrices[:, joint])
        step = (joints[:, joint] - joints[:, parent])[..., None]
        position.append(position[parent] + (world[parent] @ step).squeeze(-1))
    turns = torch.stack(world, 1)  # [B, 5, 3, 3]
    shifts = torch.stack(position, 1) - (turns @ joints[..., None]).squeeze(-1)
    transforms = torch.cat([turns, shifts[..., None]], -1)  # [B, 5, 3, 4]
    blended = torch.einsum("vj,bjrc->bvrc", weights, transforms)
    return (blended[..., :3] @ posed[..., None]).squeeze(-1) + blended[..., 3] + translation[:, None]


def prepare(
    exprdirs: Tensor,  # [V, 3, n_expr]
    posedirs: Tensor,  # [V, 3, 36]
    joint_regressor: Tensor,  # [5, V]
    weights: Tensor,  # [V, 5]
    parents: Sequence[int],
) -> Modes | PackedModes:
    """What all rows share, for the kernel where it can be used; for it the chain is FLAME's, whatever `parents` is."""
    if kernels.usable(exprdirs) and exprdirs.shape[2] <= _MAX_EXPR:
        return _pack(exprdirs, posedirs, joint_regressor, weights)
    return Modes(
        displacements=torch.cat([exprdirs, posedirs], dim=2).flatten(0, 1),
        joint_modes=torch.einsum("jv,vce->jce", joint_regressor, exprdirs),
        weights=weights,
        parents=parents,
    )


@dataclass(frozen=True)
class Modes:
    """For all but float32 on the CPU: Triton's kernels where they can be used, else PyTorch."""

    displacements: Tensor  # [3V, n_expr + 36]
    joint_modes: Tensor  # [5, 3, n_expr]
    weights: Tensor  # [V, 5]
    parents: Sequence[int]

    def identity(self, base: Tensor, joints: Tensor) -> Identity:
        """Of vertices [V, 3] and their joints [5, 3], float64."""
        return base, joints.to(base.dtype)

    def vertices(self, row: Tensor, identity: Identity) -> Tensor:
        """[V, 3] metres; differentiable in the row."""
        gpu = fused.kernels("flame", _fault, row, identity[0])
        if gpu and tuple(self.parents) == gpu.PARENTS:
            return gpu.Vertices.apply(row, *identity, self)
        return self.vertices_torch(row, identity)

    def vertices_torch(self, row: Tensor, identity: Identity) -> Tensor:
        """The twin of the kernels."""
        base, joints = identity
        n_expr = self.joint_modes.shape[2]
        expr, pose, translation = row[:n_expr], row[n_expr : n_expr + 15], row[n_expr + 15 :]
        matrices = axis_angle_to_matrix(pose.reshape(1, 5, 3))
        coefficients = torch.cat([expr, pose_feature(matrices)[0]])
        posed = base + (self.displacements @ coefficients).reshape(-1, 3)
        joints = joints + self.joint_modes @ expr
        return skin(posed[None], joints[None], matrices, translation[None], self.weights, self.parents)[0]


@dataclass(frozen=True)
class PackedModes:
    """The same in the layout of csrc/flame.cpp: float32 on the CPU."""

    n_vertices: int
    joint_modes: Tensor  # [n_expr, 5, 3] float64
    mode_start: Tensor  # [blocks + 1] int32
    mode_id: Tensor  # [entries] int32
    basis: Tensor  # [entries, 3, 16]
    weights: Tensor  # [blocks, 5, 16]

    def identity(self, base: Tensor, joints: Tensor) -> Identity:
        """([blocks, 3, 16], [5, 3] float64) of vertices [V, 3] and their joints [5, 3], float64."""
        return _into_blocks(base), joints.contiguous()

    def vertices(self, row: Tensor, identity: Identity) -> Tensor:
        """[V, 3] metres; differentiable in the row."""
        return _Vertices.apply(row, *identity, self)


def _pack(exprdirs: Tensor, posedirs: Tensor, joint_regressor: Tensor, weights: Tensor) -> PackedModes:
    modes = _into_blocks(torch.cat([exprdirs, posedirs], dim=2))  # [blocks, 3, 16, n_expr + 36]
    moves = modes.abs().amax(dim=(1, 2)) > 0  # [blocks, n_expr + 36]
    start = torch.zeros(len(moves) + 1, dtype=torch.int32)
    start[1:] = moves.sum(1).cumsum(0)
    joint_modes = torch.einsum("jv,vce->ejc", joint_regressor.double(), exprdirs.double())
    return PackedModes(
        n_vertices=len(weights),
        joint_modes=joint_modes.contiguous(),
        mode_start=start,
        mode_id=moves.nonzero()[:, 1].to(torch.int32).contiguous(),
        basis=modes.permute(0, 3, 1, 2)[moves].contiguous(),
        weights=_into_blocks(weights),
    )


def _into_blocks(values: Tensor) -> Tensor:
    """[V, C, ...] to [blocks, C, 16, ...], the last block filled with zeros."""
    count = values.shape[0]
    blocks = -(-count // _LANES)
    padded = values.new_zeros(blocks * _LANES, *values.shape[1:])
    padded[:count] = values
    return padded.unflatten(0, (blocks, _LANES)).transpose(1, 2).contiguous()


class _Vertices(torch.autograd.Function):
    """`PackedModes.vertices` by csrc/flame.cpp."""

    @staticmethod
    def forward(ctx, row: Tensor, base: Tensor, joints: Tensor, modes: PackedModes) -> Tensor:
        row = row.contiguous()
        out = row.new_empty(modes.n_vertices, 3)
        shaped = torch.empty_like(base)
        kernels.run(
            "flame_forward",
            *(modes.n_vertices, len(modes.joint_modes)),
            *(joints, modes.joint_modes, base, modes.mode_start, modes.mode_id, modes.basis, modes.weights),
            *(row, out, shaped),
        )
        ctx.save_for_backward(row, shaped)
        ctx.joints, ctx.modes = joints, modes
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, shaped = ctx.saved_tensors
        modes = ctx.modes
        grad_row = torch.empty_like(row)
        kernels.run(
            "flame_backward",
            *(modes.n_vertices, len(modes.joint_modes)),
            *(ctx.joints, modes.joint_modes, modes.mode_start, modes.mode_id, modes.basis, modes.weights),
            *(row, shaped, grad.contiguous(), grad_row),
        )
        return grad_row, None, None, None


def _fault(gpu: Any, device: torch.device) -> str | None:
    """What is wrong with the Triton kernels, by a small head in a pose of large and small angles."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    vertices, expr = 70, 100
    base, joints = normal(vertices, 3), normal(5, 3)
    fields = (0.1 * normal(3 * vertices, expr + 36), 0.1 * normal(5, 3, expr), normal(vertices, 5).softmax(1))
    row = normal(expr + 18)
    row[expr : expr + 15] *= torch.tensor([1.0, 0.3, 0.05, 0.001, 2.0], dtype=torch.float64).repeat_interleave(3)
    row[expr + 9 : expr + 12] = 0.0  # an eye at rest, as most are

    def modes(like: Tensor) -> Modes:
        displacements, joint_modes, weights = (field.to(like) for field in fields)
        return Modes(displacements, joint_modes, weights, gpu.PARENTS)

    def ours(row: Tensor) -> tuple[Tensor]:
        return (gpu.Vertices.apply(row, base.to(row), joints.to(row), modes(row)),)

    def twin(row: Tensor) -> tuple[Tensor]:
        return (modes(row).vertices_torch(row, (base, joints)),)

    return fused.difference(ours, twin, {"row": row.requires_grad_()}, device)
