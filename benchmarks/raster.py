"""Times every rasterizer backend that runs here, side by side on the same scenes.

    python benchmarks/raster.py [--device cpu] [--scenes screen avatar] [--repeats 15] [--json FILE]

Prints the median milliseconds of the forward and of forward + backward (with
gradients for image and alpha), how many million pairs of a pixel and a Gaussian that
reaches it (alpha >= 1/255) go through forward + backward in a second, and the
memory that it takes at its peak. The repeats of the backends are interleaved, so
that a busy machine slows them all alike. For the native backend the stages
inside the kernels follow; what is missing to the total is Python and autograd.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import gaussian_renderer
import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from evaluation.results import device_name, git_commit
from gaussian_renderer.backends import reference
from ops.types import Camera, Gaussians
from utils.errors import run_script
from utils.files import write_json


class SceneKind(NamedTuple):
    """A random scene, uniform over the image."""

    count: int
    width: int  # pixels
    height: int  # pixels
    sigma: tuple[float, float]  # pixels, range of one standard deviation per axis
    opacity: tuple[float, float]


SCENES = {
    "screen": SceneKind(20_000, 512, 512, (1.0, 6.0), (0.05, 0.6)),
    # a head avatar at the size of a small capture, and the same grown past what its pixels can use
    "avatar": SceneKind(20_000, 256, 352, (2.0, 4.0), (0.05, 0.9)),
    "dense": SceneKind(130_000, 256, 352, (0.3, 1.5), (0.05, 0.9)),
}


def make_scene(kind: SceneKind, device: torch.device, seed: int = 0) -> tuple[Gaussians, Camera]:
    """Gaussians of degree 3 in front of a camera that looks along z, and that camera."""
    random = torch.Generator().manual_seed(seed)
    focal = 1.2 * kind.width

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=random) * (high - low) + low

    depth = uniform(kind.count, low=2.0, high=4.0)
    x = uniform(kind.count, low=-kind.width / 2, high=kind.width / 2) / focal
    y = uniform(kind.count, low=-kind.height / 2, high=kind.height / 2) / focal
    sigma = uniform(kind.count, 3, low=kind.sigma[0], high=kind.sigma[1])
    gaussians = Gaussians(
        means=torch.stack([x * depth, y * depth, depth], dim=1),
        quats=torch.nn.functional.normalize(torch.randn(kind.count, 4, generator=random), dim=1),
        scales=sigma * depth[:, None] / focal,
        opacities=uniform(kind.count, low=kind.opacity[0], high=kind.opacity[1]),
        sh=torch.randn(kind.count, 16, 3, generator=random) * 0.2,
    )
    camera = Camera(torch.eye(4, device=device), focal, focal, kind.width / 2, kind.height / 2, kind.width, kind.height)
    return Gaussians(*(field.to(device).requires_grad_() for field in gaussians)), camera


def count_pairs(gaussians: Gaussians, camera: Camera) -> float:
    """Pixels within the ellipse where a Gaussian's alpha reaches 1/255, summed over all, also off the screen.

    alpha = o exp(-q/2) >= 1/255 is the ellipse q <= 2 ln(255 o), of area pi 2 ln(255 o) / sqrt(det of the conic).
    """
    with torch.no_grad():
        flat = reference.project(gaussians, torch.zeros(len(gaussians.means), 2, device=gaussians.means.device), camera)
    xx, xy, yy = flat.conics.unbind(1)
    reach = 2.0 * torch.log(flat.opacities.detach() / reference.MIN_ALPHA)
    return float((math.pi * reach / (xx * yy - xy * xy).sqrt()).sum())


def peak_bytes(name: str, kind: SceneKind, device: torch.device) -> int:
    """Memory that one forward + backward takes at its peak beyond the scene; to be called in a fresh process."""
    rasterize = gaussian_renderer.choose_rasterizer(name, device)[1]
    gaussians, camera = make_scene(kind, device)
    background = torch.ones(3, device=device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from the present
        before = _status("VmRSS")
    out = rasterize(gaussians, camera, background, sh_degree=3)
    torch.autograd.backward([out.image, out.alpha], [torch.ones_like(out.image), torch.ones_like(out.alpha)])
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")) - before


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def measure(
    backends: dict[str, gaussian_renderer.Rasterizer], kind: SceneKind, device: torch.device, repeats: int
) -> dict[str, dict[str, float]]:
    """By backend: median milliseconds of `forward`, `forward+backward` and, for native, the stages of the kernels;
    `Mpairs/s` and `peak MB` of forward + backward."""
    gaussians, camera = make_scene(kind, device)
    background = torch.ones(3, device=device)
    grad_image = torch.randn(3, kind.height, kind.width, device=device)
    grad_alpha = torch.randn(1, kind.height, kind.width, device=device)

    def forward(rasterize: gaussian_renderer.Rasterizer) -> None:
        with torch.no_grad():
            rasterize(gaussians, camera, background, sh_degree=3)

    def both(rasterize: gaussian_renderer.Rasterizer) -> dict[str, float]:
        out = rasterize(gaussians, camera, background, sh_degree=3)
        workspace = getattr(out.image.grad_fn, "workspace", None)
        torch.autograd.backward([out.image, out.alpha], [grad_image, grad_alpha])
        for field in gaussians:
            field.grad = None
        return {} if workspace is None else workspace.seconds()

    def clock(work: Callable[[], dict[str, float] | None]) -> tuple[float, dict[str, float]]:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        stages = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, stages or {}

    peaks = {}
    for name in backends:
        # A process each: here a backend would reuse what it holds from before.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_bytes, name, kind, device).result()
    times: dict[str, dict[str, list[float]]] = {name: {} for name in backends}
    for repeat in range(repeats + 2):
        for name, rasterize in backends.items():
            alone, _ = clock(lambda: forward(rasterize))
            total, stages = clock(lambda: both(rasterize))
            if repeat >= 2:  # the first ones warm caches and buffers
                for key, value in {"forward": alone, "forward+backward": total, **stages}.items():
                    times[name].setdefault(key, []).append(value * 1e3)
    pairs = count_pairs(gaussians, camera)
    figures = {}
    for name, by_key in times.items():
        medians = {key: statistics.median(values) for key, values in by_key.items()}
        figures[name] = {"Mpairs/s": pairs / medians["forward+backward"] / 1e3, "peak MB": peaks[name] / 1e6, **medians}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=["screen", "avatar"])
    parser.add_argument("--backends", nargs="+", help="default: all that run here except the reference")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()

    device = torch.device(options.device)
    names = options.backends or [n for n in gaussian_renderer.available_backends(device) if n != "reference"]
    backends = dict(gaussian_renderer.choose_rasterizer(name, device) for name in names or ["reference"])
    report: dict[str, object] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "commit": git_commit(),
        "threads": torch.get_num_threads(),
    }
    print(report["device"])
    for scene in options.scenes:
        kind = SCENES[scene]
        print(
            f"{scene}: {kind.count} Gaussians, {kind.width}x{kind.height}, sigma {kind.sigma} px, "
            f"opacity {kind.opacity}, {torch.get_num_threads()} threads; median of {options.repeats}, times in ms"
        )
        report[scene] = figures = measure(backends, kind, device, max(1, options.repeats))
        for name, by_key in figures.items():
            print(f"  {name:10}" + "  ".join(f"{key} {value:.2f}" for key, value in by_key.items()))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    run_script(main)
