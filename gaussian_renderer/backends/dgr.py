"""Adapter to diff-gaussian-rasterization (CUDA, non-commercial licence), where the user has it.

Written against its documented calling convention only, old (two results) and new
(three results, `antialiasing`). Not yet run on a GPU.

It has no off-center principal point, which is an error here rather than a
shifted picture, and returns no alpha, which takes a second pass with white
Gaussians over black. It does not look at opacity when it culls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaussian_renderer.backends.guards import without_broken
from ops.types import Camera, Gaussians, RenderOut
from utils.errors import UserError

NEAR, FAR = 0.01, 100.0  # metres; of its depth buffer only: it culls at 0.2 m by itself
CENTER_TOLERANCE = 0.01  # pixels


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

    Raises:
        UserError: the camera's principal point is not the image centre, or `absolute` is wanted.
    """
    if absolute:
        raise UserError(
            "diff-gaussian-rasterization does not give absolute gradients: add --no_densify_absolute, or "
            "choose another --rasterizer"
        )
    off_center = max(abs(camera.cx - camera.width / 2), abs(camera.cy - camera.height / 2))
    if off_center > CENTER_TOLERANCE:
        name = camera.camera_id or camera.name or "(unnamed)"
        raise UserError(
            f"camera {name} has its principal point {off_center:.2f} pixels off the image centre, "
            "which diff-gaussian-rasterization cannot render: install gsplat (requirements-cuda.txt) and "
            "choose --rasterizer gsplat, or train on the CPU with --device cpu --rasterizer native"
        )
    from diff_gaussian_rasterization import GaussianRasterizer  # not everybody has it

    device = gaussians.means.device
    count, width, height = len(gaussians.means), camera.width, camera.height
    means2d = torch.zeros(count, 2, device=device, requires_grad=torch.is_grad_enabled())
    background = background.float().to(device)
    if count == 0:
        image = background[:, None, None].expand(3, height, width).clone()
        return RenderOut(image, image.new_zeros(1, height, width), means2d.new_zeros(0, dtype=torch.int32), means2d)

    gaussians, sound = without_broken(Gaussians(*(field.float() for field in gaussians)), sh_degree)
    shared = dict(
        means3D=gaussians.means,
        # its third column is not used; the gradient of the first two is in NDC already
        means2D=torch.cat([means2d, means2d.new_zeros(count, 1)], dim=1),
        opacities=gaussians.opacities[:, None],
        scales=gaussians.scales,
        rotations=gaussians.quats,
    )
    black = torch.zeros_like(background)
    color_pass = GaussianRasterizer(_settings(camera, background, sh_degree, scale_modifier))
    alpha_pass = GaussianRasterizer(_settings(camera, black, sh_degree, scale_modifier))
    image, radii, *_ = color_pass(shs=gaussians.sh, **shared)
    alpha, *_ = alpha_pass(colors_precomp=torch.ones_like(gaussians.means), **shared)
    return RenderOut(image, alpha[:1], torch.where(sound, radii, torch.zeros_like(radii)).to(torch.int32), means2d)


def _settings(camera: Camera, background: Tensor, sh_degree: int, scale_modifier: float) -> Any:
    from diff_gaussian_rasterization import GaussianRasterizationSettings

    view = camera.world_to_camera.to(background)
    tan_x, tan_y = camera.width / (2 * camera.fx), camera.height / (2 * camera.fy)
    # The projection times the view, by rows: a matrix of numbers would be copied to the GPU and waited for.
    depth = FAR / (FAR - NEAR) * (view[2] - NEAR * view[3])
    clip = torch.stack([view[0] / tan_x, view[1] / tan_y, depth, view[2]])
    values = dict(
        image_height=camera.height,
        image_width=camera.width,
        tanfovx=tan_x,
        tanfovy=tan_y,
        bg=background,
        scale_modifier=scale_modifier,
        viewmatrix=view.T.contiguous(),  # it wants both matrices transposed
        projmatrix=clip.T.contiguous(),
        sh_degree=sh_degree,
        campos=-view[:3, :3].T @ view[:3, 3],
        prefiltered=False,
        debug=False,
        antialiasing=False,
    )
    # older versions do not know the last field
    return GaussianRasterizationSettings(**{key: values[key] for key in GaussianRasterizationSettings._fields})
