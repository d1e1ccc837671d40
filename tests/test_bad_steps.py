"""Numbers that are not finite in a loss or in one gradient: the step is left out; too many of them end the training."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import ending, flags, in_each_iteration, train_on
from torch import Tensor
from toy_datasets import load

import innovations.amp
from arguments import parse_train
from arguments.innovation_options import MAX_RATE
from gaussian_renderer.backends.native import rasterize as native_rasterize
from gaussian_renderer.backends.reference import rasterize as reference_rasterize
from innovations.amp import MixedPrecision
from innovations.warm_start import CLASSICAL_START
from ops import losses
from training import checkpoint
from training.density_control import DensityControl, DensitySchedule, fixed_threshold
from training.guards import LIMIT, BadSteps
from training.optimizers import RowAdam
from training.setup import build_avatar, build_optimizer
from utils.errors import UserError

SCHEDULE = "--iterations 60 --interval 30 --densify_from_iter 5 --densification_interval 10"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # on a busy machine two would wait for each other


# ---- one step --------------------------------------------------------------------------------------------


def a_step(capture: Path, spoil: str, twin: str) -> tuple[list[Tensor], list[Tensor]]:
    """All that a training step may change, before and after one in which `spoil` is not finite."""
    options = parse_train(flags(capture, capture, SCHEDULE))
    dataset = load(capture)
    avatar = build_avatar(options.model, dataset, None, seed=0, device=torch.device("cpu"))
    gaussian_adam = build_optimizer(options.optimization, options.innovations, avatar, CLASSICAL_START, 1.0)
    rows = RowAdam(avatar.flame_parameters, expr_lr=1e-3, translation_lr=1e-6, pose_lr=1e-5)
    density = DensityControl(
        avatar,
        gaussian_adam,
        DensitySchedule(5, 60, 10, 50, 0.01, True),
        fixed_threshold(1.0),
        extent=1.0,
        generator=torch.Generator(),
    )
    amp = MixedPrecision(False, "cpu")
    draw = native_rasterize if twin == "native" else reference_rasterize
    target = torch.rand(3, 48, 32, generator=torch.Generator().manual_seed(1))

    def state() -> list[Tensor]:
        found = [
            *avatar.parameters().values(),
            avatar.flame_parameters.values,
            rows._second["values"],
            torch.tensor(rows._visited["values"]),
            density.gradient_sum,
            density.seen,
            density.max_radii,
        ]
        found += [value for entry in gaussian_adam.state.values() for value in entry.values()]
        return [value.detach().clone() for value in found]

    def step(number: int, spoil: str) -> None:
        gaussian_adam.set_step(number)
        gaussians, _ = avatar(1)
        camera = dataset.train[2].camera
        out = draw(gaussians, camera, torch.ones(3), sh_degree=0)
        l1, ssim = losses.photometric(out.image, target, None)
        leaves = {**avatar.parameters(), "flame": avatar.flame_parameters.row(1), "means2d": out.means2d}
        if spoil in leaves:
            leaves[spoil].register_hook(
                lambda gradient: torch.where(
                    torch.arange(gradient.numel()).view(gradient.shape) == gradient.numel() - 1, math.inf, gradient
                )
            )
        total = l1 + 1 - ssim + (math.nan if spoil == "loss" else 0.0)
        amp.backward([total], [out.means2d], [gaussian_adam, rows])
        for part in (gaussian_adam, rows):
            amp.step(part, number)
            part.zero_grad()
        density.observe(out, skip=amp.bad)
        assert bool(amp.bad) == bool(spoil)

    step(1, "")
    before = state()
    step(2, spoil)
    return before, state()


PLACES = ["loss", "xyz", "features", "opacity", "scaling", "rotation", "flame", "means2d"]


@pytest.mark.parametrize("spoil", PLACES)
def test_a_bad_step_changes_no_bit(capture: Path, spoil: str, twin: str) -> None:
    """One infinite number, in the last element of any gradient."""
    before, after = a_step(capture, spoil, twin)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_good_step_changes_everything(capture: Path, twin: str) -> None:
    before, after = a_step(capture, "", twin)
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert sum(changed) >= len(changed) - 1  # all but the largest radii, which stay


@pytest.mark.parametrize("spoil", PLACES)
def test_as_a_flag_on_the_device_too(capture: Path, spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where nobody may wait for the flag: the rows' second moments decay, as if nothing had come."""
    question = innovations.amp.not_finite
    monkeypatch.setattr(innovations.amp, "not_finite", lambda tensors: torch.tensor(question(tensors)))
    before, after = a_step(capture, spoil, "torch")
    rows = 6  # the index of the second moments in `state`; the iteration of the visit is beside it
    same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert all(same[:rows] + same[rows + 2 :])
    torch.testing.assert_close(after[rows], before[rows] * 0.999 ** (after[rows + 1] - before[rows + 1])[:, None])


# ---- a run -----------------------------------------------------------------------------------------------


def spoil_losses(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """The steps in `bad` (from 1) get a loss that is not a number."""
    in_each_iteration(monkeypatch, lambda step, terms: {**terms, "l1": terms["l1"] * (math.nan if step in bad else 1)})


def test_a_run_goes_on_after_bad_steps_and_names_their_views(
    capture: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, {7, *range(20, 20 + LIMIT - 1)})
    results = train_on(capture, tmp_path / "model", SCHEDULE)
    err = capfd.readouterr().err
    views = re.findall(r"warning: iteration (\d+) \(view (0000\d_0\d)\) is left out", err)
    assert [int(step) for step, _ in views] == [7, *range(20, 29)] and err.count("further ones are only counted") == 1
    assert results["steps_left_out"]["count"] == LIMIT
    assert sum(results["steps_left_out"]["views"].values()) == LIMIT
    assert views[0][1] in results["steps_left_out"]["views"]
    state = checkpoint.load(tmp_path / "model/chkpnt60.pth")
    assert all(value.isfinite().all() for value in state["avatar"]["fields"].values())
    assert math.isfinite(results["metrics"]["val"]["psnr"])


def test_a_run_of_bad_steps_ends_with_the_last_good_checkpoint(
    capture: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    with monkeypatch.context() as patched:
        spoil_losses(patched, {3, *range(35, 99)})
        status, _, err = ending(patched, capfd, flags(capture, model, SCHEDULE, "--interval 20"))
    last = err.splitlines()[-1]
    assert status == 2
    assert f"{LIMIT} iterations in a row, 35 to {34 + LIMIT}" in last
    # That of iteration 40 is whole, but from within the bad ones.
    assert (model / "chkpnt40.pth").is_file() and f"--start_checkpoint {model / 'chkpnt20.pth'}" in last
    assert re.search(r"\(views 0000\d_0\d, ", last)
    resumed = train_on(capture, model, SCHEDULE, "--start_checkpoint", model / "chkpnt20.pth")
    assert resumed["steps_left_out"]["count"] == 1  # that of iteration 3


def test_without_a_checkpoint_it_says_so(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_losses(monkeypatch, set(range(1, 61)))
    with pytest.raises(UserError, match=rf"{LIMIT} iterations in a row, 1 to {LIMIT} .*no checkpoint from before"):
        train_on(capture, tmp_path / "model", SCHEDULE)


@pytest.mark.parametrize(
    "rates",
    [
        "position_lr_init position_lr_final",
        "feature_lr",
        "opacity_lr",
        "scaling_lr",
        "rotation_lr",
        "flame_expr_lr",
        "flame_trans_lr",
        "flame_pose_lr",
    ],
)
def test_no_learning_rate_makes_a_parameter_infinite(rates: str, capture: Path, tmp_path: Path) -> None:
    """The run goes on or ends with our message; what it saved is finite either way, the optimizer's state too."""
    words = [f"--{name} {MAX_RATE}" for name in rates.split()]
    with contextlib.suppress(UserError):  # that steps are bad in a row; another exception fails the test
        train_on(capture, tmp_path / "model", SCHEDULE, *words, "--checkpoint_iterations 15 30 45 60")
    last = checkpoint.latest(tmp_path / "model")
    state = checkpoint.load(last)
    moments = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    for value in (
        *state["avatar"]["fields"].values(),
        state["flame"]["values"],
        state["flame_optimizer"]["second"]["values"],
        *moments,
    ):
        assert value.isfinite().all()
    with pytest.raises(UserError, match=f"--{rates.split()[0]} must be at most"):
        parse_train(flags(capture, tmp_path / "model", f"--{rates.split()[0]} {1.01 * MAX_RATE}"))


def test_flags_on_a_device_are_read_with_the_losses() -> None:
    told: list[str] = []
    reporter = SimpleNamespace(every=10, warn=told.append, scalars=lambda step, values: None)
    book = BadSteps(reporter, lambda step: None)
    for step in range(1, 10):
        book.note(step, [f"view{step}"], torch.tensor(step in (4, 8)))
    assert book.count == 0 and not told
    book.note(10, ["view10"], torch.tensor(False))
    assert book.count == 2 and ["view4" in told[0], "view8" in told[1]] == [True, True]
    book.note(11, ["view11"], torch.tensor(True))
    assert book.state_dict() == {"count": 3, "views": {"view4": 1, "view8": 1, "view11": 1}}
