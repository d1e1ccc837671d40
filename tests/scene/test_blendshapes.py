"""Motions as ARKit's blendshape weights: tables of different writers, and mappings, against poses set by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hostile import refusal
from scipy.spatial.transform import Rotation
from toy_avatar import ROTATION, TRANSLATION

from scene import Avatar, load_avatar
from scene.flame.parameters import row_columns
from scene.motion import load_motion
from scene.motion.blendshapes import find_mapping, read_weights
from synthetic.modes import EXPRESSION_NAMES
from utils.blendshapes import NAMES
from utils.errors import UserError

COLUMNS = row_columns(20)
WIDTH = COLUMNS["translation"].stop


@pytest.fixture(scope="module")
def avatar(puppet: Path) -> Avatar:
    return load_avatar(puppet, device="cpu")


def table(
    path: Path, rows: list[dict[str, object]], *, fps: int = 60, names: tuple[str, ...] = NAMES, ending: str = "\n"
) -> Path:
    """As Live Link Face writes it: its own order, capitals, time codes with the frame, rotations at the end."""
    rest = ["HeadYaw", "HeadPitch", "HeadRoll", "LeftEyeYaw"]
    header = ["Timecode", "BlendShapeCount", *(name[0].upper() + name[1:] for name in names), *rest]
    lines = [",".join(header)]
    for t, row in enumerate(rows):
        code = f"00:59:{59 + t // fps}:{t % fps:02d}.123" if t < fps else f"01:00:{t // fps - 1:02d}:{t % fps:02d}.123"
        lines.append(",".join([code, "61", *(str(row.get(name, 0.0)) for name in names), "0.5", "0.5", "0.5", "0.5"]))
    path.write_text(ending.join(lines) + ending)
    return path


def test_weights_by_name(tmp_path: Path) -> None:
    order = tuple(np.random.default_rng(0).permutation(NAMES))
    rows = [{"jawOpen": 0.25, "browInnerUp": t / 10} for t in range(4)]
    weights, _ = read_weights(table(tmp_path / "live.csv", rows, names=order, ending="\r\n"))
    assert weights.shape == (4, 52)
    np.testing.assert_allclose(weights[:, NAMES.index("jawOpen")], 0.25)
    np.testing.assert_allclose(weights[:, NAMES.index("browInnerUp")], np.arange(4) / 10)
    assert np.count_nonzero(weights) == 4 + 3
    # A byte order mark, names with sides behind a bar, no tongue, no time codes, an empty line at the end.
    names = [name.replace("Left", "_L").replace("Right", "_R") for name in NAMES if name != "tongueOut"]
    names = [name if name not in ("mouth_L", "mouth_R", "jaw_L", "jaw_R") else name for name in names]
    text = ",".join(names) + "\n" + ",".join("0.5" if n == "mouthSmile_R" else "0" for n in names) + "\n\n"
    (tmp_path / "other.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    weights, fps = read_weights(tmp_path / "other.csv")
    assert weights.shape == (1, 52) and fps == 60
    assert weights[0, NAMES.index("mouthSmileRight")] == 0.5 and np.count_nonzero(weights) == 1


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_the_rate_is_that_of_the_time_codes(tmp_path: Path, fps: int) -> None:
    assert read_weights(table(tmp_path / "live.csv", [{}] * (4 * fps), fps=fps))[1] == fps
    assert read_weights(table(tmp_path / "short.csv", [{}] * (fps // 2), fps=fps))[1] == 60  # they do not tell


def test_the_procedural_head_brings_its_mapping(avatar: Avatar, tmp_path: Path) -> None:
    weights = {"jawOpen": 1.0, "eyeBlinkLeft": 0.8, "eyeLookOutLeft": 1.0, "eyeLookInRight": 1.0, "mouthRight": 0.5}
    motion = load_motion(str(table(tmp_path / "live.csv", [{}, weights])), avatar)
    assert motion.fps == 60
    rest = np.zeros(WIDTH)
    rest[COLUMNS["rotation"]], rest[COLUMNS["translation"]] = ROTATION, TRANSLATION
    np.testing.assert_allclose(motion.rows[0], rest, atol=1e-6)
    wanted = np.zeros(WIDTH)
    wanted[EXPRESSION_NAMES.index("blink_left")] = 0.8
    wanted[EXPRESSION_NAMES.index("mouth_left")] = -0.5
    wanted[COLUMNS["jaw_pose"].start] = 0.35
    # Both eyes look to the head's own left, which is +y about their joints.
    wanted[[COLUMNS["eyes_pose"].start + 1, COLUMNS["eyes_pose"].start + 4]] = np.radians(30)
    np.testing.assert_allclose(motion.rows[1] - motion.rows[0], wanted, atol=1e-6)


def test_what_a_blendshape_does_to_the_mesh(avatar: Avatar, tmp_path: Path) -> None:
    """Blinking moves that eye's lids, an open jaw the lower lip down; the rest of the face stays."""
    motion = load_motion(str(table(tmp_path / "l.csv", [{}, {"eyeBlinkLeft": 1.0}, {"jawOpen": 1.0}])), avatar)
    own, flame, head = avatar.motion(), avatar.model.flame, avatar.head
    assert flame is not None and head is not None
    rest, blink, jaw = (flame.from_row(own.values.new_tensor(row), own.shape, own.static_offset) for row in motion.rows)
    left, right, nose = (head.masks[name] for name in ("left_eye_region", "right_eye_region", "nose"))
    moved = (blink - rest).norm(dim=1)
    assert moved[left].max() > 0.004 and moved[right].max() < 1e-4 and moved[nose].max() < 1e-4
    lips = (jaw - rest)[head.masks["lips"]]
    up = lips.new_tensor(Rotation.from_rotvec(ROTATION).apply([0.0, 1.0, 0.0]))
    assert (lips @ up).min() < -0.015 and (jaw - rest)[nose].norm(dim=1).max() < 2e-3


def test_a_mapping_of_the_user(avatar: Avatar, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expr, neck = rng.normal(size=(52, 12)), rng.normal(size=(52, 3))
    np.savez(tmp_path / "map.npz", expr=expr, neck_pose=neck)
    path = table(tmp_path / "live.csv", [{}, {name: i / 52 for i, name in enumerate(NAMES)}])
    motion = load_motion(str(path), avatar, mapping=str(tmp_path / "map.npz"))
    change = motion.rows[1] - motion.rows[0]
    weights = np.arange(52) / 52
    np.testing.assert_allclose(change[:12], weights @ expr, atol=1e-5)
    np.testing.assert_allclose(change[COLUMNS["neck_pose"]], weights @ neck, atol=1e-5)
    assert not change[12:20].any() and not change[COLUMNS["jaw_pose"]].any()


def test_modes_with_names_are_a_mapping(avatar: Avatar, tmp_path: Path) -> None:
    """As ICT-FaceKit names them: both sides of what ARKit has once, and a corrective beside the jaw joint."""
    modes = ["browInnerUp_L", "browInnerUp_R", "jawOpen", "mouthLeft", "mouthSmile_L"]
    names = {"expression": modes, "theta0_rad": 0.4}
    (tmp_path / "expr_names.json").write_text(json.dumps(names))
    assert avatar.head is not None
    mapping = find_mapping(None, tmp_path / "head_model.pkl", avatar.head)
    jaw = COLUMNS["jaw_pose"].start

    def places(name: str) -> dict[int, float]:
        row = mapping[NAMES.index(name)]
        return {int(i): row[i] for i in np.flatnonzero(row)}

    assert places("browInnerUp") == {0: 1.0, 1: 1.0}
    assert places("jawOpen") == {2: 1.0, jaw: 0.4}
    assert places("mouthLeft") == {3: 1.0} and places("mouthSmileLeft") == {4: 1.0} and places("mouthSmileRight") == {}
    assert places("jawRight") == {jaw + 1: pytest.approx(-np.radians(6))}  # no such mode
    assert places("eyeLookUpRight") == {COLUMNS["eyes_pose"].start + 3: pytest.approx(-np.radians(30))}


# ---- bad files ------------------------------------------------------------------


def spoilt(tmp_path: Path, text: str) -> str:
    (tmp_path / "live.csv").write_text(text)
    with pytest.raises(UserError, match="live.csv") as caught:
        read_weights(tmp_path / "live.csv")
    return str(caught.value)


def test_tables_that_are_none(tmp_path: Path) -> None:
    good = table(tmp_path / "good.csv", [{}, {}]).read_text()
    header, line, _ = good.splitlines()
    assert "is empty" in spoilt(tmp_path, "")
    assert "has no rows" in spoilt(tmp_path, header + "\n")
    assert "no column eyeBlinkLeft, eyeLookDownLeft, eyeLookInLeft and 48 more" in spoilt(tmp_path, "a,b,c\n1,2,3\n")
    text = spoilt(tmp_path, good.replace("JawOpen", "JawClosed"))
    assert "no column jawOpen: a table of ARKit's 52 blendshape weights is needed" in text
    assert "column 'JawOpen' twice" in spoilt(tmp_path, good.replace("HeadYaw", "JawOpen"))
    assert "line 3 has 5 columns, but the first line has 58" in spoilt(tmp_path, f"{header}\n{line}\n1,2,3,4,5\n")
    assert "line 2: eyeLookDownLeft is not a finite number" in spoilt(
        tmp_path, good.replace("61,0.0,0.0", "61,0.0,nan")
    )
    assert "line 2: could not convert string to float: 'x'" in spoilt(tmp_path, good.replace("61,0.0", "61,x"))
    assert "a line of more than" in spoilt(tmp_path, "x" * 100_000)


def test_mappings_that_are_none(avatar: Avatar, tmp_path: Path) -> None:
    path = table(tmp_path / "live.csv", [{}])
    head = avatar.head
    assert head is not None
    with pytest.raises(UserError, match="name a mapping with --mapping .* or put it there as blendshape_mapping.npz"):
        find_mapping(None, tmp_path / "head_model.pkl", head)
    for arrays, message in (
        ({"expr": np.zeros((51, 20))}, r"'expr' has shape \(51, 20\), expected \(52, any\)"),
        ({"jaw_pose": np.zeros((52, 6))}, r"'jaw_pose' has shape \(52, 6\), expected \(52, 3\)"),
        ({"expr": np.full((52, 20), np.inf)}, "'expr' holds values that are not finite"),
        ({"expr": np.ones((52, 30))}, "'expr' has 30 coefficients, but the head model has 20"),
        ({"matrix": np.zeros((52, 20))}, "holds none of expr, rotation"),
    ):
        np.savez(tmp_path / "map.npz", **arrays)
        with pytest.raises(UserError, match=f"map.npz.*{message}"):
            load_motion(str(path), avatar, mapping=str(tmp_path / "map.npz"))
    names = tmp_path / "expr_names.json"
    for content, message in (
        ({"expression": "browDown_L"}, "'expression' must be a list"),
        ({"expression": ["mode 1", "mode 2"]}, "none of the expression modes has the name"),
        ({"expression": ["jawOpen"] * 21}, "names of up to 20"),
        ({"expression": ["jawOpen"], "theta0_rad": "wide"}, "'theta0_rad' must be the angle"),
    ):
        names.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            find_mapping(None, tmp_path / "head_model.pkl", head)


def test_large_tables_are_refused_or_cost_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "live.csv"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    assert "larger than 128 MiB" in refusal(lambda: read_weights(path))
    path.write_bytes(b'"' * (1 << 26))
    assert "a line of more than" in refusal(lambda: read_weights(path))
    path.write_bytes(b"\n" * (1 << 22))
    assert "no column" in refusal(lambda: read_weights(path))
