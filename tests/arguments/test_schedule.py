"""The shortened schedule, and the iterations that evaluate and save."""

from __future__ import annotations

import dataclasses

import pytest
from command_line import DEFAULTS, train

from arguments import milestones, scale_schedule


def test_a_short_run_is_a_small_copy_of_the_long_one() -> None:
    options = train("--iterations 6000 --scale_schedule")
    scaled = dict(
        position_lr_max_steps=6000,
        sh_increase_interval=10,
        densify_from_iter=100,
        densify_until_iter=6000,
        densification_interval=20,
        opacity_reset_interval=600,
    )
    assert dataclasses.asdict(options.optimization) == {**DEFAULTS, "iterations": 6000, **scaled}
    assert options.run.interval == 600
    assert options.innovations.resolution_milestones == (1000, 3000)


def test_without_the_flag_nothing_scales() -> None:
    options = train("--iterations 6000")
    assert dataclasses.asdict(options.optimization) == {**DEFAULTS, "iterations": 6000}
    assert options.run.interval == 60_000


def test_full_length_is_unchanged_by_scaling() -> None:
    assert scale_schedule(train()) == train()


def test_typed_values_are_not_scaled() -> None:
    options = train(
        "--iterations 6000 --scale_schedule --densify_from_iter 500 --interval 1000 --test_iterations 50 "
        "--densification_interval 2000 --debug_from 4000"
    )
    assert (options.optimization.densify_from_iter, options.optimization.densification_interval) == (500, 2000)
    assert (options.run.interval, options.run.test_iterations, options.run.debug_from) == (1000, (50,), 4000)
    assert options.optimization.densify_until_iter == 6000  # not typed
    options = train("--iterations 6000 --scale_schedule --preset balanced --resolution_milestones 100,5000")
    assert options.innovations.resolution_milestones == (100, 5000)
    assert options.optimization.densify_until_iter == 6000


@pytest.mark.parametrize("iterations", [1, 7, 60, 600])
def test_tiny_runs_keep_usable_intervals(iterations: int) -> None:
    options = train(f"--iterations {iterations} --scale_schedule")
    assert options.optimization.densification_interval == 10
    assert options.optimization.opacity_reset_interval == 100
    assert options.optimization.sh_increase_interval == 1
    assert options.run.interval == 100
    first, second = options.innovations.resolution_milestones
    assert 1 <= first < second <= max(2, (iterations + 1) // 2)


@pytest.mark.parametrize("iterations, interval", [(30_000, 60_000), (30_001, 1000), (600, 600), (1, 60_000)])
def test_multiples_up_to_the_actual_length_and_always_the_last(iterations: int, interval: int) -> None:
    due = milestones(train(f"--iterations {iterations} --interval {interval}"))
    expected = {*range(interval, iterations + 1, interval), iterations}
    early = {iterations // 100} - {0}  # a first evaluation at 1 %, whatever the interval
    for moments, wanted in zip(due, (expected | early, expected, expected)):
        found = [step for step in range(1, iterations + 1) if moments(step)]
        assert found == sorted(wanted)
        assert (
            [moments.after(step) for step in range(iterations)]
            == [next(later for later in found if later > step) for step in range(iterations)]
            if iterations <= 600
            else moments.after(0) == found[0]
        )


def test_lists_replace_the_interval_for_their_kind_only() -> None:
    test, save, checkpoint = milestones(
        train("--iterations 6000 --interval 2500 --test_iterations 7000 30000 100 --save_iterations 5")
    )
    assert [s for s in range(1, 6001) if test(s)] == [100, 6000]  # 7000 and 30000 never come
    assert [s for s in range(1, 6001) if save(s)] == [5, 6000]
    assert [s for s in range(1, 6001) if checkpoint(s)] == [2500, 5000, 6000]
