"""The native CPU rasterizer: C++ kernels behind a `torch.autograd.Function`.

The rules are those of `gaussian_renderer.backends.reference`. The kernels
(`ops/csrc/splat*`) run in float32 and give the same bits for the same
inputs, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gaussian_renderer.backends.guards import check_shapes
from ops import kernels
from ops.types import Camera, Gaussians, RenderOut

STAGES = ("project", "bin", "blend", "blend backward", "project backward")


def _view(camera: Camera, scale_modifier: float, sh_degree: int, sh_bases: int) -> kernels.View:
    *matrix, _ = camera.world_to_camera.tolist()
    return kernels.View(
        tuple(row[j] for row in matrix for j in range(3)),
        tuple(row[3] for row in matrix),
        tuple(-sum(row[j] * row[3] for row in matrix) for j in range(3)),
        *(camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height),
        *(scale_modifier, sh_degree, sh_bases),
    )


class Workspace:
    """What the C++ side keeps from a forward pass for its backward pass.

    Each forward takes one for itself and it returns to the pool when the graph
    that owns it goes: buffers are reused from step to step, and any number of
    forwards may come before a backward.
    """

    _pool: list[int] = []  # handles not in use; append and pop are atomic
    _POOLED = 4  # a training loop alternates between two

    def __init__(self) -> None:
        try:
            self.handle = self._pool.pop()
        except IndexError:
            self.handle = kernels.run("splat_create")
        if not self.handle:
            raise MemoryError("no memory for the rasterizer")

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if not handle:
            return
        if len(self._pool) < self._POOLED:
            self._pool.append(handle)
        else:
            kernels.run("splat_destroy", handle)

    def seconds(self) -> dict[str, float]:
        """Time of the last pass by stage, for the benchmark."""
        values = torch.empty(len(STAGES), dtype=torch.float64)
        kernels.run("splat_seconds", self.handle, values)
        return dict(zip(STAGES, values.tolist()))

    def entries(self) -> int:
        """Pairs of a 16×16 tile and a Gaussian that reaches it, in the last pass; for the benchmark."""
        return kernels.run("splat_entries", self.handle)


_NO_ROOM = "the rasterizer ran out of memory: too many Gaussians cover too many tiles"


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,  # [N, 3]
        quats: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        sh: Tensor,  # [N, K, 3]
        background: Tensor,  # [3]
        means2d: Tensor,  # [N, 2] only a place for its gradient
        camera: Camera,
        sh_degree: int,
        scale_modifier: float,
        keep: bool,
        absolute: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        fields = [field.detach().contiguous() for field in (means, quats, scales, opacities, sh, background)]
        count = len(means)
        image = means.new_empty(3, camera.height, camera.width)
        alpha = means.new_empty(1, camera.height, camera.width)
        radii = torch.empty(count, dtype=torch.int32)
        workspace = Workspace()
        view = _view(camera, scale_modifier, sh_degree, sh.shape[1])
        pictures = (image, alpha, radii)
        kernels.run("splat_forward", workspace.handle, view, count, *fields, *pictures, keep, no_room=_NO_ROOM)
        if keep:
            ctx.workspace = workspace
            ctx.absolute = absolute
            ctx.save_for_backward(*fields, alpha)
        ctx.mark_non_differentiable(radii)
        return image, alpha, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *fields, alpha = ctx.saved_tensors
        grad_image, grad_alpha = grad_image.contiguous(), grad_alpha.contiguous()
        grads = [torch.empty_like(field) for field in fields[:5]]
        grad_means2d = fields[0].new_empty(len(fields[0]), 2)
        kernels.run(
            "splat_backward",
            ctx.workspace.handle,
            *fields,
            *(grad_image, grad_alpha),
            *(*grads, grad_means2d),
            ctx.absolute,
            no_room=_NO_ROOM,
        )
        grad_background = (grad_image * (1 - alpha)).sum((1, 2)) if ctx.needs_input_grad[5] else None
        return (*grads, grad_background, grad_means2d, None, None, None, None, None)


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3]
    *,
    sh_degree: int,
    scale_modifier: float = 1.0,
    absolute: bool = False,
) -> RenderOut:
    """Renders; see `gaussian_renderer.backends.reference` for the rules and `RenderOut` for the result.

    Computes in float32 whatever the type of the inputs; differentiable, once, with
    respect to all fields of `gaussians` and `background`. Under `torch.no_grad`
    nothing is kept for a backward pass.

    Raises:
        ValueError: wrong shapes or device, or fewer coefficients than `sh_degree` needs.
        MemoryError: the tile lists do not fit.
    """
    check_shapes(gaussians, background, sh_degree)
    keep = torch.is_grad_enabled()  # asked here: inside a Function it is always off
    means2d = torch.zeros(()).expand(len(gaussians.means), 2).requires_grad_(keep)  # its value is nowhere read
    fields = (field.float() for field in (*gaussians, background))
    image, alpha, radii = _Rasterize.apply(*fields, means2d, camera, sh_degree, scale_modifier, keep, absolute)
    return RenderOut(image, alpha, radii, means2d)
