"""A stand-in for diff-gaussian-rasterization, which needs a GPU: its documented interface over the reference."""

from __future__ import annotations

import collections
import types
from typing import Any

import torch
from torch import Tensor

from gaussian_renderer.backends import reference
from ops import sh as harmonics
from ops.types import Camera, Gaussians

OLD_FIELDS = tuple(
    "image_height image_width tanfovx tanfovy bg scale_modifier viewmatrix projmatrix sh_degree campos prefiltered "
    "debug".split()
)


def fake_dgr(fields: tuple[str, ...], results: int) -> types.SimpleNamespace:
    Settings = collections.namedtuple("GaussianRasterizationSettings", fields)

    class Rasterizer:
        def __init__(self, raster_settings: Any) -> None:
            self.settings = raster_settings

        def __call__(
            self,
            means3D: Tensor,
            means2D: Tensor,
            opacities: Tensor,
            shs: Tensor | None = None,
            colors_precomp: Tensor | None = None,
            scales: Tensor | None = None,
            rotations: Tensor | None = None,
        ) -> tuple[Tensor, ...]:
            s = self.settings
            width, height = s.image_width, s.image_height
            camera = Camera(
                s.viewmatrix.T, width / (2 * s.tanfovx), height / (2 * s.tanfovy), width / 2, height / 2, width, height
            )
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
