"""An iteration on a GPU queues its work: nothing in it makes the host wait.

Shown here without a GPU, by looking at every operation; tests/test_cuda.py has
PyTorch itself watch it where there is one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_rasterizers import OLD_FIELDS, fake_dgr
from raster_scenes import make_scene
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from watching import FLAGS_OF_LOSSES, NoWaiting, watch_training

from gaussian_renderer.backends import dgr as dgr_backend
from gaussian_renderer.backends import gsplat as gsplat_backend
from innovations import amp
from ops import kernels, rig
from ops.finite import not_finite_flag
from ops.types import Gaussians


def _foreign(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in may do what the real package does in its own kernels."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    "waits",
    [
        lambda: torch.tensor([1.0]),
        lambda: torch.ones(2).new_tensor([1.0]),
        lambda: torch.ones(1).item(),
        lambda: torch.ones(2)[torch.ones(2) > 0],
    ],
)
def test_waiting_is_noticed(waits: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError), NoWaiting():
        waits()


def _leaves(gaussians: Gaussians) -> Gaussians:
    return Gaussians(*(field.detach().clone().requires_grad_() for field in gaussians))


def test_gsplat_adapter_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(65, 30)
    leaf = torch.zeros(1, 30, 2, requires_grad=True)

    def rasterization(means: Tensor, width: int, height: int, **_: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        shown = (leaf.sum() + means.sum()).expand(1, height, width, 1)
        meta = {"means2d": leaf, "conics": torch.ones(1, 30, 3), "radii": torch.ones(1, 30, 2, dtype=torch.int32)}
        return shown.expand(-1, -1, -1, 3), shown, meta

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=_foreign(rasterization)))
    # The first view of a camera may copy its intrinsics.
    gsplat_backend.rasterize(scene.gaussians, scene.camera, scene.background, sh_degree=3)
    gaussians = _leaves(scene.gaussians)
    with NoWaiting():
        out = gsplat_backend.rasterize(gaussians, scene.camera, scene.background, sh_degree=3)
        out.image.sum().backward()
    width, height = scene.camera.width, scene.camera.height
    pixels = 3.0 * width * height
    assert torch.equal(out.means2d.grad, torch.tensor([[pixels * width / 2, pixels * height / 2]]).expand(30, 2))


def test_dgr_adapter_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_dgr(OLD_FIELDS, 2)
    fake.GaussianRasterizer.__call__ = _foreign(fake.GaussianRasterizer.__call__)
    monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization", fake)
    scene = make_scene(66, 30, centered=True)
    gaussians = _leaves(scene.gaussians)
    with NoWaiting():
        dgr_backend.rasterize(gaussians, scene.camera, scene.background, sh_degree=3)


def test_rig_in_pytorch_does_not_wait() -> None:
    generator = torch.Generator().manual_seed(5)
    vertices, xyz, scaling = (
        torch.randn(9, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)
    )
    rotation = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    opacity = torch.randn(9, 1, generator=generator, dtype=torch.float64).requires_grad_()
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 0, 1]])
    binding = torch.arange(9) % 4
    with NoWaiting():
        out = rig.bind(vertices, faces, xyz, rotation, scaling, opacity, binding)
        sum(part.sum() for part in out).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in (vertices, xyz, scaling, rotation, opacity))


# ---- the training loop ----------------------------------------------------------


@pytest.mark.parametrize("flags", FLAGS_OF_LOSSES)
def test_training_in_pytorch_does_not_wait(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)  # then all of it takes the way it takes on a GPU
    monkeypatch.setattr(amp, "not_finite", not_finite_flag)  # and this, which is a plain bool on a CPU
    # "forward" is the reference, which waits; the real backends do so too, for the number of tiles hit.
    # "report" reads its means now and then: tests/training/test_report.py.
    watch_training(capture, tmp_path, {"data", "avatar", "loss", "backward", "optimizer", "density"}, NoWaiting, flags)
