"""The rasterizer in plain PyTorch: slow, readable, any float type.

It defines what every backend computes and is the oracle of their tests; without
a C++ compiler it also stands in for the native one. Gradients are autograd's.

The rules, with the numbers of Kerbl et al. 2023 ("3D Gaussian Splatting"):

* Camera space by the camera's world-to-camera matrix; a Gaussian with z <= 0.2 m
  is culled.
* The 2-D covariance is J W Sigma W^T J^T + 0.3 px^2 I (EWA, Zwicker et al. 2001).
  In the Jacobian J, x/z is held inside the image widened by 0.3 half images on
  either side, measured from the image's edges:
  [-(cx/fx + 0.3 W/(2 fx)), (W - cx)/fx + 0.3 W/(2 fx)], and likewise y/z. For a
  centered principal point these are +-1.3 tan(fov/2).
* alpha = min(0.99, opacity exp(-d^T cov^-1 d / 2)) at the pixel center; under
  1/255 it is nothing. Where 0.99 caps it, its gradient is zero.
* Front to back by z, equal z by index. A pixel stops before the Gaussian that
  would take its transmittance under 1e-4.
* A Gaussian is visible (radius > 0) when a pixel center of the image lies in the
  box around its ellipse alpha >= 1/255.
* A Gaussian is culled, which is radius 0 and zero gradient, when its mean, scale,
  quaternion, opacity or a coefficient of its color that is in use is not finite,
  when its quaternion's length is outside [1e-12, 1e18], or when its projection
  overflows the float type. The gradient of every other Gaussian is finite as long
  as that of the image is.
* Quaternions are normalized here, so their gradient has no part along them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops import sh as harmonics
from ops.kernels import CONSTANTS
from ops.types import Camera, Gaussians, RenderOut

NEAR = CONSTANTS["kNear"]  # metres
LOW_PASS = CONSTANTS["kLowPass"]  # pixel^2
GUARD = CONSTANTS["kGuard"]  # of half the image
MAX_ALPHA = CONSTANTS["kMaxAlpha"]
MIN_ALPHA = CONSTANTS["kMinAlpha"]  # 1/255
MIN_TRANSMITTANCE = CONSTANTS["kMinTransmittance"]
QUATERNION_LENGTHS = (CONSTANTS["kMinLength"], CONSTANTS["kMaxLength"])
BLOCK = 16  # pixels: side of the squares that are blended at once, which bounds the memory


class Projected(NamedTuple):
    """The visible Gaussians, front to back, on the image plane."""

    rows: Tensor  # [M] of the input
    means: Tensor  # [M, 2] pixels
    conics: Tensor  # [M, 3] xx, xy, yy of the inverse covariance, 1 / pixel^2
    extents: Tensor  # [M, 2] half sides in pixels of the box around alpha >= 1/255
    radii: Tensor  # [M] int32, 3-sigma radius in pixels
    opacities: Tensor  # [M]


def rotation_matrices(quats: Tensor) -> Tensor:
    """[N, 3, 3] of unit quaternions [N, 4], wxyz."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def project(
    gaussians: Gaussians, means2d: Tensor, camera: Camera, scale_modifier: float = 1.0, sh_degree: int = 0
) -> Projected:
    """Culls, projects and sorts.

    Args:
        gaussians: N of them, world space.
        means2d: [N, 2] offset of the projected means in NDC (2 = the whole image).
        camera: the view.
        scale_modifier: factor on all scales.
        sh_degree: of the colors.
    """
    world = camera.world_to_camera.to(gaussians.means)
    with torch.no_grad():
        finite = torch.isfinite(
            torch.cat([gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities[:, None]], dim=1)
        ).all(1)
        finite &= torch.isfinite(gaussians.sh[:, : harmonics.bases(sh_degree)]).all(2).all(1)
        depth = gaussians.means @ world[2, :3] + world[2, 3]
        length = gaussians.quats.norm(dim=1)
        kept = finite & (length >= QUATERNION_LENGTHS[0]) & (length <= QUATERNION_LENGTHS[1])
        kept &= (depth > NEAR) & torch.isfinite(depth) & (gaussians.opacities >= MIN_ALPHA)
        # stable: equal depths keep the order of their index
        index = torch.nonzero(kept)[:, 0]
        index = index[torch.argsort(depth[index], stable=True)]
        index = index[_flatten(gaussians, index, means2d, camera, scale_modifier)[1]]
    # Again without the culled ones: through their infinities a gradient of zero would turn into NaN.
    return _flatten(gaussians, index, means2d, camera, scale_modifier)[0]


def _flatten(
    gaussians: Gaussians, index: Tensor, means2d: Tensor, camera: Camera, scale_modifier: float
) -> tuple[Projected, Tensor]:
    """The Gaussians `index` on the image plane, and a mask of those that are visible."""
    world = camera.world_to_camera.to(gaussians.means)
    width, height = camera.width, camera.height
    x, y, z = (gaussians.means[index] @ world[:3, :3].T + world[:3, 3]).unbind(-1)
    quats = torch.nn.functional.normalize(gaussians.quats[index], dim=-1)
    axes = world[:3, :3] @ rotation_matrices(quats) * (gaussians.scales[index] * scale_modifier)[:, None, :]

    guard_x, guard_y = GUARD * width / (2 * camera.fx), GUARD * height / (2 * camera.fy)
    tan_x = (x / z).clamp(-(camera.cx / camera.fx + guard_x), (width - camera.cx) / camera.fx + guard_x)
    tan_y = (y / z).clamp(-(camera.cy / camera.fy + guard_y), (height - camera.cy) / camera.fy + guard_y)
    # rows of J W R S; the covariance is their Gram matrix
    u = (camera.fx / z)[:, None] * (axes[:, 0] - tan_x[:, None] * axes[:, 2])
    v = (camera.fy / z)[:, None] * (axes[:, 1] - tan_y[:, None] * axes[:, 2])
    xx, xy, yy = (u * u).sum(1) + LOW_PASS, (u * v).sum(1), (v * v).sum(1) + LOW_PASS
    # = xx yy - xy^2, written so that long thin Gaussians do not lose their digits
    determinant = torch.linalg.cross(u, v).square().sum(1) + LOW_PASS * (xx + yy) - LOW_PASS**2
    conics = torch.stack([yy / determinant, -xy / determinant, xx / determinant], dim=1)
    ndc_to_pixels = torch.tensor([width / 2, height / 2]).to(x)
    means = torch.stack([camera.fx * (x / z) + camera.cx, camera.fy * (y / z) + camera.cy], dim=1)
    means = means + means2d[index] * ndc_to_pixels

    with torch.no_grad():
        reach = 2 * torch.log(gaussians.opacities[index] / MIN_ALPHA)
        extents = torch.sqrt(reach[:, None] * torch.stack([xx, yy], dim=1))
        first = torch.ceil(means - extents - 0.5).clamp_min(0)
        final = torch.floor(means + extents - 0.5)
        final = torch.minimum(final, torch.tensor([width - 1, height - 1]).to(final))
        largest = (xx + yy) / 2 + torch.sqrt(((xx - yy) / 2) ** 2 + xy**2)
        radii = torch.ceil(3 * torch.sqrt(largest))
        seen = (first <= final).all(1) & torch.isfinite(conics).all(1) & torch.isfinite(radii)
        seen &= (conics[:, 0] > 0) & (conics[:, 2] > 0)
        radii = torch.nan_to_num(radii).clamp_max(1e9).to(torch.int32)
    return Projected(index, means, conics, extents, radii, gaussians.opacities[index]), seen


def raw_alpha(projected: Projected, pixels: Tensor) -> Tensor:
    """[M, P] opacity times density at `pixels` [P, 2] or [M, P, 2], before the limits at 0.99 and 1/255."""
    dx, dy = (pixels - projected.means[:, None]).unbind(-1)
    xx, xy, yy = projected.conics[:, :, None].unbind(1)
    # xx dx^2 + 2 xy dx dy + yy dy^2 with the square completed, for the digits' sake as above
    form = xx * (dx + xy / xx * dy) ** 2 + (yy - xy * xy / xx) * dy * dy
    return projected.opacities[:, None] * torch.exp(-form / 2)


class _Absolute(torch.autograd.Function):
    """[M, 2] -> [M, P, 2]: the same for every pixel; its gradient sums the absolute values of theirs."""

    @staticmethod
    def forward(ctx: Any, shift: Tensor, pixels: int) -> Tensor:
        return shift[:, None].expand(-1, pixels, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.abs().sum(1), None


def limited_alpha(raw: Tensor) -> Tensor:
    """`raw` capped at 0.99, and zero under 1/255; no gradient where either holds."""
    capped = torch.where(raw < MAX_ALPHA, raw, torch.full_like(raw, MAX_ALPHA))
    return torch.where(raw >= MIN_ALPHA, capped, torch.zeros_like(raw))


def composite(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Front-to-back weights [M, P] and the remaining transmittance [P] of `alpha` [M, P]."""
    with torch.no_grad():
        open_ = torch.cumprod(1 - alpha, dim=0) >= MIN_TRANSMITTANCE
    alpha = torch.where(open_, alpha, torch.zeros_like(alpha))
    nothing = alpha.new_ones(1, alpha.shape[1])
    transmittance = torch.cat([nothing, torch.cumprod(1 - alpha, dim=0)])
    return alpha * transmittance[:-1], transmittance[-1]


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3]
    *,
    sh_degree: int,
    scale_modifier: float = 1.0,
    absolute: bool = False,
) -> RenderOut:
    """Renders; see the module's text for the rules and `RenderOut` for the result.

    Differentiable with respect to all fields of `gaussians` and `background`.
    Time and memory grow with the number of Gaussians per 16x16 pixels.

    Raises:
        ValueError: `sh` has fewer coefficients than `sh_degree` needs.
    """
    # matrix products must not drop to half precision under autocast
    with torch.autocast(gaussians.means.device.type, enabled=False):
        if gaussians.means.dtype in (torch.float16, torch.bfloat16):
            gaussians = Gaussians(*(field.float() for field in gaussians))
        means2d = gaussians.means.new_zeros(len(gaussians.means), 2).requires_grad_(torch.is_grad_enabled())
        return _rasterize(
            gaussians, means2d, camera, background.to(gaussians.means), sh_degree, scale_modifier, absolute
        )


def _rasterize(
    gaussians: Gaussians,
    means2d: Tensor,
    camera: Camera,
    background: Tensor,
    sh_degree: int,
    scale_modifier: float,
    absolute: bool = False,
) -> RenderOut:
    projected = project(gaussians, means2d.detach() if absolute else means2d, camera, scale_modifier, sh_degree)
    index = projected.rows
    world = camera.world_to_camera.to(background)
    center = -world[:3, :3].T @ world[:3, 3]  # not camera.center, which is float32
    colors = harmonics.colors(gaussians.sh[index], gaussians.means[index], center, sh_degree)
    radii = torch.zeros(len(means2d), dtype=torch.int32, device=means2d.device)
    radii[index] = projected.radii

    shift = means2d[index] * torch.tensor([camera.width / 2, camera.height / 2]).to(means2d)  # pixels
    low = (projected.means - projected.extents).detach()
    high = (projected.means + projected.extents).detach()
    bands, alpha_bands = [], []
    for y in range(0, camera.height, BLOCK):
        blocks, alpha_blocks = [], []
        for x in range(0, camera.width, BLOCK):
            w, h = min(BLOCK, camera.width - x), min(BLOCK, camera.height - y)
            here = (high[:, 0] >= x) & (low[:, 0] <= x + w) & (high[:, 1] >= y) & (low[:, 1] <= y + h)
            near = Projected(*(field[here] for field in projected))
            rows = torch.arange(y, y + h).to(background) + 0.5
            columns = torch.arange(x, x + w).to(background) + 0.5
            pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)
            if absolute:
                pixels = pixels - _Absolute.apply(shift[here], len(pixels))
            weights, rest = composite(limited_alpha(raw_alpha(near, pixels)))
            blocks.append((colors[here].T @ weights + background[:, None] * rest).reshape(3, h, w))
            alpha_blocks.append((1 - rest).reshape(1, h, w))
        bands.append(torch.cat(blocks, dim=2))
        alpha_bands.append(torch.cat(alpha_blocks, dim=2))
    return RenderOut(torch.cat(bands, dim=1), torch.cat(alpha_bands, dim=1), radii, means2d)
