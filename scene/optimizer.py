"""Parameter groups of the Gaussians, and the schedule of the position's learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from scene.gaussian_model import GaussianModel


def log_linear(step: int, first: float, last: float, steps: int) -> float:
    """Interpolates from `first` to `last` in the logarithm, constant after `steps`."""
    if first <= 0.0 or last <= 0.0:
        return 0.0
    t = min(max(step / steps, 0.0), 1.0)
    return math.exp(math.log(first) * (1.0 - t) + math.log(last) * t)


class GaussianOptimizer(torch.optim.Adam):
    """Adam over the Gaussians, one group per kind of parameter, as facts section 5 sets them."""

    def __init__(
        self,
        model: GaussianModel,
        *,
        extent: float,                  # metres; positions learn in units of the scene
        position_lr_init: float,
        position_lr_final: float,
        position_lr_max_steps: int,
        feature_lr: float,
        opacity_lr: float,
        scaling_lr: float,
        rotation_lr: float,
    ) -> None:
        rates = {
            "xyz": position_lr_init * extent,
            "features_dc": feature_lr,
            # View-dependent colour moves twenty times slower than the base
            # colour, or it explains away what belongs in the latter.
            "features_rest": feature_lr / 20.0,
            "opacity": opacity_lr,
            "scaling": scaling_lr,
            "rotation": rotation_lr,
        }
        groups = [{"params": [parameter], "lr": rates[name], "name": name}
                  for name, parameter in model.parameters().items()]
        # eps far below the usual 1e-8: the gradients of a mean over all pixels
        # are that small, and a larger eps would silently lower the step.
        super().__init__(groups, lr=0.0, eps=1e-15, fused=True)
        self.position_schedule = (position_lr_init * extent, position_lr_final * extent, position_lr_max_steps)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over moments and step counts; learning rates stay those of this run's options."""
        rates = [group["lr"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, rate in zip(self.param_groups, rates):
            group["lr"] = rate

    def set_step(self, step: int) -> None:
        """Sets the learning rates for iteration `step` (1 is the first)."""
        for group in self.param_groups:
            if group["name"] == "xyz":
                group["lr"] = log_linear(step, *self.position_schedule)
