"""What the adapters of foreign rasterizers share to honour the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from ops import sh as harmonics
from ops.types import Gaussians


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
