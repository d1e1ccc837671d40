"""FLAME: from identity, expression and pose to vertices.

Li et al. 2017, "Learning a model of facial shape and expression from 4D scans":

    v_shaped = v_template + S shape + E expr + offsets
    joints   = J_regressor v_shaped
    v_posed  = v_shaped + P (R_1 - I, ..., R_4 - I)
    vertices = linear blend skinning of v_posed along the joint chain + translation

There are two ways through it. `Flame.forward` is that, batched and
differentiable in every input. `Flame.vertices` is the path of training: one
timestep, where identity and offsets are constants that are folded into the
template and its joints once; on the CPU it is one kernel each way (`ops.flame`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ops import flame
from ops.one_thread import on_one_thread
from ops.rotations import axis_angle_to_matrix
from scene.flame.head_model import HeadModel
from scene.flame.parameters import FlameParameters


class _Identity(NamedTuple):
    """The part of FLAME that one avatar never changes."""

    shape: Tensor  # as given; the rest is valid for these two tensors only
    static_offset: Tensor
    folded: flame.Identity


class Flame(nn.Module):
    """A head model as a differentiable function, on one device."""

    v_template: Tensor  # buffers, as in `HeadModel`
    shapedirs: Tensor
    exprdirs: Tensor
    posedirs: Tensor
    joint_regressor: Tensor
    weights: Tensor
    faces: Tensor

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
        self._modes: flame.Modes | flame.PackedModes | None = None

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
        posed = shaped + torch.einsum("vcp,bp->bvc", self.posedirs, flame.pose_feature(matrices))
        return flame.skin(posed, joints, matrices, translation, self.weights, self.parents)

    # ---- one timestep, identity constant ------------------------------------

    def vertices(self, parameters: FlameParameters, timestep: int) -> Tensor:
        """Vertices [V, 3] in metres at row `timestep`; differentiable in that row."""
        row = parameters.row(timestep)
        if parameters.dynamic_offset is not None:
            # Offsets move the joints, sums over all vertices: by one thread, or they depend on how many.
            return on_one_thread(
                lambda row, offset: self(
                    parameters.shape,
                    static_offset=parameters.static_offset,
                    dynamic_offset=offset[None],
                    **parameters.split(row[None]),
                )[0],
                row,
                parameters.dynamic_row(timestep),
            )
        return self.from_row(row, parameters.shape, parameters.static_offset)

    def from_row(self, row: Tensor, shape: Tensor, static_offset: Tensor) -> Tensor:
        """Vertices [V, 3] of a row laid out as in `flame_parameters`; gradients reach the row only.

        What depends on `shape` and `static_offset` is kept until other tensors
        are passed (compared by identity, so do not change them in place).
        """
        if self._modes is None:
            self._modes = flame.prepare(self.exprdirs, self.posedirs, self.joint_regressor, self.weights, self.parents)
        identity = self._identity
        if identity is None or identity.shape is not shape or identity.static_offset is not static_offset:
            with torch.no_grad():
                base = self.v_template + self.shapedirs @ shape.to(self.dtype) + static_offset.to(self.dtype)
                # The joints are sums over many vertices and everything hangs on them: in double.
                joints = self.joint_regressor.double() @ base.double()
                identity = _Identity(shape, static_offset, self._modes.identity(base, joints))
            self._identity = identity
        return self._modes.vertices(row, identity.folded)
