"""The statistics of the density control over one rendered view."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ops import fused, kernels


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
    elif gpu := fused.kernels("density", _fault, gradient, gradient_sum):
        gpu.observe(gradient, radii, gradient_sum, seen, max_radii)
    else:
        _observe_torch(gradient, radii, gradient_sum, seen, max_radii)


def _observe_torch(gradient: Tensor, radii: Tensor, gradient_sum: Tensor, seen: Tensor, max_radii: Tensor) -> None:
    gradient_sum += torch.linalg.vector_norm(gradient, dim=1)
    seen += radii > 0
    torch.maximum(max_radii, radii.to(max_radii), out=max_radii)


def _fault(gpu: Any, device: torch.device) -> str | None:
    """What is wrong with the Triton kernel, by a few hundred Gaussians."""
    random = torch.Generator().manual_seed(0)
    inputs = {
        "gradient": torch.randn(300, 2, generator=random, dtype=torch.float64),
        "radii": torch.randint(-1, 9, (300,), generator=random, dtype=torch.int32).clamp_min(0),
    }
    inputs |= {name: 9 * torch.rand(300, generator=random, dtype=torch.float64) for name in ("sum", "seen", "largest")}

    def by(observed: Any) -> Any:
        def after(*arguments: Tensor) -> tuple[Tensor, ...]:
            observed(*arguments)
            return arguments[2:]

        return after

    return fused.difference(by(gpu.observe), by(_observe_torch), inputs, device)
