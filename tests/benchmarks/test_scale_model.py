"""The simulation of many machines against what can be known of it without one."""

from __future__ import annotations

import pytest

from benchmarks.scale_model import Farm, daly, expected_overhead, simulate, step_time, young

FARM = Farm(subjects=50, machines=4, work=7200.0, mtbf=36_000.0, save=2.0, restart=60.0)


def test_without_failures_it_is_arithmetic() -> None:
    quiet = FARM._replace(mtbf=1e15)
    done = simulate(quiet, 600.0, seed=0)
    assert done.failures == 0
    assert done.busy == pytest.approx(50 * (7200 + 12 * 2))
    assert done.makespan == pytest.approx(13 * (7200 + 12 * 2))  # 50 subjects in 13 rounds of 4


def test_failures_cost_what_the_formula_says() -> None:
    for interval in (60.0, 600.0, 3600.0):
        runs = [simulate(FARM, interval, seed) for seed in range(40)]
        lost = sum(run.busy for run in runs) / (40 * 50 * FARM.work) - 1
        assert lost == pytest.approx(expected_overhead(FARM, interval), rel=0.15, abs=0.002)


def test_the_best_interval_is_where_the_formula_is_lowest() -> None:
    best = min(range(10, 3600, 10), key=lambda interval: expected_overhead(FARM, float(interval)))
    assert daly(FARM.save, FARM.mtbf) == pytest.approx(best, rel=0.05)
    assert young(FARM.save, FARM.mtbf) == pytest.approx(best, rel=0.05)


def test_processes_help_as_far_as_the_link_does() -> None:
    assert step_time(0.08, 1, 10**5, 1.0, 1e-4) == 0.08
    assert step_time(0.08, 4, 10**5, 1e9, 0.0) == pytest.approx(0.02)
    slow = step_time(0.08, 2, 10**5, 0.1, 0.0)
    assert slow == pytest.approx(0.04 + 4 * 62 * 10**5 / 1e8)  # a ring of two sends the message once
