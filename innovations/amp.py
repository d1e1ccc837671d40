"""Backward and optimizer steps: mixed precision on CUDA where it is wanted, and no bad step anywhere.

    with amp.autocast():
        image = color(out.image, camera_id)
    amp.backward([total], [out.means2d], optimizers)
    for optimizer in optimizers:
        amp.step(optimizer, iteration)
    density.observe(out, skip=amp.bad)

After `backward` all gradients are the true ones, that of the densification
statistic included, so whoever reads them need not know that a scaler exists.
A step is bad when its loss or any of its gradients is not finite, or so large (1.8e19)
that its square, which Adam keeps, is not. It then leaves everything as it was: one
NaN in a parameter would soon be everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ops.finite import not_finite


class MixedPrecision:
    """The AMP idiom, chosen once: a context and a scaler that do nothing where they are not needed.

    * off: `autocast` is null and nothing is scaled.
    * on, CUDA: fp16 autocast and `torch.amp.GradScaler`, which also lowers its scale in a bad step.
    * on, CPU: as off, since nothing in a training step gains from bfloat16.

    Bad steps are skipped in all three. On the CPU that is a question before the step; on CUDA a flag stays on the
    device and the host never waits for it.

    An optimizer is one of PyTorch's (on CUDA, a fused one), or anything with `gradients()`,
    an iterable of gradient tensors, such as the one of the FLAME rows.

    Attributes:
        bad: whether the last `backward` was; on CUDA a bool tensor [] there.
    """

    def __init__(self, enabled: bool, device: torch.device | str, *, scaled: bool | None = None) -> None:
        """`scaled` forces the scaler on or off for tests; None uses it on CUDA."""
        self.enabled = enabled
        self.device = torch.device(device)
        scaled = self.device.type == "cuda" if scaled is None else scaled
        self.scaler = torch.amp.GradScaler(self.device.type) if enabled and scaled else None
        self.bad: Tensor | bool = False

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around image-space networks only; geometry, rasterizer, SSIM and Adam stay in float32."""
        if self.enabled and self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.float16)
        return contextlib.nullcontext()

    def backward(
        self,
        losses: Sequence[Tensor],
        statistics: Iterable[Tensor],
        optimizers: Iterable[Any],
        average: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]] = lambda gradients, witnesses: [],
    ) -> None:
        """Gradients of the losses' mean in true units, and whether this step is bad; the statistics are zero if it is.

        One after the other, which lets go of the graph of a view before that of the next is gone through, and adds in
        the same order as processes that have a view each.

        Args:
            losses: [] each, of the views of this step.
            statistics: leaves outside of all optimizers whose gradients are read afterwards (`means2d`).
            optimizers: all that will step on these gradients.
            average: of several processes, see `training.ranks`: (gradients, averaged in place; all else that has to
                be finite here) -> tensors that are not finite if that was not, in any process.
        """
        for loss in losses:
            scaled = loss if self.scaler is None else self.scaler.scale(loss)
            scaled.backward(torch.full_like(scaled, 1 / len(losses)))
        statistics = [leaf.grad for leaf in statistics if leaf.grad is not None]
        moving = [gradient for optimizer in optimizers for gradient in _gradients_of(optimizer)]
        totals = [loss.detach() for loss in losses]
        gradients = [*statistics, *moving, *average(moving, [*totals, *statistics])]
        if self.scaler is not None:
            everything: Any = _Gradients(gradients)  # as much of an optimizer as the scaler asks for
            self.scaler.unscale_(everything)
            self.scaler.step(everything)
            self.scaler.update()
        self.bad = not_finite([*totals, *gradients])
        if isinstance(self.bad, Tensor) or self.bad:
            _clear(statistics, self.bad)

    def step(self, optimizer: Any, iteration: int) -> None:
        """`optimizer.step()`, unless the last `backward` was bad; `iteration` is for those that are not PyTorch's."""
        ours = not hasattr(optimizer, "param_groups")
        if not isinstance(self.bad, Tensor):
            if not self.bad:
                optimizer.step(*([iteration] if ours else []))
        elif ours:
            _clear(optimizer.gradients(), self.bad)
            optimizer.step(iteration)  # a step on gradients of zero moves nothing
        else:
            # The protocol between GradScaler and PyTorch's fused optimizers: the kernel itself stands still.
            optimizer.found_inf, optimizer.grad_scale = self.bad.float(), None
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf, optimizer.grad_scale

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": {} if self.scaler is None else self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the scale; a run without a scaler leaves it."""
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _gradients_of(optimizer: Any) -> list[Tensor]:
    if not hasattr(optimizer, "param_groups"):
        return list(optimizer.gradients())
    return [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def _clear(gradients: Iterable[Tensor], bad: Tensor | bool) -> None:
    """Zeros in their place if `bad`."""
    for gradient in gradients:
        if isinstance(bad, Tensor):  # not a product with zero: NaN would stay NaN
            gradient.masked_fill_(bad, 0.0)
        elif bad:
            gradient.zero_()


class _Gradients:
    """Gradients in the place of an optimizer, for GradScaler to unscale and to learn its scale from."""

    _step_supports_amp_scaling = True  # otherwise GradScaler waits for the device before it calls `step`

    def __init__(self, gradients: list[Tensor]) -> None:
        self.param_groups = [{"params": [_holder(gradient) for gradient in gradients]}]

    def step(self) -> None:
        """Nothing: `MixedPrecision.step` does the steps."""


def _holder(gradient: Tensor) -> Tensor:
    """A tensor with this gradient, without memory of its own."""
    tensor = gradient.detach()
    tensor.grad = gradient
    return tensor
