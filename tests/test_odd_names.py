"""Names of files and cameras that are no UTF-8, or too long: trained on like any other, or one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from runs import flags
from toy_capture import write_capture
from toy_datasets import write_colmap

from scene.dataset import load_dataset

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
