"""The exact area filter: an image on a coarser grid, each pixel the mean of what it covers."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ops import kernels


def area_reduce(
    image: Tensor,  # [C, H, W] uint8, any device
    height: int,  # 1..H
    width: int,  # 1..W
) -> Tensor:  # [C, height, width] uint8, same device
    """`image` on a grid of `width` x `height` pixels over the same picture, rounded to bytes.

    The grid is that of `Camera.resized`: pixel j of n covers [j, j + 1) * W / n,
    fractions of source pixels included. PyTorch's "area" mode and Pillow's BOX
    count whole pixels, which shifts edges by up to half of one at ratios like 0.75.

    One thread on the CPU, and without the interpreter lock: reduce many in threads.

    Raises:
        ValueError: no such image, or a grid that is not coarser.
    """
    if image.ndim != 3 or image.dtype != torch.uint8:
        raise ValueError(f"expected an image [C, H, W] of bytes, got {tuple(image.shape)} {image.dtype}")
    if not (1 <= height <= image.shape[1] and 1 <= width <= image.shape[2]):
        raise ValueError(f"cannot reduce {image.shape[2]}x{image.shape[1]} pixels to {width}x{height}")
    if kernels.usable(image, dtype=torch.uint8):
        image = image.contiguous()
        out = torch.empty(image.shape[0], height, width, dtype=torch.uint8)
        kernels.run("area_reduce", image, *image.shape, out, height, width)
        return out
    rows, columns = _shares(image.shape[1], height, image.device), _shares(image.shape[2], width, image.device)
    with torch.autocast(image.device.type, enabled=False):
        return (rows @ image.float() @ columns.T + 0.5).clamp_max(255.0).to(torch.uint8)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached tensor born in inference mode would be useless to training
def _shares(source: int, target: int, device: torch.device) -> Tensor:
    """[target, source] float32: the share of each source pixel in each target pixel; rows sum to 1."""
    # In units of 1/target of a source pixel all edges are whole numbers.
    begin = torch.arange(target)[:, None] * source
    left = torch.arange(source)[None] * target
    overlap = torch.minimum(begin + source, left + target) - torch.maximum(begin, left)
    return (overlap.clamp_min(0).double() / source).float().to(device)
