"""LDR-FLIP (Andersson et al. 2020) in plain PyTorch: the error one sees when two pictures are flipped back and forth.

Both pictures are blurred as the eye does at a viewing distance, each opponent color by its own contrast sensitivity,
and compared in a color space where distances are felt alike; where one of them has edges or points that the other
lacks, the error is raised. All filters are Gaussians, so they are applied along one axis after the other.

Equations and numbers are those of the paper, in the form of its authors' reference implementation.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

# The authors' default: a 0.7 m wide display of 3840 pixels seen from 0.7 m.
PIXELS_PER_DEGREE = 0.7 * (3840 / 0.7) * math.pi / 180
# Linear sRGB to XYZ.
_TO_XYZ = (
    (10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794),
    (2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897),
    (1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382),
)
_WHITE = tuple(sum(row) for row in _TO_XYZ)  # what R = G = B = 1 comes to
# Contrast sensitivity of the channels, section 4.1.1: sums of Gaussians (a, b), b in square degrees.
_SENSITIVITY = (((1.0, 0.0047),), ((1.0, 0.0053),), ((34.1, 0.04), (13.5, 0.025)))
_WIDEST = 0.04
_FEATURE_WIDTH = 0.082  # degrees, of the edges and points that are looked for
_COLOR_EXPONENT, _FEATURE_EXPONENT = 0.7, 0.5  # q_c, q_f
_SHARE, _RISE = 0.4, 0.95  # p_c, p_t: below this share of the largest color distance lie so many of the errors


@torch.no_grad()
def flip(image: Tensor, ground_truth: Tensor) -> Tensor:
    """[] the mean over the pixels, 0..1; of images [3, H, W], RGB 0..1 as displayed (sRGB)."""
    pair = torch.stack([ground_truth, image])
    opponent = _opponent(_xyz(_linear(pair)))
    color = _color_difference(_contrast_filtered(opponent))
    return color.pow(1 - _feature_difference((opponent[:, 0] + 16) / 116)).mean()


def _color_difference(opponent: Tensor) -> Tensor:
    """[H, W] 0..1, of two filtered pictures [2, 3, H, W] in the opponent space."""
    lab = _hunt_lab(_from_opponent(opponent))
    largest = _hunt_lab(lab.new_tensor(((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))[..., None, None])  # green against blue
    distance, largest = (_hyab(each).pow(_COLOR_EXPONENT) for each in (lab, largest))
    knee = _SHARE * largest
    above = _RISE + (distance - knee) / (largest - knee) * (1 - _RISE)
    return torch.where(distance < knee, _RISE / knee * distance, above)


def _feature_difference(luminance: Tensor) -> Tensor:
    """[H, W] 0..1, of two pictures [2, H, W]: by how much edges or points differ, the larger of both."""
    down, across = _both(luminance)
    smoothed_down, smoothed_across = down.smooth @ luminance, luminance @ across.smooth.T
    edges = torch.hypot(smoothed_down @ across.edge.T, down.edge @ smoothed_across)
    points = torch.hypot(smoothed_down @ across.point.T, down.point @ smoothed_across)
    difference = torch.maximum((edges[0] - edges[1]).abs(), (points[0] - points[1]).abs())
    return (difference / math.sqrt(2)).clamp(0, 1).pow(_FEATURE_EXPONENT)


# ---- colors ---------------------------------------------------------------------


def _linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp_min(0.04045) + 0.055) / 1.055).pow(2.4))


def _xyz(linear: Tensor) -> Tensor:
    """[..., 3, H, W] relative to white."""
    matrix = torch.tensor(_TO_XYZ, dtype=torch.float64) / torch.tensor(_WHITE, dtype=torch.float64)[:, None]
    return torch.einsum("ij,...jhw->...ihw", matrix.to(linear), linear)


def _opponent(xyz: Tensor) -> Tensor:
    """[..., 3, H, W] lightness, red-green and blue-yellow, linear in the light: Y C_x C_z."""
    x, y, z = xyz.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _from_opponent(opponent: Tensor) -> Tensor:
    """Back to linear RGB, within 0..1."""
    lightness, red, blue = opponent.unbind(-3)
    y = (lightness + 16) / 116
    xyz = torch.stack([y + red / 500, y, y - blue / 200], dim=-3)
    matrix = torch.tensor(_TO_XYZ, dtype=torch.float64) / torch.tensor(_WHITE, dtype=torch.float64)[:, None]
    return torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(matrix).to(xyz), xyz).clamp(0, 1)


def _hunt_lab(linear: Tensor) -> Tensor:
    """[..., 3, H, W] CIELAB of linear RGB, its colors fading with the lightness as Hunt found."""
    xyz, delta = _xyz(linear), 6 / 29
    root = torch.where(xyz > delta**3, xyz.clamp_min(delta**3).pow(1 / 3), xyz / (3 * delta**2) + 4 / 29)
    x, y, z = root.unbind(-3)
    lightness = 116 * y - 16
    return torch.stack([lightness, 0.01 * lightness * 500 * (x - y), 0.01 * lightness * 200 * (y - z)], dim=-3)


def _hyab(pair: Tensor) -> Tensor:
    """[H, W] the distance of two pictures [2, 3, H, W]: of lightness city-block, of color Euclidean."""
    lightness, a, b = (pair[0] - pair[1]).unbind(0)
    return lightness.abs() + torch.hypot(a, b)


# ---- filters --------------------------------------------------------------------


class _Filters(NamedTuple):
    """The filters along one side of a picture, as matrices [size, size]; outside of a picture its border goes on.

    Products with them are, on the CPU, several times faster than PyTorch's convolutions of one channel.
    """

    contrast: list[list[tuple[float, Tensor]]]  # of each channel, its Gaussians, with weights that add up to 1
    smooth: Tensor  # a Gaussian
    edge: Tensor  # its first derivative, the positive taps adding up to 1, the negative ones to -1
    point: Tensor  # its second derivative, likewise


@functools.lru_cache(maxsize=4)  # the two sides of the pictures of a capture
@torch.inference_mode(False)
def _filters(size: int, dtype: torch.dtype, device: torch.device) -> _Filters:
    def matrix(taps: Tensor) -> Tensor:
        offsets = torch.arange(len(taps)) - len(taps) // 2
        columns = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
        rows = torch.zeros(size, size, dtype=taps.dtype).scatter_add_(1, columns, taps.expand(size, -1))
        return rows.to(device, dtype)

    radius = math.ceil(3 * math.sqrt(_WIDEST / (2 * math.pi**2)) * PIXELS_PER_DEGREE)
    degrees = torch.arange(-radius, radius + 1, dtype=torch.float64) / PIXELS_PER_DEGREE
    contrast = []
    for terms in _SENSITIVITY:
        taps = [torch.exp(-(math.pi**2) * degrees**2 / b) for _, b in terms]
        volumes = [a * math.sqrt(math.pi / b) * float(tap.sum()) ** 2 for (a, b), tap in zip(terms, taps)]
        contrast.append([(volume / sum(volumes), matrix(tap / tap.sum())) for volume, tap in zip(volumes, taps)])

    sigma = 0.5 * _FEATURE_WIDTH * PIXELS_PER_DEGREE  # pixels
    position = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, dtype=torch.float64)
    gauss = torch.exp(-(position**2) / (2 * sigma**2))
    edge, point = (
        matrix(torch.where(taps > 0, taps / taps.clamp_min(0).sum(), taps / taps.clamp_max(0).sum().abs()))
        for taps in (-position * gauss, ((position / sigma) ** 2 - 1) * gauss)
    )
    return _Filters(contrast, matrix(gauss / gauss.sum()), edge, point)


def _both(pictures: Tensor) -> tuple[_Filters, _Filters]:
    """The filters down and across pictures [..., H, W]."""
    height, width = pictures.shape[-2:]
    return _filters(height, pictures.dtype, pictures.device), _filters(width, pictures.dtype, pictures.device)


def _contrast_filtered(opponent: Tensor) -> Tensor:
    """The pictures [2, 3, H, W] as the eye resolves them."""
    down, across = _both(opponent)
    filtered = []
    for channel in range(3):
        picture = opponent[:, channel]
        terms = zip(down.contrast[channel], across.contrast[channel])
        filtered.append(torch.stack([weight * (a @ picture @ b.T) for (weight, a), (_, b) in terms]).sum(dim=0))
    return torch.stack(filtered, dim=1)
