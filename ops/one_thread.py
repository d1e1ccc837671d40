"""Computing with one thread, so that the result does not depend on how many there are.

PyTorch's matrix products add in another order with another number of threads, which changes the last bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def on_one_thread(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, on the CPU by one thread, forward and backward; differentiable once in `inputs`."""
    if not all(value.is_cpu for value in inputs):
        return function(*inputs)
    return _OneThread.apply(function, *inputs)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _OneThread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        needed = ctx.needs_input_grad[1:]
        ctx.inputs = [value.detach().requires_grad_(need) for value, need in zip(inputs, needed)]
        with _one_thread(), torch.set_grad_enabled(any(needed)):
            ctx.out = function(*ctx.inputs)
        return ctx.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [value for value in ctx.inputs if value.requires_grad]
        with _one_thread():
            found = iter(torch.autograd.grad(ctx.out, wanted, grad))
        return None, *(next(found) if value.requires_grad else None for value in ctx.inputs)
