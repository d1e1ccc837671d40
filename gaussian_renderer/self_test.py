"""Whether a backend draws, and pulls gradients back, as the reference does on the machine at hand.

For kernels that are compiled where they run, by a compiler and for a card that nobody may have tried together.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from gaussian_renderer.backends import reference
from ops.kernels import cache_folder
from ops.types import Camera, Gaussians, RenderOut
from utils.errors import one_line

# What a pixel may be off by, and a gradient by itself and by the largest of its kind.
PIXEL, OWN, LARGEST = 5e-4, 2e-3, 1e-4


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
            allowed = torch.full_like(value, PIXEL)
            if name not in ("image", "alpha"):
                allowed = OWN * value.abs() + LARGEST * value.abs().max()
            error = (actual[name] - value).abs()
            if not (error <= allowed).all():  # NaN is no less
                what = name if name in ("image", "alpha") else f"gradient of the {name}"
                return f"its {what} is off by up to {error.max():.2g}, where {value.abs().max():.2g} is the largest"
    return None


def machine(device: torch.device | str) -> str:
    """What decides how a kernel comes out: card, driver, PyTorch and the system."""
    card = str(torch.cuda.get_device_properties(device)) if torch.device(device).type == "cuda" else platform.machine()
    words = [card, torch.__version__, str(torch.version.cuda), str(torch.version.hip), platform.platform()]
    for driver in (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version")):
        with contextlib.suppress(OSError):
            words.append(driver.read_text())
    return "\n".join(words)


def fault(
    rasterize: Callable[..., RenderOut],
    device: torch.device | str,
    *,
    ways: Iterable[Callable[[], AbstractContextManager]],  # the backend's kernels can be compiled in
    code: Iterable[str],  # what else decides, such as the text of the kernels and the compiler's version
) -> str | None:
    """Why not to trust a backend on `device`; None when it passes, or did so here before.

    Only a pass is remembered: what failed is tried again the next time, since memory may have been short.
    """
    key = hashlib.sha256("\0".join([machine(device), Path(__file__).read_text(encoding="utf-8"), *code]).encode())
    passed = cache_folder() / f"self-test-{key.hexdigest()[:20]}"
    if passed.exists():
        return None
    try:
        for way in ways:
            with way():
                if found := difference(rasterize, device):
                    return f"it fails its self-test: {found}"
    except Exception as error:  # a compiler and a driver can fail in any way
        first = next(iter(str(error).splitlines()), "")
        return f"its self-test cannot run ({one_line(f'{type(error).__name__}: {first}')[:200]})"
    with contextlib.suppress(OSError):  # then it is tested the next time as well
        passed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        passed.touch()
    return None
