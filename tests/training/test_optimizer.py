"""The native Adam against `torch.optim.Adam` in float64, and what both share: state, files, schedules."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from command_line import RATES
from torch import Tensor
from torch.nn import Parameter

from ops import kernels
from ops.adam import Adam
from scene.gaussian_model import GaussianModel
from training.optimizers import GaussianOptimizer

SHAPES = [(1,), (16,), (5, 3), (37, 4), (701, 4, 3), (2100, 1)]  # below, at and above sixteen and a thread's block

needs_native = pytest.mark.skipif(not kernels.available(), reason="needs a C++ compiler")


def parameters(seed: int = 0) -> list[Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def gradients(shapes: list[tuple[int, ...]], steps: int, size: float = 1e-6) -> Iterator[list[Tensor]]:
    """Random ones of about `size`, as those of a mean over all pixels; a third of the elements are 0."""
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [size * torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 2 / 3) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, steps: Iterator[list[Tensor]]) -> list[Tensor]:
    """Puts the gradients of each step in place, in the parameters' type, and returns the parameters."""
    values = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in steps:
        for value, gradient in zip(values, step, strict=True):
            value.grad = gradient.to(value.dtype)
        optimizer.step()
    return [value.detach() for value in values]


def exact(start: list[Parameter], rates: list[float], eps: float = 1e-15) -> torch.optim.Adam:
    return torch.optim.Adam(
        [{"params": [Parameter(p.detach().double())], "lr": rate} for p, rate in zip(start, rates, strict=True)],
        eps=eps,
    )


def ours(start: list[Parameter], rates: list[float], eps: float = 1e-15) -> Adam:
    return Adam(
        [{"params": [Parameter(p.detach().clone())], "lr": rate} for p, rate in zip(start, rates, strict=True)], eps=eps
    )


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the native kernel must not pass because PyTorch's did the work."""

    def refuse(*_: object) -> None:
        raise AssertionError("fell back to PyTorch")

    monkeypatch.setattr(torch.optim.Adam, "step", refuse)


@needs_native
def test_follows_the_exact_adam_over_many_steps():
    torch.set_num_threads(1)
    start, rates = parameters(), [0.001, 0.01, 0.05, 0.002, 0.017, 0.0025]
    expected = run(exact(start, rates), gradients(SHAPES, 200))
    optimizer = ours(start, rates)
    for value, wanted, rate in zip(run(optimizer, gradients(SHAPES, 200)), expected, rates):
        # Rounding: half a unit of the parameter, and a millionth of the way, in each of 200 steps.
        assert (value - wanted).abs().max() < 200 * (wanted.abs().max() * 6e-8 + 1e-6 * rate)
        assert (value - wanted).abs().max() < 0.01 * rate


@needs_native
def test_native_is_what_runs(no_fallback: None):
    before = parameters()
    after = run(ours(before, [0.1] * len(SHAPES)), gradients(SHAPES, 1))
    assert not torch.equal(before[0].detach(), after[0])


@needs_native
def test_elements_without_gradient_stay_and_tiny_ones_stay_finite():
    size = torch.tensor([0.0, 1e-45, 1e-40, 1e-30, 1e-20, 1e-15, 1e-10, 1.0, 1e18, -1e-30, -1e-15, -1.0])
    value = Parameter(torch.ones(len(size)))
    optimizer = Adam([{"params": [value], "lr": 0.01}], eps=1e-15)
    run(optimizer, iter([[size]] * 50))
    double = Parameter(torch.ones(len(size), dtype=torch.float64))
    expected = run(torch.optim.Adam([double], lr=0.01, eps=1e-15), iter([[size]] * 50))[0]
    assert value[0] == 1.0
    assert (value - expected).abs().max() < 50 * 6e-8  # half a unit of a number near 1, in each step


@needs_native
def test_moments_of_what_is_never_seen_again_reach_zero(no_fallback: None):
    """They would otherwise stay denormal for ever, where the processor is slow."""
    torch.set_num_threads(1)
    value = Parameter(torch.ones(40))
    optimizer = Adam([{"params": [value], "lr": 0.01}], eps=1e-15)
    run(optimizer, iter([[torch.full((40,), 1e-6)]]))
    moments = []
    for _ in range(900):
        run(optimizer, iter([[torch.zeros(40)]]))
        moments.append(optimizer.state[value]["exp_avg"][0].item())
    smallest = torch.finfo(torch.float32).tiny
    assert all(moment == 0.0 or moment >= smallest for moment in moments)
    assert moments[0] > 0.0 and moments[-1] == 0.0


@needs_native
def test_nan_shows(no_fallback: None):
    value = Parameter(torch.ones(20))
    optimizer = Adam([{"params": [value], "lr": 0.01}], eps=1e-15)
    gradient = torch.ones(20)
    gradient[3] = torch.nan
    assert run(optimizer, iter([[gradient]]))[0].isnan().nonzero().flatten().tolist() == [3]


@needs_native
def test_same_bits_with_any_number_of_threads(no_fallback: None):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)  # conftest.py sets it back
        optimizer = ours(parameters(), [0.01] * len(SHAPES))
        results.append(
            [
                *run(optimizer, gradients(SHAPES, 20)),
                *(state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_native
def test_parameters_without_gradient_rest(no_fallback: None):
    moving, resting = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    optimizer = Adam([{"params": [moving, resting], "lr": 0.1}], eps=1e-15)
    moving.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(resting, torch.ones(4)) and resting not in optimizer.state
    assert torch.allclose(moving, torch.full((4,), 0.9))
    optimizer.zero_grad()
    optimizer.step()  # and nothing at all is no mistake
    assert optimizer.state[moving]["step"] == 1


@pytest.mark.parametrize("available", [pytest.param(True, marks=needs_native), False])
def test_factors_are_rates_of_columns(monkeypatch: pytest.MonkeyPatch, available: bool):
    monkeypatch.setattr(kernels, "available", lambda: available)
    start = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(2))
    factors = [1.0, 1.0, 1.0] + [0.05] * 8 + [0.0]
    together = Adam([{"params": [Parameter(start.clone())], "lr": 0.01, "factors": torch.tensor(factors)}], eps=1e-15)
    columns = exact([Parameter(start.view(50, 12)[:, i]) for i in range(12)], [0.01 * f for f in factors])
    steps = list(gradients([(50, 4, 3)], 60))
    value = run(together, iter(steps))[0].view(50, 12)
    expected = torch.stack(run(columns, ([g for g in step[0].view(50, 12).unbind(1)] for step in steps)), dim=1)
    assert (value - expected).abs().max() < 5e-6
    assert torch.equal(value[:, 11], start.view(50, 12)[:, 11])


@needs_native
@pytest.mark.parametrize("first, second", [(True, False), (False, True), (True, True)])
def test_state_is_pytorchs_and_survives_a_file(monkeypatch: pytest.MonkeyPatch, first: bool, second: bool):
    """Half of the steps with one kernel, half with the other (after a change of device, say)."""
    start, rates, steps = parameters(), [0.01] * len(SHAPES), list(gradients(SHAPES, 40))
    expected = run(exact(start, rates), iter(steps))
    monkeypatch.setattr(kernels, "available", lambda: first)
    optimizer = ours(start, rates)
    halfway = run(optimizer, iter(steps[:20]))
    state = copy.deepcopy(optimizer.state_dict())
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"} and state["state"][0]["step"] == 20
    monkeypatch.setattr(kernels, "available", lambda: second)
    resumed = ours([Parameter(value) for value in halfway], rates)
    resumed.load_state_dict(state)
    for value, wanted in zip(run(resumed, iter(steps[20:])), expected):
        assert (value - wanted).abs().max() < 1e-5
    plain = torch.optim.Adam([Parameter(value.clone()) for value in halfway], fused=True)
    plain.load_state_dict({**state, "param_groups": plain.state_dict()["param_groups"]})
    assert torch.equal(plain.state[plain.param_groups[0]["params"][0]]["exp_avg"], state["state"][0]["exp_avg"])


def test_state_of_another_size_is_refused():
    """The native kernel would read past its end."""
    optimizer = ours([Parameter(torch.ones(6, 3))], [0.01])
    run(optimizer, gradients([(6, 3)], 1))
    for name, value in (("exp_avg", torch.zeros(2, 3)), ("exp_avg_sq", torch.zeros(18)), ("step", torch.zeros(0))):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0][name] = value
        with pytest.raises(ValueError, match=f"{name} has shape"):
            ours([Parameter(torch.ones(6, 3))], [0.01]).load_state_dict(state)


def test_other_types_and_layouts_fall_back():
    for value in (torch.ones(6, dtype=torch.float64), torch.ones(3, 2).T):
        parameter = Parameter(value)
        run(Adam([{"params": [parameter], "lr": 0.1}], eps=1e-15), iter([[torch.ones_like(value)]]))
        assert torch.allclose(parameter.double(), torch.full_like(value, 0.9, dtype=torch.float64))


@pytest.mark.parametrize("available", [pytest.param(True, marks=needs_native), False])
def test_a_closure_and_a_gradient_scaler_are_served(monkeypatch: pytest.MonkeyPatch, available: bool):
    monkeypatch.setattr(kernels, "available", lambda: available)
    value = Parameter(torch.ones(2, 2))
    optimizer = Adam([{"params": [value], "lr": 0.1, "factors": torch.tensor([1.0, 0.5])}], eps=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0
    assert torch.allclose(value, torch.tensor([0.9, 0.95]).expand(2, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor, moves in ((1.0, True), (torch.inf, False)):  # an overflow skips the step
        before = value.detach().clone()
        optimizer.zero_grad()
        scaler.scale((factor * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(value, before) != moves and value.isfinite().all()


@pytest.mark.parametrize("degree, count", [(0, 4), (0, 0), (1, 4), (3, 4)])
def test_view_dependent_color_learns_twenty_times_slower(degree: int, count: int):
    bases = (degree + 1) ** 2
    model = GaussianModel(
        {
            "xyz": torch.zeros(count, 3),
            "features_dc": torch.zeros(count, 1, 3),
            "features_rest": torch.zeros(count, bases - 1, 3),
            "opacity": torch.zeros(count, 1),
            "scaling": torch.zeros(count, 3),
            "rotation": torch.zeros(count, 4),
        },
        sh_degree=degree,
    )
    optimizer = GaussianOptimizer(model, extent=2.0, **RATES)
    optimizer.set_step(0)
    for parameter in model.parameters().values():
        parameter.grad = torch.full_like(parameter, -1e-5)
    optimizer.step()  # the first step of an Adam is one learning rate long
    fields = model.fields()
    assert fields["features_rest"].shape == (count, bases - 1, 3)
    rates = {
        "xyz": 0.01,
        "features_dc": 0.0025,
        "features_rest": 0.000125,
        "opacity": 0.05,
        "scaling": 0.017,
        "rotation": 0.001,
    }
    for name, rate in rates.items():
        assert torch.allclose(fields[name], torch.full_like(fields[name], rate))
