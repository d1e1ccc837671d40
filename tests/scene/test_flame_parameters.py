"""The FLAME parameters of a capture, their file, and the optimizer that moves single rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_head import motion_of, toy_arrays, toy_head, write_pickle

from scene.flame.head_model import load_head_model
from scene.flame.model import Flame
from scene.flame.parameters import MOTION, FlameParameters, RowAdam
from scene.flame.teeth import FLAME_FACES, FLAME_VERTICES
from utils.errors import UserError


def test_missing_coefficients_are_zero() -> None:
    head = toy_head(n_shape=4, n_expr=6)
    arrays = motion_of(head)
    short = {**arrays, "expr": arrays["expr"][:, :2], "shape": arrays["shape"][:3]}
    parameters = FlameParameters(short, None, head)
    assert torch.equal(parameters.split(parameters.values)["expr"][:, 2:], torch.zeros(4, 4))
    assert parameters.shape[3] == 0 and parameters.shape[2] == arrays["shape"][2]
    wide = {**arrays, "expr": np.pad(arrays["expr"], ((0, 0), (0, 3)))}
    assert torch.equal(FlameParameters(wide, None, head).values, FlameParameters(arrays, None, head).values)
    wide["expr"][1, 7] = 0.1
    with pytest.raises(UserError, match="'expr' has 9 coefficients, but the head model has 6"):
        FlameParameters(wide, None, head)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("jaw_pose", None, "'jaw_pose' is missing"),
        ("jaw_pose", np.zeros((3, 3)), r"'jaw_pose' has shape \(3, 3\), expected \(4, 3\)"),
        ("eyes_pose", np.full((4, 6), np.nan), "'eyes_pose' holds values that are not finite"),
        ("static_offset", np.zeros((1, 5023, 3)), "'static_offset' has 5023 vertices, but the head model has 40"),
        ("expr", np.array([["a"] * 6] * 4), "'expr' holds"),
    ],
)
def test_bad_parameters(key: str, value: np.ndarray | None, words: str) -> None:
    head = toy_head()
    arrays = {**motion_of(head), key: value}
    if value is None:
        del arrays[key]
    with pytest.raises(UserError, match="somewhere: " + words):
        FlameParameters(arrays, None, head, source="somewhere")


def test_offset_of_the_topology_without_teeth(tmp_path: Path) -> None:
    arrays = {**toy_arrays(FLAME_VERTICES, 4, 2), "n_shape": 1}
    arrays["f"] = np.resize(arrays["f"], (FLAME_FACES, 3))
    head = load_head_model(write_pickle(tmp_path / "head_model.pkl", arrays))
    track = {**motion_of(head), "static_offset": np.ones((1, FLAME_VERTICES, 3), dtype=np.float32)}
    offset = FlameParameters(track, None, head).static_offset
    assert offset.shape == (5143, 3) and offset[:5023].all() and not offset[5023:].any()


def test_files(tmp_path: Path) -> None:
    head = toy_head()
    parameters = FlameParameters(motion_of(head), [7, 8, 20, 21], head)
    path = tmp_path / "flame_param.npz"
    parameters.save(path)
    with np.load(path) as archive:
        saved = dict(archive)
    assert {name: array.shape for name, array in saved.items()} == {
        **{name: (4, width) for name, width in {"expr": 6, **MOTION}.items()},
        "shape": (4,),
        "static_offset": (1, 40, 3),
        "timestep_index": (4,),
    }
    assert saved["timestep_index"].dtype == np.int64 and saved["expr"].dtype == np.float32
    loaded = FlameParameters.load(path, head)
    assert loaded.timesteps == [7, 8, 20, 21] and torch.equal(loaded.values, parameters.values)
    assert torch.equal(loaded.static_offset, parameters.static_offset) and torch.equal(loaded.shape, parameters.shape)

    # As another trainer writes it: no time steps, a dynamic offset of zeros.
    del saved["timestep_index"]
    np.savez(path, dynamic_offset=np.zeros((4, 40, 3), dtype=np.float32), **saved)
    loaded = FlameParameters.load(path, head)
    assert loaded.timesteps == [0, 1, 2, 3] and loaded.dynamic_offset is None

    np.savez(path, **{**saved, "expr": np.array([object()])})
    with pytest.raises(UserError, match="flame_param.npz is not a readable .npz"):
        FlameParameters.load(path, head)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="flame_param.npz is not a readable .npz"):
        FlameParameters.load(path, head)
    with pytest.raises(UserError, match="does not exist"):
        FlameParameters.load(tmp_path / "none.npz", head)


def test_rows_are_leaves_that_share_memory() -> None:
    head = toy_head()
    parameters = FlameParameters(motion_of(head), None, head)
    flame = Flame(head)
    for _ in range(2):  # two views of one timestep add up
        flame.vertices(parameters, 1).sum().backward()
    once = parameters.gradients()["values", 1].clone()
    parameters.clear_gradients()
    flame.vertices(parameters, 1).sum().backward()
    torch.testing.assert_close(once, 2 * parameters.gradients()["values", 1])
    assert list(parameters.gradients()) == [("values", 1)]
    with torch.no_grad():
        assert not flame.vertices(parameters, 0).requires_grad
    assert not flame.vertices(FlameParameters(motion_of(head), None, head, trainable=False), 0).requires_grad


def test_a_visit_moves_a_row_as_far_as_a_dense_adam_would() -> None:
    """The same gradients through `torch.optim.Adam` over the whole table: the same way in the end, for visited rows."""
    head = toy_head()
    parameters = FlameParameters(motion_of(head), None, head)
    rates = dict(expr_lr=1e-3, translation_lr=1e-6, pose_lr=1e-5)
    optimizer = RowAdam(parameters, **rates)
    columns = {
        name: torch.zeros(len(parameters), width.stop - width.start, dtype=torch.float64, requires_grad=True)
        for name, width in parameters.columns.items()
    }
    lr = {"expr": 1e-3, "translation": 1e-6}
    dense = torch.optim.Adam(
        [{"params": [table], "lr": lr.get(name, 1e-5)} for name, table in columns.items()], eps=1e-15
    )
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.randint(-6, 3, parameters.values.shape, generator=generator)
    warm = 300  # dense Adam's first steps are larger, while its momentum's bias correction is large
    for iteration in range(1, 2001):
        if iteration == warm:
            ours, theirs = parameters.values.clone(), torch.cat(list(columns.values()), 1).detach().clone()
        row = int(torch.randint(1, 4, (1,), generator=generator))  # row 0 is never visited
        gradient = (torch.randn(scale.shape[1], generator=generator) + 0.5) * scale[row]
        gradient[4] = 0  # a mode the mesh does not have: eps must keep 0 / 0 away
        before = parameters.values.clone()
        parameters.row(row).backward(gradient)
        optimizer.step(iteration)
        optimizer.zero_grad()
        others = [r for r in range(4) if r != row]
        assert torch.equal(parameters.values[others], before[others])
        for name, table in columns.items():
            table.grad = torch.zeros_like(table)
            table.grad[row] = gradient[parameters.columns[name]].double()
        dense.step()
    moved, expected = parameters.values - ours, torch.cat(list(columns.values()), 1).detach() - theirs
    assert torch.equal(parameters.values[0], before[0]) and torch.count_nonzero(moved[:, 4]) == 0
    expected[:, 4] = 1.0
    moved[:, 4] = 1.0
    assert ((moved[1:] / expected[1:]) - 1).abs().max() < 0.05


def test_resume_is_bit_identical() -> None:
    head = toy_head()

    def make() -> tuple[FlameParameters, RowAdam]:
        parameters = FlameParameters(motion_of(head), None, head)
        return parameters, RowAdam(parameters, expr_lr=1e-2, translation_lr=1e-3, pose_lr=1e-3)

    def train(parameters: FlameParameters, optimizer: RowAdam, rows: list[int], done: int = 0) -> None:
        for iteration, row in enumerate(rows, start=done + 1):
            optimizer.zero_grad()
            Flame(head).vertices(parameters, row).square().sum().backward()
            optimizer.step(iteration)

    whole, optimizer = make()
    train(whole, optimizer, [0, 1, 1, 2, 0, 2])
    half, first = make()
    train(half, first, [0, 1, 1])
    resumed, second = make()
    resumed.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    train(resumed, second, [2, 0, 2], done=3)
    assert torch.equal(resumed.values, whole.values)
    with pytest.raises(UserError, match="timesteps"):
        resumed.load_state_dict({**half.state_dict(), "timesteps": [1, 2, 3, 4]})


def test_dynamic_offsets_train_row_by_row_and_survive_a_checkpoint() -> None:
    head = toy_head()
    parameters = FlameParameters(motion_of(head), None, head)
    parameters.train_dynamic_offset()
    flame = Flame(head)
    optimizer = RowAdam(parameters, expr_lr=0.0, translation_lr=0.0, pose_lr=0.0, dynamic_lr=1e-3)
    target = flame.vertices(parameters, 1).detach() + 0.002
    for iteration in range(1, 6):
        flame.vertices(parameters, 1).sub(target).square().sum().backward()
        optimizer.step(iteration)
        optimizer.zero_grad()
    assert torch.count_nonzero(parameters.dynamic_offset[0]) == 0
    assert parameters.dynamic_offset[1].abs().max() > 1e-3
    assert (flame.vertices(parameters, 1) - target).norm() < 0.9 * 0.002 * target.numel() ** 0.5
    again = FlameParameters(motion_of(head), None, head)
    again.train_dynamic_offset()
    again.load_state_dict(parameters.state_dict())
    twin = RowAdam(again, expr_lr=0.0, translation_lr=0.0, pose_lr=0.0, dynamic_lr=1e-3)
    twin.load_state_dict(optimizer.state_dict())
    for one, adam in ((parameters, optimizer), (again, twin)):
        flame.vertices(one, 1).sub(target).square().sum().backward()
        adam.step(6)
    assert torch.equal(parameters.dynamic_offset, again.dynamic_offset)
