"""Processes that want the same folder, the same image cache or the same library at the same moment."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from places import ROOT
from runs import flags, train_on
from toy_datasets import load

import render
import train
from arguments import parse_render, parse_train
from ops import kernels
from scene.images.cache import SUFFIX, ImageCache
from training import checkpoint, setup
from utils.errors import UserError
from utils.files import only_writer


class Processes:
    """Python programs that get ready, and then begin all at the same moment."""

    def __init__(self, folder: Path) -> None:
        self.go = folder / "go"
        self.running: list[subprocess.Popen[str]] = []

    def prepare(self, imports: str, program: str, **environment: str) -> subprocess.Popen[str]:
        lines = [
            textwrap.dedent(imports),
            "import os, time",
            "print('ready', flush=True)",
            f"while not os.path.exists({str(self.go)!r}): time.sleep(0.001)",
            textwrap.dedent(program),
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.running.append(process)
        return process

    def start(self) -> None:
        for process in self.running:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        self.go.touch()

    def outputs(self) -> list[str]:
        found = [process.communicate(timeout=120) for process in self.running]
        assert all(process.returncode == 0 for process in self.running), found
        return [out for out, _ in found]


@pytest.fixture()
def processes(tmp_path: Path) -> Iterator[Processes]:
    together = Processes(tmp_path)
    yield together
    for process in together.running:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


# ---- one output folder -----------------------------------------------------------


def test_the_second_training_refuses_and_a_third_follows_a_dead_one(capture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    words = flags(capture, model, "--iterations 300 --checkpoint_every_minutes 1e-3 --keep_checkpoints 2")
    first = subprocess.Popen(
        [sys.executable, "train.py", *words, "--iterations", "1000000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: list(model.glob("chkpnt*.pth")), first)
        second = subprocess.run(
            [sys.executable, "train.py", *words, "--start_checkpoint", "auto"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert second.returncode == 2 and second.stderr.splitlines()[-1] == (
            f"error: another run is writing into {model}: wait for its end, or give each its own output folder"
        )
        assert "Traceback" not in second.stderr and first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    reached = checkpoint.load(checkpoint.newest(model))["step"]
    train.train(parse_train([*words, "--start_checkpoint", "auto", "--iterations", str(reached + 5)]))
    assert json.loads((model / "results.json").read_text())["iterations"] == reached + 5


def test_a_run_that_ended_while_this_one_was_loading_is_not_begun_anew(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    plain = setup.dataset_of

    def meanwhile(*args: object, **named: object) -> object:
        with only_writer(model):
            checkpoint.save(model / "chkpnt7.pth", {"step": 7})
        return plain(*args, **named)

    monkeypatch.setattr(setup, "dataset_of", meanwhile)
    with pytest.raises(UserError, match="another run has just saved checkpoints in .*start again"):
        train_on(capture, model, "--iterations 300")
    assert {path.name for path in model.iterdir()} == {".lock", "chkpnt7.pth"}


def test_rendering_beside_a_training(capture: Path, tmp_path: Path) -> None:
    """The one reads what the other saves whole, and writes elsewhere; two renderings of the same pictures refuse."""
    model = tmp_path / "model"
    train_on(capture, model, "--iterations 3")
    options = parse_render(["-m", str(model), "--skip_train", "--skip_test", "--quiet", "--device", "cpu"])
    with only_writer(model):
        measured = render.render_avatar(options)
    assert set(measured) == {"val"}
    before = {path: path.stat().st_mtime_ns for path in (model / "val").rglob("*.png")}
    with only_writer(model / "val" / "ours_3"), pytest.raises(UserError, match="another run is writing into .*ours_3"):
        render.render_avatar(options)
    assert before and before == {path: path.stat().st_mtime_ns for path in (model / "val").rglob("*.png")}


# ---- one image cache -----------------------------------------------------------------

IMPORTS = """
    from pathlib import Path
    from scene.images import cache as image_cache
    from scene.dataset import load_dataset
    from scene.images.cache import ImageCache
    dataset = load_dataset(Path({capture!r}), bind_to_mesh=True, eval_split=True, white_background=True)
"""
DECODE = """
    import hashlib
    cache = ImageCache(dataset.train, dataset.background, ram_share=0.0, folder=Path({folder!r}), progress=False)
    half = cache.at_scale(0.5)
    assert cache.where == half.where == "mmap"
    print(hashlib.sha256(cache._bytes.numpy().tobytes() + half._bytes.numpy().tobytes()).hexdigest())
"""


def test_runs_that_share_an_image_cache(capture: Path, tmp_path: Path, processes: Processes) -> None:
    folder = tmp_path / "cache"
    for _ in range(2):
        processes.prepare(IMPORTS.format(capture=str(capture)), DECODE.format(folder=str(folder)))
    processes.start()
    dataset = load(capture)
    here = ImageCache(dataset.train, dataset.background, progress=False)
    assert here.where == "ram"
    expected = hashlib.sha256(here._bytes.numpy().tobytes() + here.at_scale(0.5)._bytes.numpy().tobytes()).hexdigest()
    assert processes.outputs() == [f"{expected}\n"] * 2
    assert {path.suffix for path in folder.iterdir() if path.name != ".lock"} == {SUFFIX}
    assert len(list(folder.iterdir())) == 3  # the lock, one file of either size


def test_a_cache_whose_writer_was_killed(capture: Path, tmp_path: Path, processes: Processes) -> None:
    folder = tmp_path / "cache"
    halfway = """
        write = image_cache._decode
        def stop(jobs, file, workers, progress):
            write(jobs[:1], file, 1, False)
            print("halfway", flush=True)
            time.sleep(600)
        image_cache._decode = stop
    """
    killed = processes.prepare(
        IMPORTS.format(capture=str(capture)),
        textwrap.dedent(halfway) + textwrap.dedent(DECODE.format(folder=str(folder))),
    )
    processes.start()
    assert killed.stdout.readline() == "halfway\n"
    (left,) = folder.glob(".tmp-*")
    assert not list(folder.glob(f"[!.]*{SUFFIX}"))
    killed.kill()
    killed.communicate()
    dataset = load(capture)
    mapped = ImageCache(dataset.train, dataset.background, ram_share=0.0, folder=folder, progress=False)
    here = ImageCache(dataset.train, dataset.background, progress=False)
    assert mapped.where == "mmap" and torch.equal(mapped._bytes, here._bytes) and not left.exists()


# ---- one library ------------------------------------------------------------------------


def compiler(folder: Path, before: str) -> Path:
    """A compiler for the tests: makes an empty library out of whatever sources, in a second, and counts its calls."""
    script = folder / "c++"
    script.write_text(f"""#!/bin/sh
[ "$1" = --version ] && {{ echo 1; exit; }}
case "$*" in *probe.cpp*) exit 0 ;; esac  # it knows every flag
while [ "$1" != -o ]; do shift; done
echo call >> {folder / "calls"}
{before}
echo 'int answer(void) {{ return 42; }}' | c++ -x c -shared -fPIC - -o "$2"
""")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


LOAD = "print(kernels.library().answer())"


def test_processes_that_need_the_library_first_build_it_once(tmp_path: Path, processes: Processes) -> None:
    cache = tmp_path / "native"
    environment = {"NATIVE_CACHE": str(cache), "CXX": str(compiler(tmp_path, "sleep 0.3"))}
    for _ in range(4):
        processes.prepare("from ops import kernels", LOAD, **environment)
    processes.start()
    assert processes.outputs() == ["42\n"] * 4
    assert (tmp_path / "calls").read_text().splitlines() == ["call"]
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".so"]


def test_a_killed_builder_leaves_nothing_that_is_trusted(tmp_path: Path, processes: Processes) -> None:
    cache = tmp_path / "native"
    # Half a library, and then it takes long.
    slow = (
        f'if [ ! -e {tmp_path}/once ]; then touch {tmp_path}/once; printf half > "$2"; touch {tmp_path}/half; '
        "exec sleep 600; fi"
    )
    environment = {"NATIVE_CACHE": str(cache), "CXX": str(compiler(tmp_path, f"echo $$ > {tmp_path}/pid\n{slow}"))}
    builder = processes.prepare("from ops import kernels", LOAD, **environment)
    processes.start()
    wait_for((tmp_path / "half").exists, builder)
    builder.kill()
    builder.communicate()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # the compiler, an orphan now
    (left,) = cache.glob(".tmp-*.so")
    assert left.read_text() == "half" and not list(cache.glob("native-*.so"))
    kernels._build(environment["CXX"], [], cache / "native-next.so")
    assert ctypes.CDLL(str(cache / "native-next.so")).answer() == 42
    assert not left.exists() and len(list(cache.glob("native-*.so"))) == 1
