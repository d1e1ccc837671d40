"""Triton: how every kernel is started and compiled."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FUSED = {"enable_fp_fusion": True}  # multiply-add: faster and more exact; no longer Triton's default


def launch(kernel: Any, programs: int, first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Queues so many programs on the device of the `first` argument."""
    if programs:
        with torch.cuda.device_of(first):
            kernel[(programs,)](first, *arguments, **constants, **FUSED)


@triton.jit
def total(parts, count, BLOCK: tl.constexpr):
    """The sum of the first `count` numbers at `parts`, always in the same order."""
    at = tl.arange(0, BLOCK)
    lanes = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        lanes += tl.load(parts + first + at, first + at < count, 0.0)
    return tl.sum(lanes, 0)
