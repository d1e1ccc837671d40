"""Folders as doc/vhap.md describes them, made of nothing else, train and render."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from runs import flags
from toy_capture import write_capture

import render
import train
from arguments import parse_render, parse_train
from utils.errors import UserError

NAME = "{}_EMO-{}_v16_DS4_whiteBg_staticOffset_maskBelowLine"
LISTED = {"transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json"}
UNREAD = {"transforms_backup.json", "transforms_backup_flame.json"}
FOLDERS = {"images", "fg_masks", "flame_param"}


def frames_of(folder: Path, split: str) -> list[dict]:
    return json.loads((folder / f"transforms_{split}.json").read_text())["frames"]


def export(folder: Path, timesteps: list[int]) -> Path:
    """One sequence: the toy capture with masks, and with what else an export has, and without what it has not."""
    from PIL import Image

    write_capture(folder, timesteps)
    shutil.move(folder / "head_model.pkl", folder.parent / "flame2023.pkl")
    (folder / "canonical_flame_param.npz").unlink()
    (folder / "fg_masks").mkdir()
    every = []
    for split in ("train", "val", "test"):
        frames = frames_of(folder, split)
        for frame in frames:
            frame["fg_mask_path"] = frame["file_path"].replace("images/", "fg_masks/")
            with Image.open(folder / frame["file_path"]) as image:
                mask = (np.asarray(image).min(axis=2) < 255).astype(np.uint8) * 255
            Image.fromarray(mask).save(folder / frame["fg_mask_path"])
        (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": frames}))
        every += frames
    (folder / "transforms.json").write_text(json.dumps({"frames": every}))
    for name in UNREAD:
        (folder / name).write_text("not even JSON")
    return folder


def merge(folder: Path, sequences: list[Path]) -> Path:
    """Their union: only JSON files and FLAME parameters, with images by relative paths and timesteps counted on."""
    (folder / "flame_param").mkdir(parents=True)
    merged: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    moments: dict[tuple[Path, int], int] = {}
    for sequence in sequences:
        for split in merged:
            for frame in frames_of(sequence, split):
                moment = moments.setdefault((sequence, frame["timestep_index"]), len(moments))
                shutil.copy(sequence / frame["flame_param_path"], folder / "flame_param" / f"{moment:05d}.npz")
                frame |= {
                    "timestep_index": moment,
                    "flame_param_path": f"flame_param/{moment:05d}.npz",
                    **{key: f"../{sequence.name}/{frame[key]}" for key in ("file_path", "fg_mask_path")},
                }
                merged["test" if sequence == sequences[-1] else "train" if split == "test" else split].append(frame)
    for split, frames in merged.items():
        (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": frames}))
    shutil.copy(folder / "flame_param" / "00000.npz", folder / "canonical_flame_param.npz")
    return folder


def try_out(source: Path, model: Path, *more: object) -> dict:
    """The walk of the page: 20 iterations, then the mesh over the pictures."""
    head = source.parent / "flame2023.pkl"
    words = flags(source, model, "--head_model", head, "--iterations", 20, "--threads", 1, "--quiet", *more)
    results = train.train(parse_train(words))
    assert results["iterations"] == 20
    words = ["-m", str(model), "--head_model", str(head), "--skip_train", "--render_mesh", "--quiet", "--threads", "1"]
    return render.render_avatar(parse_render(words))


def test_one_sequence(tmp_path: Path) -> None:
    source = export(tmp_path / "export" / NAME.format(306, 1), [0, 1, 2])
    assert {path.name for path in source.iterdir()} == LISTED | UNREAD | FOLDERS
    assert try_out(source, tmp_path / "out").keys() == {"val", "test"}
    assert (tmp_path / "out" / "val" / "ours_20" / "renders_mesh.mp4").stat().st_size > 0


def test_a_tracking_without_static_offset(tmp_path: Path) -> None:
    source = export(tmp_path / "export" / NAME.format(306, 1), [0, 1])
    for path in source.glob("flame_param/*.npz"):
        arrays = dict(np.load(path))
        del arrays["static_offset"]
        np.savez(path, **arrays)
    assert try_out(source, tmp_path / "out")
    for path in source.glob("flame_param/*.npz"):
        arrays = dict(np.load(path))
        del arrays["shape"]
        np.savez(path, **arrays)
    with pytest.raises(UserError, match="neither canonical_flame_param.npz nor .* has a 'shape'"):
        try_out(source, tmp_path / "other")


def test_an_export_that_was_never_split(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = export(tmp_path / "export" / NAME.format(306, 1), [0, 1])
    for split in ("train", "val", "test"):
        (source / f"transforms_{split}.json").unlink()
    assert try_out(source, tmp_path / "out") == {}
    assert "all of transforms.json is trained on" in capfd.readouterr().err


def test_merged_sequences(tmp_path: Path) -> None:
    sequences = [export(tmp_path / "export" / NAME.format(306, number), [0, 1, 2]) for number in (1, 2, 3)]
    union = merge(tmp_path / "export" / "UNION3_306_EMO123", sequences)
    assert not (union / "images").exists()
    assert try_out(union, tmp_path / "out").keys() == {"val", "test"}
    assert len(np.load(tmp_path / "out" / "point_cloud" / "iteration_20" / "flame_param.npz")["expr"]) == 9


def test_the_page_names_flags_that_there_are() -> None:
    text = (ROOT / "doc" / "vhap.md").read_text()
    parse_train("-s a -m b --eval --bind_to_mesh --white_background --iterations 20 --skip_bad_frames -r 2".split())
    parse_render("-m a --skip_train --render_mesh".split())
    for words in ("--skip_train --render_mesh", "--iterations 20", "--skip_bad_frames", "--head_model FILE"):
        assert words in text
    for name in LISTED | UNREAD | FOLDERS:
        assert name in text
