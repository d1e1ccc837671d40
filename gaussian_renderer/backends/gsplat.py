"""Adapter to gsplat (Apache-2.0, CUDA): the default backend on a GPU.

Written against the documented interface of gsplat 1.5.3. Not yet run on a GPU.

What differs there and is evened out here: its gradient of the 2-D mean is in
pixels (ours: NDC), its radii are per axis and opacity-aware (ours: one 3-sigma
radius, from its conics), its default near plane is 0.01 m. What remains: gsplat
caps alpha at 0.999 where Kerbl et al. have 0.99, so that images may differ by up
to 0.009 under Gaussians more opaque than 0.99.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gaussian_renderer.backends.guards import without_broken
from gaussian_renderer.backends.reference import LOW_PASS, NEAR
from ops.types import Camera, Gaussians, RenderOut


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

    `means2d.grad` is set by `backward()` through a hook; `torch.autograd.grad`
    with respect to `means2d` does not work.
    """
    import gsplat  # heavy, and builds its kernels on first use

    device = gaussians.means.device
    count, width, height = len(gaussians.means), camera.width, camera.height
    means2d = torch.zeros(count, 2, device=device, requires_grad=torch.is_grad_enabled())
    if count == 0:
        image = background.float()[:, None, None].expand(3, height, width).clone()
        return RenderOut(image, image.new_zeros(1, height, width), means2d.new_zeros(0, dtype=torch.int32), means2d)

    # gsplat's kernels are float32, and its projection must not see autocast's half precision
    with torch.autocast(device.type, enabled=False):
        gaussians, sound = without_broken(Gaussians(*(field.float() for field in gaussians)), sh_degree)
        colors, alphas, meta = gsplat.rasterization(
            means=gaussians.means,
            quats=gaussians.quats,
            scales=gaussians.scales * scale_modifier,
            opacities=gaussians.opacities,
            colors=gaussians.sh,
            viewmats=camera.world_to_camera.to(device)[None],
            Ks=_intrinsics(camera.fx, camera.fy, camera.cx, camera.cy, device)[None],
            width=width,
            height=height,
            near_plane=NEAR,
            eps2d=LOW_PASS,
            sh_degree=sh_degree,
            packed=False,
            backgrounds=background.float().to(device)[None],
            absgrad=absolute,
        )

    # Not packed: every field of `meta` has the shape [1 camera, N, ...].
    radii = _three_sigma_radii(meta["conics"][0].detach(), meta["radii"][0], sound)
    projected = meta["means2d"]
    if projected.requires_grad:

        def keep_gradient(grad: Tensor) -> None:
            # The other one is an attribute, set by the same backward before this is called.
            x, y = (projected.absgrad if absolute else grad)[0].unbind(1)
            value = torch.stack([x * (width / 2), y * (height / 2)], dim=1)  # per pixel -> per NDC unit
            means2d.grad = value if means2d.grad is None else means2d.grad + value

        projected.register_hook(keep_gradient)
    return RenderOut(colors[0].permute(2, 0, 1), alphas[0].permute(2, 0, 1), radii, means2d)


@functools.lru_cache(maxsize=4096)
@torch.inference_mode(False)  # a cached tensor born in inference mode would be useless to training
def _intrinsics(fx: float, fy: float, cx: float, cy: float, device: torch.device) -> Tensor:
    """[3, 3] pixels; kept, because copying it to a GPU makes the host wait. Do not write to it."""
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], device=device)


def _three_sigma_radii(conics: Tensor, boxes: Tensor, sound: Tensor) -> Tensor:
    """[N] int32 from the inverse covariances [N, 3] and gsplat's per-axis radii [N, 2], 0 where those are 0."""
    xx, xy, yy = conics.unbind(-1)
    middle = (xx + yy) / 2
    largest = middle + torch.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    smallest = (xx * yy - xy * xy) / largest  # of the conic, so the largest of the covariance
    visible = sound & (boxes > 0).all(-1)
    radius = torch.ceil(3 / torch.sqrt(smallest)).clamp(1, 1e9)
    return torch.where(visible, radius, torch.zeros_like(radius)).to(torch.int32)
