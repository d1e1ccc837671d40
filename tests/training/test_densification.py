"""Row surgery, the density statistics and the clone/split/prune rules, against closed forms."""

from __future__ import annotations

import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import RATES

from arguments import parse_train
from ops.types import RenderOut
from scene.gaussian_model import GaussianModel
from training.density_control import (
    CHILDREN,
    SHRINK,
    DensityControl,
    DensitySchedule,
    fixed_threshold,
    last_of_triangle,
)
from training.optimizers import GaussianOptimizer, log_linear
from training.row_surgery import gather_rows, overwrite
from training.sampler import ShuffledSampler
from training.setup import shown_densifications

SCHEDULE = DensitySchedule(
    densify_from_iter=0,
    densify_until_iter=100,
    densification_interval=10,
    opacity_reset_interval=50,
    percent_dense=0.01,
    white_background=False,
)


def make_model(count: int = 6, triangles: int | None = None) -> GaussianModel:
    g = torch.Generator().manual_seed(0)
    fields = {
        "xyz": torch.randn(count, 3, generator=g),
        "features_dc": torch.randn(count, 1, 3, generator=g),
        "features_rest": torch.randn(count, 3, 3, generator=g),
        "opacity": torch.full((count, 1), 0.5).logit(),
        "scaling": torch.full((count, 3), 0.001).log(),
        "rotation": torch.randn(count, 4, generator=g),
    }
    binding = None
    if triangles is not None:
        binding = torch.arange(count) % triangles
    model = GaussianModel(fields, sh_degree=1, binding=binding)
    if triangles is not None:
        model.flame = SimpleNamespace(faces=torch.zeros(triangles, 3, dtype=torch.int64))
    return model


def make_control(model: GaussianModel, threshold: float = 1.0, schedule: DensitySchedule = SCHEDULE):
    optimizer = GaussianOptimizer(model, extent=1.0, **RATES)
    for parameter in model.parameters().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # so that there are moments to move
    control = DensityControl(
        model, optimizer, schedule, fixed_threshold(threshold), extent=1.0, generator=torch.Generator().manual_seed(1)
    )
    return control, optimizer


def observe(control: DensityControl, gradient: list[float], radii: list[int]) -> None:
    means2d = torch.zeros(len(gradient), 2, requires_grad=True)
    means2d.grad = torch.tensor(gradient)[:, None] * torch.tensor([0.6, 0.8])
    control.observe(RenderOut(torch.empty(0), torch.empty(0), torch.tensor(radii, dtype=torch.int32), means2d))


def test_gather_moves_parameters_and_moments_together():
    model = make_model()
    _, optimizer = make_control(model)
    before = {name: p.detach().clone() for name, p in model.parameters().items()}
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.parameters().items()}
    source = torch.tensor([5, 0, 0])
    fresh = torch.tensor([False, False, True])
    alive = model(0)  # a graph on the old rows, which must not disturb the new ones
    model.replace_rows(
        gather_rows(model.parameters(), optimizer, source, fresh, {"xyz": torch.full((3, 3), 7.0)}), binding=None
    )
    for name, parameter in model.parameters().items():
        expected = torch.full((3, 3), 7.0) if name == "xyz" else before[name][source]
        assert torch.equal(parameter, expected)
        state = optimizer.state[parameter]["exp_avg"]
        assert torch.equal(state[:2], moments[name][source[:2]])
        assert torch.count_nonzero(state[2]) == 0
        assert parameter.grad is None
    sum(value.sum() for value in model(0)[0]).backward()
    before = model.xyz.detach().clone()
    optimizer.step()  # and the optimizer holds the new rows
    assert not torch.equal(model.xyz, before)
    del alive


def test_overwrite_forgets_the_moments():
    model = make_model()
    _, optimizer = make_control(model)
    overwrite(model.opacity, optimizer, torch.zeros(6, 1))
    assert torch.equal(model.opacity, torch.zeros(6, 1))
    assert torch.count_nonzero(optimizer.state[model.opacity]["exp_avg"]) == 0
    assert torch.count_nonzero(optimizer.state[model.xyz]["exp_avg"]) > 0


def test_statistic_is_the_mean_over_the_views_that_saw_it():
    control, _ = make_control(make_model(3))
    observe(control, [1.0, 0.0, 3.0], [4, 0, 9])
    observe(control, [2.0, 5.0, 0.0], [2, 1, 0])
    assert torch.allclose(control.gradient_sum / control.seen, torch.tensor([1.5, 5.0, 3.0]))
    assert control.max_radii.tolist() == [4, 1, 9]


def test_native_statistics_are_pytorchs(monkeypatch: pytest.MonkeyPatch):
    g = torch.Generator().manual_seed(4)
    controls = [make_control(make_model(1003))[0] for _ in range(2)]
    for _ in range(3):
        radii = torch.randint(-9, 30, (1003,), generator=g).clamp(min=0).tolist()
        gradient = [size * (radius > 0) for size, radius in zip(torch.rand(1003, generator=g).tolist(), radii)]
        for control, native in zip(controls, (True, False)):
            with monkeypatch.context() as patch:
                if not native:
                    patch.setattr("ops.kernels.available", lambda: False)
                observe(control, gradient, radii)
    native, pytorchs = controls
    assert torch.allclose(native.gradient_sum, pytorchs.gradient_sum, rtol=1e-6, atol=0)
    assert torch.equal(native.seen, pytorchs.seen) and torch.equal(native.max_radii, pytorchs.max_radii)
    with pytest.raises(ValueError, match="2 gradients and 2 radii for 1003"):
        observe(native, [1.0, 1.0], [1, 1])


@pytest.mark.parametrize("native", [True, False])
def test_radii_are_counted_in_pixels_of_the_full_image(native: bool, monkeypatch: pytest.MonkeyPatch):
    if not native:
        monkeypatch.setattr("ops.kernels.available", lambda: False)
    control, _ = make_control(make_model(5))
    means2d = torch.zeros(5, 2, requires_grad=True)
    means2d.grad = torch.ones(5, 2)
    for radii, scale in (([0, 1, 10, 11, 2], 0.5), ([0, 3, 15, 3, 2], 0.75), ([0, 1, 1, 1, 3], 1.0)):
        control.observe(
            RenderOut(torch.empty(0), torch.empty(0), torch.tensor(radii, dtype=torch.int32), means2d), scale
        )
    assert control.max_radii.tolist() == [0, 4, 20, 22, 4]
    assert control.seen.tolist() == [0, 3, 3, 3, 3]


def test_the_fixed_threshold_is_silent_and_says_what_it_used():
    control, _ = make_control(make_model(2), threshold=1.5)
    observe(control, [2.0, 1.0], [1, 1])
    report = control.step(10, control.model.scaling.exp())
    assert report.line == "" and report.cloned == 1
    assert report.clone_threshold == report.split_threshold == 1.5


def test_small_are_cloned_large_are_split():
    model = make_model(4)
    with torch.no_grad():
        model.scaling[1] = math.log(0.2)
        model.scaling[2] = math.log(0.2)
    control, _ = make_control(model)
    old = {name: p.detach().clone() for name, p in model.parameters().items()}
    observe(control, [2.0, 2.0, 0.1, 0.1], [1, 1, 1, 1])
    report = control.step(10, model.scaling.exp())
    assert (report.cloned, report.split, report.pruned, report.total) == (1, 1, 0, 6)
    # Survivors 0, 2, 3; the clone of 0; the two children of 1.
    assert torch.equal(model.xyz[:4], old["xyz"][[0, 2, 3, 0]])
    assert torch.allclose(model.scaling[4:], old["scaling"][[1, 1]] - math.log(SHRINK))
    assert torch.equal(model.rotation[4:], old["rotation"][[1, 1]])
    assert not torch.equal(model.xyz[4], model.xyz[5])
    assert len(control.seen) == 6 and control.seen.sum() == 0


def test_children_of_a_bound_gaussian_spread_in_triangle_units():
    """Defect 4: 4,000 children have the parent's standard deviation, in the units of its raw position."""
    model = make_model(2000, triangles=10)
    with torch.no_grad():
        model.xyz.zero_()
        model.scaling[:] = torch.tensor([0.5, 0.2, 0.1]).log()
        model.rotation[:] = torch.tensor([math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)])  # 90 degrees about z
    control, _ = make_control(model)
    with torch.no_grad():
        model.xyz.zero_()
        model.scaling[:] = torch.tensor([0.5, 0.2, 0.1]).log()
        model.rotation[:] = torch.tensor([math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)])
    observe(control, [2.0] * 2000, [1] * 2000)
    millimeters = model.scaling.exp() * 0.05  # what the rig would make of it on a small triangle
    report = control.step(10, millimeters)
    assert report.split == 2000
    spread = model.xyz.detach().std(dim=0)
    assert torch.allclose(spread, torch.tensor([0.2, 0.5, 0.1]), rtol=0.06)
    assert torch.equal(model.binding.bincount(minlength=10), torch.full((10,), 200 * CHILDREN))


def test_transparent_are_pruned_but_no_triangle_is_emptied():
    model = make_model(6, triangles=3)  # triangles 0 1 2 0 1 2
    control, _ = make_control(model)
    with torch.no_grad():
        model.opacity[:, 0] = torch.tensor([0.9, 0.001, 0.9, 0.001, 0.002, 0.9]).logit()
    observe(control, [0.0] * 6, [1] * 6)
    report = control.step(10, model.scaling.exp())
    assert report.pruned == 2
    assert sorted(model.binding.tolist()) == [0, 1, 2, 2]
    assert torch.isclose(model.opacity[model.binding == 1].sigmoid(), torch.tensor(0.002)).all()


@pytest.mark.parametrize("seed", range(20))
def test_last_of_triangle_spares_exactly_one(seed: int):
    g = torch.Generator().manual_seed(seed)
    binding = torch.randint(0, 7, (30,), generator=g)
    drop = torch.rand(30, generator=g) < 0.8
    opacity = torch.randint(0, 3, (30,), generator=g).float()  # with ties
    spared = last_of_triangle(drop, binding, opacity, 8)
    for triangle in range(8):
        members = [i for i in range(30) if binding[i] == triangle]
        kept = [i for i in members if not drop[i] or spared[i]]
        if members:
            assert kept
            if all(drop[i] for i in members):
                assert kept == [max(members, key=lambda i: (opacity[i].item(), -i))]
        assert all(drop[i] for i in members if spared[i])


def test_screen_size_pruning_sees_the_radii_of_clones():
    """Defect 5: large on screen and cloned in the same event; both must go, after the first opacity reset."""
    model = make_model(3)
    control, _ = make_control(model)
    observe(control, [2.0, 0.0, 0.0], [50, 50, 5])
    report = control.step(60, model.scaling.exp())
    assert (report.cloned, report.pruned, report.total) == (1, 3, 1)


def test_size_pruning_waits_for_the_first_reset():
    model = make_model(3)
    control, _ = make_control(model)
    observe(control, [0.0, 0.0, 0.0], [50, 50, 5])
    assert control.step(50, model.scaling.exp()).pruned == 0


def test_opacity_reset_caps_and_comes_when_due():
    schedule = dataclasses.replace(SCHEDULE, densify_from_iter=30, white_background=True)
    model = make_model(3)
    control, _ = make_control(model, schedule=schedule)
    assert [s for s in range(1, 121) if control.reset_due(s)] == [30, 50]
    assert [s for s in range(1, 121) if control.due(s)] == [40, 50, 60, 70, 80, 90]
    with torch.no_grad():
        model.opacity[:, 0] = torch.tensor([0.9, 0.5, 0.006]).logit()
    observe(control, [0.0] * 3, [1] * 3)
    control.step(50, model.scaling.exp())
    assert torch.allclose(model.opacity.sigmoid().squeeze(1), torch.tensor([0.01, 0.01, 0.006]))


def test_state_survives_a_round_trip():
    model = make_model(4)
    control, optimizer = make_control(model)
    observe(control, [2.0, 0.0, 1.0, 3.0], [1, 0, 5, 2])
    state = copy.deepcopy(control.state_dict())
    twin = DensityControl(model, optimizer, SCHEDULE, fixed_threshold(1.0), extent=1.0, generator=torch.Generator())
    twin.load_state_dict(state)
    assert torch.equal(twin.gradient_sum, control.gradient_sum)
    assert torch.equal(twin.max_radii, control.max_radii)
    assert torch.equal(torch.randn(5, generator=twin.generator), torch.randn(5, generator=control.generator))


def test_position_rate_is_log_linear():
    assert log_linear(0, 0.01, 0.0001, 100) == pytest.approx(0.01)
    assert log_linear(50, 0.01, 0.0001, 100) == pytest.approx(0.001)
    assert log_linear(500, 0.01, 0.0001, 100) == pytest.approx(0.0001)
    optimizer = GaussianOptimizer(make_model(), extent=2.0, **RATES)
    optimizer.set_step(100)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == pytest.approx(
        {"xyz": 0.0001, "features": 0.0025, "opacity": 0.05, "scaling": 0.017, "rotation": 0.001}
    )


def test_sampler_visits_each_view_once_per_pass_and_resumes():
    sampler = ShuffledSampler(7, seed=3)
    passes = [[sampler.next() for _ in range(7)] for _ in range(3)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert passes[0] != passes[1]
    [sampler.next() for _ in range(3)]
    state = copy.deepcopy(sampler.state_dict())
    expected = [sampler.next() for _ in range(20)]
    other = ShuffledSampler(7, seed=99)
    other.load_state_dict(state)
    assert [other.next() for _ in range(20)] == expected
    with pytest.raises(ValueError, match="7 views"):
        ShuffledSampler(8, seed=0).load_state_dict(state)


def test_twenty_densifications_are_shown_with_the_first_and_the_last() -> None:
    due = [step for step in range(1, 6001) if 500 < step < 5900 and step % 20 == 0]
    words = "-s a -m b --iterations 6000 --densify_from_iter 500 --densify_until_iter 5900 --densification_interval 20"
    shown = shown_densifications(parse_train(words.split()).optimization)
    assert len(shown) == 20 and shown < set(due) and {due[0], due[-1]} < shown
    gaps = np.diff(sorted(shown))
    assert gaps.max() - gaps.min() <= 20
    assert shown_densifications(parse_train("-s a -m b --iterations 9".split()).optimization) == set()
