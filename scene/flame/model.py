"""FLAME: from identity, expression and pose to vertices.

Li et al. 2017, "Learning a model of facial shape and expression from 4D scans":

    v_shaped = v_template + S shape + E expr + offsets
    joints   = J_regressor v_shaped
    v_posed  = v_shaped + P (R_1 - I, ..., R_4 - I)
    vertices = linear blend skinning of v_posed along the joint chain + translation

There are two ways through it. `Flame.forward` is that, batched and
differentiable in every input. `Flame.vertices` is the path of training: one
timestep, where identity and offsets are constants that are folded into the
template and its joints once; on the CPU it is one native call each way.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ops import native
from ops.rotations import axis_angle_to_matrix
from scene.flame.head_model import HeadModel
from scene.flame.parameters import FlameParameters

_LANES = 16  # vertices per block of the native kernel
_MAX_NATIVE_EXPR = 4000  # the native kernel keeps the coefficients in a fixed array


@dataclass(frozen=True)
class _Identity:
    """The part of FLAME that one avatar never changes."""

    shape: Tensor  # as given; the cache is valid for these two tensors only
    static_offset: Tensor
    base: Tensor  # [V, 3]  template + identity + static offset
    joints: Tensor  # [5, 3]  their joints
    packed: Tensor | None  # [blocks, 3, 16]  `base` for the native kernel


@dataclass(frozen=True)
class _Packed:
    """The head model in the layout of `csrc/flame.cpp`."""

    joint_modes: Tensor  # [n_expr, 5, 3] float64
    mode_start: Tensor  # [blocks + 1] int32
    mode_id: Tensor  # [entries] int32
    basis: Tensor  # [entries, 3, 16]
    weights: Tensor  # [blocks, 5, 16]


class Flame(nn.Module):
    """A head model as a differentiable function, on one device."""

    def __init__(self, head: HeadModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.dtype = dtype
        self.parents = head.parents
        for name in ("v_template", "shapedirs", "exprdirs", "posedirs", "joint_regressor", "weights"):
            self.register_buffer(name, getattr(head, name).to(self.device, dtype), persistent=False)
        self.register_buffer("faces", head.faces.to(self.device), persistent=False)
        self.masks = {name: ids.to(self.device) for name, ids in head.masks.items()}
        self._identity: _Identity | None = None
        self._packed: _Packed | None = None
        self._basis: Tensor | None = None  # [3V, n_expr + 36]
        self._joint_modes: Tensor | None = None  # [5, 3, n_expr]

    # ---- every input differentiable, batched --------------------------------

    def forward(
        self,
        shape: Tensor,  # [n_shape] or [B, n_shape]
        expr: Tensor,  # [B, n_expr]
        rotation: Tensor,  # [B, 3]  axis-angle, radians, about the root joint
        neck_pose: Tensor,  # [B, 3]
        jaw_pose: Tensor,  # [B, 3]
        eyes_pose: Tensor,  # [B, 6]  left, right
        translation: Tensor,  # [B, 3]  metres
        static_offset: Tensor | None = None,  # [V, 3] or [B, V, 3]  metres, before posing
        dynamic_offset: Tensor | None = None,  # [B, V, 3]            metres, before posing
    ) -> Tensor:
        """Vertices [B, V, 3] in metres. Offsets move the joints too, as in the tracker."""
        batch = expr.shape[0]
        shaped = self.v_template + torch.einsum("vcs,...s->...vc", self.shapedirs, shape)
        shaped = shaped + torch.einsum("vce,be->bvc", self.exprdirs, expr)
        for offset in (static_offset, dynamic_offset):
            if offset is not None:
                shaped = shaped + offset
        joints = torch.einsum("jv,bvc->bjc", self.joint_regressor, shaped)
        pose = torch.cat([rotation, neck_pose, jaw_pose, eyes_pose], dim=1).reshape(batch, 5, 3)
        matrices = axis_angle_to_matrix(pose)
        posed = shaped + torch.einsum("vcp,bp->bvc", self.posedirs, self._pose_feature(matrices))
        return self._skin(posed, joints, matrices, translation)

    def _pose_feature(self, matrices: Tensor) -> Tensor:
        """[B, 5, 3, 3] to the 36 entries [B, 36] of R_j - I, joints 1 to 4."""
        identity = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
        return (matrices[:, 1:] - identity).flatten(1)

    def _skin(self, posed: Tensor, joints: Tensor, matrices: Tensor, translation: Tensor) -> Tensor:
        """[B, V, 3] skinned by the joints [B, 5, 3] turned by the local rotations [B, 5, 3, 3]."""
        world, position = [matrices[:, 0]], [joints[:, 0]]
        for joint in range(1, len(self.parents)):
            parent = self.parents[joint]
            world.append(world[parent] @ matrices[:, joint])
            step = (joints[:, joint] - joints[:, parent])[..., None]
            position.append(position[parent] + (world[parent] @ step).squeeze(-1))
        turns = torch.stack(world, 1)  # [B, 5, 3, 3]
        shifts = torch.stack(position, 1) - (turns @ joints[..., None]).squeeze(-1)
        transforms = torch.cat([turns, shifts[..., None]], -1)  # [B, 5, 3, 4]
        blended = torch.einsum("vj,bjrc->bvrc", self.weights, transforms)
        return (blended[..., :3] @ posed[..., None]).squeeze(-1) + blended[..., 3] + translation[:, None]

    # ---- one timestep, identity constant ------------------------------------

    def vertices(self, parameters: FlameParameters, timestep: int) -> Tensor:
        """Vertices [V, 3] in metres at row `timestep`; differentiable in that row."""
        row = parameters.row(timestep)
        if parameters.dynamic_offset is not None:
            part = parameters.split(row[None])
            return self(
                parameters.shape,
                static_offset=parameters.static_offset,
                dynamic_offset=parameters.dynamic_row(timestep)[None],
                **part,
            )[0]
        return self.from_row(row, parameters.shape, parameters.static_offset)

    def from_row(self, row: Tensor, shape: Tensor, static_offset: Tensor) -> Tensor:
        """Vertices [V, 3] of a row laid out as in `flame_parameters`; gradients reach the row only.

        What depends on `shape` and `static_offset` is kept until other tensors
        are passed (compared by identity, so do not change them in place).
        """
        identity = self._identity
        if identity is None or identity.shape is not shape or identity.static_offset is not static_offset:
            identity = self._identity = self._fold(shape, static_offset)
        if identity.packed is not None:
            return _NativeFlame.apply(row, identity, self._packed, self.v_template.shape[0])
        return self._from_row_torch(row, identity)

    @torch.no_grad()
    def _fold(self, shape: Tensor, static_offset: Tensor) -> _Identity:
        base = self.v_template + self.shapedirs @ shape.to(self.dtype) + static_offset.to(self.dtype)
        # The joints are sums over many vertices and everything hangs on them: in double.
        joints = self.joint_regressor.double() @ base.double()
        packed = None
        use_native = self.device.type == "cpu" and self.dtype == torch.float32
        if use_native and self.exprdirs.shape[2] <= _MAX_NATIVE_EXPR and native.available():
            packed = _into_blocks(base)
            if self._packed is None:
                self._packed = self._pack()
        elif self._basis is None:
            self._basis = torch.cat([self.exprdirs, self.posedirs], dim=2).flatten(0, 1)
            self._joint_modes = torch.einsum("jv,vce->jce", self.joint_regressor, self.exprdirs)
        joints = joints if packed is not None else joints.to(self.dtype)
        return _Identity(shape, static_offset, base, joints.contiguous(), packed)

    def _pack(self) -> _Packed:
        modes = _into_blocks(torch.cat([self.exprdirs, self.posedirs], dim=2))  # [blocks, 3, 16, n_expr + 36]
        moves = modes.abs().amax(dim=(1, 2)) > 0  # [blocks, n_expr + 36]
        start = torch.zeros(len(moves) + 1, dtype=torch.int32)
        start[1:] = moves.sum(1).cumsum(0)
        joint_modes = torch.einsum("jv,vce->ejc", self.joint_regressor.double(), self.exprdirs.double())
        return _Packed(
            joint_modes=joint_modes.contiguous(),
            mode_start=start,
            mode_id=moves.nonzero()[:, 1].to(torch.int32).contiguous(),
            basis=modes.permute(0, 3, 1, 2)[moves].contiguous(),
            weights=_into_blocks(self.weights),
        )

    def _from_row_torch(self, row: Tensor, identity: _Identity) -> Tensor:
        """The twin of the native kernel, for other devices and types."""
        n_expr = self.exprdirs.shape[2]
        expr, pose, translation = row[:n_expr], row[n_expr : n_expr + 15], row[n_expr + 15 :]
        matrices = axis_angle_to_matrix(pose.reshape(1, 5, 3))
        coefficients = torch.cat([expr, self._pose_feature(matrices)[0]])
        posed = identity.base + (self._basis @ coefficients).reshape(-1, 3)
        joints = identity.joints + self._joint_modes @ expr
        return self._skin(posed[None], joints[None], matrices, translation[None])[0]


def _into_blocks(values: Tensor) -> Tensor:
    """[V, C, ...] to [blocks, C, 16, ...], the last block filled with zeros."""
    count = values.shape[0]
    blocks = -(-count // _LANES)
    padded = values.new_zeros(blocks * _LANES, *values.shape[1:])
    padded[:count] = values
    return padded.unflatten(0, (blocks, _LANES)).transpose(1, 2).contiguous()


class _NativeFlame(torch.autograd.Function):
    """`csrc/flame.cpp`: float32 on the CPU."""

    @staticmethod
    def forward(ctx, row: Tensor, identity: _Identity, packed: _Packed, vertices: int) -> Tensor:
        row = row.contiguous()
        out = row.new_empty(vertices, 3)
        shaped = torch.empty_like(identity.packed)
        double, whole = torch.float64, torch.int32
        native.library().flame_forward(
            ctypes.c_int64(vertices),
            ctypes.c_int64(packed.joint_modes.shape[0]),
            native.pointer(identity.joints, double),
            native.pointer(packed.joint_modes, double),
            native.pointer(identity.packed),
            native.pointer(packed.mode_start, whole),
            native.pointer(packed.mode_id, whole),
            native.pointer(packed.basis),
            native.pointer(packed.weights),
            native.pointer(row),
            native.pointer(out),
            native.pointer(shaped),
        )
        ctx.save_for_backward(row, shaped)
        ctx.identity, ctx.packed = identity, packed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        row, shaped = ctx.saved_tensors
        identity, packed = ctx.identity, ctx.packed
        grad_row = torch.empty_like(row)
        double, whole = torch.float64, torch.int32
        grad = grad.contiguous()
        native.check(
            native.library().flame_backward(
                ctypes.c_int64(grad.shape[0]),
                ctypes.c_int64(packed.joint_modes.shape[0]),
                native.pointer(identity.joints, double),
                native.pointer(packed.joint_modes, double),
                native.pointer(packed.mode_start, whole),
                native.pointer(packed.mode_id, whole),
                native.pointer(packed.basis),
                native.pointer(packed.weights),
                native.pointer(row),
                native.pointer(shaped),
                native.pointer(grad),
                native.pointer(grad_row),
            )
        )
        return grad_row, None, None, None
