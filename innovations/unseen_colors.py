"""Colors for what the cameras hardly see: those of the nearest that they see well.

A Gaussian that shows in a few pixels of all photographs, at an outline or behind a shoulder, takes whatever color
lowers the error of these pixels, often that of the background, and is a speck wherever one looks from later. So what is
saved is an estimate that knows how much was seen: the trained color counts for the pixels in which it showed, that of
the neighbors for a fixed number of pixels more. Training itself goes on with its own colors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from innovations.warm_start import nearest_mean
from ops.sh import C0
from ops.types import Camera, Gaussians, RenderOut

VIEWS = 128  # with fewer, what shows in a few moments only passes for unseen
SCALE = 0.5  # of the resolution: only sums over pixels are wanted
# Words in the names of masks whose parts lids and lips hide most of the time, where white lies beside dark.
HIDDEN_PARTS = ("eye", "teeth", "mouth", "lips")
WELL_SEEN = 10  # times as much as what the neighbors count for: fit to be a neighbor


def pixels_seen(shown: Iterable[tuple[Camera, Gaussians]], draw: Callable[..., RenderOut]) -> Tensor:
    """[N] in how many pixels each Gaussian shows: the sum of its blending weights, mean over the views.

    Args:
        shown: at least one view.
        draw: (gaussians, camera, sh_degree=...) -> RenderOut, differentiable.
    """
    sums = []
    for camera, gaussians in shown:
        small = camera.scaled(SCALE)
        # The picture is linear in the colors, so its derivative by them is the sum of the weights.
        color = torch.zeros_like(gaussians.sh[:, :1]).requires_grad_()
        with torch.enable_grad():
            green = draw(gaussians._replace(sh=color), small, sh_degree=0).image[1].sum()
        grad = torch.autograd.grad(green, color)[0][:, 0, 1]
        sums.append(grad * (camera.width * camera.height / (small.width * small.height) / C0))
    return torch.stack(sums).mean(dim=0)


def hidden_parts(masks: Mapping[str, Tensor], corners: Tensor, vertices: int) -> Tensor:
    """[N] whether triangles with these `corners` [N, 3] belong to eyes or mouth, of a mesh with so many `vertices`."""
    hidden = torch.zeros(vertices, dtype=torch.bool, device=corners.device)
    for name, ids in masks.items():
        hidden[ids] |= any(word in name for word in HIDDEN_PARTS)
    return hidden[corners].any(dim=1)


@torch.no_grad()
def filled(sh: Tensor, seen: Tensor, means: Tensor, pixels: float, shared: int = 1) -> Tensor:
    """[N, K, 3] the harmonics `sh` [N, K, 3] of Gaussians at `means` [N, 3], the less their own the less was seen.

    Args:
        seen: [N], of `pixels_seen`; infinite: whatever that says, it keeps its own color and lends it to nobody.
        pixels: what the neighbors count for, more than 0.
        shared: so many of the K, the first, are lent; the others, which know directions, only fade.
    """
    well = (seen >= WELL_SEEN * pixels) & seen.isfinite()
    if not well.any():
        return sh.detach().clone()
    own = (1 - pixels / (seen + pixels))[:, None, None]
    around = torch.zeros_like(sh)
    around[:, :shared] = nearest_mean(means[well], sh[well, :shared], means)
    return own * sh + (1 - own) * around
