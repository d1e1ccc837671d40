"""The innovations inside a run of train.py: off they leave no trace, on they are saved, resumed, measured and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same_run, flags, gaussians, train_on
from toy_datasets import load

import render
import train
from arguments import parse_render, parse_train
from gaussian_renderer import render as draw
from gaussian_renderer.backends.native import rasterize
from innovations.color_calibration import ColorCalibration
from scene.gaussian_model import GaussianModel
from scene.images.cache import ImageCache
from training import checkpoint, setup
from training.innovative import build_appearance, build_warm_start, warm_up
from training.objective import Objective
from training.setup import build_avatar
from training.views import Views
from utils.errors import UserError

STEPS = 90
# Checkpoints at 30, 60 and 90; a switch of resolution and densifications on both sides of each.
SCHEDULE = (
    f"--iterations {STEPS} --interval 30 --densify_from_iter 5 --densification_interval 10 "
    "--opacity_reset_interval 50 --densify_until_iter 85 --densify_grad_threshold 1e-4 --sh_increase_interval 20"
)
EVERYTHING = (
    "--preset balanced --color_per_camera --batch_views 2 --max_gaussians 500 --resolution_milestones 20,45 "
    "--lr_cooldown 0.5 --warm_gaussians 380 --use_short_run_rates "
    "--use_expression_appearance --expression_appearance_from 0.5"
)


def run(capture: Path, model: Path, *more: object, quiet: bool = True) -> dict[str, Any]:
    return train_on(capture, model, SCHEDULE, *more, quiet=quiet)


@pytest.fixture(scope="module")
def finished(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every innovation, never stopped."""
    model = tmp_path_factory.mktemp("everything") / "model"
    run(capture, model, EVERYTHING)
    return model


def until(finished: Path, step: int, folder: Path) -> Path:
    """What the run would have left, had it been killed after the checkpoint of `step`."""
    shutil.copytree(finished, folder)
    for later in range(step + 30, STEPS + 1, 30):
        (folder / f"chkpnt{later}.pth").unlink()
        shutil.rmtree(folder / "point_cloud" / f"iteration_{later}")
    (folder / "results.json").unlink()
    return folder


@pytest.mark.parametrize("step", [30, 60])
def test_resumed_with_everything_on_it_ends_bit_identical(
    finished: Path, capture: Path, tmp_path: Path, step: int
) -> None:
    model = until(finished, step, tmp_path / "model")
    run(capture, model, EVERYTHING, "--start_checkpoint auto")
    assert_same_run(finished, model, STEPS)
    first, second = (json.loads((folder / "results.json").read_text())["metrics"] for folder in (finished, model))
    assert first == second


def test_the_saved_avatar_with_its_colors_is_the_measured_one(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "model")
    words = ["-m", str(tmp_path / "model"), "--skip_train", "--quiet", "--device", "cpu", "--threads", "1"]
    measured = render.render_avatar(parse_render(words))
    results = json.loads((finished / "results.json").read_text())["metrics"]
    for split in ("val", "test"):
        assert measured[split]["psnr"] == pytest.approx(results[split]["psnr"], rel=1e-5)
    plain = render.render_avatar(parse_render([*words, "--no_color_calibration"]))
    assert plain["val"]["psnr"] != measured["val"]["psnr"]
    file = finished / "point_cloud" / f"iteration_{STEPS}" / "color_calibration.pt"
    color = ColorCalibration.load(file)
    assert {"network", "cameras"} == set(color.parts)
    assert any(weight.abs().max() > 0 for weight in color.parts["network"].convolutions[-1].parameters())


def test_what_is_said_and_how_much_it_grows(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "--use_progressive_resolution --resolution_milestones 20,45 --max_gaussians 400 --densify_floor 0"
    results = run(capture, tmp_path / "model", "--preset ultra", more, quiet=False)
    told = capsys.readouterr().out
    assert "[ITER 20] Switching to resolution scale 0.75" in told
    assert "[ITER 45] Switching to resolution scale 1" in told
    assert "[Smart Densification] Clone threshold: " in told and " Split threshold: " in told
    assert 320 < results["points"] <= 400


def test_switched_off_they_leave_no_trace(capture: Path, tmp_path: Path) -> None:
    """Every part of a preset switched off again is the plain run, bit for bit."""
    run(capture, tmp_path / "plain")
    off = (
        "--preset balanced --use_short_run_rates --no_region_adaptive_loss --no_smart_densification "
        "--no_progressive_resolution --no_color_calibration --no_amp --no_warm_start --no_short_run_rates "
        "--lr_cooldown 0 --lambda_alpha 0 --fill_unseen 0 --no_expression_appearance"
    )
    run(capture, tmp_path / "off", off)
    assert_same_run(tmp_path / "plain", tmp_path / "off", STEPS)
    assert not list(tmp_path.rglob("color_calibration.pt")) + list(tmp_path.rglob("expression_appearance.npz"))


def saved_modes(model: Path, iteration: int) -> torch.Tensor:
    file = model / "point_cloud" / f"iteration_{iteration}" / "expression_appearance.npz"
    return torch.from_numpy(np.load(file)["modes"])


def test_colors_follow_the_expression_from_an_iteration_on(finished: Path, capture: Path, tmp_path: Path) -> None:
    assert saved_modes(finished, 30).abs().max() == 0 < saved_modes(finished, STEPS).abs().max()
    # Beginning changes nothing: as long as the modes are zero, the run is the plain one, bit for bit.
    run(capture, tmp_path / "plain", "--iterations 30")
    for name, more in {"late": "_from 1", "still": "_from 0 --expression_appearance_lr 0"}.items():
        run(capture, tmp_path / name, f"--iterations 30 --use_expression_appearance --expression_appearance{more}")
        for field, value in gaussians(tmp_path / "plain", 30).items():
            assert torch.equal(value, gaussians(tmp_path / name, 30)[field]), (name, field)


def test_a_run_goes_on_with_and_without_expression(finished: Path, capture: Path, tmp_path: Path) -> None:
    """What is new begins as the identity, what is left out leaves no file, and another number of modes is refused."""
    folder = until(finished, 60, tmp_path / "model")
    with pytest.raises(UserError, match="expression_appearance_modes = 10, this run has 4"):
        run(capture, folder, EVERYTHING, "--expression_appearance_modes 4 --start_checkpoint auto")
    run(capture, folder, EVERYTHING, "--no_expression_appearance --iterations 70 --start_checkpoint auto")
    assert not (folder / "point_cloud" / "iteration_70" / "expression_appearance.npz").exists()
    run(capture, folder, EVERYTHING, "--expression_appearance_lr 0 --iterations 80 --start_checkpoint auto")
    assert saved_modes(folder, 80).abs().max() == 0
    with pytest.raises(UserError, match="--use_expression_appearance is for avatars on a head mesh"):
        options = parse_train(flags(capture, tmp_path / "x", "--use_expression_appearance"))
        build_appearance(options.innovations, _unbound(), None)


def test_looking_for_bad_steps_and_an_untrained_network_change_nothing(capture: Path, tmp_path: Path) -> None:
    """AMP on the CPU is a check, and a colour network that cannot learn is the identity."""
    run(capture, tmp_path / "plain")
    run(capture, tmp_path / "amp", "--use_amp")
    for name, value in gaussians(tmp_path / "plain", STEPS).items():
        assert torch.equal(value, gaussians(tmp_path / "amp", STEPS)[name]), name
    run(capture, tmp_path / "short", "--iterations 3")
    run(capture, tmp_path / "color", "--iterations 3 --use_color_calibration --color_lr 0")
    # Not the rotations: of a ball their gradient is rounding, of which Adam sees the sign.
    for name in ("opacity", "features_dc"):
        torch.testing.assert_close(
            gaussians(tmp_path / "color", 3)[name], gaussians(tmp_path / "short", 3)[name], rtol=1e-3, atol=1e-4
        )


def test_gradients_of_the_views_of_a_step_are_averaged(capture: Path, tmp_path: Path) -> None:
    """Adam's first moment after one step is a tenth of the gradient: against that of the mean loss, made by hand."""
    options = parse_train(flags(capture, tmp_path / "model", "--iterations 1 --batch_views 3 --lr_views_rule none"))
    train.train(options)
    state = checkpoint.load(tmp_path / "model" / "chkpnt1.pth")
    views = state["sampler"]["order"][:3].tolist()
    assert len(set(views)) == 3 and state["sampler"]["position"] == 3

    dataset = load(capture)
    avatar = build_avatar(options.model, dataset, None, seed=0, device=torch.device("cpu"))
    images = ImageCache(dataset.train, dataset.background, progress=False)
    total, statistic = 0.0, 0.0
    for view in views:
        camera = dataset.train[view].camera
        world, vertices = avatar(camera.timestep)
        out = draw(world, camera, torch.ones(3), sh_degree=0, rasterize=rasterize)
        image, timestep = images.image(view, "cpu"), camera.timestep
        objective = Objective(options.optimization, avatar)
        loss = objective(world, vertices, out, out.image, image, None, None, timestep, view)["total"]
        (gradient,) = torch.autograd.grad(loss, out.means2d, retain_graph=True)
        statistic = statistic + gradient.norm(dim=1)
        total = total + loss / 3
    total.backward()
    for index, parameter in enumerate(avatar.parameters().values()):
        moment = state["optimizer"]["state"][index]["exp_avg"]
        torch.testing.assert_close(moment, 0.1 * parameter.grad, rtol=1e-3, atol=1e-4 * float(moment.abs().max()))
    # The densification sees the gradients of whole views, whatever their number in a step.
    torch.testing.assert_close(state["density"]["gradient_sum"], statistic, rtol=1e-3, atol=1e-9)


def test_an_ultra_run_goes_on_under_quality_flags(capture: Path, tmp_path: Path) -> None:
    """New parts begin as the identity, region weights may change."""
    model = tmp_path / "model"
    run(capture, model, "--preset ultra --iterations 30")
    run(capture, model, "--preset quality --iterations 31 --color_lr 0 --start_checkpoint auto")
    color = ColorCalibration.load(model / "point_cloud" / "iteration_31" / "color_calibration.pt")
    image = torch.rand(3, 5, 6)
    torch.testing.assert_close(color(image, "00"), image)
    more = "--preset quality --region_weight_eyes 3 --iterations 40 --start_checkpoint auto"
    results = run(capture, model, more)
    assert results["iterations"] == 40


def test_poses_of_the_test_sequence_are_refined(capture: Path, tmp_path: Path) -> None:
    camera = min(view.camera_index for view in load(capture).test)
    results = run(capture, tmp_path / "model", f"--preset ultra --refine_test_poses 10 --refine_cameras {camera}")
    assert list(results["metrics"]) == ["val", "test", "test_as_tracked", "test_refined"]
    with pytest.raises(UserError, match="--refine_cameras 77"):
        run(capture, tmp_path / "other", "--refine_test_poses 10 --refine_cameras 77")
    assert not (tmp_path / "other" / "chkpnt30.pth").exists()  # said before the training, not after it


def test_a_warm_start_begins_nearer(capture: Path, tmp_path: Path) -> None:
    """After one iteration, which moves next to nothing: what the start alone is worth."""
    first = [
        run(capture, tmp_path / name, "--iterations 1", more)["metrics"]["val"]["psnr"]
        for name, more in (("cold", ""), ("warm", "--use_warm_start"))
    ]
    assert first[1] > first[0] + 1
    with pytest.raises(UserError, match="--use_warm_start"):
        options = parse_train(flags(capture, tmp_path / "x", "--use_warm_start"))
        warm_up(_unbound(), build_warm_start(options.innovations), None)


def test_a_dense_start_puts_each_where_it_took_its_color(capture: Path, tmp_path: Path) -> None:
    options = parse_train(flags(capture, tmp_path / "x", "--use_warm_start --warm_gaussians 700"))
    dataset = setup.load_capture(options)
    avatar = build_avatar(options.model, dataset, None, seed=0, device=torch.device("cpu"))
    views = Views(dataset, options, torch.device("cpu"))
    sparse = len(avatar)
    warm_up(avatar, build_warm_start(options.innovations), views)
    assert len(avatar) == 700 > 2 * sparse
    assert len(avatar.opacity) == len(avatar.rotation) == len(avatar.features) == 700
    assert avatar.binding is not None and avatar.flame is not None
    number = torch.bincount(avatar.binding)
    assert len(number) == sparse and number.min() == 1
    # n of a triangle share the area of the one that there was.
    torch.testing.assert_close(avatar.scaling.exp()[:, 0] * number[avatar.binding].sqrt(), torch.full((700,), 0.5))
    # All lie in their triangles, whatever the pose: in its plane, at weights of its corners between 0 and 1.
    for timestep in (0, 3):
        gaussians, vertices = avatar(timestep)
        assert vertices is not None
        a, b, c = vertices[avatar.flame.faces[avatar.binding]].unbind(1)
        edges = torch.stack([b - a, c - a], dim=2).double()
        inside = torch.linalg.lstsq(edges, (gaussians.means - a).double()[..., None]).solution
        off = (edges @ inside)[..., 0] - (gaussians.means - a)
        assert off.abs().max() < 1e-6
        assert inside.min() > -0.05 and inside.sum(dim=1).max() < 1.05  # the triangle is bent by the pose


def _unbound() -> Any:
    return GaussianModel.from_points(np.eye(3), np.eye(3), sh_degree=0, device="cpu")


def test_the_weighted_loss_is_what_trains(capture: Path, tmp_path: Path) -> None:
    """Region weights of 1 give the plain run up to rounding, others do not."""
    weighted = "--iterations 3 --use_region_adaptive_loss"
    run(capture, tmp_path / "plain", "--iterations 3")
    run(
        capture,
        tmp_path / "even",
        weighted,
        *(f"--region_weight_{name} 1" for name in ("eyes", "mouth", "nose", "face")),
    )
    run(capture, tmp_path / "uneven", weighted, "--region_weight_face 9 --region_weight_nose 9")
    plain, same, other = (gaussians(tmp_path / name, 3)["xyz"] for name in ("plain", "even", "uneven"))
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-4)
    assert not torch.equal(other, plain)


@pytest.mark.parametrize(
    "more, faintest",
    [
        ("", 0.005),
        ("--use_warm_start", 0.05),
        ("--use_warm_start --warm_prune_opacity 0.2", 0.2),
        ("--use_warm_start --no_warm_skip_resets", 0.005),
    ],
)
def test_faint_gaussians_go_sooner_where_nothing_is_reset(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, faintest: float
) -> None:
    """A reset lowers all opacities to 0.01: a higher limit would then empty the avatar."""
    seen: list[float] = []

    class Watched(setup.DensityControl):
        def _densify(self, step: int, world_scales: torch.Tensor) -> Any:
            seen.append(self.schedule.prune_opacity)
            return super()._densify(step, world_scales)

    monkeypatch.setattr(setup, "DensityControl", Watched)
    run(capture, tmp_path / "model", "--iterations 12", more)
    assert seen == [faintest]
