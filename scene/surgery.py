"""The one place where rows of parameters and of optimizer state change together.

Cloning, splitting and pruning are all the same operation: the new set of rows
is a gather from the old one, some of the gathered rows get new values, and
some must start with empty Adam moments. Doing it once, in one function, is what
keeps parameters, moments, bindings and statistics from drifting apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's per-element state


def gather_rows(
    parameters: Mapping[str, Parameter],
    optimizer: Optimizer,
    source: Tensor,               # [M] int64: the old row that each new row comes from
    fresh: Tensor,                # [M] bool: rows that start with zero Adam moments
    values: Mapping[str, Tensor], # name -> [M, ...] complete replacement values, where they differ
) -> None:
    """Replaces the rows of every parameter by `parameter[source]`, moments included.

    A parameter object keeps its identity, so the optimizer's groups need no
    rebuilding; its gradient is dropped because it no longer has the right rows.
    """
    for name, parameter in parameters.items():
        replacement = values.get(name)
        parameter.data = parameter.data[source] if replacement is None else replacement
        parameter.grad = None
        state = optimizer.state.get(parameter)
        if not state:
            continue
        keep = (~fresh).view(-1, *[1] * (parameter.dim() - 1))
        for moment in MOMENTS:
            state[moment] = state[moment][source] * keep


def overwrite(parameter: Parameter, optimizer: Optimizer, value: Tensor) -> None:
    """Sets a whole parameter and forgets its Adam moments, which belong to the old values."""
    with torch.no_grad():
        parameter.copy_(value)
    for moment in MOMENTS:
        if moment in optimizer.state.get(parameter, {}):
            optimizer.state[parameter][moment].zero_()
