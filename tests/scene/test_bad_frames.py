"""Frames that cannot be used: a tracker's NaN, files that are missing or broken; named, or left out when asked."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import train_on
from toy_capture import write_capture
from toy_datasets import load

import render
from arguments import parse_render
from utils.errors import UserError


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
        load(tmp_path, bind_to_mesh=False, skip_bad_frames=True)


def test_training_and_rendering_without_the_bad_frames(own: Path, tmp_path: Path) -> None:
    spoil_flame(own, 3, "translation", math.nan)
    model = tmp_path / "model"
    train_on(own, model, "--skip_bad_frames --iterations 5")
    measured = render.render_avatar(parse_render(["-m", str(model), "--quiet", "--skip_train", "--device", "cpu"]))
    assert math.isfinite(measured["test"]["psnr"])
