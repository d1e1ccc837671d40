"""The two tuples that pass between the avatar, the rasterizer and the losses."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gaussians(NamedTuple):
    """World-space Gaussians with their activations applied."""

    means: Tensor  # [N, 3]     metres
    quats: Tensor  # [N, 4]     wxyz, unit length
    scales: Tensor  # [N, 3]     metres, one standard deviation
    opacities: Tensor  # [N]        0..1
    sh: Tensor  # [N, K, 3]  K = (degree + 1)^2 coefficients per channel


class RenderOut(NamedTuple):
    """What every rasterizer backend returns."""

    image: Tensor  # [3, H, W]  linear blend over the background, not clamped
    alpha: Tensor  # [1, H, W]  1 - remaining transmittance
    radii: Tensor  # [N] int32  3-sigma screen radius in pixels, 0 = culled
    means2d: Tensor  # [N, 2]     a leaf whose .grad after backward is dL/d(2-D mean) in NDC units; rendered with
    #            `absolute`, the sum over the pixels of the absolute values of their shares in it
