"""Odd names, places and sizes: names that are no UTF-8 or too long, results among the input, endless pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from runs import flags
from toy_capture import write_capture
from toy_datasets import write_colmap

import train
from arguments import parse_train
from gaussian_renderer import render
from gaussian_renderer.backends import reference
from ops.types import Camera, Gaussians
from scene.dataset import load_dataset, training_size
from utils.errors import UserError

STEPS = ("--iterations", 4, "--interval", 2, "--threads", 1)


def command(script: str, *words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    """To its end, as in a terminal that speaks UTF-8."""
    environment = {**os.environ, "LPIPS_CACHE": "/nowhere", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    line = [sys.executable, str(ROOT / script), *map(os.fsencode, map(str, words))]
    return subprocess.run(line, cwd=cwd, capture_output=True, env=environment, timeout=300)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "capture", [0, 1, 2], size=(16, 12))
    for split in ("train", "val", "test"):
        path = capture / f"transforms_{split}.json"
        content = json.loads(path.read_text())
        for frame in content["frames"]:
            name = frame["file_path"].replace("images/", "images/\udcff")
            os.rename(capture / frame["file_path"], capture / name)
            frame.update(file_path=name, camera_id=frame["camera_id"] + "\ud800")
        path.write_text(json.dumps(content))
    model = tmp_path / "model\udcff"
    words = flags(capture, model, *STEPS, "--use_color_calibration", "--color_per_camera", quiet=False)
    done = command("train.py", *words)
    assert done.returncode == 0, done.stderr.decode()
    assert b"\\udcff/results.json" in done.stdout
    done = command("render.py", "-m", model, "--skip_train", "--device", "cpu")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((model / "cameras.json").read_text())[0]["img_name"].startswith("\\udcff")


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_names_that_are_no_utf8_in_a_reconstruction(kind: str, tmp_path: Path) -> None:
    source = write_colmap(tmp_path / "colmap", kind)
    poses = source / "sparse" / "0" / f"images.{kind}"
    for image in (source / "images").iterdir():
        other = b"\xff" + os.fsencode(image.name)[1:]
        poses.write_bytes(poses.read_bytes().replace(os.fsencode(image.name), other))
        os.rename(image, os.fsencode(image.parent) + b"/" + other)
    views = load_dataset(source, bind_to_mesh=False, eval_split=False, white_background=False).train
    assert views and all(view.camera.name.startswith("\\udcff") for view in views)


@pytest.mark.parametrize(
    "script, words",
    [
        ("train.py", ["-s", "{capture}", "-m", "{long}"]),
        ("train.py", ["-s", "{capture}", "-m", "{long}/a"]),
        ("train.py", ["-s", "{long}", "-m", "{capture}/output"]),
        ("train.py", ["-s", "{capture}", "-m", "{capture}/output", "--start_checkpoint", "{long}.pth"]),
        ("render.py", ["-m", "{long}"]),
        ("synthetic/__main__.py", ["{long}", "--size", "16", "16", "--timesteps", "6", "--cameras", "2"]),
    ],
)
def test_names_that_are_too_long(script: str, words: list[str], tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "capture", [0, 1], size=(8, 6))
    places = {"capture": capture, "long": tmp_path / ("x" * 300)}
    line = ["-m", "synthetic"] if script.startswith("synthetic") else [script]
    done = subprocess.run(
        [sys.executable, *line, *(word.format(**places) for word in words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ") and "too long" in sentence and len(sentence) < 700


@pytest.mark.parametrize("place", [".", "images", "images/results", "flame_param", "../link"])
def test_results_do_not_lie_among_the_input(place: str, tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "capture", [0, 1, 2], size=(16, 12))
    (tmp_path / "link").symlink_to(capture)
    before = sorted(capture.rglob("*"))
    words = flags(capture, capture / place, "--iterations", 2, "--quiet", "--threads", 1)
    with pytest.raises(UserError, match="--model_path .* is in the capture.*a folder of its own"):
        train.train(parse_train(words))
    assert sorted(capture.rglob("*")) == before


def test_results_may_lie_in_a_folder_of_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPIPS_CACHE", str(tmp_path / "no-weights"))
    capture = write_capture(tmp_path / "capture", [0, 1, 2], size=(16, 12))
    for frames in capture.glob("transforms_*.json"):  # the images directly in the capture
        frames.write_text(frames.read_text().replace("images/", ""))
    for image in (capture / "images").iterdir():
        image.rename(capture / image.name)
    words = flags(capture, capture / "output", "--iterations", 2, "--quiet", "--threads", 1)
    assert train.train(parse_train(words))["iterations"] == 2


def test_pictures_that_would_take_minutes(tmp_path: Path) -> None:
    for resolution, size in ((-1, (1600, 60_000)), (1, (9000, 9000)), (20_000, (400, 300))):
        with pytest.raises(UserError, match="8192x8192"):
            training_size(*size, resolution)
    assert training_size(8192, 8192, 1) == (8192, 8192)
    camera = Camera(torch.eye(4), 100.0, 100.0, 50.0, 50.0, 16384, 16384)
    empty = Gaussians(*(torch.zeros(0, *rest) for rest in ((3,), (4,), (3,), (), (1, 3))))
    with pytest.raises(UserError, match="16384x16384 pixels is too large"):
        render(empty, camera, torch.zeros(3), sh_degree=0, rasterize=reference.rasterize)
