"""Parameter groups of the Gaussians, and the schedule of the position's learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ops.adam import Adam

if TYPE_CHECKING:
    from scene.gaussian_model import GaussianModel


def log_linear(step: int, first: float, last: float, steps: int) -> float:
    """Interpolates from `first` to `last` in the logarithm, constant after `steps`."""
    if first <= 0.0 or last <= 0.0:
        return 0.0
    t = min(max(step / steps, 0.0), 1.0)
    return math.exp(math.log(first) * (1.0 - t) + math.log(last) * t)


COOL = 0.1  # what the cool-down leaves of a learning rate


class GaussianOptimizer(Adam):
    """Adam over the Gaussians, one group per kind of parameter, as facts section 5 sets them."""

    def __init__(
        self,
        model: GaussianModel,
        *,
        extent: float,  # metres; positions learn in units of the scene
        position_lr_init: float,
        position_lr_final: float,
        position_lr_max_steps: int,
        feature_lr: float,
        opacity_lr: float,
        scaling_lr: float,
        rotation_lr: float,
        iterations: int = 0,  # of the run; for the cool-down
        cooldown: float = 0.0,  # share of the run at its end
    ) -> None:
        """
        Args:
            cooldown: over so much of the run the rates of all but the positions, which have a schedule of their
                own, fall linearly to a tenth: single views no longer shake what all have agreed on.
        """
        rates = {
            "xyz": position_lr_init * extent,
            "features": feature_lr,
            "opacity": opacity_lr,
            "scaling": scaling_lr,
            "rotation": rotation_lr,
        }
        groups = [
            {"params": [parameter], "lr": rates[name], "name": name} for name, parameter in model.parameters().items()
        ]
        # View-dependent colour moves twenty times slower than the base colour (the
        # first three of a row), or it explains away what belongs in the latter.
        factors = torch.full((3 * model.features.shape[1],), 1 / 20)
        factors[:3] = 1.0
        next(group for group in groups if group["name"] == "features")["factors"] = factors.to(model.device)
        # eps far below the usual 1e-8: the gradients of a mean over all pixels
        # are that small, and a larger eps would silently lower the step.
        super().__init__(groups, eps=1e-15)
        self.position_schedule = (position_lr_init * extent, position_lr_final * extent, position_lr_max_steps)
        self.rates = rates
        self.cooldown = (iterations * (1.0 - cooldown), iterations * cooldown)  # its begin and length

    def set_step(self, step: int) -> None:
        """Sets the learning rates for iteration `step` (1 is the first)."""
        begin, length = self.cooldown
        share = min((step - begin) / length, 1.0) if length > 0.0 and step > begin else 0.0
        for group in self.param_groups:
            if group["name"] == "xyz":
                group["lr"] = log_linear(step, *self.position_schedule)
            else:
                group["lr"] = self.rates[group["name"]] * (1.0 + (COOL - 1.0) * share)
