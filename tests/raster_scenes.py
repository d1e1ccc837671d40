"""Small scenes for the rasterizer tests, and the comparison against the float64 reference."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gaussian_renderer import Rasterizer
from gaussian_renderer.backends import reference
from ops.types import Camera, Gaussians, RenderOut

FIELDS = (*Gaussians._fields, "background", "means2d")


class Scene(NamedTuple):
    gaussians: Gaussians  # float32
    camera: Camera
    background: Tensor  # [3]
    degree: int


class Result(NamedTuple):
    out: RenderOut
    grads: dict[str, Tensor]  # by `FIELDS`


def make_camera(width: int, height: int, *, centered: bool, seed: int = 0) -> Camera:
    """A slightly turned camera near the origin; `centerd` also means square pixels."""
    random = torch.Generator().manual_seed(seed)
    wx, wy, wz = (torch.randn(3, generator=random) * 0.1).tolist()
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]]))
    matrix[:3, 3] = torch.randn(3, generator=random) * 0.05
    if centered:
        return Camera(matrix, 1.1 * width, 1.1 * width, width / 2, height / 2, width, height)
    return Camera(matrix, 1.15 * width, 0.9 * width, 0.4 * width, 0.62 * height, width, height)


def make_scene(
    seed: int,
    count: int,
    *,
    size: tuple[int, int] = (53, 41),
    sigma: tuple[float, float] = (0.3, 6.0),  # pixels, log-uniform per axis
    opacity: tuple[float, float] = (0.02, 0.95),
    depth: tuple[float, float] = (0.5, 4.0),  # metres
    spread: float = 1.0,  # of the means, in images
    centered: bool = False,
    degree: int = 3,
) -> Scene:
    """Random Gaussians with sixteen coefficients each, whatever the active `degree`."""
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=random) * (high - low) + low

    camera = make_camera(*size, centered=centered, seed=seed)
    z = uniform(*depth, count)
    x = (uniform(-spread / 2, spread / 2, count) + 0.5) * camera.width
    y = (uniform(-spread / 2, spread / 2, count) + 0.5) * camera.height
    points = torch.stack([(x - camera.cx) / camera.fx * z, (y - camera.cy) / camera.fy * z, z], dim=1)
    world = camera.world_to_camera
    scales = torch.exp(uniform(math.log(sigma[0]), math.log(sigma[1]), count, 3)) * z.abs()[:, None] / camera.fx
    return Scene(
        Gaussians(
            means=(points - world[:3, 3]) @ world[:3, :3],
            quats=torch.randn(count, 4, generator=random),  # not unit on purpose: backends normalise
            scales=scales,
            opacities=uniform(*opacity, count),
            sh=torch.randn(count, 16, 3, generator=random) * 0.3,
        ),
        camera,
        uniform(0, 1, 3),
        degree,
    )


def join(*scenes: Scene) -> Scene:
    """All Gaussians of `scenes` before the camera and background of the first."""
    fields = (torch.cat(parts) for parts in zip(*(scene.gaussians for scene in scenes)))
    return scenes[0]._replace(gaussians=Gaussians(*fields))


def run(
    rasterize: Rasterizer,
    scene: Scene,
    grad_image: Tensor,
    grad_alpha: Tensor,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    absolute: bool = False,
) -> Result:
    """Renders and pulls the cotangents back."""
    leaves = Gaussians(*(field.detach().to(device, dtype, copy=True).requires_grad_() for field in scene.gaussians))
    background = scene.background.to(device, dtype, copy=True).requires_grad_()
    out = rasterize(leaves, scene.camera.to(device), background, sh_degree=scene.degree, absolute=absolute)
    torch.autograd.backward([out.image, out.alpha], [grad_image.to(out.image), grad_alpha.to(out.alpha)])
    tensors = (*leaves, background, out.means2d)
    return Result(
        RenderOut(*(field.detach().cpu() for field in out)),
        {name: tensor.grad.cpu() for name, tensor in zip(FIELDS, tensors)},
    )


def fragile_pixels(scene: Scene) -> Tensor:
    """[H, W] bool: where an alpha or transmittance is so near a threshold that float32 may fall on its other side."""
    camera = scene.camera
    gaussians = Gaussians(*(field.double() for field in scene.gaussians))
    projected = reference.project(gaussians, torch.zeros(len(gaussians.means), 2).double(), camera)
    rows, columns = torch.arange(camera.height).double() + 0.5, torch.arange(camera.width).double() + 0.5
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2)
    raw = reference.raw_alpha(projected, pixels)
    rest = torch.cumprod(1 - reference.limited_alpha(raw), dim=0)
    near = (raw / reference.MIN_ALPHA - 1).abs() < 1e-4
    near |= (raw / reference.MAX_ALPHA - 1).abs() < 1e-5
    near |= (rest / reference.MIN_TRANSMITTANCE - 1).abs() < 1e-3
    return near.any(0).reshape(camera.height, camera.width)


def compare(
    rasterize: Rasterizer,
    scene: Scene,
    *,
    device: str = "cpu",
    seed: int = 0,
    floor: float = 1e-5,
    absolute: bool = False,
) -> tuple[Result, Result]:
    """Holds a backend against the float64 reference: image, alpha, visibility, and all gradients.

    A gradient may be off by 0.1 % of itself plus `floor` of the largest one.
    """
    camera = scene.camera
    random = torch.Generator().manual_seed(seed)
    sound = ~fragile_pixels(scene)
    assert sound.float().mean() > 0.97, "the scene leaves too little to compare"
    grad_image = torch.randn(3, camera.height, camera.width, generator=random) * sound
    grad_alpha = torch.randn(1, camera.height, camera.width, generator=random) * sound
    expected = run(reference.rasterize, scene, grad_image, grad_alpha, torch.float64, absolute=absolute)
    actual = run(rasterize, scene, grad_image, grad_alpha, device=device, absolute=absolute)

    assert actual.out.image.shape == (3, camera.height, camera.width)
    assert actual.out.alpha.shape == (1, camera.height, camera.width)
    assert actual.out.radii.dtype == torch.int32 and actual.out.radii.shape == expected.out.radii.shape
    assert ((actual.out.image - expected.out.image).abs() * sound).max() <= 1e-4
    assert ((actual.out.alpha - expected.out.alpha).abs() * sound).max() <= 1e-4
    for name, value in expected.grads.items():
        other = actual.grads[name]
        assert other.shape == value.shape, name
        allowed = 1e-3 * value.abs() + floor * value.abs().max()
        excess = ((other - value).abs() - allowed).max().item()
        assert excess <= 0, f"gradient of {name}: {excess:.3g} past the tolerance, largest {value.abs().max():.3g}"
    return expected, actual


class _Spread(torch.autograd.Function):
    """Means [1, N, 2] for each of P pixels, [N, P, 2]; notes their absolute gradients as gsplat's kernels do."""

    @staticmethod
    def forward(ctx: Any, means2d: Tensor, pixels: int) -> Tensor:
        ctx.save_for_backward(means2d)
        return means2d[0, :, None].expand(-1, pixels, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.saved_tensors[0].absgrad = gradient.abs().sum(1)[None]
        return gradient.sum(1)[None], None


def gsplat_pipeline(
    gaussians: Gaussians, camera: Camera, background: Tensor, degree: int
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """An independent render: projection and colours by gsplat's PyTorch functions, only the blending is ours.

    All Gaussians must lie in front of the camera. Skips the test when gsplat is
    not installed.

    Returns:
        image [3, H, W], alpha [1, H, W], and of gsplat's `meta` the fields
        means2d [1, N, 2] in pixels (after a backward with the attribute absgrad), conics [1, N, 3] and radii [1, N, 2].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no CUDA
        oracle = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed (test-only)")
    like = gaussians.means
    world = camera.world_to_camera.to(like)
    intrinsics = torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], dtype=like.dtype)
    covariances, _ = oracle._quat_scale_to_covar_preci(gaussians.quats, gaussians.scales, True, False)
    radii, means2d, depths, conics, _ = oracle._fully_fused_projection(
        gaussians.means, covariances, world[None], intrinsics[None], camera.width, camera.height, 0.3, 0.2
    )
    center = -world[:3, :3].T @ world[:3, 3]
    colors = (oracle._spherical_harmonics(degree, gaussians.means - center, gaussians.sh) + 0.5).clamp_min(0)
    order = torch.argsort(depths[0])
    projected = reference.Projected(
        order, torch.zeros_like(means2d[0]), conics[0][order], means2d[0], depths, gaussians.opacities[order]
    )
    x, y = torch.meshgrid(torch.arange(camera.width) + 0.5, torch.arange(camera.height) + 0.5, indexing="xy")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).to(like)
    offsets = pixels - _Spread.apply(means2d, len(pixels))[order]
    weights, rest = reference.composite(reference.limited_alpha(reference.raw_alpha(projected, offsets)))
    image = (colors[order].T @ weights + background[:, None] * rest).reshape(3, camera.height, camera.width)
    meta = {"means2d": means2d, "conics": conics, "radii": radii}
    return image, (1 - rest).reshape(1, camera.height, camera.width), meta
