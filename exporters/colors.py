"""The colors of ordinary splats: what the color network does put into them, a lower degree, and who shows at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exporters.view import around
from innovations.color_calibration import ColorCalibration, ColorCalibrationNetwork
from innovations.unseen_colors import pixels_seen
from ops import sh as harmonics
from ops.types import Camera, Gaussians
from scene import Avatar
from utils.errors import UserError

HEIGHT = 384  # pixels of the pictures that files are judged by
# Radians: from where files are judged, and from where it is seen which Gaussians show.
FRONT_YAWS, FRONT_PITCHES = (-0.9, -0.45, 0.0, 0.45, 0.9), (0.0, 0.3)
ALL_YAWS, ALL_PITCHES = tuple(math.tau * turn / 12 for turn in range(12)), (-0.4, 0.0, 0.4)
DIRECTIONS = 256
BEHIND = 0.05  # weight of the directions from behind, where few cameras were, against that of the front
CHUNK = 1 << 22  # colors at a time


class Colors(NamedTuple):
    """Which Gaussians a file gets, and in which colors."""

    sh: Tensor  # [M, K, 3]
    kept: Tensor | None  # [M] int64; None: all
    notes: list[str]


def sphere(count: int) -> Tensor:
    """[count, 3] unit vectors, evenly over the sphere (the Fibonacci lattice), float64."""
    step = torch.arange(count, dtype=torch.float64)
    z, turn = 1 - (2 * step + 1) / count, math.pi * (3 - math.sqrt(5)) * step
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=1)


def prepare(
    avatar: Avatar, posed: Sequence[Gaussians], view: dict[str, Any], *, prune: float, degree: int | None
) -> Colors:
    """The colors without a network, up to a degree, of those Gaussians that show.

    Args:
        posed: the world-space Gaussians at some of the moments that will be written.
        view: from where they are seen first, of `first_view`.
        prune: the share of Gaussians to leave out.
        degree: of the view-dependent color; None: that of the avatar.

    Raises:
        UserError: there is no Gaussian that could be drawn.
    """
    sh, kept, notes = posed[0].sh, None, []
    sound = torch.stack([drawable(gaussians) for gaussians in posed]).all(0)
    if not sound.any():
        raise UserError(f"{avatar.path}: no Gaussian has a finite size and a rotation, so none can be drawn")
    if not sound.all():
        kept = sound.nonzero()[:, 0]
        notes.append(f"{len(sh) - len(kept):,} Gaussians without a finite size or a rotation are left out")
    degree = min(avatar.model.active_sh_degree, 3 if degree is None else degree)
    if prune:
        cameras = around(view, HEIGHT, ALL_YAWS, ALL_PITCHES)
        pixels = [pixels_seen([(camera, gaussians) for camera in cameras], avatar.draw) for gaussians in posed]
        shown = torch.stack(pixels).amax(0) - 1.0 * ~sound
        kept = shown.argsort(descending=True, stable=True)[: max(1, round((1 - prune) * int(sound.sum())))]
        kept = kept.sort().values
        notes.append(f"{len(sh) - len(kept):,} of {len(sh):,} Gaussians, those that show least, are left out")
    sh = sh if kept is None else sh[kept]
    network = avatar.color.network if isinstance(avatar.color, ColorCalibration) else None
    if network is not None or harmonics.bases(degree) < sh.shape[1]:
        sh = fitted(sh, degree, network, torch.tensor(view["back"]))
    if network is not None:
        notes.append("the color network is put into the colors of the Gaussians")
    if degree < avatar.model.active_sh_degree:
        notes.append(f"the view-dependent color is of degree {degree}, not {avatar.model.active_sh_degree}")
    notes += average_camera(avatar)
    if kept is not None or sh is not posed[0].sh:
        cameras = around(view, HEIGHT, FRONT_YAWS, FRONT_PITCHES)
        found = [
            error
            for gaussians in posed
            for error in compare(avatar, gaussians, kept, at_moment(sh, posed[0].sh, gaussians.sh, kept), cameras)
        ]
        mean = -10 * math.log10(max(sum(found) / len(found), 1e-12))
        lowest = -10 * math.log10(max(*found, 1e-12))
        notes.append(
            f"its pictures against the avatar's own: {mean:.1f} dB PSNR, the worst of {len(found)} views {lowest:.1f}"
        )
    return Colors(sh, kept, notes)


def at_moment(sh: Tensor, first: Tensor, now: Tensor, kept: Tensor | None) -> Tensor:
    """[M, K, 3] the file's colors `sh` of the first moment at another: with what the expression adds to the base color.

    Args:
        first, now: [N, K', 3] the avatar's own at both moments; the same tensor where no expression does.
        kept: [M] int64, which of them are in the file; None: all.
    """
    if now is first:
        return sh
    before, after = (own[:, :1] if kept is None else own[kept, :1] for own in (first, now))
    return torch.cat([sh[:, :1] - before + after, sh[:, 1:]], dim=1)


def average_camera(avatar: Avatar) -> Iterator[str]:
    """What is lost with the affine maps of the cameras, as a sentence."""
    if isinstance(avatar.color, ColorCalibration) and avatar.color.cameras is not None:
        yield "the colors are those of the average camera, as of any camera that was not trained on"


def fitted(sh: Tensor, degree: int, network: ColorCalibrationNetwork | None, back: Tensor) -> Tensor:
    """Coefficients [N, (degree+1)^2, 3] of the colors that `network` makes of those of `sh` [N, K, 3].

    Least squares over directions from everywhere, most of all from the front. A picture's color is mixed of those of
    many Gaussians before the network sees it, so this is exact only where those behind each other agree.

    Args:
        back: [3] unit, from what is seen to the viewer, world space.
    """
    directions = sphere(DIRECTIONS).to(sh)
    weights = ((directions @ -back.to(sh)).clamp_min(0).square() + BEHIND).sqrt()[:, None]
    given = harmonics.basis(directions, harmonics.degree_of(sh.shape[1]))  # [M, K]
    wanted = harmonics.basis(directions, degree)
    inverse = torch.linalg.pinv((weights * wanted).double()).to(sh) * weights.T
    copied = min(given.shape[1], wanted.shape[1])
    result = []
    for part in sh.split(max(1, CHUNK // DIRECTIONS)):
        seen = torch.einsum("mk,nkc->nmc", given, part)
        # Only what has to change is fitted, so that nothing else does.
        change = seen - torch.einsum("mk,nkc->nmc", wanted[:, :copied], part[:, :copied])
        if network is not None:
            inside = (seen + 0.5).clamp(0, 1)
            change = change + network(inside.permute(2, 0, 1)).permute(1, 2, 0) - inside
        result.append(part[:, :copied] + torch.einsum("km,nmc->nkc", inverse, change))
    return torch.cat(result)


def drawable(gaussians: Gaussians) -> Tensor:
    """[N] whether a Gaussian has numbers that a file can hold."""
    finite = torch.cat([gaussians.means, gaussians.scales, gaussians.sh.flatten(1)], dim=1).isfinite().all(1)
    return finite & (gaussians.quats.norm(dim=1) > 0.5)


def taken(gaussians: Gaussians, kept: Tensor | None) -> Gaussians:
    """Those of the numbers [M]; None: all."""
    return gaussians if kept is None else Gaussians(*(values[kept] for values in gaussians))


def compare(
    avatar: Avatar, gaussians: Gaussians, kept: Tensor | None, sh: Tensor, cameras: Sequence[Camera]
) -> Iterator[float]:
    """Mean squared error of each camera's picture of the `kept` Gaussians in the colors `sh`."""
    shown = taken(gaussians, kept)._replace(sh=sh)
    degree = harmonics.degree_of(sh.shape[1])
    for camera in cameras:
        camera = camera.to(sh.device)
        image = avatar.draw(shown, camera, sh_degree=degree).image.clamp(0, 1)
        yield float((image - avatar.look(gaussians, camera).image.clamp(0, 1)).square().mean())
