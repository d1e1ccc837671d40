"""What the backends share to honour the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ops import sh as harmonics
from ops.types import Gaussians


def check_shapes(gaussians: Gaussians, background: Tensor, sh_degree: int) -> None:
    """For kernels that trust the sizes.

    Raises:
        ValueError: wrong shapes, or fewer coefficients than `sh_degree` needs.
    """
    count, bases = len(gaussians.means), gaussians.sh.shape[1]
    if not 0 <= sh_degree <= harmonics.MAX_DEGREE or bases < harmonics.bases(sh_degree):
        raise ValueError(f"degree {sh_degree} needs {harmonics.bases(sh_degree)} coefficients, sh has {bases}")
    shapes = [tuple(field.shape) for field in (*gaussians, background)]
    if shapes != [(count, 3), (count, 4), (count, 3), (count,), (count, bases, 3), (3,)]:
        raise ValueError(f"means, quats, scales, opacities, sh, background have shapes {shapes}")


def without_broken(gaussians: Gaussians, sh_degree: int) -> tuple[Gaussians, Tensor]:
    """Makes rows that are not finite harmless, and says which rows are sound.

    A row with a non-finite mean, scale, quaternion, opacity or coefficient that
    `sh_degree` uses, or a zero quaternion, becomes a transparent Gaussian at the origin and gets no gradient.
    No host synchronization.

    Returns:
        The Gaussians, with unit quaternions, and [N] bool.
    """
    used = gaussians.sh[:, : harmonics.bases(sh_degree)].flatten(1)
    parts = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities[:, None], used]
    sound = torch.isfinite(torch.cat(parts, dim=1)).all(1) & (gaussians.quats.detach().norm(dim=1) > 0)
    row = sound[:, None]
    # eye: made on the device, where a list of numbers would be copied there and waited for
    identity = torch.eye(1, 4, dtype=gaussians.quats.dtype, device=gaussians.quats.device)
    quats = torch.nn.functional.normalize(torch.where(row, gaussians.quats, identity), dim=-1)
    return Gaussians(
        means=torch.where(row, gaussians.means, torch.zeros_like(gaussians.means)),
        quats=quats,
        scales=torch.where(row, gaussians.scales, torch.ones_like(gaussians.scales)),
        opacities=torch.where(sound, gaussians.opacities, torch.zeros_like(gaussians.opacities)),
        sh=torch.where(row[:, None], gaussians.sh, torch.zeros_like(gaussians.sh)),
    ), sound
