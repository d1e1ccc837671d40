"""A smooth weight map from a coarse grid of bit masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import kernels


def soft_map(
    bits: Tensor,  # [rows, columns]  uint8
    table: Tensor,  # [256]            float32 weight of every value of `bits`, >= 0
    height: int,
    width: int,
) -> Tensor:  # [1, H, W]        float32, mean 1
    """The weights of a grid, blurred over a cell (1 2 1 both ways), enlarged bilinearly and scaled to mean 1.

    A map without contrast becomes exactly 1. No host synchronization.
    """
    if kernels.usable(bits, dtype=torch.uint8):
        out = torch.empty(1, height, width)
        kernels.run("region_map", bits, table, *bits.shape, height, width, out)
        return out
    coarse = table[bits.int()]
    padded = F.pad(coarse[None, None], (1, 1, 1, 1), mode="replicate")
    mixed = 0.25 * (padded[..., :-2, :] + padded[..., 2:, :]) + 0.5 * padded[..., 1:-1, :]
    blurred = 0.25 * (mixed[..., :-2] + mixed[..., 2:]) + 0.5 * mixed[..., 1:-1]
    result = F.interpolate(blurred, size=(height, width), mode="bilinear", align_corners=False)[0]
    return torch.where(coarse.min() == coarse.max(), torch.ones_like(result), result / result.mean())
