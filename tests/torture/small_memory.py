"""Trains on a capture of 15,000 images under a limit of 2 GB, and shows what each image costs.

    python tests/torture/small_memory.py [--views 15040] [--limit_gb 2] [--iterations 300]

Writes procedural captures (a ball on a FLAME-format head model, 16 cameras, 64x48 pixels) of the full and of a tenth
of the size into a temporary folder and trains each in a process whose address space is limited (RLIMIT_AS: every
reservation counts, not only the pages used, so this is stricter than a limit on resident memory). All innovations
that keep something per view are on. The worker processes that decode have the same limit, each for itself.
A third run, under 1.6 GB, densifies everything each time: it has to stop growing, with a warning, and end well.
Exit status 1 when a run fails, takes more than its limit, or grows without a warning.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from toy_capture import POSES, look_at, photograph, write_head_model

CAMERAS = 16
GROWTH_LIMIT = 1_600_000_000
FRAME = {"w": 64, "h": 48, "fl_x": 90.0, "fl_y": 92.0, "cx": 31.0, "cy": 24.5}

CHILD = """
import atexit, json, re, resource, runpy, sys
limit, report = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def tell():
    status = dict(re.findall(r"^(Vm\\w+):\\s+(\\d+) kB$", open("/proc/self/status").read(), re.MULTILINE))
    json.dump({name: 1024 * int(value) for name, value in status.items()}, open(report, "w"))
atexit.register(tell)
sys.argv = ["train.py", *sys.argv[3:]]
runpy.run_path("train.py", run_name="__main__")
"""


def write_timestep(folder: Path, timestep: int) -> list[dict[str, object]]:
    """The files of one moment; its frames, one for each camera."""
    taller = 0.3 * np.sin(0.05 * timestep)
    np.savez(
        folder / f"flame_param/{timestep:05d}.npz",
        expr=np.full((1, 1), taller, np.float32),
        shape=np.zeros(1, np.float32),
        static_offset=np.zeros((1, 162, 3), np.float32),
        **{name: np.zeros((1, width), np.float32) for name, width in POSES},
    )
    frames = []
    for camera in range(CAMERAS):
        angle = 2.5 * (camera / (CAMERAS - 1) - 0.5)
        pose = look_at(0.6 * np.array([np.sin(angle), 0.2 * (camera % 3 - 1), np.cos(angle)]))
        name = f"images/{timestep:05d}_{camera:02d}.png"
        Image.fromarray(photograph(pose, 0.1 * np.array([1, 1 + taller, 1]), FRAME)).save(folder / name)
        frames.append(
            {
                **FRAME,
                "timestep_index": timestep,
                "timestep_id": f"{timestep:05d}",
                "camera_index": camera,
                "camera_id": f"{camera:02d}",
                "file_path": name,
                "transform_matrix": pose.tolist(),
                "flame_param_path": f"flame_param/{timestep:05d}.npz",
            }
        )
    return frames


def write_large_capture(folder: Path, timesteps: int) -> Path:
    """Camera 8 for val, the last twentieth of the time for test, all else to train on."""
    (folder / "flame_param").mkdir(parents=True)
    (folder / "images").mkdir()
    write_head_model(folder / "head_model.pkl")
    with ProcessPoolExecutor() as pool:
        every = list(pool.map(partial(write_timestep, folder), range(timesteps), chunksize=16))
    np.savez(folder / "canonical_flame_param.npz", **np.load(folder / "flame_param/00000.npz"))
    splits: dict[str, list] = {"train": [], "val": [], "test": []}
    for timestep, frames in enumerate(every):
        for frame in frames:
            split = "test" if timestep >= 0.95 * timesteps else "val" if frame["camera_index"] == 8 else "train"
            splits[split].append(frame)
    for split, frames in splits.items():
        (folder / f"transforms_{split}.json").write_text(json.dumps({"frames": frames}))
    return folder


def per_view(iterations: int) -> list[object]:
    """Flags of whatever keeps something for each view, or each camera."""
    return [
        "--use_region_adaptive_loss",
        "--use_color_calibration",
        "--color_per_camera",
        "--use_progressive_resolution",
        "--resolution_milestones",
        f"{iterations // 4},{iterations // 2}",
        "--densify_from_iter",
        20,
        "--densification_interval",
        50,
    ]


GROWING = (
    "--densify_grad_threshold",
    1e-12,
    "--densify_from_iter",
    10,
    "--densification_interval",
    20,
    "--opacity_reset_interval",
    100_000,
)


def train(folder: Path, timesteps: int, limit: int, iterations: int, more: Sequence[object]) -> dict[str, Any]:
    """Figures of one run; SystemExit with its last lines if it fails."""
    capture = write_large_capture(folder / "capture", timesteps)
    words = [
        "-s",
        capture,
        "-m",
        folder / "model",
        "--bind_to_mesh",
        "--eval",
        "-w",
        "--device",
        "cpu",
        "--quiet",
        "--iterations",
        iterations,
        "--interval",
        iterations // 2,
        *more,
    ]
    report = folder / "memory.json"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(limit), str(report), *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        print(f"{timesteps * CAMERAS} views: exit status {done.returncode}\n{done.stderr[-3000:]}")
        raise SystemExit(1)
    memory = json.loads(report.read_text())
    results = json.loads((folder / "model/results.json").read_text())
    checkpoint = (folder / f"model/chkpnt{iterations}.pth").stat().st_size
    return {
        "limit": limit,
        "warned": "Gaussians are not added" in done.stderr,
        "points": results["points"],
        "views": timesteps * CAMERAS,
        "resident": memory["VmHWM"],
        "address space": memory["VmPeak"],
        "in results.json": results["peak_memory"]["host_bytes"],
        "checkpoint": checkpoint,
        "seconds": time.monotonic() - start,
        "psnr": results["metrics"]["val"]["psnr"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=15_040)
    parser.add_argument("--limit_gb", type=float, default=2.0)
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args()
    limit = int(options.limit_gb * 1e9)
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, views in (("tenth", options.views // 10), ("whole", options.views)):
            timesteps = max(20, round(views / CAMERAS))
            runs.append(
                train(Path(temporary) / name, timesteps, limit, options.iterations, per_view(options.iterations))
            )
        runs.append(train(Path(temporary) / "growing", 20, GROWTH_LIMIT, 400, GROWING))
    print("limit of the address space (RLIMIT_AS) and what was taken of it, in GB")
    print(
        f"{'views':>7} {'limit':>6} {'address space':>14} {'resident':>9} {'in results.json':>16} {'checkpoint':>11} "
        f"{'Gaussians':>10} {'seconds':>8} {'val PSNR':>9}"
    )
    for run in runs:
        print(
            f"{run['views']:7,d} {run['limit'] / 1e9:6.2f} {run['address space'] / 1e9:14.3f} "
            f"{run['resident'] / 1e9:9.3f} {run['in results.json'] / 1e9:16.3f} {run['checkpoint'] / 1e9:11.4f} "
            f"{run['points']:10,d} {run['seconds']:8.0f} {run['psnr']:9.2f}"
        )
    small, large, growing = runs
    more = large["views"] - small["views"]
    print(
        f"a view costs {(large['resident'] - small['resident']) / more / 1e3:.1f} kB, of which its pixels are "
        f"{3 * FRAME['w'] * FRAME['h'] / 1e3:.1f} kB"
    )
    print(f"the growing run {'stopped to grow, with a warning' if growing['warned'] else 'grew to its end'}")
    if any(run["address space"] > run["limit"] for run in runs) or not growing["warned"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
