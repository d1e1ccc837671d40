"""Numbers that are not finite: in a loss, in one gradient, in a tracker's file, and triangles without area."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_visibility import front_camera, patch
from torch import Tensor
from toy_capture import rigged_flags, write_capture

import innovations.amp
import train
from arguments import parse_train
from arguments.options import MAX_RATE
from gaussian_renderer.backends.native import rasterize as native_rasterize
from gaussian_renderer.backends.reference import rasterize as reference_rasterize
from innovations.amp import MixedPrecision
from innovations.region_adaptive_loss import RegionAdaptiveLoss
from innovations.warm_start import CLASSICAL_START, triangle_colors
from ops import kernels, losses, rig
from ops.types import Gaussians
from ops.visibility import see
from scene.dataset import load_dataset
from training import checkpoint, objective
from training.density_control import DensityControl, DensitySchedule, fixed_threshold
from training.guards import LIMIT, BadSteps
from training.optimizers import RowAdam
from training.setup import build_avatar, build_optimizer
from utils.errors import UserError, run_script

TWINS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not kernels.available(), reason="no compiler"))]


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the native kernels and with their twins in PyTorch."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
    return request.param


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("safety") / "capture", [3, 4, 7, 9], size=(32, 48))


@pytest.fixture(autouse=True)
def _small_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LPIPS_CACHE", str(tmp_path / "no-weights"))
    torch.set_num_threads(1)  # on a busy machine two would wait for each other


def flags(capture: Path, model: Path, *more: object) -> list[str]:
    return rigged_flags(
        capture,
        model,
        "--threads",
        1,
        "--quiet",
        "--iterations",
        60,
        "--interval",
        30,
        "--densify_from_iter",
        5,
        "--densification_interval",
        10,
        *more,
    )


# ---- one step --------------------------------------------------------------------------------------------


def a_step(capture: Path, spoil: str, twin: str) -> tuple[list[Tensor], list[Tensor]]:
    """All that a training step may change, before and after one in which `spoil` is not finite."""
    options = parse_train(flags(capture, capture))
    dataset = load_dataset(capture, bind_to_mesh=True, eval_split=True, white_background=True)
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
        amp.backward(total, [out.means2d], [gaussian_adam, rows])
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
    original, steps = objective.image_terms, []

    def broken(*arguments: Any) -> dict[str, Tensor]:
        steps.append(1)
        terms = original(*arguments)
        return {**terms, "l1": terms["l1"] * math.nan} if len(steps) in bad else terms

    monkeypatch.setattr(objective, "image_terms", broken)


def test_a_run_goes_on_after_bad_steps_and_names_their_views(
    capture: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_losses(monkeypatch, {7, *range(20, 20 + LIMIT - 1)})
    results = train.train(parse_train(flags(capture, tmp_path / "model")))
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
    monkeypatch.setattr(sys, "argv", ["train.py", *flags(capture, model, "--interval", 20)])
    with monkeypatch.context() as patched:
        spoil_losses(patched, {3, *range(35, 99)})
        with pytest.raises(SystemExit) as ended:
            run_script(train.main)
    last = capfd.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert f"{LIMIT} iterations in a row, 35 to {34 + LIMIT}" in last
    # That of iteration 40 is whole, but from within the bad ones.
    assert (model / "chkpnt40.pth").is_file() and f"--start_checkpoint {model / 'chkpnt20.pth'}" in last
    assert re.search(r"\(views 0000\d_0\d, ", last)
    resumed = train.train(parse_train(flags(capture, model, "--start_checkpoint", model / "chkpnt20.pth")))
    assert resumed["steps_left_out"]["count"] == 1  # that of iteration 3


def test_without_a_checkpoint_it_says_so(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_losses(monkeypatch, set(range(1, 61)))
    with pytest.raises(UserError, match=rf"{LIMIT} iterations in a row, 1 to {LIMIT} .*no checkpoint from before"):
        train.train(parse_train(flags(capture, tmp_path / "model")))


@pytest.mark.parametrize(
    "rates",
    [
        ("position_lr_init", "position_lr_final"),
        ("feature_lr",),
        ("opacity_lr",),
        ("scaling_lr",),
        ("rotation_lr",),
        ("flame_expr_lr",),
        ("flame_trans_lr",),
        ("flame_pose_lr",),
    ],
)
def test_no_learning_rate_makes_a_parameter_infinite(rates: tuple[str, ...], capture: Path, tmp_path: Path) -> None:
    """The run goes on or ends with our message; what it saved is finite either way, the optimizer's state too."""
    words = [word for name in rates for word in (f"--{name}", MAX_RATE)]
    with contextlib.suppress(UserError):  # that steps are bad in a row; another exception fails the test
        train.train(
            parse_train(flags(capture, tmp_path / "model", *words, "--checkpoint_iterations", *range(15, 61, 15)))
        )
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
    with pytest.raises(UserError, match=f"--{rates[0]} must be at most"):
        parse_train(flags(capture, tmp_path / "model", f"--{rates[0]}", 1.01 * MAX_RATE))


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


# ---- triangles without area --------------------------------------------------------------------------------


def test_the_rig_of_any_triangle(twin: str) -> None:
    """Corners from far below a micrometre to a thousand kilometres apart, in all kinds of collapse."""
    generator = torch.Generator().manual_seed(0)
    count = 4000
    size = 10.0 ** torch.empty(count, 1, 1).uniform_(-20, 6, generator=generator)
    corners = size * torch.randn(count, 3, 3, generator=generator)
    kind = torch.arange(count) % 6
    corners[kind == 1, 1] = corners[kind == 1, 0]
    corners[kind == 2, 2] = corners[kind == 2, 0]
    corners[kind == 3, 2] = corners[kind == 3, 1]
    corners[kind == 4, 2] = 3 * corners[kind == 4, 1] - 2 * corners[kind == 4, 0]
    corners[kind == 5] = corners[kind == 5][:, :1]
    vertices = corners.reshape(-1, 3).requires_grad_()
    faces = torch.arange(3 * count).view(count, 3)
    raw = [torch.randn(count, width, generator=generator).requires_grad_() for width in (3, 4, 3, 1)]
    out = rig.bind(vertices, faces, *raw, torch.arange(count))
    assert all(value.isfinite().all() for value in out)
    torch.testing.assert_close(out[1].norm(dim=1), torch.ones(count))
    flat = (kind > 0) & (kind != 4)  # a line is one only up to rounding; the others have no orientation at all
    torch.testing.assert_close(out[1][flat], torch.nn.functional.normalize(raw[1][flat], dim=1))
    torch.autograd.backward(out, [torch.randn(value.shape, generator=generator) for value in out])
    assert all(value.grad.isfinite().all() for value in (vertices, *raw))


def collapsed() -> tuple[Tensor, Tensor, Tensor]:
    """A wall before `front_camera`; its faces, and the same with a point, lines and repeated corners among them."""
    vertices, faces = patch(2.0, half=1.0, pieces=6)
    middle = len(vertices) // 2
    vertices = torch.cat([vertices, vertices[middle : middle + 1], vertices[middle : middle + 1]])
    a, b, last = middle, middle + 1, len(vertices) - 1
    flat = torch.tensor(
        [[a, a, a], [a, a, b], [a, b, b], [b, a, b], [a, last, last - 1], [a, last, b], [middle - 1, a, b]]
    )
    return vertices, faces, torch.cat([faces, flat])


def test_collapsed_triangles_are_not_seen_and_hide_nothing(twin: str) -> None:
    vertices, good, all_faces = collapsed()
    want, got = (see(front_camera(), vertices, faces, 24, 32) for faces in (good, all_faces))
    assert torch.equal(got.visible[: len(good)], want.visible) and not got.visible[len(good) :].any()
    assert torch.equal(got.facing[: len(good)], want.facing) and got.facing.isfinite().all()
    assert torch.equal(got.first, want.first) and torch.equal(got.depth, want.depth)


def test_colors_and_region_maps_of_collapsed_triangles(twin: str) -> None:
    vertices, good, all_faces = collapsed()
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    colors, seen = triangle_colors([(front_camera(), image, vertices)], all_faces, (1.0, 1.0, 1.0))
    assert colors.isfinite().all() and not seen[len(good) :].any()
    alone, _ = triangle_colors([(front_camera(), image, vertices)], good, (1.0, 1.0, 1.0))
    assert torch.equal(colors[: len(good)], alone)
    maps = [
        RegionAdaptiveLoss(faces=faces, masks={"nose": torch.arange(20, 30)}).weights(0, front_camera(), vertices)
        for faces in (good, all_faces)
    ]
    assert maps[1].isfinite().all() and torch.equal(*maps)


def test_the_regularizers_of_collapsed_triangles(twin: str) -> None:
    """In metres, where the size of the triangle is differentiated too."""
    vertices, _, faces = collapsed()
    vertices = vertices.clone().requires_grad_()
    xyz = torch.full((len(faces), 3), 2.0, requires_grad=True)
    meters = xyz * rig.triangle_frames(vertices, faces).scale[:, None]
    visible = torch.ones(len(faces), dtype=torch.bool)
    total = losses.xyz_regularizer(meters, visible, 0.0) + losses.scale_regularizer(meters, visible, 0.0)
    total.backward()
    assert total.isfinite() and xyz.grad.isfinite().all() and vertices.grad.isfinite().all()
    assert xyz.grad.any()


def test_gaussians_without_size_are_drawn_as_nothing_worse(twin: str) -> None:
    """What hangs on a point has size zero: its gradients are finite, and so is the picture."""
    draw = native_rasterize if twin == "native" else reference_rasterize
    raw = [torch.zeros(4, 3), torch.zeros(4, 4), torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 1, 3)]
    raw[0][:, 2], raw[1][:, 0], raw[3][:] = 2.0, 1.0, 0.5
    raw[2][1:] = torch.tensor([[1e-30, 0.0, 0.1], [0.1, 0.1, 0.0], [0.1, 0.1, 0.1]])
    leaves = [value.requires_grad_() for value in raw]
    out = draw(Gaussians(*leaves), front_camera(), torch.zeros(3), sh_degree=0)
    out.image.square().sum().backward()
    assert out.image.isfinite().all() and all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize(
    "more",
    [
        ("--preset", "balanced", "--resolution_milestones", "5,10"),
        ("--metric_xyz", "--metric_scale", "--lambda_laplacian", 1, "--white_background"),
    ],
)
def test_training_on_a_head_with_collapsed_triangles(capture: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    """Repeated corners in the faces, and vertices that coincide: nothing is left out, and everything stays finite."""
    model = pickle.loads((capture / "head_model.pkl").read_bytes())
    model["f"] = np.array(model["f"])
    model["f"][5], model["f"][6], model["f"][7] = [3, 3, 9], [4, 4, 4], [8, 2, 8]
    model["v_template"][20:23] = model["v_template"][20]
    model["shapedirs"][20:23] = model["shapedirs"][20]
    head = tmp_path / "head_model.pkl"
    head.write_bytes(pickle.dumps(model))
    results = train.train(
        parse_train(flags(capture, tmp_path / "model", "--head_model", head, "--iterations", 20, *more))
    )
    assert results["steps_left_out"]["count"] == 0
    state = checkpoint.load(tmp_path / "model/chkpnt20.pth")
    assert all(value.isfinite().all() for value in (*state["avatar"]["fields"].values(), state["flame"]["values"]))


# ---- frames that cannot be used ------------------------------------------------------------------------------


def spoil_flame(capture: Path, timestep: int, name: str, value: float) -> None:
    path = capture / f"flame_param/{timestep:05d}.npz"
    fields = dict(np.load(path))
    fields[name] = np.full_like(fields[name], value)
    np.savez(path, **fields)


def spoil_frame(capture: Path, split: str, index: int, change: Any) -> str:
    path = capture / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    change(content["frames"][index])
    path.write_text(json.dumps(content))
    return Path(content["frames"][index]["file_path"]).stem


def load(capture: Path, **more: Any) -> Any:
    return load_dataset(capture, bind_to_mesh=True, eval_split=True, white_background=True, **more)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A capture to spoil: 8 training views, 4 of val, 3 of test."""
    return write_capture(tmp_path / "own", [3, 4, 7, 8, 9], size=(32, 48))


def test_a_bad_timestep_is_named_and_left_out(own: Path, capfd: Any) -> None:
    spoil_flame(own, 7, "jaw_pose", math.nan)
    with pytest.raises(
        UserError,
        match=r"flame_param/00007\.npz: 'jaw_pose' holds NaN or infinite values at timestep "
        r"7: .*--skip_bad_frames",
    ):
        load(own)
    dataset = load(own, skip_bad_frames=True)
    assert dataset.timesteps == [3, 4, 8, 9] and dataset.flame["jaw_pose"].shape == (4, 3)
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [6, 3, 3]
    assert {view.timestep_index: view.camera.timestep for view in dataset.train + dataset.test} == {
        3: 0,
        4: 1,
        8: 2,
        9: 3,
    }
    expected = np.load(own / "flame_param/00008.npz")["expr"][0]
    np.testing.assert_array_equal(dataset.flame["expr"][2], expected)
    err = capfd.readouterr().err
    assert re.fullmatch(
        r"note: --skip_bad_frames leaves out 3 of the 15 views of \S+own: timestep 7; the first error: "
        r"[^\n]+jaw_pose[^\n]+\n",
        err,
    )


def test_bad_views_are_left_out_of_every_split(own: Path, capfd: Any) -> None:
    gone = [
        spoil_frame(own, "train", 1, lambda frame: frame["transform_matrix"][0].__setitem__(3, math.nan)),
        spoil_frame(own, "test", 2, lambda frame: frame.update(fl_x=math.inf)),
        spoil_frame(own, "val", 0, lambda frame: frame.update(file_path="images/nowhere.png")),
    ]
    half = own / "images/00004_00.png"
    half.write_bytes(half.read_bytes()[:-40])
    flipped = own / "images/00008_02.png"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    Image.new("RGB", (5, 5)).save(own / "images/00003_00.png")
    dataset = load(own, skip_bad_frames=True)
    kept = {view.image_path.stem for view in dataset.train + dataset.val + dataset.test}
    assert not kept & {*gone, "00004_00", "00008_02", "00003_00"} and len(kept) == 9
    assert "leaves out 6 of the 15 views" in capfd.readouterr().err


def test_more_than_half_is_refused(own: Path, tmp_path: Path) -> None:
    for timestep in (3, 4, 7):
        spoil_flame(own, timestep, "expr", math.inf)
    with pytest.raises(UserError, match=r"would leave out 9 of the 15 views of .*00003\.npz: 'expr'"):
        load(own, skip_bad_frames=True)
    for timestep in (8, 9):
        spoil_flame(own, timestep, "expr", math.nan)
    with pytest.raises(UserError, match=r"00003\.npz: 'expr' holds NaN"):
        load(own, skip_bad_frames=True)


def test_a_whole_capture_notes_nothing_and_a_static_scene_has_no_frames(
    capture: Path, tmp_path: Path, capfd: Any
) -> None:
    plain, skipping = load(capture), load(capture, skip_bad_frames=True)
    assert [view.image_path for view in plain.train] == [view.image_path for view in skipping.train]
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match="--skip_bad_frames .* needs --bind_to_mesh"):
        load_dataset(tmp_path, bind_to_mesh=False, eval_split=True, white_background=True, skip_bad_frames=True)


def test_training_and_rendering_without_the_bad_frames(own: Path, tmp_path: Path) -> None:
    import render
    from arguments import parse_render

    spoil_flame(own, 3, "translation", math.nan)
    model = tmp_path / "model"
    train.train(parse_train(flags(own, model, "--skip_bad_frames", "--iterations", 5)))
    measured = render.render_avatar(parse_render(["-m", str(model), "--quiet", "--skip_train", "--device", "cpu"]))
    assert math.isfinite(measured["test"]["psnr"])
