"""Temporal consistency against its formula in float64, and who is whose neighbor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from innovations.temporal_consistency import TemporalConsistency, neighbors
from scene.flame.parameters import row_columns

COLUMNS = row_columns(5)
WIDTH = max(part.stop for part in COLUMNS.values())


def motion(count: int = 5) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, WIDTH))


def loss_of(values: np.ndarray, beside: dict[int, tuple[int | None, int | None]], row: int) -> tuple[float, np.ndarray]:
    """The term of a row with weight 1, and its gradient [T, D] with respect to all rows."""
    rows = torch.from_numpy(values)
    leaves = {t: rows[t].clone().requires_grad_() for t in range(len(values))}
    (term,) = TemporalConsistency(1.0, lambda t: leaves[t], rows, COLUMNS, beside)(row).values()
    if term.requires_grad:
        term.backward()
    return term.item(), np.stack([np.zeros(WIDTH) if x.grad is None else x.grad.numpy() for x in leaves.values()])


def by_hand(values: np.ndarray, beside: dict[int, tuple[int | None, int | None]], row: int) -> tuple[float, np.ndarray]:
    before, after = beside[row]
    total, gradient = 0.0, np.zeros_like(values)
    for part in COLUMNS.values():
        n = part.stop - part.start
        x = values[row, part]
        for other in (before, after):
            if other is not None:
                total += ((x - values[other, part]) ** 2).mean()
                gradient[row, part] += 2 * (x - values[other, part]) / n
        if before is not None and after is not None:
            second = values[after, part] - 2 * x + values[before, part]
            total += 0.5 * (second**2).mean()
            gradient[row, part] += -2 * second / n
    return total, gradient


@pytest.mark.parametrize("row", range(5))
def test_value_and_gradient(row: int) -> None:
    """First, inner and last of a sequence, one with a gap behind it, one alone: gradients reach the own row only."""
    values = motion()
    beside = {0: (None, 1), 1: (0, 2), 2: (1, None), 3: (None, None), 4: (None, None)}
    term, gradient = loss_of(values, beside, row)
    expected, slope = by_hand(values, beside, row)
    assert term == pytest.approx(expected, rel=1e-12) and (term > 0) == (row < 3)
    np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-15)
    step = 1e-6 * np.random.default_rng(row).normal(size=WIDTH)
    moved = [values.copy(), values.copy()]
    moved[0][row] += step
    moved[1][row] -= step
    ahead, behind = (loss_of(v, beside, row)[0] for v in moved)
    assert slope[row] @ step == pytest.approx((ahead - behind) / 2, rel=1e-6, abs=1e-15)


def test_the_rows_of_the_moment_are_compared() -> None:
    """The optimizer moves the rows in place."""
    values = torch.from_numpy(motion(2))
    temporal = TemporalConsistency(0.5, lambda t: values[t], values, COLUMNS, {0: (None, 1), 1: (0, None)})
    values[1] = values[0]
    assert temporal(0)["temporal"].item() == 0.0
    values[1, COLUMNS["jaw_pose"]] += 0.1
    assert temporal(0)["temporal"].item() == pytest.approx(0.5 * 0.01)


def test_neighbors() -> None:
    #            rows 0  1  2  3  4   5   6
    timesteps = [3, 4, 5, 7, 8, 9, 10]
    places = {0: {"a"}, 1: {"a", "b"}, 2: {"b"}, 3: {"b"}, 4: {"c"}, 6: {"c"}}
    assert neighbors(timesteps, places) == {
        0: (None, 1),
        1: (0, 2),  # a moment may have one folder for each camera
        2: (1, None),  # 6 is missing
        3: (None, None),  # 8 follows in number, but it is of another sequence
        4: (None, None),  # 9 is held out
        6: (None, None),
    }
