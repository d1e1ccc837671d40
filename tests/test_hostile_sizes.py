"""Small captures that ask for much memory: sizes are compared with the head model and the free memory first."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hostile import refusal
from PIL import Image
from places import ROOT
from runs import flags
from test_hostile_files import png
from toy_capture import write_capture

import scene.dataset.common
import scene.dataset.rigged
import scene.images.workers
import train
from arguments import parse_train
from scene.dataset import View, load_dataset
from scene.dataset.common import read_json
from scene.images.cache import ImageCache
from scene.images.workers import affordable
from utils import npz
from utils.npz import read_npz

SMALL = 256 << 20


def capture_with(folder: Path, frames: int, **arrays: np.ndarray) -> Path:
    """A capture of which `frames` timesteps name one file that holds `arrays`, compressed, too."""
    capture = write_capture(folder / "capture", [0, 1], size=(8, 6))
    path = capture / "flame_param/00001.npz"
    np.savez_compressed(path, **{**dict(np.load(path)), **arrays})
    frame = json.loads((capture / "transforms_test.json").read_text())["frames"][0]
    content = {"frames": [{**frame, "timestep_index": index} for index in range(frames)]}
    (capture / "transforms_train.json").write_text(json.dumps(content))
    for split in ("test", "val"):
        (capture / f"transforms_{split}.json").unlink()
    return capture


def peak(program: str) -> int:
    """The bytes that a process of its own has held at most, beyond those of its imports."""
    script = (
        "import sys; from utils.errors import UserError; import train\n"
        "from arguments import parse_train; from scene.dataset.common import read_json\n"
        "from utils.memory import peak_host_memory\nbefore = peak_host_memory()\n"
        f"try:\n    {program}\nexcept UserError as error: print(str(error)[:300], file=sys.stderr)\n"
        "print(peak_host_memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_offsets_are_compared_with_the_head_model_first(tmp_path: Path) -> None:
    offsets = np.ones((1, 5_000_000, 3), np.float32)
    capture = capture_with(tmp_path, 60, dynamic_offset=offsets)
    assert (capture / "flame_param/00001.npz").stat().st_size < 100_000
    words = flags(capture, tmp_path / "model", "--iterations", "1", "--quiet")
    text = refusal(lambda: train.train(parse_train(words)))
    assert "'dynamic_offset' has 5000000 vertices, but the head model has 162" in text
    assert peak(f"train.train(parse_train({words!r}))") < SMALL


def test_offsets_of_zero_take_no_room(tmp_path: Path) -> None:
    capture = capture_with(tmp_path, 60, dynamic_offset=np.zeros((1, 5_000_000, 3), np.float32))
    begin = time.process_time()
    assert "dynamic_offset" not in (load_dataset(capture, **READ).flame or {})
    assert time.process_time() - begin < 3.0  # the file is read once, however many frames name it


READ = {"bind_to_mesh": True, "eval_split": True, "white_background": True}


def test_motion_is_compared_with_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = capture_with(tmp_path, 60, dynamic_offset=np.ones((1, 100_000, 3), np.float32))
    monkeypatch.setattr(scene.dataset.rigged, "available_memory", lambda: 100 << 20)
    assert "take more than 0.0 GiB" in refusal(lambda: load_dataset(capture, **READ))
    monkeypatch.setattr(npz, "available_memory", lambda: 20 << 20)
    path = tmp_path / "large.npz"
    np.savez_compressed(path, expr=np.ones((3_000_000, 1), np.float32))
    assert "too little memory" in refusal(lambda: read_npz(path, ("expr",)))


@pytest.mark.parametrize("name", ["expr", "shape"])
def test_no_head_model_has_so_many_coefficients(name: str, tmp_path: Path) -> None:
    capture = capture_with(tmp_path, 60, **{name: np.zeros((1, 15_000_000), np.float32)})
    assert f"'{name}' has 15000000 coefficients" in refusal(lambda: load_dataset(capture, **READ))


def views_of(path: Path, size: tuple[int, int], count: int = 40) -> list[View]:
    capture = write_capture(path.parent / "capture", [0, 1], size=(8, 6))
    (view,) = load_dataset(capture, **READ).val
    return [View(view.camera, path, source_size=size)] * count


def test_a_large_picture_is_decoded_by_few_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(4000, 3000))
    views = views_of(path, (4000, 3000))
    for room, workers in ((8 << 30, 8), (2 << 30, 2), (800 << 20, 1)):
        monkeypatch.setattr(scene.images.workers, "available_memory", lambda room=room: room)
        assert affordable(views, 8) == workers
    monkeypatch.setattr(scene.images.workers, "available_memory", lambda: 500 << 20)
    text = refusal(lambda: ImageCache(views, (0.0, 0.0, 0.0), progress=False))
    assert "large.png of 4000x3000 pixels takes 0.4 GB to decode" in text
    assert affordable([], 5) == 5


def test_what_a_pixel_takes_in_a_worker(tmp_path: Path) -> None:
    width, height = 3000, 2000
    Image.fromarray(np.zeros((height, width), np.uint8)).save(tmp_path / "mask.png", compress_level=1)
    jobs = []
    for kind in ("L", "I;16", "RGBA", "RGB"):
        pixels = np.zeros((height, width, len(kind)) if kind.startswith("RGB") else (height, width), np.uint8)
        pixels[: height // 2] = 200
        image = Image.fromarray(pixels.astype(np.uint16) if kind == "I;16" else pixels)
        image.save(tmp_path / f"{len(jobs)}.png", compress_level=1)
        files = {"image": str(tmp_path / f"{len(jobs)}.png"), "mask": str(tmp_path / "mask.png")}
        jobs.append({**files, "source_size": [width, height], "size": [2999, height], "background": [1.0, 0.5, 0.0]})
    script = (
        "import os; from scene.images import decode; from utils.memory import peak_host_memory as usage\n"
        f"for job in {jobs!r}:\n"
        "    if not os.fork():\n"
        "        before = usage(); decode.decode(job); print(usage() - before, flush=True); os._exit(0)\n"
        "    os.wait()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    taken = [int(line) / (width * height) for line in done.stdout.splitlines()]
    assert len(taken) == 4 and 4 < min(taken) and max(taken) < scene.images.workers.BYTES_PER_PIXEL, taken


JSON = {
    "objects": b'{"frames": [' + b'{"":0},' * 5_300_000 + b"0]}",
    "lists": b'{"frames": [' + b"[]," * 12_000_000 + b"0]}",
    "objects in objects": b'{"frames": [' + b'{"a":{"a":{}}},' * 2_400_000 + b"0]}",
}


@pytest.mark.parametrize("name", JSON)
def test_json_takes_no_gigabytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(JSON[name])
    assert "GB of memory" in refusal(lambda: read_json(path))


def test_json_of_many_frames_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = write_capture(tmp_path / "capture", [0, 1], size=(8, 6))
    frames = json.loads((capture / "transforms_train.json").read_text())["frames"]
    for indent in (None, 4):
        (tmp_path / "a.json").write_text(json.dumps({"frames": frames * 5_000}, indent=indent))
        assert len(read_json(tmp_path / "a.json")["frames"]) == len(frames) * 5_000
    path = tmp_path / "compact.json"
    path.write_text(json.dumps({"frames": frames * 20_000}, separators=(",", ":")))
    monkeypatch.setattr(scene.dataset.common, "available_memory", lambda: 1 << 40)
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(read_json(path)["frames"]) == len(frames) * 20_000
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before) < 20 * path.stat().st_size
