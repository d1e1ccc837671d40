"""Adam (Kingma & Ba 2015) over several tensors, with a learning rate for every column of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ops import fused, kernels

_EVEN = torch.ones(1)  # the factors of a group without any


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, fused, with kernels for float32 (in C++ and Triton), and a rate for every column.

    A group may hold `factors`, a float32 tensor on the parameters' device: one
    number per element of a row, by which the group's learning rate is
    multiplied there. State (`exp_avg`, `exp_avg_sq`, `step` per parameter) and
    files are PyTorch's, whichever code moved it. Moments below the smallest
    normal float32 become 0 in the kernel; nothing else differs but
    rounding, and its bits do not depend on the number of threads. Weight decay
    and the like are not supported.
    """

    def __init__(self, groups: list[dict[str, Any]], *, eps: float) -> None:
        super().__init__([{"factors": None, **group} for group in groups], lr=0.0, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient; returns what the closure, if any, does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        plain = kernels.usable(*(tensor for _, p in moving for tensor in (p, p.grad)), contiguous=True)
        # `found_inf` is how a gradient scaler asks PyTorch's kernel for more than ours does.
        if plain and not hasattr(self, "found_inf"):
            slots = [self._slot(group, parameter) for group, parameter in moving]
            kernels.run("adam_step", slots, len(slots))
            return loss
        tensors = [tensor for _, p in moving for tensor in (p, p.grad)]
        if moving and (gpu := fused.kernels("adam", _fault, *tensors)) and all(p.is_contiguous() for _, p in moving):
            gpu.step([(group, p, self._state(p)) for group, p in moving], getattr(self, "found_inf", None))
            return loss
        # One rate per tensor is all that PyTorch's kernel takes: afterwards part of the way is gone back.
        uneven = [(p, p.clone(), group["factors"]) for group, p in moving if group["factors"] is not None]
        super().step()
        for parameter, before, factors in uneven:
            parameter.copy_(before.lerp(parameter, factors.view(parameter.shape[1:])))
        return loss

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            step = torch.zeros((), device=parameter.device)
            state.update(step=step, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        return state

    def _slot(self, group: dict[str, Any], parameter: Tensor) -> kernels.Slot:
        state = self._state(parameter)
        factors = _EVEN if group["factors"] is None else group["factors"]
        tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"], factors)
        sizes = (parameter.numel(), len(factors))
        return kernels.Slot(*map(kernels.address, tensors), *sizes, group["lr"], *group["betas"], group["eps"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over moments and step counts; learning rates and the like stay those of this run's options.

        Raises:
            KeyError, ValueError: the state belongs to other parameters. The kernel trusts its sizes.
        """
        options = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, options):
            group.update(own)
        for parameter, state in self.state.items():
            for name, wanted in (("exp_avg", parameter.shape), ("exp_avg_sq", parameter.shape), ("step", ())):
                if state[name].shape != wanted:
                    raise ValueError(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(wanted)}")


def _fault(gpu: Any, device: torch.device) -> str | None:
    """What is wrong with the Triton kernel, by the first and a later step, one that is left out between them."""
    random = torch.Generator().manual_seed(0)
    shape, rate, betas, eps = (70, 5), 0.01, (0.9, 0.999), 1e-15
    start, *gradients = (torch.randn(*shape, generator=random, dtype=torch.float64) for _ in range(3))
    factors = torch.tensor([1.0, 1.0, 0.05, 0.05, 2.0], dtype=torch.float64)

    def ours(start: Tensor) -> tuple[Tensor, ...]:
        value, uneven = (start.clone().requires_grad_() for _ in range(2))
        groups = [{"lr": rate, "betas": betas, "eps": eps, "factors": f} for f in (None, factors.to(start))]
        moving = [
            (group, one, {"step": start.new_zeros(()), "exp_avg": start * 0.0, "exp_avg_sq": start * 0.0})
            for group, one in zip(groups, (value, uneven))
        ]
        for gradient, left_out in ((0, None), (1, start.new_ones(())), (1, start.new_zeros(()))):
            value.grad = uneven.grad = gradients[gradient].to(start)
            gpu.step(moving, left_out)
        return value.detach() - start, uneven.detach() - start

    def twin(start: Tensor) -> tuple[Tensor, ...]:
        value = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=rate, betas=betas, eps=eps)
        for value.grad in gradients:
            optimizer.step()
        way = value.detach() - start
        return way, way * factors

    return fused.difference(ours, twin, {"start": start}, device)
