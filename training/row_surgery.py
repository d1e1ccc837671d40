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
    source: Tensor,  # [M] int64: the old row that each new row comes from
    fresh: Tensor,  # [M] bool: rows that start with zero Adam moments
    values: Mapping[str, Tensor],  # name -> [M, ...] complete replacement values, where they differ
) -> dict[str, Parameter]:
    """New parameters with the rows `parameter[source]`, moments included; the optimizer holds them from then on.

    New objects, not new data in the old ones: autograd remembers the shape of a
    parameter for as long as any graph that used it is alive.

    Returns:
        The new parameters by name; the caller puts them in place of the old ones.
    """
    replaced = {}
    for name, old in parameters.items():
        value = values.get(name)
        new = replaced[name] = Parameter(old.detach()[source] if value is None else value.detach())
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        state = optimizer.state.pop(old, None)
        if state is None:
            continue
        keep = (~fresh).view(-1, *[1] * (old.dim() - 1))
        optimizer.state[new] = {key: item[source] * keep if key in MOMENTS else item for key, item in state.items()}
    return replaced


def overwrite(parameter: Parameter, optimizer: Optimizer, value: Tensor) -> None:
    """Sets a whole parameter and forgets its Adam moments, which belong to the old values."""
    with torch.no_grad():
        parameter.copy_(value)
    for moment in MOMENTS:
        if moment in optimizer.state.get(parameter, {}):
            optimizer.state[parameter][moment].zero_()
