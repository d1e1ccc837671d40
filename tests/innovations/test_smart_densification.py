"""Percentile densification: thresholds against NumPy, budget, ties, floors, and a simulated density control."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import RATES

from innovations.smart_densification import SmartDensification, percentiles, strongest
from ops.types import Candidates, RenderOut
from scene.gaussian_model import GaussianModel
from training.density_control import DensityControl, DensitySchedule
from training.optimizers import GaussianOptimizer

PLAN = dict(until_iter=1000, interval=10)
SETTINGS = dict(
    percentile_clone=75.0,
    percentile_split=90.0,
    max_gaussians=150_000,
    floor_share=1.0,
    absolute=True,
    split_radius=4.0,
)


def policy(**options) -> SmartDensification:
    return SmartDensification(**{"gradient_threshold": 1e-9, **PLAN, **SETTINGS, **options})


def candidates(statistic: torch.Tensor, large: torch.Tensor | None = None, radii: float = 1.0) -> Candidates:
    large = torch.zeros(len(statistic), dtype=torch.bool) if large is None else large
    return Candidates(statistic, statistic > 0, large, torch.full_like(statistic, radii))


# ---- the policy -----------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_percentiles_are_numpys(count: int):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    wanted = (0.0, 12.5, 75.0, 90.0, 100.0)
    expected = np.percentile(values.double().numpy(), wanted)
    assert percentiles(values, wanted) == pytest.approx(expected.tolist(), rel=1e-9)
    assert percentiles(values[:0], wanted) == [0.0] * 5


def test_thresholds_are_percentiles_of_the_non_zero_statistic():
    g = torch.Generator().manual_seed(1)
    statistic = torch.rand(4000, generator=g) * (torch.rand(4000, generator=g) < 0.6)
    large = torch.rand(4000, generator=g) < 0.3
    selected = policy(max_gaussians=0)(10, candidates(statistic, large))
    values = statistic.numpy()
    clone, split = np.percentile(values[values > 0], [75, 90])
    assert (selected.clone_threshold, selected.split_threshold) == (pytest.approx(clone), pytest.approx(split))
    np.testing.assert_array_equal(selected.clone.numpy(), (values >= clone) & ~large.numpy())
    np.testing.assert_array_equal(selected.split.numpy(), (values >= split) & large.numpy())


def test_the_unseen_and_the_broken_are_left_alone():
    statistic = torch.tensor([math.nan, math.inf, 5.0, 4.0, 0.0])
    seen = torch.tensor([True, True, False, True, True])
    selected = policy(percentile_clone=0, percentile_split=0)(
        10, Candidates(statistic, seen, torch.zeros(5, dtype=torch.bool), torch.ones(5))
    )
    assert selected.clone.tolist() == [False, False, False, True, False]
    assert selected.clone_threshold == 4.0


def test_large_on_screen_is_split_instead_of_cloned():
    statistic = torch.full((4,), 2.0)
    given = Candidates(
        statistic, statistic > 0, torch.tensor([False, False, True, False]), torch.tensor([3.0, 8.0, 3.0, 9.0])
    )
    selected = policy(split_radius=8.0)(10, given)
    assert selected.clone.tolist() == [True, True, False, False]
    assert selected.split.tolist() == [False, False, True, True]
    assert policy(split_radius=math.inf)(10, given).split.tolist() == [False, False, True, False]


def test_a_converged_model_stops_growing():
    statistic = torch.linspace(1e-6, 9.9e-4, 1000)
    selected = policy(gradient_threshold=1e-3, floor_share=1.0, absolute=False)(10, candidates(statistic))
    assert not selected.clone.any() and not selected.split.any()
    assert selected.clone_threshold == selected.split_threshold == 1e-3
    assert policy(gradient_threshold=1e-3, floor_share=0.5, absolute=False)(10, candidates(statistic)).clone.any()
    # Absolute gradients are larger: the same capture then has statistics three times as high.
    assert not policy(gradient_threshold=1e-3, floor_share=1.0)(10, candidates(3 * statistic)).clone.any()


def test_the_strongest_win_and_the_first_of_equals():
    statistic = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0, 9.0, 2.0])
    wanted = torch.tensor([True, True, True, True, True, False, True])
    for room, expected in ((0, []), (1, [1]), (2, [1, 3]), (4, [1, 2, 3, 4]), (9, [0, 1, 2, 3, 4, 6])):
        assert torch.nonzero(strongest(statistic, wanted, room)).squeeze(1).tolist() == expected
    level = torch.ones(50_000)
    chosen = strongest(level, torch.ones(50_000, dtype=torch.bool), 777)
    assert chosen[:777].all() and not chosen[777:].any()


def test_clones_and_splits_share_the_room():
    statistic = torch.tensor([1.0, 5.0, 4.0, 2.0, 3.0])
    large = torch.tensor([False, True, False, True, False])
    tight = policy(percentile_clone=0, percentile_split=0, max_gaussians=8, until_iter=20)
    selected = tight(10, candidates(statistic, large))  # the last densification: all the room is given, 8 - 5
    assert torch.nonzero(selected.clone).squeeze(1).tolist() == [2, 4]
    assert torch.nonzero(selected.split).squeeze(1).tolist() == [1]


@pytest.mark.parametrize("start, budget", [(1000, 5000), (1000, 1003), (1000, 1000), (1000, 400), (10_000, 150_000)])
def test_growth_is_smooth_and_ends_at_the_budget(start: int, budget: int):
    rule = policy(max_gaussians=budget)
    counts = [start]
    steps = range(10, 1000, 10)
    for step in steps:
        counts.append(counts[-1] + rule.room(step, counts[-1]))
    added = np.diff(counts)
    assert max(counts) == max(start, budget) == counts[-1]
    assert (added >= 0).all()
    assert added.max() <= max(0, budget - start) * 3.1 / len(steps) + 1  # no jump
    for step, count in zip(steps, counts[1:]):
        left = 1 - step / 990
        assert abs(count - (budget - (budget - start) * left**3)) <= len(steps) or budget < start


# ---- in the density control -------------------------------------------------------


def simulate(budget: int, steps: range, *, triangles: int = 40, seed: int = 0):
    """A bound model under random gradients, opacities and radii; the reports of all densifications and the model."""
    g = torch.Generator().manual_seed(seed)
    model = GaussianModel(
        {
            "xyz": torch.randn(triangles, 3, generator=g),
            "features_dc": torch.zeros(triangles, 1, 3),
            "features_rest": torch.zeros(triangles, 0, 3),
            "opacity": torch.zeros(triangles, 1),
            "scaling": torch.full((triangles, 3), -6.0),
            "rotation": torch.randn(triangles, 4, generator=g),
        },
        sh_degree=0,
        binding=torch.arange(triangles),
    )
    model.flame = SimpleNamespace(faces=torch.zeros(triangles, 3, dtype=torch.int64))
    optimizer = GaussianOptimizer(model, extent=1.0, **{**RATES, "position_lr_final": 0.0005})
    control = DensityControl(
        model,
        optimizer,
        DensitySchedule(0, 1000, 10, 300, 0.01, False),
        policy(max_gaussians=budget),
        extent=1.0,
        generator=torch.Generator().manual_seed(1),
    )
    reports = []
    for step in steps:
        count = len(model)
        means2d = torch.zeros(count, 2, requires_grad=True)
        means2d.grad = torch.rand(count, 2, generator=g)
        radii = torch.randint(0, 22, (count,), generator=g, dtype=torch.int32)
        with torch.no_grad():
            model.opacity.copy_(torch.randn(count, 1, generator=g) * 3 - 1)
        control.observe(RenderOut(torch.empty(0), torch.empty(0), radii, means2d))
        reports.append(control.step(step, model.scaling.detach().exp()))
        assert reports[-1].total == len(model) <= max(budget, triangles)
        assert model.binding.bincount(minlength=triangles).min() >= 1  # no triangle is ever emptied
    return reports, model


@pytest.mark.parametrize("budget", [400, 41, 10])
def test_the_budget_is_never_exceeded_and_no_triangle_emptied(budget: int):
    reports, model = simulate(budget, range(10, 1000, 10))
    for report in reports:
        # Before the pruning, too: what exists at any time is what memory has to hold.
        assert report.total + report.pruned <= max(budget, 40)
    if budget == 400:
        assert sum(r.pruned for r in reports) > 0
        assert sum(r.split for r in reports) > 0 and sum(r.cloned for r in reports) > 0
        assert len(model) > 200
    else:
        assert len(model) <= 41


def test_the_same_run_twice_is_the_same():
    (first, one), (second, two) = simulate(300, range(10, 500, 10)), simulate(300, range(10, 500, 10))
    assert first == second and torch.equal(one.xyz, two.xyz) and torch.equal(one.binding, two.binding)


def test_every_densification_is_told():
    report = simulate(400, range(10, 30, 10))[0][-1]
    assert re.fullmatch(
        r"\[Smart Densification\] Clone threshold: [\d.e-]+ Split threshold: [\d.e-]+ "
        r"\(cloned \d+, split \d+, pruned \d+, total \d+\)",
        report.line,
    )
    assert report.scalars == {
        "points/cloned": report.cloned,
        "points/split": report.split,
        "points/pruned": report.pruned,
        "densify/clone_threshold": report.clone_threshold,
        "densify/split_threshold": report.split_threshold,
    }
