"""A loss on how the head moves: the fine-tuned FLAME parameters of neighboring timesteps are held together.

One of the costly flags that the efficient presets came to replace. Each timestep is tracked, and fine-tuned, on its
own, which leaves a tremor that no photograph asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def neighbors(timesteps: Sequence[int], places: Mapping[int, set[str]]) -> dict[int, tuple[int | None, int | None]]:
    """Row -> the rows of the moments just before and after it, None where none was captured.

    Args:
        timesteps: [T] the number of each row in the capture, ascending.
        places: row -> where its photographs are, for the rows that are trained on. Merged captures count their
            timesteps through, and their sequences show in the folders.
    """

    def joined(row: int, other: int) -> int | None:
        adjacent = 0 <= other < len(timesteps) and abs(timesteps[row] - timesteps[other]) == 1
        return other if adjacent and places[row] & places.get(other, set()) else None

    return {row: (joined(row, row - 1), joined(row, row + 1)) for row in places}


class TemporalConsistency:
    """For the row x of a view's timestep, with b before and a after it:

        m(x - b) + m(a - x) + m(a - 2x + b) / 2

    with m the mean square over the values of a parameter, added up over expression, rotation, neck, jaw, eyes and
    translation. What lies beyond the end of a sequence is left out. Gradients reach x alone: the others have their
    turn.
    """

    def __init__(
        self,
        weight: float,
        row: Callable[[int], Tensor],  # timestep -> [D] its parameters, an autograd leaf
        values: Tensor,  # [T, D] those of all timesteps, as they are at the moment
        columns: Mapping[str, slice],  # of each parameter in a row
        neighbors: Mapping[int, tuple[int | None, int | None]],  # of `neighbors`
    ) -> None:
        self.weight, self.row, self.values, self.neighbors = weight, row, values, neighbors
        # Of each value, so that a sum over the row is a sum of means.
        self.shares = torch.empty_like(values[0])
        for part in columns.values():
            self.shares[part] = 1.0 / (part.stop - part.start)

    def __call__(self, timestep: int) -> dict[str, Tensor]:
        """The term of the loss."""
        x = self.row(timestep)
        before, after = (None if row is None else self.values[row].detach() for row in self.neighbors[timestep])
        differences = [x - other for other in (before, after) if other is not None]
        squares = [difference.square() for difference in differences]
        if len(differences) == 2:
            squares.append((differences[0] + differences[1]).square() / 2)
        total = torch.stack(squares).sum(dim=0) @ self.shares if squares else x.new_zeros(())
        return {"temporal": self.weight * total}


class NoTemporalConsistency:
    """Switched off: no term."""

    def __call__(self, timestep: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}


NO_TEMPORAL_CONSISTENCY = NoTemporalConsistency()
