"""Mixed precision: half-precision autocast with a loss scaler on CUDA, and bad steps skipped everywhere.

    with amp.autocast():
        image = color(out.image, camera_id)
    amp.backward(total, [out.means2d], optimizers)
    for optimizer in optimizers:
        amp.step(optimizer, iteration)
    density.observe(out)

After `backward` all gradients are the true ones, that of the densification
statistic included, so whoever reads them need not know that a scaler exists.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from utils import native


class MixedPrecision:
    """The AMP idiom, chosen once: a context and a scaler that do nothing where they are not needed.

    * off: `backward` and `step` are the plain ones, `autocast` is null.
    * on, CUDA: fp16 autocast and `torch.amp.GradScaler`. A step with a gradient
      that is not finite is skipped and the scale lowered, without the host waiting for the device.
    * on, CPU: nothing in a training step gains from bfloat16 (doc/color_calibration.md has the figures),
      so `autocast` is null as well; what remains is that steps that are not finite are skipped.

    An optimizer is one of PyTorch's (on CUDA, a fused one), or anything with `gradients()`,
    an iterable of gradient tensors, such as the one of the FLAME rows. In a bad step
    its gradients are zero.
    """

    def __init__(self, enabled: bool, device: torch.device | str, *, scaled: bool | None = None) -> None:
        """`scaled` forces the scaler on or off for tests; None uses it on CUDA."""
        self.enabled = enabled
        self.device = torch.device(device)
        scaled = self.device.type == "cuda" if scaled is None else scaled
        self.scaler = torch.amp.GradScaler(self.device.type) if enabled and scaled else None
        self._bad: Tensor | None = None                     # [] 1.0 after a bad backward, else 0.0
        self._skipped = torch.zeros((), device=self.device)  # counted there, so that nobody waits

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around image-space networks only; geometry, rasterizer, SSIM and Adam stay in float32."""
        if self.enabled and self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.float16)
        return contextlib.nullcontext()

    def backward(self, total: Tensor, statistics: Iterable[Tensor], optimizers: Iterable[Any]) -> None:
        """Gradients of `total` in true units; in a bad step those of the statistics are zero, and `step` does nothing.

        Args:
            total: [] the loss.
            statistics: leaves outside of all optimizers whose gradients are read afterwards (`means2d`).
            optimizers: all that will step on these gradients.
        """
        if not self.enabled:
            total.backward()
            return
        if self.scaler is None:
            total.backward()
        else:
            self.scaler.scale(total).backward()
        gathered, loose = [], [leaf.grad for leaf in statistics if leaf.grad is not None]
        for optimizer in optimizers:
            if hasattr(optimizer, "param_groups"):
                gathered += [parameter.grad for group in optimizer.param_groups for parameter in group["params"]
                             if parameter.grad is not None]
            else:
                loose += list(optimizer.gradients())
        if self.scaler is None:
            self._bad = 1.0 - _all_finite(gathered + loose)
        else:
            everything = _Gradients(gathered + loose)
            self.scaler.unscale_(everything)
            self.scaler.step(everything)
            self.scaler.update()
            self._bad = everything.flag
        self._skipped += self._bad
        if self.scaler is not None or self._bad:
            for gradient in loose:  # not a product with zero: NaN would stay NaN
                gradient.copy_(torch.where(self._bad > 0, torch.zeros_like(gradient), gradient))

    def step(self, optimizer: Any, iteration: int) -> None:
        """`optimizer.step()`, unless the last `backward` was bad; `iteration` is for those that are not PyTorch's."""
        if not hasattr(optimizer, "param_groups"):
            optimizer.step(iteration)  # a step on gradients of zero moves nothing
        elif not self.enabled:
            optimizer.step()
        elif self.scaler is None:
            if not self._bad:
                optimizer.step()
        else:
            # The protocol between GradScaler and PyTorch's fused optimizers: the kernel itself stands still.
            optimizer.found_inf, optimizer.grad_scale = self._bad, None
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf, optimizer.grad_scale

    @property
    def skipped(self) -> int:
        """Steps skipped so far; asking makes the host wait for the device."""
        return int(self._skipped)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "scaler": {} if self.scaler is None else self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the scale and the count; a run without a scaler leaves the former."""
        self._skipped.fill_(state["skipped"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _all_finite(gradients: list[Tensor]) -> Tensor:
    """[] 1.0 or 0.0, on the device of the gradients."""
    plain = all(g.dtype == torch.float32 and g.device.type == "cpu" and g.is_contiguous() for g in gradients)
    if plain and native.available():
        addresses = (ctypes.c_void_p * len(gradients))(*[gradient.data_ptr() for gradient in gradients])
        counts = (ctypes.c_int64 * len(gradients))(*[gradient.numel() for gradient in gradients])
        return torch.tensor(float(native.library().all_finite(addresses, counts, ctypes.c_int64(len(gradients)))))
    # Zero times a number is zero only if it is finite.
    return torch.stack([(0.0 * gradient).sum() for gradient in gradients]).sum().isfinite().float()


class _Gradients:
    """Gradients in the place of an optimizer: GradScaler unscales them and says whether one is not finite."""

    _step_supports_amp_scaling = True  # hands `found_inf` over instead of reading it on the host

    def __init__(self, gradients: list[Tensor]) -> None:
        self.param_groups = [{"params": [_holder(gradient) for gradient in gradients]}]
        self.found_inf: Tensor | None = None  # GradScaler sets it for the length of `step`
        self.flag: Tensor | None = None

    def step(self) -> None:
        self.flag = self.found_inf


def _holder(gradient: Tensor) -> Tensor:
    """A tensor with this gradient, without memory of its own."""
    tensor = gradient.detach()
    tensor.grad = gradient
    return tensor
