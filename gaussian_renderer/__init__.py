"""Rendering Gaussians: one function, and a table of interchangeable backends."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Callable

import torch
from torch import Tensor

from scene.cameras import Camera
from utils import native as native_library
from utils import sh as harmonics
from utils.errors import UserError
from utils.types import Gaussians, RenderOut

# rasterize(gaussians, camera, background[3], *, sh_degree, scale_modifier=1.0) -> RenderOut
Rasterizer = Callable[..., RenderOut]

_MODULES = {
    "native": "gaussian_renderer.native",
    "gsplat": "gaussian_renderer.gsplat_backend",
    "dgr": "gaussian_renderer.dgr_backend",
    "reference": "gaussian_renderer.reference",
}
BACKENDS = ("auto", *_MODULES)


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def available_backends(device: torch.device | str) -> list[str]:
    """Names of the backends that can run on `device`, fastest first; never empty."""
    if torch.device(device).type == "cuda":
        names = [name for name, package in (("gsplat", "gsplat"), ("dgr", "diff_gaussian_rasterization"))
                 if _importable(package)]
    else:
        names = ["native"] if native_library.available() else []
    return [*names, "reference"]


@functools.cache
def _warn_slow_on_cuda() -> None:
    warnings.warn("Neither gsplat nor diff-gaussian-rasterization is installed: rendering with the slow PyTorch "
                  "reference; install gsplat (see requirements-cuda.txt) for training on a GPU")


def choose_rasterizer(name: str, device: torch.device | str) -> tuple[str, Rasterizer]:
    """The backend `name` (one of `BACKENDS`) for `device`.

    "auto" takes the fastest that is available. Where that is the reference, one
    warning says why.

    Raises:
        UserError: unknown name, or this backend cannot run here.
    """
    device = torch.device(device)
    if name not in BACKENDS:
        raise UserError(f"--rasterizer {name} is unknown; choose one of {', '.join(BACKENDS)}")
    available = available_backends(device)
    if name == "auto":
        name = available[0]
        if name == "reference" and device.type == "cuda":
            _warn_slow_on_cuda()
    elif name not in available:
        reason = {
            "native": "it needs the CPU and a C++ compiler",
            "gsplat": "it needs a CUDA device and the package gsplat",
            "dgr": "it needs a CUDA device and the package diff-gaussian-rasterization",
        }[name]
        raise UserError(f"--rasterizer {name} cannot run on {device.type}: {reason}; "
                        f"choose one of auto, {', '.join(available)}")
    return name, importlib.import_module(_MODULES[name]).rasterize


def render(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3]
    *,
    sh_degree: int,
    rasterize: Rasterizer,
    scale_modifier: float = 1.0,
    convert_SHs_python: bool = False,
) -> RenderOut:
    """Renders `gaussians` seen by `camera` over `background`.

    Args:
        sh_degree: active degree of the spherical harmonics, 0..3.
        rasterize: a backend from `choose_rasterizer`.
        scale_modifier: factor on all scales.
        convert_SHs_python: evaluate the spherical harmonics here, in PyTorch,
            instead of in the backend.
    """
    if convert_SHs_python:
        center = camera.center.to(gaussians.means)
        colors = harmonics.colors(gaussians.sh, gaussians.means, center, sh_degree)
        gaussians = gaussians._replace(sh=harmonics.from_colors(colors)[:, None])
        sh_degree = 0
    return rasterize(gaussians, camera, background, sh_degree=sh_degree, scale_modifier=scale_modifier)
