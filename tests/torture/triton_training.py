"""Trains a toy head by the Triton kernels, in Triton's interpreter on the CPU, and by the reference; compares them.

    python tests/torture/triton_training.py FOLDER [--iterations 200]

Writes a procedural capture (a ball on a FLAME-format head model, 32x48 pixels) and both trainings into FOLDER: minutes
each. The one rasterizes, moves the head, compares, and learns in Triton; the other rasterizes by the reference and does
the rest in plain PyTorch, too: the C++ kernels' rounding alone moves the end, right after an opacity reset, by more
than is allowed. Ctrl-C or SIGTERM saves; the same command then goes on. Exit status 1 when the validation views of the
two ends differ by more than 0.05 dB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
os.environ["PYTHONWARNINGS"] = "ignore"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import toy_capture
import trimesh
from runs import train_on

from gaussian_renderer.backends import triton as backend
from ops import fused, kernels
from ops.triton_kernels import flame, losses, rig
from utils.errors import run_script

# The interpreter takes its time for every program, not for the pixels or vertices in it.
backend.TILE, losses.BLOCK, rig.FEW, flame.BLOCK = 64, 4096, 512, 128
ALLOWED = 0.05  # dB
# Densifications, an opacity reset and all degrees on the way.
SCHEDULE = (
    "--densify_from_iter 20 --densification_interval 40 --densify_until_iter 190 --densify_grad_threshold 0.004 "
    "--opacity_reset_interval 90 --sh_increase_interval 50 --interval 1000 --start_checkpoint auto --metrics psnr"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--iterations", type=int, default=200)
    options = parser.parse_args()
    np.seterr(all="ignore")  # where a kernel makes NaN, NumPy says so
    capture = options.folder / "capture"
    if not capture.exists():
        toy_capture.BALL = trimesh.creation.icosphere(subdivisions=1, radius=0.1)
        toy_capture.write_capture(capture, toy_capture.TIMESTEPS, size=(32, 48))
    found = {}
    kernels.usable = lambda *tensors, **conditions: False
    for name in ("reference", "triton"):
        fused.runs_on = lambda device, chosen=name: chosen == "triton"
        words = f"--iterations {options.iterations} --rasterizer {name}"
        ended = options.folder / name / "results.json"
        results = (
            json.loads(ended.read_text())
            if ended.exists()
            else train_on(capture, options.folder / name, SCHEDULE, words, quiet=False)
        )
        assert results["backend"] == name
        found[name] = results["metrics"]["val"]["psnr"]
        print(f"{name}: {found[name]:.3f} dB on val, {results['points']:,} Gaussians", flush=True)
    difference = abs(found["triton"] - found["reference"])
    print(f"{difference:.4f} dB between them, {ALLOWED} allowed")
    sys.exit(difference > ALLOWED)


if __name__ == "__main__":
    run_script(main)
