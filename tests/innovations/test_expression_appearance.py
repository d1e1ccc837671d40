"""Colors that follow the expression: the code against NumPy's, gradients against float64, and files that lie."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import RATES
from moving_ball import COLOR_MODES, write_avatar

from innovations.expression_appearance import FILE_NAME, ExpressionCode, read_appearance, write_appearance
from ops import kernels
from scene import load_avatar
from scene.avatar import saved_folder
from scene.flame.parameters import row_columns
from training.density_control import DensityControl, DensitySchedule, fixed_threshold
from training.optimizers import GaussianOptimizer
from utils.errors import UserError

EXPRESSIONS, WIDTH = 7, 25
COLUMNS = row_columns(EXPRESSIONS)
DRIVING = [*range(7), *range(10, 22)]  # all but rotation and translation


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """[T, D] in which every direction has a strength of its own."""
    g = torch.Generator().manual_seed(seed)
    mixture = torch.randn(WIDTH, WIDTH, generator=g) * torch.linspace(0.1, 2, WIDTH)[:, None]
    return torch.randn(count, WIDTH, generator=g) @ mixture + 3


def bits(code: ExpressionCode) -> list[bytes]:
    return [value.numpy().tobytes() for value in code]


def test_the_code_is_the_whitened_principal_components() -> None:
    given = rows(40)
    code = ExpressionCode.of(given, COLUMNS, 5)
    driving = given.double().numpy()[:, DRIVING]
    centered = driving - driving.mean(0)
    variances, axes = np.linalg.eigh(centered.T @ centered / len(centered))
    wanted = centered @ axes[:, ::-1][:, :5] / np.sqrt(variances[::-1][:5])
    found = np.stack([code(row).numpy() for row in given])
    same_sign = np.sign((found * wanted).sum(0))
    np.testing.assert_allclose(found, wanted * same_sign, atol=1e-5)
    np.testing.assert_allclose(found.T @ found / 40, np.eye(5), atol=1e-5)  # one standard deviation each
    np.testing.assert_allclose(code.low, found.min(0), atol=1e-5)
    np.testing.assert_allclose(code.high, found.max(0), atol=1e-5)
    others = [column for column in range(WIDTH) if column not in DRIVING]
    assert code.directions[others].abs().max() == 0 and code.directions.dtype == torch.float64
    largest = code.directions.abs().argmax(dim=0, keepdim=True)
    assert (code.directions.gather(0, largest) > 0).all()


def test_it_does_not_depend_on_the_number_of_threads() -> None:
    given, before = rows(600, seed=1), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            code = ExpressionCode.of(given, COLUMNS, 10)
            modes = torch.linspace(-1, 1, 30_000).view(1000, 10, 3).requires_grad_()
            shaded = code.shaded(torch.ones(1000, 4, 3), modes, given[5])
            shaded.square().sum().backward()
            assert modes.grad is not None
            results = [code(given[5]), shaded.detach(), modes.grad]
            found.append([*bits(code), *(value.numpy().tobytes() for value in results)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_beyond_what_training_saw_it_stays_there() -> None:
    given = rows(30)
    code = ExpressionCode.of(given, COLUMNS, 4)
    far = code.mean + 1e5 * code.directions[:, 0]  # the strongest one, and only that
    assert torch.equal(code(far.float())[0], code.high[0].float())
    assert torch.equal(code((2 * code.mean - far).float())[0], code.low[0].float())
    moved = given[3].clone()
    moved[COLUMNS["rotation"]] += 5
    moved[COLUMNS["translation"]] -= 5
    assert torch.equal(code(moved), code(given[3]))


def test_as_many_modes_as_the_timesteps_teach() -> None:
    assert ExpressionCode.of(rows(3), COLUMNS, 10).directions.shape == (WIDTH, 2)
    assert ExpressionCode.of(rows(3)[[0, 1, 1]], COLUMNS, 10).directions.shape == (WIDTH, 1)
    still = rows(1).repeat(4, 1)
    still[:, COLUMNS["rotation"]] = torch.randn(4, 3)
    with pytest.raises(UserError, match="--use_expression_appearance learns from expressions that differ"):
        ExpressionCode.of(still, COLUMNS, 10)


@pytest.mark.parametrize("native", [True, False])
def test_colors_and_gradients_against_float64(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr("ops.kernels.available", lambda: False)
    elif not kernels.available():
        pytest.skip("no native kernels")
    code = ExpressionCode.of(rows(30), COLUMNS, 4)
    g = torch.Generator().manual_seed(2)
    features, modes, weights = (torch.randn(50, n, 3, generator=g) for n in (16, 4, 16))
    row = rows(30)[7].requires_grad_()
    leaves = [features.clone().requires_grad_(), modes.clone().requires_grad_()]
    shaded = code.shaded(*leaves, row)
    (shaded * weights).sum().backward()
    assert row.grad is None  # expressions are no way to paint

    exact = [value.double().requires_grad_() for value in (features, modes)]
    mixed = torch.einsum("nkc,k->nc", exact[1], code(row).double())
    wanted = torch.cat([exact[0][:, :1] + mixed[:, None], exact[0][:, 1:]], dim=1)
    (wanted * weights.double()).sum().backward()
    torch.testing.assert_close(shaded.double(), wanted, atol=1e-5, rtol=0)
    for leaf, truth in zip(leaves, exact):
        torch.testing.assert_close(leaf.grad.double(), truth.grad, atol=1e-5, rtol=0)
    assert torch.equal(code.shaded(features, torch.zeros_like(modes), row), features)


def test_children_inherit(tmp_path: Path) -> None:
    avatar = load_avatar(write_avatar(tmp_path / "ball", expressive=True), device="cpu")
    model = avatar.model
    optimizer = GaussianOptimizer(model, extent=1.0, modes_lr=0.01, **RATES)
    before = model.modes.detach().clone()
    (model(3)[0].sh.square().sum() + model(3)[0].means.sum()).backward()
    optimizer.step()
    assert not torch.equal(model.modes, before)
    schedule = DensitySchedule(0, 100, 10, 50, 0.01, False, prune_opacity=0.0)
    generator = torch.Generator().manual_seed(0)
    control = DensityControl(model, optimizer, schedule, fixed_threshold(1.0), extent=1.0, generator=generator)
    # Gaussians that nothing else tells apart are known by a color of their own.
    with torch.no_grad():
        model.features[:, 1, 0] = torch.arange(len(model))
    trained, moments = model.modes.detach().clone(), optimizer.state[model.modes]["exp_avg"].clone()
    control.gradient_sum[:200], control.seen[:] = 2.0, 1.0
    report = control.step(10, model(3)[0].scales)
    assert report.cloned + report.split == 200
    parent = model.features[:, 1, 0].long()
    assert torch.equal(model.modes, trained[parent]) and len(model.modes) == len(model) > len(trained)
    after = optimizer.state[model.modes]["exp_avg"]
    fresh = after.flatten(1).abs().amax(1) == 0
    assert torch.equal(after[~fresh], moments[parent[~fresh]]) and fresh.sum() >= report.cloned + report.split
    saved = model.state_dict()
    again = type(model).from_state(saved, flame=model.flame, flame_parameters=model.flame_parameters, device="cpu")
    assert torch.equal(again(4)[0].sh, model(4)[0].sh)


def test_a_saved_avatar_has_the_colors_of_its_expression(tmp_path: Path) -> None:
    folder = write_avatar(tmp_path / "ball", expressive=True)
    avatar = load_avatar(folder, device="cpu")
    model, motion = avatar.model, avatar.motion()
    code = model.expression(motion.values[4])
    assert model.modes.shape == (len(model), COLOR_MODES, 3) and code.abs().max() > 0.1
    mixed = torch.einsum("nkc,k->nc", model.modes, code)
    torch.testing.assert_close(model(4)[0].sh[:, 0], model.features[:, 0] + mixed)
    torch.testing.assert_close(avatar.gaussians(avatar.pose(4))[0].sh, model(4)[0].sh)  # as the viewer's sliders pose
    smiling = avatar.gaussians(avatar.pose(4, expr=[1.0]))[0].sh
    assert not torch.equal(smiling[:, 0], model(4)[0].sh[:, 0]) and torch.equal(smiling[:, 1:], model.features[:, 1:])
    rows = motion.values.numpy()[::-1].copy()
    before = model(4)[0].sh[:, 0].detach()
    avatar.play(rows)  # as clips do
    assert torch.equal(avatar.model(len(rows) - 5)[0].sh[:, 0], before)

    avatar.save(tmp_path / "copy")
    again = load_avatar(tmp_path / "copy", head_model=folder / "head_model.pkl", device="cpu")
    assert torch.equal(again.model.modes, model.modes) and bits(again.model.expression) == bits(model.expression)
    # Without the file it has its mean colors; without modes none is written, and an old one goes.
    model.modes = model.expression = None
    avatar.save(tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob(FILE_NAME))
    plain = load_avatar(tmp_path / "copy", head_model=folder / "head_model.pkl", device="cpu")
    assert plain.model.modes is None and torch.equal(plain.model(4)[0].sh, model.features)


def _arrays(path: Path) -> dict[str, Any]:
    write_appearance(path, torch.rand(12, 3, 3), ExpressionCode.of(rows(9), COLUMNS, 3))
    return dict(np.load(path))


SPOILT = {
    "no modes": (lambda a: a.pop("modes"), "'modes' is missing"),
    "no range": (lambda a: a.pop("high"), "'high' is missing"),
    "another avatar": (lambda a: a.update(modes=a["modes"][:-1]), r"'modes' has shape \(11, 3, 3\), expected \(12,"),
    "no mode": (lambda a: a.update(modes=a["modes"][:, :0]), r"'modes' has shape \(12, 0, 3\)"),
    "flat": (lambda a: a.update(modes=a["modes"][:, 0]), r"'modes' has shape \(12, 3\)"),
    "one mode less": (lambda a: a.update(low=a["low"][:-1]), r"'low' has shape \(2,\), expected \(3,\)"),
    "another head": (lambda a: a.update(mean=a["mean"][:-1]), r"'mean' has shape \(24,\), expected \(25,\)"),
    "not finite": (lambda a: a["modes"].__setitem__((0, 0, 0), np.nan), "'modes' holds values that are not finite"),
    "too large": (lambda a: a.update(modes=a["modes"] * 1e300), "'modes' holds values that are not finite"),
    "infinite": (lambda a: a["directions"].__setitem__((0, 0), np.inf), "'directions' holds values that are not"),
    "upside down": (lambda a: a.update(low=a["high"] + 1), "'low' is above 'high'"),
    "words": (lambda a: a.update(mean=np.array(["x"] * 25)), "instead of numbers"),
    "pickled": (lambda a: a.update(mean=np.array([{}] * 25)), "instead of numbers"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_files_that_are_not_right_are_told_in_a_sentence(what: str, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    arrays = _arrays(path)
    arrays["modes"] = arrays["modes"].astype(np.float64)
    np.savez(path, **arrays)
    modes, code = read_appearance(path, 12, WIDTH)
    assert modes.dtype == torch.float32 and code.directions.shape == (WIDTH, 3)
    spoil, message = SPOILT[what]
    spoil(arrays)
    np.savez(path, **arrays, allow_pickle=True)
    with pytest.raises(UserError, match=message) as told:
        read_appearance(path, 12, WIDTH)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    folder = write_avatar(tmp_path / "ball", expressive=True)
    path = saved_folder(folder, 1) / FILE_NAME
    whole = path.read_bytes()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("modes.npy", bytes(1 << 20))
    for content in (whole[: len(whole) // 2], b"", b"not a zip", bomb.getvalue()):
        path.write_bytes(content)
        with pytest.raises(UserError, match=FILE_NAME):
            load_avatar(folder, device="cpu")
