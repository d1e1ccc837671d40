"""The trap of progressive resolution: scaling the picture after rendering instead of the camera before.

    python benchmarks/progressive.py [--device cpu] [--threads N] [--repeats 15] [--json FILE]

Times what an iteration does with the picture (forward, L1 + SSIM, backward) at
full resolution, with the camera scaled before rendering, and with the picture
rendered at full size and reduced for the loss. The three take turns, so that a
busy machine slows them alike; printed are the median milliseconds and the
median, over the turns, of the time relative to full resolution.
"""

from __future__ import annotations

# isort: off
import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
# isort: on

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from benchmarks.raster import SceneKind, make_scene
from gaussian_renderer import choose_device_and_rasterizer
from ops.losses import photometric
from utils.errors import run_script
from utils.files import write_json

SCENES = {
    "256x352": SceneKind(20_000, 256, 352, (2.0, 4.0), (0.05, 0.9)),
    "550x802": SceneKind(60_000, 550, 802, (2.0, 4.0), (0.05, 0.9)),
}
SCALES = (0.5, 0.75)


def measure(kind: SceneKind, device: torch.device, rasterize: Callable, repeats: int) -> dict[str, dict[str, float]]:
    """By variant: `ms`, and `of_full`, the time relative to full resolution."""
    gaussians, camera = make_scene(kind, device)
    background = torch.ones(3, device=device)
    random = torch.Generator().manual_seed(1)
    targets = {
        scale: torch.rand(3, camera.scaled(scale).height, camera.scaled(scale).width, generator=random).to(device)
        for scale in (1.0, *SCALES)
    }

    def iteration(drawn_at: float, compared_at: float) -> None:
        image = rasterize(gaussians, camera.scaled(drawn_at), background, sh_degree=3).image
        target = targets[compared_at]
        if drawn_at != compared_at:
            image = F.interpolate(image[None], target.shape[1:], mode="area")[0]
        l1, ssim = photometric(image, target)
        (0.8 * l1 + 0.2 * (1.0 - ssim)).backward()
        for field in gaussians:
            field.grad = None

    variants = {"full": (1.0, 1.0)}
    for scale in SCALES:
        variants[f"{scale}: camera scaled before"] = (scale, scale)
        variants[f"{scale}: picture reduced after"] = (1.0, scale)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 2):
        for name, sizes in variants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            iteration(*sizes)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # the first ones warm caches and buffers
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "ms": statistics.median(taken),
            "of_full": statistics.median(mine / full for mine, full in zip(taken, times["full"])),
        }
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()

    device, backend, rasterize = choose_device_and_rasterizer(options.device, "auto", options.threads)
    report: dict[str, object] = {"device": str(device), "backend": backend, "threads": torch.get_num_threads()}
    for name, kind in SCENES.items():
        report[name] = figures = measure(kind, device, rasterize, max(1, options.repeats))
        print(f"{name}, {kind.count:,} Gaussians, {backend} on {device}, {torch.get_num_threads()} threads")
        for variant, row in figures.items():
            print(f"  {variant:<30}{row['ms']:8.1f} ms   {row['of_full']:.2f} of full")
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    run_script(main)
