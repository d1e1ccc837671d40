"""What moves the parameters: Adam over the Gaussians with its schedules, and Adam over single FLAME rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops.adam import Adam
from scene.flame.parameters import POSES, FlameParameters
from scene.gaussian_model import GaussianModel
from utils.errors import UserError


def log_linear(step: int, first: float, last: float, steps: int) -> float:
    """Interpolates from `first` to `last` in the logarithm, constant after `steps`."""
    if first <= 0.0 or last <= 0.0:
        return 0.0
    t = min(max(step / steps, 0.0), 1.0)
    return math.exp(math.log(first) * (1.0 - t) + math.log(last) * t)


COOL = 0.1  # what the cool-down leaves of a learning rate


class ViewRates(NamedTuple):
    """How the optimizers change with the views whose gradients a step averages."""

    rate: float = 1.0  # factor on all learning rates
    power: int = 1  # of the betas of Adam

    def betas(self, *betas: float) -> tuple[float, ...]:
        return tuple(beta**self.power for beta in betas)


def view_rates(rule: str, views: int) -> ViewRates:
    """`--lr_views_rule` for so many `views` in a step, of all processes together; one view changes nothing.

    * sqrt: rates times the root of the number, and betas to its power, so that the moments forget as much by view.
      Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", for Adam; in this form
      for Gaussians by Zhao et al. 2024, "On Scaling Up 3D Gaussian Splatting Training", section 4.
    * linear: rates times the number; Goyal et al. 2017, "Accurate, Large Minibatch SGD", where steps follow the
      gradient's size. Those of Adam do not: it is too much where the rates suit one view (doc/scale.md has figures).
    """
    return {"none": ViewRates(), "sqrt": ViewRates(math.sqrt(views), views), "linear": ViewRates(float(views))}[rule]


ONE_VIEW = ViewRates()


class GaussianOptimizer(Adam):
    """Adam over the Gaussians, one group per kind of parameter."""

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
        modes_lr: float = 0.0,
        modes_from: float = 0.0,
        iterations: int = 0,  # of the run; for the cool-down
        cooldown: float = 0.0,  # share of the run at its end
        views: ViewRates = ONE_VIEW,
    ) -> None:
        """
        Args:
            modes_from: up to this iteration the modes of the colors stay as they are: before anything is to follow the
                expression, FLAME's parameters and the colors themselves find their place.
            cooldown: over so much of the run the rates of all but the positions, which have a schedule of their
                own, fall linearly to a tenth: single views no longer shake what all have agreed on.
        """
        rates = {
            "xyz": position_lr_init * extent,
            "features": feature_lr,
            "opacity": opacity_lr,
            "scaling": scaling_lr,
            "rotation": rotation_lr,
            "modes": modes_lr,
        }
        rates = {name: rate * views.rate for name, rate in rates.items()}
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
        for group in self.param_groups:
            group["betas"] = views.betas(*group["betas"])
        ends = (position_lr_init * extent * views.rate, position_lr_final * extent * views.rate)
        self.position_schedule = (*ends, position_lr_max_steps)
        self.rates = rates
        self.modes_from = modes_from
        self.cooldown = (iterations * (1.0 - cooldown), iterations * cooldown)  # its begin and length

    def set_step(self, step: int) -> None:
        """Sets the learning rates for iteration `step` (1 is the first)."""
        begin, length = self.cooldown
        share = min((step - begin) / length, 1.0) if length > 0.0 and step > begin else 0.0
        for group in self.param_groups:
            if group["name"] == "xyz":
                group["lr"] = log_linear(step, *self.position_schedule)
            elif group["name"] == "modes" and step <= self.modes_from:
                group["lr"] = 0.0
            else:
                group["lr"] = self.rates[group["name"]] * (1.0 + (COOL - 1.0) * share)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `Adam`'s; modes that only this run has begin fresh, those that only the checkpoint has are left out."""
        saved, own = state_dict["param_groups"], self.state_dict()["param_groups"]
        names, mine = ([group["name"] for group in groups] for groups in (saved, own))
        if names == [*mine, "modes"]:
            kept = {index: moments for index, moments in state_dict["state"].items() if index < len(mine)}
            state_dict = {**state_dict, "param_groups": saved[:-1], "state": kept}
        elif mine == [*names, "modes"]:
            state_dict = {**state_dict, "param_groups": [*saved, own[-1]]}
        super().load_state_dict(state_dict)


class RowAdam:
    """Adam for rows that are visited now and then: moves only the rows that have a gradient.

    A dense Adam over [T, ...] moves every row in every iteration: the momentum of
    a visited row carries it on while other timesteps are rendered. Here a row
    gets, at its visit, all of the way that a dense Adam would spread over the
    iterations after it, and then rests: rows that are never visited, such as the
    held-out sequence, stay bit for bit as they were tracked.

    In detail (Kingma & Ba 2015): one gradient g adds (1 - beta1) beta1^k g to
    the momentum k steps later, which sums to g, so the momentum becomes the gradient
    itself. The second moment decays with every iteration of the training,
    visited or not, v <- beta2^n v + (1 - beta2) g^2 after n iterations. This
    matters: a row visited once in T iterations settles at v = g^2 / T, so that
    its steps are about sqrt(T) times the learning rate. A count of visits in
    the place of iterations (as in lazy or sparse Adams) loses that factor, and the
    learning rates in use, which were found with dense Adams, then hardly move
    anything.
    """

    def __init__(
        self,
        parameters: FlameParameters,
        *,
        expr_lr: float,  # per coefficient
        translation_lr: float,  # metres
        pose_lr: float,  # radians; rotation, neck, jaw and eyes
        dynamic_lr: float = 0.0,  # metres; used when the dynamic offset is trained
        beta2: float = 0.999,
        eps: float = 1e-15,
        views: ViewRates = ONE_VIEW,
    ) -> None:
        self.parameters = parameters
        (self.beta2,) = views.betas(beta2)
        self.eps = eps
        tables = parameters.tables()
        self._second = {name: torch.zeros_like(table) for name, table in tables.items()}
        self._visited = {name: [0] * len(parameters) for name in tables}  # iteration of the last visit
        rates = torch.empty(parameters.values.shape[1])
        rates[parameters.columns["expr"]] = expr_lr
        rates[parameters.columns["translation"]] = translation_lr
        for name in POSES:
            rates[parameters.columns[name]] = pose_lr
        self._rates: dict[str, Tensor | float] = {
            "values": (rates * views.rate).to(parameters.device),
            "dynamic_offset": dynamic_lr * views.rate,
        }

    @torch.no_grad()
    def step(self, iteration: int) -> None:
        """Moves every row that has a gradient; `iteration` is that of the training, from 1."""
        beta2 = self.beta2
        tables = self.parameters.tables()
        for (name, timestep), gradient in self.parameters.gradients().items():
            second = self._second[name][timestep]
            second.mul_(beta2 ** (iteration - self._visited[name][timestep]))
            second.addcmul_(gradient, gradient, value=1 - beta2)
            self._visited[name][timestep] = iteration
            denominator = (second / (1 - beta2**iteration)).sqrt_().add_(self.eps)
            tables[name][timestep].addcdiv_(gradient * self._rates[name], denominator, value=-1.0)

    def gradients(self) -> list[Tensor]:
        """The gradients of all rows that have one."""
        return list(self.parameters.gradients().values())

    def zero_grad(self) -> None:
        """Forgets the gradients of all rows."""
        self.parameters.clear_gradients()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors for a checkpoint; learning rates are options of the run and not part of it."""
        return {
            "second": self._second,
            "visited": {name: torch.tensor(visited) for name, visited in self._visited.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; a table that the checkpoint did not train starts fresh.

        Raises:
            UserError: the state belongs to another number of timesteps or coefficients.
        """
        for name in self._second.keys() & state["second"].keys():
            theirs, mine = state["second"][name], self._second[name]
            if theirs.shape != mine.shape:
                raise UserError(
                    f"the checkpoint's FLAME optimizer state ({name}) has shape {tuple(theirs.shape)}, "
                    f"expected {tuple(mine.shape)}: the data or the head model changed"
                )
            mine.copy_(theirs)
            visited = state["visited"][name].tolist()
            if len(visited) != len(self._visited[name]) or not all(type(step) is int and step >= 0 for step in visited):
                raise UserError(f"the checkpoint's FLAME optimizer state ({name}) has no iteration for each timestep")
            self._visited[name] = visited
