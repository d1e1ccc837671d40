"""Every file is whole or absent, whatever happens while it is written; the long versions are in tests/torture/."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from runs import curves
from torture.faults import Faults
from torture.full_disk import full_from, words
from torture.kill_and_resume import accidents, check_readable, command, compare, suffer

import train
from arguments import parse_train
from innovations.color_calibration import ColorCalibration
from scene import gaussian_model
from scene.avatar import find_saved, save_avatar
from training import checkpoint
from training.event_file import EventFile
from training.reporter import Reporter
from utils import files
from utils.errors import UserError
from utils.files import atomic_path, only_writer, remove_leftovers

STEPS = 60


def run(capture: Path, model: Path) -> None:
    train.train(parse_train(words(capture, model, STEPS)))


@pytest.fixture(scope="module")
def undisturbed(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A run that nothing happened to, and how often it did what can go wrong."""
    model = tmp_path_factory.mktemp("crash-whole") / "model"
    with pytest.MonkeyPatch.context() as patch:
        counters = {where: Faults("count", model, where).install(patch.setattr) for where in ("operation", "write")}
        run(capture, model)
    return model, {where: counter.counted for where, counter in counters.items()}


@pytest.fixture()
def whole(undisturbed: tuple[Path, dict[str, int]]) -> Path:
    return undisturbed[0]


# ---- a whole run ------------------------------------------------------------


def test_killed_at_random_moments_and_resumed(whole: Path, capture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for fault in accidents(3, seed=1, steps=STEPS):
        suffer(fault, command(capture, model, STEPS), tmp_path)  # with checkpoints by the clock
        check_readable(model)
    run(capture, model)
    compare(whole, model, STEPS)


@pytest.mark.parametrize("where, share", [("operation", 0.03), ("operation", 0.4), ("operation", 0.97), ("write", 0.5)])
def test_a_full_disk_ends_the_run_in_order(
    undisturbed: tuple[Path, dict[str, int]],
    capture: Path,
    tmp_path: Path,
    where: str,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, counts = undisturbed
    with monkeypatch.context() as patch:
        sentence = full_from(round(share * counts[where]), where, partial(run, capture), tmp_path / "model", patch)
    assert "cannot write" in sentence and "No space left on device; make room" in sentence
    check_readable(tmp_path / "model")
    run(capture, tmp_path / "model")
    compare(whole, tmp_path / "model", STEPS)


def test_the_order_on_the_disk(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut must find: content before names, curves before checkpoints, new checkpoints before old go."""
    done: list[tuple[str, ...]] = []

    def watch(module: Any, name: str, describe: Any) -> None:
        plain = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            done.append((name, *describe(*args)))
            return plain(*args, **named)

        monkeypatch.setattr(module, name, call)

    watch(os, "fsync", lambda file: (os.readlink(f"/proc/self/fd/{file}"),))
    watch(os, "replace", lambda source, target: (str(source), str(target)))
    watch(os, "pwrite", lambda file, data, at: (os.readlink(f"/proc/self/fd/{file}"),))
    watch(Path, "unlink", lambda path, **_: (str(path),))
    run(capture, tmp_path / "model")

    renamed = [(index, *entry[1:]) for index, entry in enumerate(done) if entry[0] == "replace"]
    targets = {Path(target).name for _, _, target in renamed}
    assert targets >= {
        "cfg_args",
        "cameras.json",
        "results.json",
        "point_cloud.ply",
        "flame_param.npz",
        "color_calibration.pt",
        f"chkpnt{STEPS}.pth",
    }
    for index, source, target in renamed:
        assert Path(source).parent == Path(target).parent and Path(source).name.startswith(".tmp-")
        assert done[index - 1] == ("fsync", source), target
        assert done[index + 1] == ("fsync", str(Path(target).parent)), target
        if Path(target).name.startswith("chkpnt"):
            curves = [entry for entry in done[:index] if "tfevents" in entry[-1]]
            assert curves[-1][0] == "fsync"
    named = {path for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert {path.name for path in named if "tfevents" not in path.name} - targets == {".lock", "train.log"}
    assert any(entry[0] == "unlink" and "chkpnt" in entry[1] for entry in done)


def test_a_log_on_a_full_disk_costs_only_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        with Reporter(tmp_path, 20, every=10) as reporter:
            for step in range(1, 21):
                reporter.step(step, {"total": float(step)}, points=1)
                reporter.say("a line")
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.close()
    assert [*curves(tmp_path)["loss/total"].values()] == [5.5, 15.5]


@pytest.mark.parametrize("main", ["print('x' * 100000)", "print('x')", "raise UserError('no such thing')"])
def test_status_2_even_where_nothing_can_be_said(main: str) -> None:
    program = f"from utils.errors import UserError, run_script\ndef main():\n    {main}\nrun_script(main)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=full)
        assert done.returncode == 2
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


# ---- files that belong together --------------------------------------------------


@pytest.mark.parametrize("broken", ["flame_param.npz", "color_calibration.pt", "point_cloud.ply"])
def test_half_a_saved_avatar_is_none(whole: Path, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written over an older one, too: never the points of one run with the colours of another."""
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    folder = model / "point_cloud" / f"iteration_{STEPS}"
    assert find_saved(model)[0] == STEPS
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    color = ColorCalibration.load(folder / "color_calibration.pt")
    points = gaussian_model.GaussianModel.from_points(np.eye(3), np.eye(3), sh_degree=0, device="cpu")
    points.flame_parameters = SimpleNamespace(save=lambda path: _save(path))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=broken):
        save_avatar(folder, points, color)
    assert find_saved(model)[0] == STEPS - STEPS // 10
    assert not list(folder.glob(".tmp-*"))


def _save(path: Path) -> None:
    with atomic_path(path) as temporary:
        np.savez(temporary, expr=np.zeros(1))


# ---- leftovers ----------------------------------------------------------------------


def test_only_what_dead_writers_left_is_cleared(tmp_path: Path) -> None:
    deep = tmp_path / "point_cloud" / "iteration_7"
    program = (
        "import os, sys\nfrom utils.files import atomic_path\n"
        f"with atomic_path({str(deep / 'point_cloud.ply')!r}) as path:\n"
        "    path.write_bytes(b'half')\n    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9
    (left,) = deep.iterdir()
    assert left.name.startswith(".tmp-") and left.suffix == ".ply"
    mine = tmp_path / ".tmp-my own notes"
    mine.write_text("kept")
    os.mkfifo(tmp_path / ".tmp-a1b2c3d4")
    with atomic_path(tmp_path / "alive.json") as alive:
        alive.write_text("{}")
        with only_writer(tmp_path):
            assert not left.exists() and mine.exists() and alive.exists()
        remove_leftovers(tmp_path)
    assert (tmp_path / "alive.json").read_text() == "{}"
    remove_leftovers(tmp_path / "nowhere")


def test_threads_that_write_at_once_leave_the_mask_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)

    def write(number: int) -> None:
        for index in range(40):
            with atomic_path(tmp_path / f"{number}_{index}") as temporary:
                temporary.write_bytes(b"x")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = os.umask(mask)
    assert now == mask
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_a_folder_that_cannot_be_flushed_is_trusted_but_a_broken_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def flush(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(file)

    monkeypatch.setattr(files.os, "fsync", flush)
    code = errno.EINVAL
    files.write_json(tmp_path / "a" / "b.json", 1)
    code = errno.EIO
    with pytest.raises(UserError, match="cannot write .*b.json: Input/output error"):
        files.write_json(tmp_path / "a" / "b.json", 2)


# ---- curves -------------------------------------------------------------------------------


class Disk:
    """Stands in for `os.pwrite`: takes `room` more bytes, then is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: float = float("inf")
        plain = os.pwrite

        def pwrite(file: int, data: bytes, at: int) -> int:
            if self.room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = plain(file, data[: min(len(data), self.room)] if self.room < len(data) else data, at)
            self.room -= written
            return written

        monkeypatch.setattr("training.event_file.os.pwrite", pwrite)


@pytest.mark.parametrize("room", [0, 1, 13, 25])
def test_curves_wait_for_room(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Disk(monkeypatch)
    events = EventFile(tmp_path, 0)
    events.scalar("a", 1.0, 1)
    disk.room = room  # less than a record: half of one arrives
    events.scalar("a", 2.0, 2)
    events.scalar("a", 3.0, 3)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "No space left on device" in told[0] and "wait in memory" in told[0]
    assert curves(tmp_path)["a"] == {1: 1.0}  # and the half record hurts nobody
    with pytest.raises(UserError, match="cannot write .*tfevents.*make room"):
        events.sync()
    disk.room = float("inf")
    events.scalar("a", 4.0, 4)
    events.close()
    assert curves(tmp_path)["a"] == {step: float(step) for step in (1, 2, 3, 4)}
    events.close()


def test_event_files_are_read_in_the_order_of_the_runs_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for begin, now in ((0, 2000000000.0), (3, 2000000000.0), (5, 1000000000.0)):
        monkeypatch.setattr("training.event_file.time.time", lambda: now)
        monkeypatch.setattr("training.event_file.os.getpid", lambda: 10 - begin)
        events = EventFile(tmp_path, begin)
        for step in range(max(begin, 1), begin + 6):
            events.scalar("a", float(begin), step)
        events.close()
    assert curves(tmp_path)["a"] == {1: 0.0, 2: 0.0, 3: 3.0, 4: 3.0, **{step: 5.0 for step in range(5, 11)}}


@pytest.mark.parametrize("stop", [10, 13, 20])
def test_losses_between_two_readings_survive_a_resume(tmp_path: Path, stop: int) -> None:
    chance = np.random.default_rng(0)
    losses = {
        step: {"total": torch.tensor(value), "plain": float(value)}
        for step, value in enumerate(chance.random(25, np.float32), 1)
    }

    def steps(reporter: Reporter, first: int, last: int) -> None:
        for step in range(first, last + 1):
            reporter.step(step, losses[step], points=step)

    with Reporter(tmp_path / "whole", 25, every=10, quiet=True) as whole:
        steps(whole, 1, 25)
    killed = Reporter(tmp_path / "torn", 25, every=10, quiet=True)
    steps(killed, 1, stop)
    killed.flush()
    state = killed.state_dict()
    with Reporter(tmp_path / "torn", 25, start=stop, every=10, quiet=True) as resumed:
        resumed.load_state_dict(state)
        steps(resumed, stop + 1, 25)
    one, other = (curves(tmp_path / name) for name in ("torn", "whole"))
    for name in ("loss/total", "loss/plain", "points/total"):
        assert one[name] == other[name] and list(one[name]) == [10, 20, 25]


def test_the_end_measured_twice_is_shown_once(tmp_path: Path) -> None:
    killed = Reporter(tmp_path, 20, every=10, quiet=True)
    for step in range(1, 21):
        killed.step(step, {"total": float(step)}, points=1)
    killed.scalars(20, {"density/grown": 3.0})
    state = killed.state_dict()
    killed.evaluation(20, "val", {"psnr": 1.0})  # and here it is killed
    with Reporter(tmp_path, 20, start=20, every=10, quiet=True) as resumed:
        resumed.load_state_dict(state)
        resumed.evaluation(20, "val", {"psnr": 2.0})
    found = curves(tmp_path)
    assert found["1_val/psnr"] == {20: 2.0}
    assert found["loss/total"] == {10: 5.5, 20: 15.5}
    assert found["density/grown"] == {20: 3.0}


# ---- checkpoints --------------------------------------------------------------------------


def test_taken_up_further_back_a_run_keeps_its_own_checkpoints(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 25):
        checkpoint.save(tmp_path / f"chkpnt{step}.pth", {"step": step})
    checkpoint.remove_old(tmp_path, 2, step=25)
    assert {path.stem for path in tmp_path.iterdir()} == {"chkpnt40", "chkpnt30", "chkpnt25", "chkpnt20"}
    checkpoint.remove_old(tmp_path, 1, step=40, spared={20})  # typed in --checkpoint_iterations
    assert {path.stem for path in tmp_path.iterdir()} == {"chkpnt40", "chkpnt20"}
    checkpoint.remove_old(tmp_path, 0, step=40)
    assert {path.stem for path in tmp_path.iterdir()} == {"chkpnt40", "chkpnt20"}


def test_results_of_a_shorter_run_do_not_end_a_longer_one(whole: Path, capture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(whole, model)
    results = json.loads((model / "results.json").read_text())
    (model / "results.json").write_text(json.dumps({**results, "iterations": STEPS - 1}))
    run(capture, model)
    assert json.loads((model / "results.json").read_text())["metrics"] == results["metrics"]
    with pytest.raises(UserError, match="complete"):
        run(capture, model)


def test_faults_do_strike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would prove nothing."""
    faults = Faults("full", tmp_path, number=3).install(monkeypatch.setattr)
    with pytest.raises(UserError, match="No space left"):
        for index in range(3):
            with atomic_path(tmp_path / str(index)) as temporary:
                temporary.write_bytes(b"x")
    assert faults.counted >= 3 and not (tmp_path / "1").exists()
