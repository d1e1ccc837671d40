"""Whether a backend draws, and pulls gradients back, as the reference does on the machine at hand.

For kernels that are compiled where they run, by a compiler and for a card that nobody may have tried together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from gaussian_renderer.backends import reference
from ops import fused
from ops.types import Camera, Gaussians, RenderOut

PIXEL = 5e-4  # what a pixel may be off by; of gradients, `ops.fused` says it


def small_scene() -> tuple[Gaussians, Camera, Tensor]:
    """Thirty Gaussians of degree 3 over 2x3 tiles, off-center, some culled, some opaque; no pixel near a threshold."""
    random = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=random) * (high - low) + low

    count, width, height = 30, 37, 23
    camera = Camera(torch.eye(4), 40.0, 36.0, 0.4 * width, 0.6 * height, width, height)
    depth = uniform(0.5, 3.0, count)
    depth[:3] = torch.tensor([-1.0, 0.1, 0.25])
    means = torch.stack([uniform(-0.4, 0.5, count) * depth, uniform(-0.3, 0.25, count) * depth, depth], dim=1)
    opacities = uniform(0.05, 0.9, count)
    opacities[3:8] = 0.98
    means[8, 0] = float("nan")
    fields = Gaussians(
        means=means,
        quats=torch.randn(count, 4, generator=random),
        scales=torch.exp(uniform(-4.5, -1.5, count, 3)) * depth.abs()[:, None],
        opacities=opacities,
        sh=torch.randn(count, 16, 3, generator=random) * 0.3,
    )
    return fields, camera, uniform(0.0, 1.0, 3)


def _draw(
    rasterize: Callable[..., RenderOut], device: torch.device, dtype: torch.dtype, absolute: bool
) -> dict[str, Tensor]:
    """Picture and gradients of the small scene."""
    gaussians, camera, background = small_scene()
    random = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(n, camera.height, camera.width, generator=random).to(device, dtype) for n in (3, 1)]
    leaves = Gaussians(*(field.to(device, dtype).requires_grad_() for field in gaussians))
    with torch.enable_grad():
        out = rasterize(leaves, camera.to(device), background.to(device, dtype), sh_degree=3, absolute=absolute)
        torch.autograd.backward([out.image, out.alpha], cotangents)
    found = {"image": out.image, "alpha": out.alpha, "2-D means": out.means2d.grad}
    found |= {name: leaf.grad for name, leaf in zip(Gaussians._fields, leaves)}
    return {name: value.detach().double().cpu() for name, value in found.items() if value is not None}


def difference(rasterize: Callable[..., RenderOut], device: torch.device | str) -> str | None:
    """What of the small scene comes out otherwise than by the reference, as a sentence; None if nothing does."""
    for absolute in (False, True):
        expected = _draw(reference.rasterize, torch.device("cpu"), torch.float64, absolute)
        actual = _draw(rasterize, torch.device(device), torch.float32, absolute)
        for name, value in expected.items():
            if name not in actual:
                return f"there is no gradient of its {name}"
            of_picture = name in ("image", "alpha")
            what, allowed = (name, PIXEL) if of_picture else (f"gradient of the {name}", None)
            if found := fused.off(what, value, actual[name], allowed):
                return found
    return None


def fault(
    rasterize: Callable[..., RenderOut],
    device: torch.device | str,
    *,
    ways: Iterable[Callable[[], AbstractContextManager]],  # the backend's kernels can be compiled in
    code: Iterable[str],  # what else decides, such as the text of the kernels and the compiler's version
) -> str | None:
    """Why not to trust a backend on `device`; None when it passes, or did so here before."""

    def test() -> str | None:
        for way in ways:
            with way():
                if found := difference(rasterize, device):
                    return found
        return None

    return fused.fault(test, device, [Path(__file__).read_text(encoding="utf-8"), *code])
