"""Motions from every source, and what is done to them, against poses set by hand and rotation matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from toy_avatar import ROTATION, TRANSLATION, toy_motion, write_keys

from scene import Avatar, load_avatar
from scene.flame.parameters import MOTION, row_columns
from scene.motion import Motion, load_motion
from scene.motion.rows import between
from scene.motion.sources import adapted
from utils.errors import UserError

EXPR = 20  # of the puppet's head model
COLUMNS = row_columns(EXPR)
WIDTH = COLUMNS["translation"].stop


@pytest.fixture(scope="module")
def avatar(puppet: Path) -> Avatar:
    return load_avatar(puppet, device="cpu")


def row(**parts: object) -> np.ndarray:
    """[D] with some parameters set by name."""
    values = np.zeros(WIDTH)
    for name, part in parts.items():
        part = np.asarray(part, dtype=np.float64)
        values[COLUMNS[name].start : COLUMNS[name].start + len(part)] = part
    return values


def stacked(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """[T, D] of FLAME arrays, by their names alone."""
    return np.stack([row(**{name: arrays[name][t] for name in COLUMNS}) for t in range(len(arrays["expr"]))])


REST = row(rotation=ROTATION, translation=TRANSLATION)


def matrix(vector: np.ndarray) -> np.ndarray:
    return Rotation.from_rotvec(vector).as_matrix()


# ---- sources --------------------------------------------------------------------


def test_neutral_is_a_face_at_rest_where_the_head_is(avatar: Avatar) -> None:
    motion = load_motion("neutral", avatar)
    np.testing.assert_allclose(motion.rows, [REST], atol=1e-6)


def test_a_file_with_a_row_per_timestep(avatar: Avatar, tmp_path: Path) -> None:
    arrays = toy_motion(6, seed=3)
    np.savez(tmp_path / "tracked.npz", **arrays, timestep_id=np.array(["a", "b"]), tex=np.zeros(4))
    motion = load_motion(str(tmp_path / "tracked.npz"), avatar)
    assert motion.name == "tracked" and motion.fps is None and not motion.notes
    np.testing.assert_allclose(motion.rows, stacked(arrays), atol=1e-6)
    # The file of another avatar, with its person in it, and a head with fewer coefficients.
    folder = tmp_path / "other"
    folder.mkdir()
    person = {"shape": np.ones(16, np.float32), "static_offset": np.zeros((1, 6704, 3), np.float32)}
    np.savez(folder / "flame_param.npz", **{**arrays, **person}, dynamic_offset=np.ones((6, 6704, 3), np.float32))
    assert np.array_equal(load_motion(str(folder / "flame_param.npz"), avatar).rows, motion.rows)


def test_a_folder_with_a_file_per_timestep(avatar: Avatar, tmp_path: Path) -> None:
    arrays = toy_motion(11, seed=3)
    folder = tmp_path / "capture" / "flame_param"
    folder.mkdir(parents=True)
    for t in range(11):
        np.savez(folder / f"{t:05d}.npz", **{name: arrays[name][t : t + 1] for name in COLUMNS}, shape=arrays["shape"])
    (folder / "notes.txt").write_text("not a timestep")
    for source in (folder, folder.parent):
        np.testing.assert_allclose(load_motion(str(source), avatar).rows, stacked(arrays), atol=1e-6)


def test_coefficients_that_the_head_lacks_are_cut_and_said(avatar: Avatar, tmp_path: Path) -> None:
    arrays = toy_motion(4)
    wide = np.zeros((4, 100), np.float32)
    wide[:, :17] = arrays["expr"]
    np.savez(tmp_path / "zero.npz", **{**arrays, "expr": wide})
    wide[2, 60] = 1.0
    np.savez(tmp_path / "more.npz", **{**arrays, "expr": wide})
    zero, more = (load_motion(str(tmp_path / f"{name}.npz"), avatar) for name in ("zero", "more"))
    assert zero.notes == () and np.array_equal(zero.rows, more.rows)
    assert len(more.notes) == 1 and "100 expression coefficients, the head model 20" in more.notes[0]


def test_the_sweep_moves_one_thing_at_a_time(avatar: Avatar) -> None:
    motion = load_motion("sweep", avatar, fps=8)
    assert len(motion) == (10 + 7) * 8 and motion.fps == 8
    change = motion.rows - REST.astype(np.float32)
    assert np.abs(change[::8]).max() < 1e-6  # each begins and ends at rest
    moved = [set(np.flatnonzero(np.abs(change[8 * i : 8 * i + 8]).max(axis=0) > 1e-6)) for i in range(17)]
    jaw, neck, eyes = (COLUMNS[name].start for name in ("jaw_pose", "neck_pose", "eyes_pose"))
    wanted = [{i} for i in range(10)] + [{jaw}, {jaw + 1}, {neck + 1}, {neck}, {neck + 2}]
    assert moved == [*wanted, {eyes + 1, eyes + 4}, {eyes, eyes + 3}]
    assert change[:, jaw].min() > -1e-6 and change[:, jaw].max() == pytest.approx(0.35)  # no jaw closes further
    labels = [still.label for still in motion.stills]
    assert len(labels) == 20 + 1 + 2 + 6 + 4 and labels[20] == "jaw open +0.35"
    assert np.argmax(change[:, jaw]) == motion.stills[20].row
    # An expression moves the mesh by a centimetre, but by no more than two units.
    head = avatar.head
    assert head is not None
    for index in range(10):
        far = change[:, index].max()
        assert change[:, index].min() == pytest.approx(-far)
        distance = float((head.exprdirs[:, :, index] * far).norm(dim=1).max())
        assert distance == pytest.approx(0.010, rel=1e-4) or (far == 2.0 and distance < 0.010)


def test_poses_of_key_frames(avatar: Avatar, tmp_path: Path) -> None:
    first = {"seconds": 0, "pose": {"expr": [0.5, 1.0], "translation": [0, 0, 1]}}
    path = write_keys(tmp_path / "keys.json", first, {"seconds": 0.5, "pose": {"jaw_pose": [0.3, 0, 0]}})
    motion = load_motion(str(path), avatar, fps=10)
    assert len(motion) == 6 and motion.fps == 10
    np.testing.assert_allclose(motion.rows[0], row(expr=[0.5, 1], translation=[0, 0, 1], rotation=ROTATION), atol=1e-6)
    np.testing.assert_allclose(
        motion.rows[-1], row(jaw_pose=[0.3, 0, 0], rotation=ROTATION, translation=TRANSLATION), atol=1e-6
    )
    # Two poses only: everything at an even pace.
    jaw = motion.rows[:, COLUMNS["jaw_pose"]]
    np.testing.assert_allclose(jaw, np.outer(np.arange(6) / 5, [0.3, 0, 0]), atol=1e-9)


def write_npz(path: Path, **changes: np.ndarray | None) -> str:
    arrays = {**toy_motion(4), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"jaw_pose": None}, "'jaw_pose' is missing"),
        ({"neck_pose": np.full((4, 3), np.nan)}, "'neck_pose' holds values that are not finite"),
        ({"rotation": np.zeros((3, 3))}, r"'rotation' has shape \(3, 3\), expected \(4, 3\)"),
        ({"expr": np.zeros((0, 17))}, "'expr' holds no timestep"),
        ({"expr": np.zeros((4, 20_000))}, "20000 coefficients, more than any head model"),
        ({"expr": np.zeros(17)}, r"'expr' has shape \(17,\)"),
        ({"static_offset": np.zeros((1, 5023, 3))}, "has 5023 vertices, but the head model has 6704"),
        ({"translation": np.full((4, 3), 1e6)}, "values beyond 10000"),
        ({"expr": np.zeros((4, 17), complex)}, "instead of numbers"),
    ],
)
def test_files_that_cannot_move_this_head(
    avatar: Avatar, tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    with pytest.raises(UserError, match=f"motion.npz.*{message}"):
        load_motion(write_npz(tmp_path / "motion.npz", **changes), avatar)


def test_sources_that_are_not_there(avatar: Avatar, tmp_path: Path) -> None:
    (tmp_path / "flame_param").mkdir()
    (tmp_path / "cut.npz").write_bytes(Path(write_npz(tmp_path / "whole.npz")).read_bytes()[:-100])
    write_npz(tmp_path / "flame_param" / "x.npz")
    for source, message in (
        (tmp_path / "absent.npz", "does not exist"),
        (tmp_path / "absent", "is neither 'neutral', 'sweep', a folder"),
        (tmp_path / "cut.npz", "is not a readable .npz"),
        (tmp_path, "holds no FLAME files such as 00000.npz"),
        (tmp_path / "absent.json", "cannot read"),
        (tmp_path / "absent.csv", "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            load_motion(str(source), avatar)


def test_one_timestep_of_another_head_in_a_folder(avatar: Avatar, tmp_path: Path) -> None:
    arrays = toy_motion(2)
    for t in range(2):
        np.savez(tmp_path / f"{t}.npz", **{name: arrays[name][t : t + 1] for name in COLUMNS})
    np.savez(tmp_path / "1.npz", **{name: arrays[name][:1, :2] for name in COLUMNS})
    with pytest.raises(UserError, match=r"1\.npz: '\w+' has the shape"):
        load_motion(str(tmp_path), avatar)


# ---- what is done to them -------------------------------------------------------


def random_motion(count: int, seed: int = 0) -> Motion:
    rng = np.random.default_rng(seed)
    return Motion("random", 0.4 * rng.normal(size=(count, WIDTH)))


def test_only_the_changes_of_another_person() -> None:
    motion, rest = random_motion(5), random_motion(1, seed=1).rows[0]
    own = motion.rows[2]
    moved = motion.relative(own, rest)
    np.testing.assert_allclose(moved.rows[2], rest, atol=1e-12)
    for t in range(5):
        before, after = (
            dict(zip(COLUMNS, np.split(r, [c.stop for c in COLUMNS.values()][:-1])))
            for r in (motion.rows[t], moved.rows[t])
        )
        start, goal = (dict(zip(COLUMNS, np.split(r, [c.stop for c in COLUMNS.values()][:-1]))) for r in (own, rest))
        np.testing.assert_allclose(after["expr"] - goal["expr"], before["expr"] - start["expr"], atol=1e-12)
        for name in ("rotation", "neck_pose", "jaw_pose"):
            np.testing.assert_allclose(
                matrix(goal[name]).T @ matrix(after[name]), matrix(start[name]).T @ matrix(before[name]), atol=1e-12
            )
        # The path of the head, as the head at rest sees it.
        np.testing.assert_allclose(
            matrix(goal["rotation"]).T @ (after["translation"] - goal["translation"]),
            matrix(start["rotation"]).T @ (before["translation"] - start["translation"]),
            atol=1e-12,
        )


def test_scaling_is_about_the_rest_and_leaves_the_head_where_it_is() -> None:
    motion, rest = random_motion(4), random_motion(1, seed=1).rows[0]
    doubled = motion.scaled(2.0, rest)
    for name in ("rotation", "translation"):
        assert np.array_equal(doubled.rows[:, COLUMNS[name]], motion.rows[:, COLUMNS[name]])
    expr, jaw = COLUMNS["expr"], COLUMNS["jaw_pose"]
    np.testing.assert_allclose(doubled.rows[:, expr] - rest[expr], 2 * (motion.rows[:, expr] - rest[expr]))
    for t in range(4):
        once = matrix(rest[jaw]).T @ matrix(motion.rows[t, jaw])
        np.testing.assert_allclose(matrix(rest[jaw]).T @ matrix(doubled.rows[t, jaw]), once @ once, atol=1e-9)
    np.testing.assert_allclose(motion.scaled(0.0, rest).rows[:, expr], np.repeat(rest[None, expr], 4, axis=0))


def test_smoothing_is_the_gaussian_that_it_says() -> None:
    rows = np.zeros((41, WIDTH))
    rows[20, 0] = 1.0  # an impulse becomes the filter itself
    smooth = Motion("impulse", rows, fps=50.0).smoothed(0.06, fps=1.0).rows[:, 0]  # 3 rows; the motion's rate counts
    wanted = np.exp(-0.5 * ((np.arange(41) - 20) / 3.0) ** 2)
    np.testing.assert_allclose(smooth, wanted / wanted.sum(), atol=1e-4)
    still = Motion("still", np.repeat(random_motion(1).rows, 9, axis=0))
    np.testing.assert_allclose(still.smoothed(0.2, 25.0).rows, still.rows, atol=1e-12)


def test_smoothing_takes_the_short_way_round() -> None:
    """A head turned by about half a turn jitters between pi and -pi; the mean is not zero."""
    rows = np.zeros((20, WIDTH))
    rows[:, COLUMNS["rotation"].start + 1] = np.where(np.arange(20) % 2, np.pi - 0.05, -np.pi + 0.05)
    angles = np.linalg.norm(Motion("turned", rows).smoothed(0.2, 25.0).rows[:, COLUMNS["rotation"]], axis=1)
    assert angles.min() > np.pi - 0.05


def test_another_rate_keeps_what_happens_when() -> None:
    times = np.arange(61) / 60.0
    rows = np.zeros((61, WIDTH))
    rows[:, 0] = np.sin(2 * np.pi * times)
    rows[:, COLUMNS["rotation"].start + 1] = 0.8 * np.sin(2 * np.pi * times)
    motion = Motion("wave", rows, fps=60.0).at_rate(24.0)
    assert len(motion) == 25 and motion.fps == 24.0
    wave = np.sin(2 * np.pi * np.arange(25) / 24)
    np.testing.assert_allclose(motion.rows[:, 0], wave, atol=2e-3)
    np.testing.assert_allclose(motion.rows[:, COLUMNS["rotation"].start + 1], 0.8 * wave, atol=2e-3)
    unknown = Motion("rows", rows)
    assert np.array_equal(unknown.at_rate(24.0).rows, rows)  # a row is a frame


def test_between_two_poses_nothing_overshoots() -> None:
    """A lid: open, shut, shut, open. A cubic through all four would go beyond shut."""
    rows = np.zeros((4, WIDTH))
    rows[1:3, 0] = 1.0
    values = between(np.array([0.0, 1.0, 2.0, 3.0]), rows, np.linspace(-1, 4, 501))[:, 0]
    assert values.min() >= 0.0 and values.max() <= 1.0
    assert values[:100].max() == 0.0 and values[-100:].max() == 0.0  # before and after, it stays
    assert np.abs(np.diff(values)).max() < 0.02


def test_the_row_at_rest_is_where_the_face_is_most_of_the_time() -> None:
    rows = np.zeros((30, WIDTH))
    rows[:, COLUMNS["jaw_pose"].start] = 0.05  # how this person holds the mouth
    rows[10:18, COLUMNS["jaw_pose"].start] = 0.3
    rows[10:20, 0] = 1.0
    rows[3, COLUMNS["rotation"].start] = 2.0  # the head's place says nothing of the face
    assert Motion("talk", rows).rest() not in range(10, 20)


def test_adapted_to_the_avatars_own_face(avatar: Avatar) -> None:
    own = avatar.motion().values.double().numpy()
    motion = random_motion(5)
    moved = adapted(motion, avatar, relative=True, rest_frames=(3, 1))
    np.testing.assert_allclose(moved.rows, motion.relative(motion.rows[3], own[1]).rows)
    assert "row 3 of the motion, row 1 of the avatar's own" in moved.notes[0]
    np.testing.assert_allclose(adapted(motion, avatar, scale=0.5).rows, motion.scaled(0.5, REST).rows, atol=1e-6)
    for frames in ((5, 1), (3, 3)):
        with pytest.raises(UserError, match="there is no row [53], only 0 to [42]"):
            adapted(motion, avatar, relative=True, rest_frames=frames)


def test_another_head_pose_is_posed_as_by_name(avatar: Avatar, tmp_path: Path) -> None:
    """A row of a motion is what `Avatar.pose` makes of the same values."""
    arrays = toy_motion(2, seed=5)
    motion = load_motion(write_npz(tmp_path / "m.npz", **arrays), avatar)
    named = avatar.pose(5, **{name: arrays[name][1] for name in ("expr", *MOTION)})
    own = avatar.pose(5)
    named[len(arrays["expr"][1]) : EXPR] = 0.0  # what the file lacks is zero, not the avatar's
    assert torch.allclose(torch.from_numpy(motion.rows[1]).float(), named) and not torch.allclose(named, own)
