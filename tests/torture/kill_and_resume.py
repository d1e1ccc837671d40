"""Kills a training again and again, resumes it each time, and compares the end with an undisturbed run.

    python tests/torture/kill_and_resume.py [--kills 25] [--seed 0] [--keep FOLDER]

A procedural capture, every innovation on. Some kills fall while the program starts, some between two
iterations, some between two operations on files, some in the middle of writing a checkpoint. After each,
whatever the dead run left must be readable; at the end weights, FLAME parameters, optimizers,
densification, sampler and every curve and picture must be those of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
from runs import assert_same_run, curves, flags
from toy_capture import TIMESTEPS, write_capture

from innovations.color_calibration import ColorCalibration
from scene.ply import read_ply
from training import checkpoint

STEPS = 400
EVERYTHING = (
    "--preset balanced --use_color_calibration --use_amp --color_per_camera --batch_views 2 --max_gaussians 500 "
    "--lr_cooldown 0.5"
)
# By the clock too, so that checkpoints fall on any iteration; not all are kept.
CLOCK = "--checkpoint_every_minutes 0.002 --keep_checkpoints 4"
KINDS = {"start": 0.12, "loop": 0.28, "operation": 0.3, "write": 0.3}


def command(capture: Path, model: Path, steps: int = STEPS, clock: str = CLOCK) -> list[str]:
    """Ten evaluations, saved avatars and checkpoints; densifications, resets and switches between and upon them."""
    schedule = (
        f"--iterations {steps} --interval {steps // 10} --densify_from_iter 10 --densification_interval 10 "
        f"--opacity_reset_interval {steps * 3 // 8} --densify_until_iter {steps - 10} --densify_grad_threshold 1e-4 "
        f"--sh_increase_interval {steps // 7} --resolution_milestones {steps // 5},{steps // 2}"
    )
    return flags(capture, model, schedule, EVERYTHING, clock, "--start_checkpoint auto")


def start(words: list[str], fault: dict[str, Any] | None, folder: Path) -> subprocess.Popen[str]:
    """A training in a process of its own; without LPIPS, whose weights this machine may have or not."""
    script = ["tests/torture/faults.py", json.dumps(fault)] if fault else ["train.py"]
    return subprocess.Popen(
        [sys.executable, *script, *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "LPIPS_CACHE": str(folder / "no-weights"), "OMP_NUM_THREADS": "1"},
    )


def accidents(count: int, seed: int, steps: int = STEPS) -> list[dict[str, Any]]:
    """One for each kill, further and further into the run, never so late that the run could end before it.

    The last one falls while the end is saved and measured.
    """
    chance = random.Random(seed)
    moments = sorted(chance.randint(1, steps - steps // 5) for _ in range(count - 1))
    # Each kind at least once, if there is room.
    kinds = [*reversed(KINDS)][: count - 1]
    kinds += chance.choices([*KINDS], [*KINDS.values()], k=count - 1 - len(kinds))
    chance.shuffle(kinds)
    most = {"start": 1200, "loop": 50, "operation": 45, "write": 120}
    return [
        *(
            {"kind": "kill", "where": kind, "step": step, "number": chance.randint(1, most[kind])}
            for kind, step in zip(kinds, moments)
        ),
        {"kind": "kill", "where": "operation", "step": steps, "number": chance.randint(1, 36)},
    ]


def suffer(fault: dict[str, Any], words: list[str], folder: Path) -> None:
    """Runs the training `words` until `fault` kills it."""
    process = start(words, {**fault, "folder": words[words.index("-m") + 1]}, folder)
    if fault["where"] == "start":
        time.sleep(1e-3 * fault["number"])
        process.kill()
    told = process.communicate()[1]
    assert process.returncode == -9, f"{fault}: ended with status {process.returncode}\n{told}"


def check_readable(model: Path) -> None:
    """Everything that has a name in the folder of a dead run is whole."""
    for path in checkpoint.newest_first(model):
        checkpoint.load(path)
    for ply in model.glob("point_cloud/*/point_cloud.ply"):
        assert len(read_ply(ply)["xyz"])
        assert "expr" in np.load(ply.with_name("flame_param.npz"))
        ColorCalibration.load(ply.with_name("color_calibration.pt"))
    for name in ("cameras.json", "results.json"):
        if (model / name).exists():
            json.loads((model / name).read_text())


def compare(whole: Path, torn: Path, last: int) -> dict[str, int]:
    """Asserts that both runs ended alike; returns how much was compared."""
    assert_same_run(whole, torn, last)
    saved = [sorted(path.relative_to(model) for path in model.glob("point_cloud/*/*")) for model in (whole, torn)]
    assert saved[0] == saved[1], saved
    for name in saved[0]:
        if name.suffix != ".pt":  # PyTorch's archives carry the name of the temporary file
            assert (whole / name).read_bytes() == (torn / name).read_bytes(), name
    metrics = [json.loads((model / "results.json").read_text())["metrics"] for model in (whole, torn)]
    assert metrics[0] == metrics[1]
    shown = [curves(model) for model in (whole, torn)]
    assert shown[0].keys() == shown[1].keys(), shown[0].keys() ^ shown[1].keys()
    for name, points in shown[0].items():
        assert list(points) == list(shown[1][name]), f"{name}: {list(points)} and {list(shown[1][name])}"
        assert name.startswith("time/") or points == shown[1][name], name
    assert list(shown[0]["loss/total"]) == list(range(10, last + 1, 10))
    left = [path for path in torn.rglob(".tmp-*")]
    assert not left, left
    return {
        "files of saved avatars": len(saved[0]),
        "curves and pictures": len(shown[0]),
        "points on them": sum(map(len, shown[0].values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        capture = write_capture(folder / "capture", TIMESTEPS, size=(32, 48))
        whole, torn = folder / "whole", folder / "torn"
        begin = time.monotonic()
        undisturbed = start(command(capture, whole), None, folder)
        told = undisturbed.communicate()[1]
        assert undisturbed.returncode == 0, told
        print(f"undisturbed: {time.monotonic() - begin:.1f} s", flush=True)
        died, leftovers = Counter(), 0
        for number, fault in enumerate(accidents(options.kills, options.seed), 1):
            suffer(fault, command(capture, torn), folder)
            died[fault["where"]] += 1
            leftovers += len(list(torn.rglob(".tmp-*")))
            check_readable(torn)
            reached = checkpoint.latest(torn)
            print(
                f"kill {number}: {fault['where']} from step {fault['step']} on, left {reached and reached.name}",
                flush=True,
            )
        last = start(command(capture, torn), None, folder)
        told = last.communicate()[1]
        assert last.returncode == 0, told
        compared = compare(whole, torn, STEPS)
        print(f"\n{'kills':32}{sum(died.values())} ({', '.join(f'{n} {kind}' for kind, n in sorted(died.items()))})")
        print(f"{'half-written files left, cleared':32}{leftovers}")
        for name, count in compared.items():
            print(f"{name + ', identical':32}{count}")
        print(f"{'seconds':32}{time.monotonic() - begin:.0f}")


if __name__ == "__main__":
    main()
