"""Mixed precision: true gradients with and without the scaler, and bad steps that leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from innovations.amp import MixedPrecision
from ops import kernels


class Rows:
    """An optimizer that is none of PyTorch's, as that of the FLAME rows."""

    def __init__(self, leaf: Tensor) -> None:
        self.leaf = leaf

    def gradients(self) -> list[Tensor]:
        return [self.leaf.grad]

    def step(self, iteration: int) -> None:
        with torch.no_grad():
            self.leaf -= 0.01 * self.leaf.grad


def problem() -> tuple[Tensor, Tensor, Tensor, torch.optim.Adam]:
    """Parameters of an Adam and of rows, a statistic, and the Adam."""
    parameter, row, statistic = (torch.full((3,), value, requires_grad=True) for value in (1.0, 2.0, 3.0))
    return parameter, row, statistic, torch.optim.Adam([parameter], lr=0.1, fused=True)


@pytest.mark.parametrize("enabled, scaled", [(False, False), (True, False), (True, True)])
def test_gradients_and_steps_are_the_plain_ones(enabled: bool, scaled: bool) -> None:
    """d(5 p r s) in closed form; Adam's first step is its rate, whatever the scaler did."""
    amp = MixedPrecision(enabled, "cpu", scaled=scaled)
    parameter, row, statistic, adam = problem()
    rows = Rows(row)
    amp.backward([(5 * parameter * row * statistic).sum()], [statistic], [adam, rows])
    torch.testing.assert_close(parameter.grad, torch.full((3,), 30.0))
    torch.testing.assert_close(row.grad, torch.full((3,), 15.0))
    torch.testing.assert_close(statistic.grad, torch.full((3,), 10.0))
    amp.step(adam, 1)
    amp.step(rows, 1)
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.9))
    torch.testing.assert_close(row.detach(), torch.full((3,), 1.85))
    assert not amp.bad


@pytest.mark.parametrize("native_check", [False, True])
@pytest.mark.parametrize("size", [3, 70_001])
def test_one_bad_number_is_found_wherever_it_is(native_check: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last element of the last tensor too; large numbers are not bad, unless their squares overflow."""
    if not native_check:
        monkeypatch.setattr(kernels, "available", lambda: False)
    elif not kernels.available():
        pytest.skip("no native library here")
    leaves = [torch.zeros(size, requires_grad=True) for _ in range(2)]
    adam = torch.optim.Adam(leaves, fused=True)
    for place in (0, size // 2, size - 1):
        for value in (torch.nan, torch.inf, -torch.inf, 3e19, -3e38, 1e19):
            factor = torch.full((size,), 1e19)
            factor[place] = value
            amp, statistic = MixedPrecision(False, "cpu"), torch.ones(1, requires_grad=True)
            adam.zero_grad()
            leaves[0].grad, leaves[1].grad = torch.full((size,), -1e19), factor
            amp.backward([statistic.sum()], [statistic], [adam])
            assert amp.bad == (value != 1e19)


@pytest.mark.parametrize("enabled, scaled", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_step_changes_nothing(enabled: bool, scaled: bool, where: int, value: float) -> None:
    """A gradient that is not finite in any one place, or only the loss: nothing moves, not even Adam's moments."""
    amp = MixedPrecision(enabled, "cpu", scaled=scaled)
    parameter, row, statistic, adam = problem()
    rows, tensors = Rows(row), (parameter, row, statistic)

    def iterate(factor: Tensor) -> None:
        for tensor in tensors:
            tensor.grad = None
        total = sum((tensor * (factor if i == where else 1.0)).sum() for i, tensor in enumerate(tensors))
        amp.backward([total + (factor.sum() if where == 3 else 0.0)], [statistic], [adam, rows])
        amp.step(adam, 1)
        amp.step(rows, 1)

    iterate(torch.ones(3))
    before = [tensor.detach().clone() for tensor in tensors]
    state = {name: tensor.clone() for name, tensor in adam.state[parameter].items()}
    iterate(torch.tensor([1.0, value, 1.0]))
    assert amp.bad
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before))
    assert all(torch.equal(adam.state[parameter][name], old) for name, old in state.items())
    assert torch.equal(statistic.grad, torch.zeros(3))
    iterate(torch.ones(3))
    assert not amp.bad
    assert not torch.equal(parameter, before[0]) and not torch.equal(row, before[1])


def test_the_scale_falls_after_a_bad_step_and_survives_a_checkpoint() -> None:
    amp = MixedPrecision(True, "cpu", scaled=True)
    parameter, row, statistic, adam = problem()
    first = amp.scaler.get_scale()
    amp.backward([(parameter * torch.inf).sum() + statistic.sum()], [statistic], [adam])
    assert amp.scaler.get_scale() == first / 2
    other = MixedPrecision(True, "cpu", scaled=True)
    other.load_state_dict(amp.state_dict())
    assert other.scaler.get_scale() == first / 2


def test_off_casts_nothing() -> None:
    with MixedPrecision(False, "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.cuda
def test_cuda_autocast_and_scaler() -> None:
    amp = MixedPrecision(True, "cuda")
    weight = torch.full((4, 4), 1e-4, device="cuda", requires_grad=True)
    statistic = torch.ones(4, device="cuda", requires_grad=True)
    adam = torch.optim.Adam([weight], fused=True)
    with amp.autocast():
        product = weight @ torch.ones(4, 4, device="cuda")
    assert product.dtype == torch.float16
    # Gradients of 1e-9 are zero in half precision unless they are scaled.
    amp.backward([product.float().sum() * 1e-9 + statistic.sum()], [statistic], [adam])
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 4e-9), rtol=1e-2, atol=0)
    torch.testing.assert_close(statistic.grad, torch.ones_like(statistic))


@pytest.mark.cuda
def test_cuda_without_the_scaler_skips_bad_steps_too() -> None:
    amp = MixedPrecision(False, "cuda")
    weight = torch.ones(4, device="cuda", requires_grad=True)
    statistic = torch.ones(4, device="cuda", requires_grad=True)
    adam = torch.optim.Adam([weight], lr=0.1, fused=True)
    for factor in (1.0, torch.nan):
        weight.grad = statistic.grad = None
        amp.backward([(weight * factor).sum() + statistic.sum()], [statistic], [adam])
        amp.step(adam, 1)
        assert amp.bad.device.type == "cuda" and bool(amp.bad) == (factor != 1.0)
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.9))
    assert adam.state[weight]["step"].item() == 1 and not statistic.grad.any()
