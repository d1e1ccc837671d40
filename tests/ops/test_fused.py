"""The operations in Triton against their twins in float64: on a GPU compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_head import toy_head
from watching import NoWaiting, watch_training

from innovations import amp
from ops import adam, density, flame, fused, kernels, losses, rig
from ops.finite import not_finite_flag
from scene.flame import Flame

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
pytest.importorskip("triton", reason="Triton is not installed; it comes with PyTorch's GPU wheels and for Linux only")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy, where a kernel makes NaN

OPERATIONS: dict[str, Any] = {"adam": adam, "density": density, "flame": flame, "losses": losses, "rig": rig}


def module(name: str) -> Any:
    return importlib.import_module(f"ops.triton_kernels.{name}")


@pytest.fixture
def in_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Everything that can takes Triton's kernels, and no pass of theirs is remembered; returns that memory's folder."""
    monkeypatch.setenv("NATIVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "usable", lambda *tensors, **conditions: False)
    monkeypatch.setattr(fused, "runs_on", lambda device: True)
    for remembered in (fused._trusted, fused._missing, fused._say):
        monkeypatch.setattr(fused, remembered.__name__, fused.functools.cache(remembered.__wrapped__))
    return tmp_path / "cache"


# ---- each against its twin ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_is_its_twin(name: str) -> None:
    assert OPERATIONS[name]._fault(module(name), DEVICE) is None


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(3, 1, 1), (1, 1, 40), (2, 23, 1), (3, 5, 3), (3, 23, 29)])
def test_pictures_of_any_size(size: tuple[int, ...]) -> None:
    """The tolerance of the native kernel: a variance is a difference of numbers near 1."""
    image, truth, weights = picture(*size).requires_grad_(), picture(*size, seed=1), picture(1, *size[1:], seed=2)
    values, grads = [], []
    for function, place, dtype in (
        (losses._photometric_torch, "cpu", torch.float64),
        (module("losses").Photometric.apply, DEVICE, torch.float32),
    ):
        leaf = image.detach().to(place, dtype).requires_grad_()
        l1, ssim = function(leaf, truth.to(leaf), weights.to(leaf))
        (0.8 * l1 - 0.2 * ssim).backward()
        values.append((l1.item(), ssim.item()))
        grads.append(leaf.grad.double().cpu())
    assert values[1] == pytest.approx(values[0], rel=1e-5, abs=2e-6)
    assert (grads[1] - grads[0]).abs().max() <= 1e-4 * grads[0].abs().max()


def test_weights_of_zero_and_of_nan() -> None:
    image, truth = picture(3, 9, 11).to(DEVICE, torch.float32).requires_grad_(), picture(3, 9, 11, seed=1)
    photometric, truth = module("losses").Photometric.apply, truth.to(DEVICE, torch.float32)
    l1, ssim = photometric(image, truth, torch.zeros(1, 9, 11, device=DEVICE))
    (l1 + ssim).backward()
    assert (l1.item(), ssim.item()) == (0.0, 1.0) and (image.grad == 0).all()
    weights = torch.ones(1, 9, 11, device=DEVICE)
    weights[0, 3, 3] = math.nan
    assert all(value.isnan() for value in photometric(image, truth, weights))
    same = photometric(truth, truth, None)
    assert same[0].item() == 0.0 and same[1].item() == pytest.approx(1.0, abs=1e-6)


def test_no_gaussian_visible_and_one_broken() -> None:
    regularize = module("losses").LocalRegularizers.apply
    xyz, scales = (torch.full((5, 3), 2.0, device=DEVICE).requires_grad_() for _ in range(2))
    nobody = torch.zeros(5, dtype=torch.bool, device=DEVICE)
    sum(regularize(xyz, scales, nobody, 1.0, 0.6)).backward()
    assert (xyz.grad == 0).all() and (scales.grad == 0).all()
    broken = xyz.detach().clone()
    broken[2, 1] = math.nan
    # of a hidden one it does not show, of a visible one it does
    assert regularize(broken, scales, nobody, 1.0, 0.6)[0].item() == 0.0
    assert regularize(broken, scales, ~nobody, 1.0, 0.6)[0].isnan()


def test_the_rig_knows_when_gaussians_moved_house() -> None:
    """The order by triangle is kept as long as the binding is the same tensor, unchanged."""
    random = torch.Generator().manual_seed(3)
    vertices, xyz, scaling = (torch.randn(n, 3, generator=random).to(DEVICE) for n in (9, 20, 20))
    rotation, opacity = (torch.randn(20, n, generator=random).to(DEVICE) for n in (4, 1))
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]], device=DEVICE)
    binding = torch.zeros(20, dtype=torch.int64, device=DEVICE)

    def pulled_back() -> Tensor:
        leaf = vertices.clone().requires_grad_()
        module("rig").Bind.apply(leaf, faces, xyz, rotation, scaling, opacity, binding)[0].sum().backward()
        return leaf.grad

    before = pulled_back()
    assert torch.equal(pulled_back(), before) and (before[3:] == 0).all()
    binding += 1
    assert (pulled_back()[:3] == 0).all() and (pulled_back()[3:6] != 0).any()
    order, starts = module("rig").inverse(torch.tensor([2, 0, 2, 2], device=DEVICE), 4)
    assert order.tolist() == [1, 0, 2, 3] and starts.tolist() == [0, 1, 1, 4, 4]


def test_a_row_of_flame_anywhere_in_memory(in_triton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `Flame`, as training does, from a row that is not aligned; another skeleton is left to PyTorch."""
    head = toy_head()
    model, exact = Flame(head, device=DEVICE), Flame(head, dtype=torch.float64)
    rows = 0.3 * torch.randn(3, head.n_expr + 18, generator=torch.Generator().manual_seed(4))
    shape, still = torch.zeros(head.n_shape), torch.zeros_like(head.v_template)
    grads = []
    for one, place, dtype in ((exact, "cpu", torch.float64), (model, DEVICE, torch.float32)):
        row = rows.to(place, dtype)[1].requires_grad_()
        vertices = one.from_row(row, shape.to(place), still.to(place))
        vertices.square().sum().backward()
        grads.append((vertices.detach().double().cpu(), row.grad.double().cpu()))
    (wanted, slope), (got, own) = grads
    assert (got - wanted).abs().max() < 1e-6 and (own - slope).abs().max() < 1e-5 * slope.abs().max()
    monkeypatch.setattr(module("flame"), "PARENTS", (-1, 0, 0, 0, 0))
    with torch.no_grad():
        plain = model.from_row(rows[1].to(DEVICE), shape.to(DEVICE), still.to(DEVICE))
    assert not torch.equal(plain.double().cpu(), got) and (plain.double().cpu() - got).abs().max() < 1e-6


# ---- trust ----------------------------------------------------------------------------------------


def test_a_kernel_is_tried_once(in_triton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, truth = (picture(3, 8, 8, seed=seed).to(DEVICE, torch.float32) for seed in (0, 1))
    tried = []

    def check(gpu: Any, device: torch.device) -> None:
        tried.append(device)

    for _ in range(2):
        assert fused.kernels("losses", check, image, truth) is module("losses")
    assert tried == [image.device] and len(list(in_triton.iterdir())) == 1
    fused._trusted.cache_clear()  # another process does not try it either
    assert fused.kernels("losses", check, image) is module("losses") and len(tried) == 1
    assert fused.kernels("losses", check, image, truth.double()) is None
    monkeypatch.setattr(importlib.import_module("triton"), "__version__", "0.0")
    fused._trusted.cache_clear()
    assert fused.kernels("losses", check, image) is module("losses") and len(tried) == 2


@pytest.mark.parametrize(
    "spoil,says",
    [
        (lambda image, truth, weights: (image.mean(), truth.mean()), "the self-test fails: its result 1"),
        (lambda *arguments: 1 / 0, "the self-test cannot run (ZeroDivisionError: division by zero)"),
    ],
)
def test_what_fails_is_left_to_pytorch_with_one_line(
    in_triton: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[..., Any],
    says: str,
) -> None:
    monkeypatch.setattr(module("losses"), "Photometric", SimpleNamespace(apply=spoil))
    image, truth = (picture(3, 8, 8, seed=seed).to(DEVICE, torch.float32) for seed in (0, 1))
    for _ in range(2):
        assert torch.equal(losses.photometric(image, truth)[1], losses._photometric_torch(image, truth, None)[1])
    compiling, said = capsys.readouterr().err.splitlines()
    assert compiling.startswith("Compiling") and says in said
    assert said.startswith(f"note: losses runs in plain PyTorch on {DEVICE}, slower")
    assert not in_triton.exists()


def test_without_triton_one_line_for_all(
    in_triton: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fused.sys.modules, "triton", None)
    numbers = torch.zeros(4, 3, device=DEVICE)
    for name in OPERATIONS:
        assert fused.kernels(name, lambda gpu, device: None, numbers) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "slower: Triton cannot be imported (ModuleNotFoundError" in said


def test_nothing_changes_on_the_cpu() -> None:
    if DEVICE.type == "cpu":
        assert fused.kernels("losses", lambda gpu, device: None, torch.zeros(3)) is None


# ---- the loop -------------------------------------------------------------------------------------


def test_training_takes_them_all(
    capture: Path, tmp_path: Path, in_triton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing in a step makes the host wait, their own arrangements included."""
    used = set()
    kernels_of = fused.kernels

    def noted(operation: str, *arguments: Any) -> Any:
        found = kernels_of(operation, *arguments)
        used.update({operation} if found else ())
        return found

    monkeypatch.setattr(fused, "kernels", noted)
    monkeypatch.setattr(amp, "not_finite", not_finite_flag)
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    original = interpreter.InterpretedFunction.run

    def run(*arguments: Any, **options: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return original(*arguments, **options)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run)
    # Fewer programs: the interpreter takes its time for each.
    for name, size in {"adam": 1 << 14, "flame": 512, "losses": 8192, "rig": 512}.items():
        monkeypatch.setattr(module(name), "BLOCK", size)
    monkeypatch.setattr(module("rig"), "FEW", 512)
    stages = {"data", "avatar", "loss", "backward", "optimizer", "density"}
    watch_training(capture, tmp_path / "model", stages, NoWaiting, settle=2, watched=2)
    assert used == set(OPERATIONS)
