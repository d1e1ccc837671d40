"""A map of colors to colors: every pixel through 1x1 convolutions with ReLU, whose outputs shift the colors' logits.

The three outputs r shift the logit of the color x, written without the logit
so that black and white are nothing special:

    sigmoid(logit(x) + r) = x e^r / (1 - x + x e^r)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import kernels

RESIDUAL_LIMIT = kernels.CONSTANTS["kResidualLimit"]  # of |r|


def color_net(
    image: Tensor,  # [3, H, W] or [B, 3, H, W]  any value; clamped to 0..1
    weights: Sequence[Tensor],  # [out, in, 1, 1] and bias [out] of each layer in turn
) -> Tensor:  # as image, within 0..1
    """The mapped picture, differentiable in everything.

    The gradient passes the clamp where a step down the gradient leads back
    inside, so a color that is too bright is still pulled down; outwards it is blocked.
    """
    if kernels.usable(image, *weights):
        return _ColorNet.apply(image, *weights)
    x = _ClampInward.apply(image)
    growth = residual(x, weights).to(x.dtype).clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT).exp()
    return x * growth / ((1 - x) + x * growth)


def residual(image: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """r, of the shape of the image, which is within 0..1."""
    *hidden, last = zip(weights[::2], weights[1::2])
    for layer in hidden:
        image = F.conv2d(image, *layer).relu()
    return F.conv2d(image, *last)


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


class _ColorNet(torch.autograd.Function):
    """`color_net` by csrc/color_net.cpp: float32 on the CPU.

    Where the weights are not trained, the forward keeps r and two bytes per hidden unit and 16 pixels, which halves
    the work of a training step.
    """

    @staticmethod
    def forward(ctx, image: Tensor, *weights: Tensor) -> Tensor:
        image = image.contiguous()
        flat = torch.cat([weight.flatten() for weight in weights])
        out = torch.empty_like(image)
        pixels = image.shape[-2] * image.shape[-1]
        ctx.size = (image.numel() // max(1, 3 * pixels), pixels)  # images, pixels of each
        widths = [3, *(len(bias) for bias in weights[1::2])]
        ctx.layers = (widths, len(widths) - 1)
        ctx.shapes = [weight.shape for weight in weights]
        ctx.trained = any(ctx.needs_input_grad[1:])
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        if ctx.needs_input_grad[0] and not ctx.trained:
            active = kernels.run("color_net_active_size", *ctx.size, *ctx.layers)
            kept = (torch.empty_like(image), torch.empty(active, dtype=torch.uint16))
        kernels.run("color_net_forward", image, *ctx.size, flat, *ctx.layers, out, *kept)
        ctx.save_for_backward(image, flat, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, flat, *kept = ctx.saved_tensors
        g_image = torch.empty_like(image) if ctx.needs_input_grad[0] else None
        g_flat = torch.empty_like(flat) if ctx.trained else None
        gradients = (g_image, g_flat)
        kernels.run("color_net_backward", image, gradient.contiguous(), *ctx.size, flat, *ctx.layers, *kept, *gradients)
        if g_flat is None:
            return g_image, *[None] * len(ctx.shapes)
        parts = g_flat.split([shape.numel() for shape in ctx.shapes])
        return g_image, *[part.view(shape) for part, shape in zip(parts, ctx.shapes)]
