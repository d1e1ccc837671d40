"""Whether numbers, and their squares, are finite."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.utils import get_total_norm

from ops import kernels


def not_finite(tensors: list[Tensor]) -> Tensor | bool:
    """Whether the square of any number in them is NaN or infinite; for tensors on CUDA a bool tensor [] there."""
    tensors = [tensor for tensor in tensors if tensor.numel()]
    if kernels.usable(*tensors, contiguous=True):
        addresses, counts = [kernels.address(tensor) for tensor in tensors], [tensor.numel() for tensor in tensors]
        return not kernels.run("all_finite", addresses, counts, len(tensors))
    bad = not_finite_flag(tensors)
    return bad if bad.device.type == "cuda" else bool(bad)


def not_finite_flag(tensors: list[Tensor]) -> Tensor:
    """The same as a bool tensor [] on their device; the host does not wait."""
    # The largest absolute value: unlike a sum, it cannot overflow.
    return ~get_total_norm(tensors, math.inf).square().isfinite()
