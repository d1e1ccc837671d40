"""Base colors that move along modes: a few numbers per Gaussian, weighted with a code that all of them share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops import kernels


def shade(
    features: Tensor,  # [N, B, 3]  coefficients of the spherical harmonics
    modes: Tensor,  # [N, K, 3]  changes of the first of them
    code: Tensor,  # [K]        constant
) -> Tensor:  # [N, B, 3]
    """The coefficients, the first of them changed by the sum of code_k mode_k; differentiable in the first two."""
    return _Shade.apply(features, modes, code)


class _Shade(torch.autograd.Function):
    """One copy forward and none backward; autograd's own operations would make several of each."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, modes: Tensor, code: Tensor) -> Tensor:
        ctx.save_for_backward(code)
        if kernels.usable(features, modes, code, contiguous=True):
            shaded = torch.empty_like(features)
            kernels.run("shade_forward", *features.shape[:2], len(code), features, modes, code, shaded)
            return shaded
        shaded = features.clone()
        shaded[:, 0] += (modes * code[:, None]).sum(dim=1)
        return shaded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (code,) = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return gradient, None, None
        if kernels.usable(gradient, code, contiguous=True):
            of_modes = torch.empty(len(gradient), len(code), 3)
            kernels.run("shade_backward", *gradient.shape[:2], len(code), gradient, code, of_modes)
            return gradient, of_modes, None
        return gradient, gradient[:, :1] * code[:, None], None
