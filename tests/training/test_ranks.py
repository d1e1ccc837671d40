"""One avatar trained by several processes: as by one with as many views, also after one of them was killed."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from places import ROOT
from runs import flags, train_on

from training import checkpoint
from training.optimizers import view_rates
from training.ranks import Alone, Ranks

STEPS = 100
SCHEDULE = (
    f"--iterations {STEPS} --interval 50 --keep_checkpoints 0 --densify_from_iter 20 --densification_interval 20 "
    "--opacity_reset_interval 70 --densify_until_iter 95 --sh_increase_interval 30 --preset balanced "
    "--color_per_camera --max_gaussians 500 --resolution_milestones 20,45 --no_warm_skip_resets --warm_opacity 0.3"
)
# train.py, in which one process ends itself once, in the middle of an iteration.
FATAL = """
import os, resource, signal, sys, threading
sys.path[:0] = [{root!r}, {tests!r}]
import pytest, torch, train
from runs import in_each_iteration
from training import watch
from utils.errors import run_script

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def hang():
    watch.STILL = watch.SLOWEST = 3.0
    threading.Event().wait()  # the main thread alone: signs of life go on

def fill_memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, -1))
    torch.empty(1 << 33)

def die(count, terms):
    if count == 70 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {how}()
    return terms


in_each_iteration(pytest.MonkeyPatch(), die)
run_script(train.main)
"""


def two_processes(script: Path, how: str, words: list[str], *settings: str) -> subprocess.CompletedProcess[str]:
    """`words` trained by two processes, the second of which ends `how`, to its end."""
    script.write_text(FATAL.format(root=str(ROOT), tests=str(ROOT / "tests"), how=how))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *settings]
    command = [sys.executable, *torchrun, str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


def test_two_processes_one_of_which_is_killed_train_what_one_does(capture: Path, tmp_path: Path) -> None:
    script, together, alone = tmp_path / "fatal.py", tmp_path / "together", tmp_path / "alone"
    words = flags(capture, together, SCHEDULE, "--metrics psnr --rasterizer native", quiet=False)
    done = two_processes(script, "kill", words, "--max_restarts", "1")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "process 1 of 2 was killed" in told[0], done.stderr
    assert "chkpnt50.pth and all before it are kept" in told[0]
    assert "Resumed at iteration 50" in done.stdout and "6 training views" in done.stdout

    results = train_on(capture, alone, SCHEDULE, "--batch_views 2 --metrics psnr --rasterizer native")
    states = [checkpoint.load(folder / f"chkpnt{STEPS}.pth") for folder in (together, alone)]
    fields = [state["avatar"]["fields"] for state in states]
    assert len(fields[0]["xyz"]) == len(fields[1]["xyz"]) == results["points"] > 320  # it has grown
    for name in fields[0]:
        torch.testing.assert_close(fields[0][name], fields[1][name], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[0]["flame"]["values"], states[1]["flame"]["values"], rtol=0, atol=1e-6)
    for part in ("sampler", "region", "bad_steps"):
        assert str(states[0][part]) == str(states[1][part])
    assert len(list(together.glob("events.out.*"))) == 2  # of the first process, before and after

    # Halfway from two to one.
    shutil.copytree(together, tmp_path / "fewer", ignore=shutil.ignore_patterns(f"*{STEPS}*", "results.json"))
    train_on(capture, tmp_path / "fewer", SCHEDULE, "--batch_views 2 --metrics psnr --start_checkpoint auto")
    resumed = checkpoint.load(tmp_path / "fewer" / f"chkpnt{STEPS}.pth")
    torch.testing.assert_close(resumed["avatar"]["fields"]["xyz"], fields[0]["xyz"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("hang", r"process 1 of 2 stands still \(threading.py, line \d+\); .*chkpnt50.pth and all before it are kept"),
        ("fill_memory", "process 1 of 2: the memory of the computer ran out"),
    ],
)
def test_one_that_hangs_or_has_no_memory_ends_both(capture: Path, tmp_path: Path, how: str, sentence: str) -> None:
    words = flags(capture, tmp_path / "out", SCHEDULE, "--metrics psnr --rasterizer native")
    done = two_processes(tmp_path / "fatal.py", how, words)
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode != 0 and len(told) == 1 and re.search(sentence, told[0]), done.stderr
    assert checkpoint.load(tmp_path / "out" / "chkpnt50.pth")["step"] == 50


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_view_is_somebodys(size: int) -> None:
    drawn, indices, firsts = list(range(10, 10 + 2 * size)), range(7), {2, 5}
    shares, splits = [], []
    for rank in range(size):
        ranks = Alone() if size == 1 else Ranks.__new__(Ranks)
        Alone.__init__(ranks)
        ranks.rank, ranks.size, ranks.first = rank, size, rank == 0
        ranks.watch = SimpleNamespace(begins=lambda: None)
        shares.append(ranks.share(drawn, 1.0))
        splits.append(ranks.split(indices, firsts))
    assert sorted(sum(shares, [])) == drawn and {len(share) for share in shares} == {2}
    assert shares[-1][-1] == drawn[-1]  # whose Gaussians' sizes decide
    assert sorted(sum(splits, [])) == list(indices) and firsts <= set(splits[0])


def test_rates_by_views() -> None:
    for rule in ("none", "sqrt", "linear"):
        assert view_rates(rule, 1) == view_rates("none", 9)
    assert view_rates("linear", 4).rate == 4 and view_rates("sqrt", 4).rate == 2
    # As much is left of what was seen 8 views ago, however many of them a step has.
    for views in (2, 4, 8):
        (beta,) = view_rates("sqrt", views).betas(0.9)
        assert math.isclose(beta ** (8 // views), 0.9**8)
