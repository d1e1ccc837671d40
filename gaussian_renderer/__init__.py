"""Rendering Gaussians: one function, and the choice among interchangeable backends."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops import BACKENDS, kernels
from ops import sh as harmonics
from ops.types import Camera, Gaussians, RenderOut
from utils.device import pick_device
from utils.errors import UserError, warn_once

# rasterize(gaussians, camera, background[3], *, sh_degree, scale_modifier=1.0, absolute=False) -> RenderOut
Rasterizer = Callable[..., RenderOut]

LARGEST_PICTURE = 1 << 26  # pixels; beyond, one picture takes minutes and gigabytes

# The backends of a GPU, the fastest first (believed; not yet measured side by side): their packages, and what only the
# compiled half of a package has.
_ON_GPU = {
    "gsplat": ("gsplat.cuda._backend", "_C"),
    "triton": ("triton", "jit"),
    "dgr": ("diff_gaussian_rasterization", "GaussianRasterizer"),
}


@functools.cache
def _gpu_fault(name: str, device: str) -> str | None:
    """Why the GPU backend `name` cannot be used on `device`, or None if it can.

    Only importing its package tells: gsplat's wheel is pure Python, which builds its kernels at its first import
    (minutes) and, where there is no nvcc, imports all the same and fails at the first picture. Triton's kernels are
    ours, and tried once on every new card. Ask only where there is a GPU.
    """
    module, attribute = _ON_GPU[name]
    # gsplat builds with `ninja`, called by name; in a virtual environment that
    # nobody activated it lies beside the interpreter only.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        compiled = getattr(importlib.import_module(module), attribute)
        if compiled is None:
            return "building its kernels needs the CUDA toolkit (nvcc), which was not found"
        return _backend(name).fault(device) if name == "triton" else None
    except ModuleNotFoundError as error:
        return f"the package {(error.name or module).partition('.')[0]} is not installed"
    except Exception as error:  # a build can fail in any way
        reason = next(iter(str(error).splitlines()), "")
        return f"its kernels cannot be built or loaded ({type(error).__name__}: {reason})"


def _backend(name: str) -> Any:
    return importlib.import_module(f"gaussian_renderer.backends.{name}")


def _usable(device: torch.device) -> Iterator[str]:
    """Names of the backends that can run on `device`, fastest first; asks no more than it is asked for."""
    if device.type == "cuda":
        yield from (name for name in _ON_GPU if _gpu_fault(name, str(device)) is None)
    elif kernels.available():
        yield "native"
    yield "reference"


def available_backends(device: torch.device | str) -> list[str]:
    """Names of the backends that can run on `device`, fastest first; never empty.

    For a GPU this imports the packages, builds gsplat's kernels the first time, and tries Triton's.
    """
    return list(_usable(torch.device(device)))


def _faults(device: torch.device) -> str:
    """Why neither gsplat nor triton runs on `device`."""
    faults = [f"{name} cannot run: {_gpu_fault(name, str(device))}" for name in ("gsplat", "triton")]
    return "; ".join(faults) + "; see requirements-cuda.txt"


def choose_device_and_rasterizer(
    device_name: str, rasterizer_name: str, threads: int = 0
) -> tuple[torch.device, str, Rasterizer]:
    """The device, the backend's name and the backend for `--device`, `--rasterizer` and `--threads`.

    With the device "auto" a GPU is passed over, with one line that says why, for
    a backend that needs the CPU: for "native", and for "auto" where no GPU
    backend is usable, since the reference on a GPU is far slower than the native
    kernels on the CPU beside it.

    Raises:
        UserError: the device or the backend cannot be had.
    """
    device = pick_device(device_name, threads)
    if device_name == "auto" and device.type == "cuda" and rasterizer_name in ("auto", "native"):
        if rasterizer_name == "native":
            device = torch.device("cpu")
        elif next(_usable(device)) == "reference" and kernels.available():
            warn_once(f"the GPU is left unused, the CPU is faster without a backend for it: {_faults(device)}")
            device = torch.device("cpu")
    return device, *choose_rasterizer(rasterizer_name, device)


def choose_rasterizer(name: str, device: torch.device | str) -> tuple[str, Rasterizer]:
    """The backend `name` (one of `BACKENDS`) for `device`.

    "auto" takes the fastest that is available; on a GPU one warning says why where that is neither gsplat nor triton.

    Raises:
        UserError: unknown name, or this backend cannot run here.
    """
    device = torch.device(device)
    if name not in BACKENDS:
        raise UserError(f"--rasterizer {name} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "auto":
        name = next(_usable(device))
        if device.type == "cuda" and name not in ("gsplat", "triton"):
            slow = " (slow: for checks, not for training)" if name == "reference" else ""
            warn_once(f"rendering with --rasterizer {name}{slow}: {_faults(device)}")
    elif name in _ON_GPU:
        interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        runs_here = device.type == "cuda" or interpreted
        fault = _gpu_fault(name, str(device)) if runs_here else f"it needs a GPU, this is {device.type}"
        if fault:
            raise UserError(
                f"--rasterizer {name} cannot run: {fault}; see requirements-cuda.txt, or choose --rasterizer auto"
            )
    elif name == "native" and name not in _usable(device):
        raise UserError(
            f"--rasterizer native cannot run on {device.type}: it needs the CPU and a C++ compiler; "
            "choose --device cpu or --rasterizer auto"
        )
    return name, _backend(name).rasterize


def render(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3]
    *,
    sh_degree: int,
    rasterize: Rasterizer,
    scale_modifier: float = 1.0,
    convert_SHs_python: bool = False,
    absolute: bool = False,
) -> RenderOut:
    """Renders `gaussians` seen by `camera` over `background`.

    Args:
        sh_degree: active degree of the spherical harmonics, 0..3.
        rasterize: a backend from `choose_rasterizer`.
        scale_modifier: factor on all scales.
        convert_SHs_python: evaluate the spherical harmonics here, in PyTorch,
            instead of in the backend.
        absolute: which gradient `means2d` gets, see `RenderOut`.

    Raises:
        UserError: a picture of more than `LARGEST_PICTURE` pixels.
    """
    if camera.width * camera.height > LARGEST_PICTURE:
        raise UserError(
            f"a picture of {camera.width}x{camera.height} pixels is too large to render: at most "
            f"{LARGEST_PICTURE:,} pixels (8192x8192), give a smaller --resolution"
        )
    if convert_SHs_python:
        center = camera.center.to(gaussians.means)
        colors = harmonics.colors(gaussians.sh, gaussians.means, center, sh_degree)
        gaussians = gaussians._replace(sh=harmonics.from_colors(colors)[:, None])
        sh_degree = 0
    return rasterize(
        gaussians, camera, background, sh_degree=sh_degree, scale_modifier=scale_modifier, absolute=absolute
    )
