"""What a user can get wrong in front of train.py: one line that names the file and the field, exit status 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from runs import ending, flags, train_on
from toy_capture import write_capture

import scene.flame.head_model


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_capture(tmp_path / "capture", [3, 4], size=(32, 48))


def error_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that `train.py` with these arguments ends with; everything else fails the test."""
    status, out, err = ending(monkeypatch, capfd, words)
    assert status == 2 and out == ""
    return only_line(err)


def only_line(err: str) -> str:
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert len(err) < 700 and "Traceback" not in err
    return err


def edit_frame(capture: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    """Changes the second frame of a split."""
    path = capture / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    change(content["frames"][1])
    path.write_text(json.dumps(content))


def edit_flame(capture: Path, **fields: np.ndarray) -> None:
    """Changes fields in every file of FLAME parameters."""
    for path in (capture / "flame_param").iterdir():
        np.savez(path, **{**np.load(path), **fields})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_json(capture: Path) -> None:
    path = capture / "transforms_val.json"
    path.write_text(path.read_text().replace('"frames": [', '"frames": [,', 1))


def as_picture_of_another_size(capture: Path) -> None:
    Image.new("RGB", (32, 47)).save(capture / "images/00003_02.png")


WITH_NAN = np.array([[0.0, np.nan, 0.0]], np.float32)
# name -> (what is done to a good capture, what the line must say)
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing image": (
        lambda c: (c / "images/00003_02.png").unlink(),
        r"images/00003_02\.png does not exist \(.*transforms_train\.json, frame 1, 'file_path'\)",
    ),
    "missing image of a held-out split": (
        lambda c: (c / "images/00004_00.png").unlink(),
        r"images/00004_00\.png does not exist \(.*transforms_test\.json",
    ),
    "truncated PNG": (lambda c: truncate(c / "images/00003_02.png"), r"cannot decode the image .*00003_02\.png"),
    "empty PNG": (lambda c: (c / "images/00003_02.png").write_bytes(b""), r"cannot read the image .*00003_02\.png"),
    "text for a PNG": (
        lambda c: (c / "images/00003_02.png").write_text("hello"),
        r"cannot read the image .*00003_02\.png",
    ),
    "image size": (as_picture_of_another_size, r"00003_02\.png is 32x47 pixels, but the camera file says 32x48"),
    "mask size": (
        lambda c: [
            Image.new("L", (9, 9)).save(c / "mask.png"),
            edit_frame(c, lambda f: f.update(fg_mask_path="mask.png")),
        ],
        r"mask\.png is 9x9 pixels, but .* 32x48",
    ),
    "JSON syntax": (spoil_json, r"transforms_val\.json, line 1, column \d+: JSON syntax error"),
    "no frames": (
        lambda c: (c / "transforms_train.json").write_text('{"frames": []}'),
        r"transforms_train\.json has no frames",
    ),
    "no split file": (lambda c: (c / "transforms_train.json").unlink(), r"transforms_train\.json does not exist"),
    "frame without flame_param_path": (
        lambda c: edit_frame(c, lambda f: f.pop("flame_param_path")),
        r"transforms_train\.json, frame 1, 'flame_param_path' is missing",
    ),
    "frame without timestep_index": (
        lambda c: edit_frame(c, lambda f: f.pop("timestep_index")),
        r"frame 1, 'timestep_index' is missing",
    ),
    "frame without focal length": (
        lambda c: edit_frame(c, lambda f: (f.pop("fl_x"), f.pop("fl_y"))),
        r"frame 1, 'fl_x'",
    ),
    "mirrored camera": (
        lambda c: edit_frame(c, lambda f: f["transform_matrix"][0].__setitem__(0, -1.0)),
        r"frame 1, 'transform_matrix' is not a rotation",
    ),
    "image outside": (
        lambda c: edit_frame(c, lambda f: f.update(file_path="../../../etc/hostname")),
        r"frame 1, 'file_path' points outside",
    ),
    "missing FLAME file": (lambda c: (c / "flame_param/00004.npz").unlink(), r"flame_param/00004\.npz does not exist"),
    "truncated FLAME file": (lambda c: truncate(c / "flame_param/00004.npz"), r"flame_param/00004\.npz is not"),
    "NaN in FLAME": (
        lambda c: edit_flame(c, jaw_pose=WITH_NAN),
        r"flame_param/00003\.npz: 'jaw_pose' holds NaN or infinite values",
    ),
    "V of static_offset": (
        lambda c: edit_flame(c, static_offset=np.zeros((1, 161, 3), np.float32)),
        r"flame_param.*\.npz: 'static_offset' has 161 vertices, but the head model has 162",
    ),
    "V of dynamic_offset": (
        lambda c: edit_flame(c, dynamic_offset=np.ones((1, 5, 3), np.float32)),
        r"flame_param.*\.npz: 'dynamic_offset' has 5 vertices, but the head model has 162",
    ),
    "too many expressions": (
        lambda c: edit_flame(c, expr=np.ones((1, 2), np.float32)),
        r"flame_param.*\.npz: 'expr' has 2 coefficients, but the head model has 1",
    ),
    "truncated head model": (lambda c: truncate(c / "head_model.pkl"), r"head_model\.pkl"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_captures(
    name: str, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, message = SPOILT[name]
    spoil(capture)
    assert re.search(message, error_of(monkeypatch, capfd, flags(capture, tmp_path / "model")))
    assert not list((tmp_path / "model").glob("chkpnt*"))


@pytest.mark.parametrize(
    "more, message",
    [
        ("--use_magic", r"unrecognized arguments: --use_magic"),
        ("--lamda-dssim=0.3", r"unrecognized arguments: --lamda-dssim=0.3; did you mean --lambda_dssim\?"),
        ("--iteration 7", r"--iteration"),  # an abbreviation is not a flag
        ("--iterations 0", r"--iterations must be at least 1, not 0"),
        ("--iterations many", r"--iterations.*'many'"),
        ("--densify_grad_threshold nan", r"--densify_grad_threshold must be a finite number, not nan"),
        ("--sh_degree 4", r"--sh_degree must be at most 3, not 4"),
        ("--resolution 0", r"--resolution must be -1 or positive"),
        ("--rasterizer fast", r"--rasterizer must be one of auto, native"),
        ("--select_camera_id 7", r"--select_camera_id 7: .*no such camera_index, only 0, 1, 2"),
        ("--head_model nowhere.pkl", r"--head_model .*nowhere\.pkl does not exist"),
        ("-t nowhere", r"--target_path .*nowhere is not a folder"),
        ("-s nowhere", r"--source_path .*nowhere is not a folder"),
        ("--start_checkpoint nowhere.pth", r"nowhere\.pth"),
        ("--rasterizer gsplat", r"gsplat"),  # needs CUDA, and the device is the CPU
    ],
)
def test_bad_flags(
    more: str,
    message: str,
    capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert re.search(message, error_of(monkeypatch, capfd, flags(capture, tmp_path / "model", more)))


def test_missing_flags(capture: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert "-m/--model_path is missing" in error_of(monkeypatch, capfd, ["-s", str(capture)])
    assert "-s/--source_path is missing" in error_of(monkeypatch, capfd, [])


def test_forgotten_bind_to_mesh(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = flags(capture, tmp_path / "model")
    words.remove("--bind_to_mesh")
    assert "add --bind_to_mesh" in error_of(monkeypatch, capfd, words)


# A folder without write permission does not stop root, who runs tests in
# containers; a regular file in the way stops everybody.
@pytest.mark.parametrize("below", ["", "model", "deeper/model"])
def test_output_that_cannot_be_written(
    below: str, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    occupied = tmp_path / "notes.txt"
    occupied.write_text("mine")
    message = error_of(monkeypatch, capfd, flags(capture, occupied / below))
    assert "cannot write" in message and str(occupied) in message
    assert occupied.read_text() == "mine"


def test_no_head_model(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (capture / "head_model.pkl").unlink()
    monkeypatch.setattr(scene.flame.head_model, "ROOT", tmp_path)  # a developer may well have the licensed file
    message = error_of(monkeypatch, capfd, flags(capture, tmp_path / "model"))
    for part in (
        capture / "head_model.pkl",
        "flame2023.pkl",
        "https://flame.is.tue.mpg.de",
        "--head_model",
        "./train_efficient.sh demo",
    ):
        assert str(part) in message


def test_broken_checkpoint_by_name(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    train_on(capture, model, "--iterations 2")
    whole = (model / "chkpnt2.pth").read_bytes()
    capfd.readouterr()
    path = tmp_path / "chkpnt1.pth"
    middle = len(whole) // 2
    for content in (
        whole[:middle],
        b"",
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        b"PK\x03\x04 not an archive",
    ):
        path.write_bytes(content)
        words = flags(capture, tmp_path / "again", "--start_checkpoint", path)
        assert str(path) in error_of(monkeypatch, capfd, words)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", ["folder", "flag"])
def test_the_command_itself(kind: str, tmp_path: Path) -> None:
    words = {
        "folder": ["-s", str(tmp_path / "gone"), "-m", str(tmp_path / "model"), "--bind_to_mesh"],
        "flag": ["-s", str(tmp_path), "-m", str(tmp_path / "model"), "--use_magic"],
    }[kind]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and done.stdout == ""
    expected = {"folder": "--source_path .*gone is not a folder", "flag": "unrecognized arguments: --use_magic"}
    assert re.search(expected[kind], only_line(done.stderr))
    assert not (tmp_path / "model").exists()
