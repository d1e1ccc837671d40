"""Triton: Adam, one pass over a tensor, with a rate for every column of a row.

The formulas are those of ops/csrc/adam.cpp. The number of the step stays on the GPU, and so does whether to take it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.triton_kernels.launch import launch

BLOCK = 1024  # numbers of a program


@triton.jit
def correction(exponent):
    """1 - e^exponent, of at most 0, with all its digits where it is small."""
    series = 1.0 + exponent * (1.0 / 2.0 + exponent * (1.0 / 6.0 + exponent * (1.0 / 24.0 + exponent / 120.0)))
    return tl.where(exponent > -0.1, -exponent * series, 1.0 - tl.exp(exponent))


@triton.jit(do_not_specialize=["count", "columns"])
def move(
    values,
    gradient,
    mean,
    square,
    step,  # [] steps taken before
    factors,  # [columns] of the rate
    left_out,  # [] not 0 where this step is not to be taken
    count,
    columns,  # of a row
    rate,
    take1,  # 1 - beta
    take2,
    log_beta1,
    log_beta2,
    eps,
    EVEN: tl.constexpr,  # there are no factors
    ALWAYS: tl.constexpr,  # the step is taken
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if not ALWAYS:
        count = tl.where(tl.load(left_out) == 0.0, count, 0)
    live = at < count
    number = tl.load(step) + 1.0
    g, m, v = tl.load(gradient + at, live, 0.0), tl.load(mean + at, live, 0.0), tl.load(square + at, live, 0.0)
    m += take1 * (g - m)
    v += take2 * (g * g - v)
    way = rate / correction(number * log_beta1) * m
    if not EVEN:
        way *= tl.load(factors + at % columns, live, 0.0)
    size = tl.sqrt(v) / tl.sqrt(correction(number * log_beta2)) + eps
    tl.store(mean + at, m, live)
    tl.store(square + at, v, live)
    tl.store(values + at, tl.load(values + at, live, 0.0) - way / size, live)


def step(moving: Sequence[tuple[dict[str, Any], Tensor, dict[str, Tensor]]], left_out: Tensor | None) -> None:
    """A step of every (group, parameter, its state) of `ops.adam.Adam`, all of float32, unless `left_out` is 1."""
    for group, values, state in moving:
        factors, (beta1, beta2), count = group["factors"], group["betas"], values.numel()
        launch(
            move,
            triton.cdiv(count, BLOCK),
            *(values, values.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"], state["step"]),
            *(values if factors is None else factors, state["step"] if left_out is None else left_out),
            *(count, 1 if factors is None else len(factors), group["lr"], 1.0 - beta1, 1.0 - beta2),
            *(math.log(beta1), math.log(beta2), group["eps"]),
            EVEN=factors is None,
            ALWAYS=left_out is None,
            BLOCK=BLOCK,
        )
    steps = [state["step"] for *_, state in moving]
    if left_out is None:
        torch._foreach_add_(steps, 1.0)
    else:
        torch._foreach_add_(steps, [1.0 - left_out] * len(steps))
