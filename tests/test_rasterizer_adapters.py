"""The adapters of the CUDA rasterizers against stand-ins with their documented interfaces.

The real packages need a GPU; tests/test_rasterizer_contract.py runs them where
there is one. Here only our side is checked: argument layout, units, hooks, radii.
"""

from __future__ import annotations

import collections
import math
import sys
import types
from typing import Any

import pytest
import torch
from raster_scenes import compare, gsplat_pipeline, make_scene
from torch import Tensor

from gaussian_renderer import dgr_backend, gsplat_backend, reference
from scene.cameras import Camera
from utils import sh as harmonics
from utils.types import Gaussians


def _fake_gsplat_rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float, eps2d: float, sh_degree: int, packed: bool, backgrounds: Tensor,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    assert viewmats.shape == (1, 4, 4) and Ks.shape == (1, 3, 3) and backgrounds.shape == (1, 3)
    assert (near_plane, eps2d, packed) == (0.2, 0.3, False)
    (fx, _, cx), (_, fy, cy), _ = Ks[0].tolist()
    camera = Camera(viewmats[0], fx, fy, cx, cy, width, height)
    gaussians = Gaussians(means, quats, scales, opacities, colors)
    image, alpha, meta = gsplat_pipeline(gaussians, camera, backgrounds[0], sh_degree)
    return image.permute(1, 2, 0)[None], alpha.permute(1, 2, 0)[None], meta


def test_gsplat_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    import raster_scenes  # imports the real package's PyTorch functions before the stand-in hides them

    scene = make_scene(60, 80)
    raster_scenes.gsplat_pipeline(scene.gaussians, scene.camera, scene.background, 0)
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=_fake_gsplat_rasterization))
    expected, actual = compare(gsplat_backend.rasterize, scene)
    shown = (actual.out.radii > 0) & (expected.out.radii > 0)
    assert shown.sum() > 40 and (actual.out.radii - expected.out.radii)[shown].abs().max() <= 1


def test_gsplat_adapter_without_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace())
    scene = make_scene(0, 0)
    out = gsplat_backend.rasterize(scene.gaussians, scene.camera, scene.background, sh_degree=3)
    assert torch.equal(out.image, scene.background[:, None, None].expand(3, 41, 53)) and (out.alpha == 0).all()


def test_broken_rows_become_harmless() -> None:
    from gaussian_renderer.guards import without_broken

    scene = make_scene(61, 6)
    scene.gaussians.means[1, 0] = math.nan
    scene.gaussians.quats[3] = 0.0
    leaves = Gaussians(*(field.requires_grad_() for field in scene.gaussians))
    safe, sound = without_broken(leaves)
    assert sound.tolist() == [True, False, True, False, True, True]
    assert all(torch.isfinite(field).all() for field in safe) and (safe.opacities[~sound] == 0).all()
    sum((field * field).sum() for field in safe).backward()
    assert all(torch.isfinite(field.grad).all() for field in leaves)
    assert (leaves.means.grad[~sound] == 0).all() and (leaves.quats.grad[~sound] == 0).all()


OLD_FIELDS = ("image_height", "image_width", "tanfovx", "tanfovy", "bg", "scale_modifier", "viewmatrix", "projmatrix",
              "sh_degree", "campos", "prefiltered", "debug")


def _fake_dgr(fields: tuple[str, ...], results: int) -> types.SimpleNamespace:
    Settings = collections.namedtuple("GaussianRasterizationSettings", fields)

    class Rasterizer:
        def __init__(self, raster_settings: Any) -> None:
            self.settings = raster_settings

        def __call__(
            self, means3D: Tensor, means2D: Tensor, opacities: Tensor, shs: Tensor | None = None,
            colors_precomp: Tensor | None = None, scales: Tensor | None = None, rotations: Tensor | None = None,
        ) -> tuple[Tensor, ...]:
            s = self.settings
            width, height = s.image_width, s.image_height
            camera = Camera(s.viewmatrix.T, width / (2 * s.tanfovx), height / (2 * s.tanfovy), width / 2, height / 2,
                            width, height)
            # the two matrices must agree: clip coordinates to pixels, whose centres are whole numbers there
            clip = torch.cat([means3D, torch.ones_like(means3D[:, :1])], dim=1) @ s.projmatrix
            pixels = ((clip[:, :2] / clip[:, 3:] + 1) * torch.tensor([width, height]) - 1) / 2
            point = means3D @ s.viewmatrix[:3, :3] + s.viewmatrix[3, :3]
            assert torch.allclose(pixels[:, 0] + 0.5, camera.fx * point[:, 0] / point[:, 2] + camera.cx, atol=1e-3)
            assert torch.allclose(camera.center, s.campos, atol=1e-6)
            assert opacities.shape == (len(means3D), 1) and means2D.shape == (len(means3D), 3)
            sh, degree = (shs, s.sh_degree) if shs is not None else (harmonics.from_colors(colors_precomp)[:, None], 0)
            gaussians = Gaussians(means3D, rotations, scales, opacities[:, 0], sh)
            out = reference._rasterize(gaussians, means2D[:, :2], camera, s.bg, degree, s.scale_modifier)
            return (out.image, out.radii, torch.zeros(1))[:results]

    return types.SimpleNamespace(GaussianRasterizationSettings=Settings, GaussianRasterizer=Rasterizer)


@pytest.mark.parametrize("fields,results", [(OLD_FIELDS, 2), ((*OLD_FIELDS, "antialiasing"), 3)])
def test_dgr_adapter(fields: tuple[str, ...], results: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diff_gaussian_rasterization", _fake_dgr(fields, results))
    expected, actual = compare(dgr_backend.rasterize, make_scene(62, 80, centred=True, degree=2))
    assert torch.equal(actual.out.radii, expected.out.radii)
