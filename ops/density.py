"""The statistics of the density control over one rendered view."""

from __future__ import annotations

import torch
from torch import Tensor

from ops import kernels


def observe(
    gradient: Tensor,  # [N, 2]  of the projected centers, NDC units
    radii: Tensor,  # [N]     integer, pixels of the full image; 0 = culled, and then its gradient is zero
    gradient_sum: Tensor,  # [N]     float32: the gradients' norms are added
    seen: Tensor,  # [N]     float32: 1 is added where the radius is not 0
    max_radii: Tensor,  # [N]     float32: becomes the larger of the two
) -> None:
    """Adds a view to the last three, in place. No host synchronization."""
    if kernels.usable(gradient_sum):
        gradient, radii = gradient.float().contiguous(), radii.int().contiguous()
        kernels.run("density_observe", len(radii), gradient, radii, gradient_sum, seen, max_radii)
    else:
        gradient_sum += torch.linalg.vector_norm(gradient, dim=1)
        seen += radii > 0
        torch.maximum(max_radii, radii.to(max_radii), out=max_radii)
