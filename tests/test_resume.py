"""Stopping train.py and going on: bit for bit, and never over the work of another run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from places import ROOT
from runs import ITERATIONS, SCHEDULE, TIMES, assert_same_run, command, curves, flags, train_on
from toy_capture import TIMESTEPS, write_capture

from training import checkpoint
from utils.errors import UserError


@pytest.fixture(scope="module")
def killed(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the run `finished` leaves when it is killed some time after its second checkpoint."""
    model = tmp_path_factory.mktemp("killed") / "model"
    words = flags(capture, model, SCHEDULE, "--threads 2")
    with subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT) as process:
        deadline = time.monotonic() + 600
        try:
            while not (model / "chkpnt140.pth").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            process.kill()
    assert process.returncode == -9 and not (model / f"chkpnt{ITERATIONS}.pth").exists()
    return model


def test_killed_and_resumed_ends_bit_identical(
    finished: SimpleNamespace, killed: Path, capture: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(killed, model)
    done = command(capture, model, SCHEDULE, "--start_checkpoint auto")
    assert done.returncode == 0, done.stderr
    resumed_at = int(re.search(r"Resumed at iteration (\d+)", done.stdout)[1])
    assert 140 <= resumed_at < ITERATIONS
    for iteration in (280, ITERATIONS):
        assert_same_run(finished.model, model, iteration)

    whole, mended = curves(finished.model), curves(model)
    assert whole["points/total"][resumed_at] != whole["points/total"][ITERATIONS]  # densified after the resumption
    for name in whole.keys() - TIMES:
        assert mended[name] == whole[name], name
    for name in TIMES:
        assert list(mended[name]) == list(whole[name])
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (finished.model, model))
    assert first["metrics"] == second["metrics"] and first["points"] == second["points"]


def test_a_checkpoint_cut_in_half_is_passed_over(
    finished: SimpleNamespace, killed: Path, capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(killed, model)
    newest = checkpoint.newest(model)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    # In this process and with another number of threads: the kernels add in a fixed order.
    train_on(capture, model, SCHEDULE, "--start_checkpoint auto")
    captured = capfd.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("warning: checkpoint passed over") and newest.name in captured.err
    assert_same_run(finished.model, model, ITERATIONS)
    # The killed run had gone further than this one went on from: that part is not shown twice.
    assert curves(model)["loss/total"] == curves(finished.model)["loss/total"]


def test_resuming_by_name_with_trained_offsets(capture: Path, tmp_path: Path) -> None:
    schedule = (
        "--iterations 12 --interval 7 --densify_from_iter 2 --densification_interval 3 --opacity_reset_interval 5 "
        "--densify_until_iter 12 --lambda_dynamic_offset 1 --lambda_dynamic_offset_std 1 --lambda_laplacian 1"
    )
    train_on(capture, tmp_path / "whole", schedule)
    train_on(capture, tmp_path / "rest", schedule, "--start_checkpoint", tmp_path / "whole" / "chkpnt7.pth")
    assert_same_run(tmp_path / "whole", tmp_path / "rest", 12)
    offsets = np.load(tmp_path / "rest/point_cloud/iteration_12/flame_param.npz")["dynamic_offset"]
    assert offsets[:3].any(axis=(1, 2)).all() and not offsets[3].any()


def test_a_run_is_never_overwritten_nor_begun_again(finished: SimpleNamespace, capture: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.model.rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run \(chkpnt300.pth\).*--start_checkpoint auto"):
        train_on(capture, finished.model, SCHEDULE)
    done = command(capture, finished.model, SCHEDULE, "--start_checkpoint auto")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"error: .*at iteration 300 of 300: this run is complete; raise --iterations to go on\n", done.stderr
    )
    assert {path: path.stat().st_mtime_ns for path in finished.model.rglob("*")} == before


def test_killed_while_measuring_the_end(finished: SimpleNamespace, capture: Path, tmp_path: Path) -> None:
    """The last checkpoint is there, results.json is not: resuming only measures, with the same outcome."""
    model = tmp_path / "model"
    shutil.copytree(finished.model, model)
    whole = json.loads((model / "results.json").read_text())
    (model / "results.json").unlink()
    results = train_on(capture, model, SCHEDULE, "--start_checkpoint auto")
    assert results["metrics"] == whole["metrics"] and results["points"] == whole["points"]
    assert json.loads((model / "results.json").read_text())["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sh_degree 1", "sh_degree = 3, this run has 1"),
        ("--disable_flame_static_offset", "disable_flame_static_offset = False, this run has True"),
    ],
)
def test_resuming_under_options_that_contradict_the_checkpoint(
    finished: SimpleNamespace, capture: Path, tmp_path: Path, flag: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        start = finished.model / "chkpnt140.pth"
        train_on(capture, tmp_path / "model", "--iterations 300 --start_checkpoint", start, flag)


@pytest.mark.parametrize("part", ["step", "avatar", "optimizer", "density", "sampler", "flame"])
def test_a_checkpoint_without_a_part_is_refused(
    finished: SimpleNamespace, capture: Path, tmp_path: Path, part: str
) -> None:
    state = checkpoint.load(finished.model / "chkpnt140.pth")
    del state[part]
    checkpoint.save(tmp_path / "chkpnt140.pth", state)
    with pytest.raises(UserError, match=f"checkpoint.*{part}"):
        train_on(capture, tmp_path / "model", "--iterations 300 --start_checkpoint", tmp_path / "chkpnt140.pth")


def test_auto_starts_afresh_where_nothing_is(capture: Path, tmp_path: Path) -> None:
    assert train_on(capture, tmp_path / "model", "--iterations 12 --start_checkpoint auto")["iterations"] == 12


def test_a_checkpoint_of_other_data_is_refused(finished: SimpleNamespace, tmp_path: Path) -> None:
    fewer = write_capture(tmp_path / "fewer", TIMESTEPS[1:], size=(32, 48))
    with pytest.raises(UserError, match="checkpoint.*data"):
        train_on(fewer, tmp_path / "model", SCHEDULE, "--start_checkpoint", finished.model / "chkpnt140.pth")
