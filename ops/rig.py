"""The rig: triangle frames, and Gaussians carried from their triangle into the world.

For a triangle (v0, v1, v2), with edges e1 = v1 - v0 and e2 = v2 - v0:

    origin = (v0 + v1 + v2) / 3
    a0 = unit(e1),  a1 = unit(e1 x e2) (the normal),  a2 = a0 x a1,  R = [a0 a1 a2]
    k  = (|e1| + |a2 . e2|) / 2          edge length and height, averaged

and for a Gaussian bound to it, with local mean m, rotation r and deviations s:

    mean = k R m + origin      rotation = R r      deviations = k s

A triangle without orientation (an edge shorter than a micrometre, or edges
parallel within 1e-6) gets R = I and k = |e1| / 2, and of its gradients only
that of the origin: nothing there can be differentiated, and nothing may
become NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops import fused, kernels
from ops.rotations import matrix_to_quaternion, quaternion_multiply

_MIN_EDGE = kernels.CONSTANTS["kMinEdge"]  # metres
_MIN_SINE = kernels.CONSTANTS["kMinSine"]


class Frames(NamedTuple):
    """The frame of every triangle, in world space."""

    origin: Tensor  # [F, 3]     metres, the centroid
    quat: Tensor  # [F, 4]     wxyz, unit; the rotation as a quaternion
    rotation: Tensor  # [F, 3, 3]  columns: first edge, normal, and the third axis
    scale: Tensor  # [F]        metres


def triangle_frames(vertices: Tensor, faces: Tensor) -> Frames:
    """The frames of the triangles `faces` [F, 3] of a mesh with `vertices` [V, 3]; differentiable."""
    corners = vertices[faces]
    v0, v1, v2 = corners.unbind(1)
    first, second = v1 - v0, v2 - v0
    with torch.no_grad():
        length, other = first.norm(dim=1), second.norm(dim=1)
        area = torch.linalg.cross(first, second).norm(dim=1)
        degenerate = (length < _MIN_EDGE) | (other < _MIN_EDGE) | (area < _MIN_SINE * length * other)
        flat_scale = length / 2
    # A degenerate triangle is replaced BEFORE the roots, by one whose frame is
    # the identity: masked afterwards, their infinite slope would still be NaN.
    mask = degenerate[:, None]
    x, _, z = torch.eye(3, dtype=vertices.dtype, device=vertices.device)  # not a list: copying it makes a GPU wait
    first = torch.where(mask, x, first)
    second = torch.where(mask, -z, second)
    length = first.norm(dim=1, keepdim=True)
    a0 = first / length
    normal = torch.linalg.cross(first, second)
    a1 = normal / normal.norm(dim=1, keepdim=True)
    a2 = torch.linalg.cross(a0, a1)
    rotation = torch.stack([a0, a1, a2], dim=2)
    scale = (length.squeeze(1) + (a2 * second).sum(1).abs()) / 2
    scale = torch.where(degenerate, flat_scale, scale)
    return Frames(corners.mean(dim=1), matrix_to_quaternion(rotation), rotation, scale)


def local_to_world(
    frames: Frames,
    binding: Tensor,  # [N] int64, the triangle of each Gaussian
    means: Tensor,  # [N, 3] in triangle units
    quats: Tensor,  # [N, 4] wxyz, unit, in the triangle's frame
    scales: Tensor,  # [N, 3] in triangle units
) -> tuple[Tensor, Tensor, Tensor]:
    """Means, quaternions and scales in world space (metres), differentiable in everything."""
    scale = frames.scale[binding][:, None]
    turned = (frames.rotation[binding] @ means[..., None]).squeeze(-1)
    return (scale * turned + frames.origin[binding], quaternion_multiply(frames.quat[binding], quats), scale * scales)


def bind(
    vertices: Tensor,  # [V, 3] metres
    faces: Tensor,  # [F, 3] int64
    xyz: Tensor,  # [N, 3] in triangle units
    rotation: Tensor,  # [N, 4] wxyz, of any length
    scaling: Tensor,  # [N, 3] log of triangle units
    opacity: Tensor,  # [N, 1] or [N] logit
    binding: Tensor,  # [N] int64, the triangle of each Gaussian, 0 <= binding < F
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """World-space means [N, 3], unit quats [N, 4], scales [N, 3] and opacities [N], from raw parameters.

    On the CPU in float32 this is one kernel each way; gradients (to the
    vertices as well) repeat bit for bit with any number of threads, and do so
    in Triton. Indices are the caller's responsibility.
    """
    if gpu := fused.kernels("rig", _fault, vertices, xyz, rotation, scaling, opacity):
        return gpu.Bind.apply(vertices, faces, xyz, rotation, scaling, opacity, binding)
    opacities = opacity.reshape(-1).sigmoid()
    if kernels.usable(vertices, xyz, rotation, scaling):
        means, quats, scales = _Bind.apply(vertices, faces, xyz, rotation, scaling, binding)
    else:
        means, quats, scales = _bind_torch(vertices, faces, xyz, rotation, scaling, binding)
    return means, quats, scales, opacities


def _bind_torch(
    vertices: Tensor, faces: Tensor, xyz: Tensor, rotation: Tensor, scaling: Tensor, binding: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of csrc/rig.cpp, for other devices and types."""
    unit = torch.nn.functional.normalize(rotation, dim=1)
    return local_to_world(triangle_frames(vertices, faces), binding, xyz, unit, scaling.exp())


class _Bind(torch.autograd.Function):
    """`bind` by csrc/rig.cpp: float32 on the CPU."""

    @staticmethod
    def forward(
        ctx, vertices: Tensor, faces: Tensor, xyz: Tensor, rotation: Tensor, scaling: Tensor, binding: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        vertices, faces, xyz, rotation, binding = (t.contiguous() for t in (vertices, faces, xyz, rotation, binding))
        scales = scaling.exp().contiguous()  # PyTorch's exp is vectorized
        frames = vertices.new_empty(faces.shape[0], 20)
        means, quats, world_scales = torch.empty_like(xyz), torch.empty_like(rotation), torch.empty_like(scales)
        kernels.run(
            "rig_forward",
            *(len(faces), len(xyz)),
            *(vertices, faces, xyz, rotation, scales, binding),
            *(frames, means, quats, world_scales),
        )
        ctx.save_for_backward(faces, xyz, rotation, scales, binding, frames)
        ctx.n_vertices = vertices.shape[0]
        return means, quats, world_scales

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_means: Tensor, g_quats: Tensor, g_scales: Tensor) -> tuple[Tensor | None, ...]:
        faces, xyz, rotation, scales, binding, frames = ctx.saved_tensors
        g_vertices = xyz.new_empty(ctx.n_vertices, 3) if ctx.needs_input_grad[0] else None
        g_xyz, g_rotation, g_scaling = torch.empty_like(xyz), torch.empty_like(rotation), torch.empty_like(scales)
        kernels.run(
            "rig_backward",
            *(ctx.n_vertices, len(faces), len(xyz)),
            *(faces, xyz, rotation, scales, binding, frames),
            *(g_means.contiguous(), g_quats.contiguous(), g_scales.contiguous()),
            *(g_xyz, g_rotation, g_scaling, g_vertices),
        )
        return g_vertices, None, g_xyz, g_rotation, g_scaling, None


def _fault(gpu: Any, device: torch.device) -> str | None:
    """What is wrong with the Triton kernels, by a small mesh with a triangle without orientation."""
    random = torch.Generator().manual_seed(0)
    count, vertices, faces = 200, 40, 60
    triangles = torch.stack([torch.randperm(vertices, generator=random)[:3] for _ in range(faces)])
    triangles[-1] = triangles[-1, 0]

    def twin(mesh: Tensor, xyz: Tensor, rotation: Tensor, scaling: Tensor, opacity: Tensor) -> tuple[Tensor, ...]:
        return *_bind_torch(mesh, triangles, xyz, rotation, scaling, binding), opacity.sigmoid()

    def ours(mesh: Tensor, xyz: Tensor, rotation: Tensor, scaling: Tensor, opacity: Tensor) -> tuple[Tensor, ...]:
        place = mesh.device
        return gpu.Bind.apply(mesh, triangles.to(place), xyz, rotation, scaling, opacity, binding.to(place))

    binding = torch.randint(faces, (count,), generator=random)
    sizes = {"vertices": (vertices, 3), "xyz": (count, 3), "rotations": (count, 4), "scales": (count, 3)}
    inputs = {
        name: torch.randn(*size, generator=random, dtype=torch.float64).requires_grad_()
        for name, size in {**sizes, "opacities": (count,)}.items()
    }
    return fused.difference(ours, twin, inputs, device)
