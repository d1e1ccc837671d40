"""A map of colors to colors that is known on a lattice of colors and interpolated in between.

At each vertex stands, for each channel, by how much the odds of that channel grow: the color x becomes

    x g / (1 - x + x g) = sigmoid(logit(x) + log g)

written without the logit so that black and white are nothing special: they stay what they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import kernels

INSIDE = 1 - 1e-6  # of the half side of the cube, for the twin


def lattice_colors(side: int, device: torch.device | str = "cpu") -> Tensor:
    """[side^3, 3] the colors of the vertices, 0..1; red changes slowest."""
    axis = torch.linspace(0.0, 1.0, side, device=device)
    return torch.cartesian_prod(axis, axis, axis)


def color_lattice(
    image: Tensor,  # [3, H, W] or [B, 3, H, W]  any value; clamped to 0..1
    growth: Tensor,  # [side, side, side, 3]  along red, green, blue; positive
) -> Tensor:  # as image, within 0..1
    """The mapped picture, differentiable in both; the growth is interpolated trilinearly.

    The gradient passes the clamp where a step down the gradient leads back
    inside, so a color that is too bright is still pulled down; outwards it is blocked.
    """
    if kernels.usable(image, growth):
        return _ColorLattice.apply(image, growth)
    x = _ClampInward.apply(image)
    pictures = x if x.ndim == 4 else x[None]
    # `grid_sample` counts from -1 to 1, names the last axis first, and has no slope on the faces of the cube itself.
    places = INSIDE * (2 * pictures.movedim(1, -1).flip(-1) - 1)  # [B, H, W, 3]
    volume = growth.to(x.dtype).movedim(-1, 0)[None]  # [1, 3, side, side, side]
    between = F.grid_sample(volume, places[None], padding_mode="border", align_corners=True)  # [1, 3, B, H, W]
    grown = x * between[0].movedim(0, 1).view_as(x)
    return grown / ((1 - x) + grown)


class _ClampInward(torch.autograd.Function):
    """clamp(image, 0, 1), whose gradient passes unless it would drive a color further out."""

    @staticmethod
    def forward(ctx, image: Tensor) -> Tensor:
        ctx.save_for_backward(image)
        return image.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (image,) = ctx.saved_tensors
        outwards = ((image > 1) & (gradient < 0)) | ((image < 0) & (gradient > 0))
        return gradient.masked_fill(outwards, 0)


class _ColorLattice(torch.autograd.Function):
    """`color_lattice` by csrc/color_lattice.cpp: float32 on the CPU."""

    @staticmethod
    def forward(ctx, image: Tensor, growth: Tensor) -> Tensor:
        image, growth = image.contiguous(), growth.contiguous()
        out, between = torch.empty_like(image), torch.empty_like(image)
        plane = image.shape[-2] * image.shape[-1]
        ctx.size = (image.numel() // max(1, 3 * plane), plane)  # images, pixels of each
        kernels.run("color_lattice_forward", image, *ctx.size, growth, len(growth), out, between)
        ctx.save_for_backward(image, growth, between)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        image, growth, between = ctx.saved_tensors
        g_image = torch.empty_like(image) if ctx.needs_input_grad[0] else None
        g_growth = torch.empty_like(growth) if ctx.needs_input_grad[1] else None
        known = (growth, len(growth), between)
        kernels.run("color_lattice_backward", image, gradient.contiguous(), *ctx.size, *known, g_image, g_growth)
        return g_image, g_growth
