"""Times every rasterizer backend that runs here, side by side on the same scenes.

    python -m benchmarks.raster [--device cpu] [--scenes screen avatar] [--repeats 15]

The median milliseconds of the forward and of forward + backward (with gradients for image and alpha), how
many million pairs of a pixel and a Gaussian that reaches it (alpha >= 1/255) go through forward + backward
in a second, and the memory that it takes at its peak. For the native backend the stages inside the kernels
follow; what is missing to the total is Python and autograd.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import gaussian_renderer
from benchmarks.common import Row, Table, interleaved, new_parser, publish, timed
from gaussian_renderer.backends import reference
from ops.types import Camera, Gaussians, RenderOut
from utils.errors import run_script


class SceneKind(NamedTuple):
    """A random scene, uniform over the image."""

    number: int  # of Gaussians
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

    depth = uniform(kind.number, low=2.0, high=4.0)
    x = uniform(kind.number, low=-kind.width / 2, high=kind.width / 2) / focal
    y = uniform(kind.number, low=-kind.height / 2, high=kind.height / 2) / focal
    sigma = uniform(kind.number, 3, low=kind.sigma[0], high=kind.sigma[1])
    gaussians = Gaussians(
        means=torch.stack([x * depth, y * depth, depth], dim=1),
        quats=torch.nn.functional.normalize(torch.randn(kind.number, 4, generator=random), dim=1),
        scales=sigma * depth[:, None] / focal,
        opacities=uniform(kind.number, low=kind.opacity[0], high=kind.opacity[1]),
        sh=torch.randn(kind.number, 16, 3, generator=random) * 0.2,
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


class Passes:
    """Forward, and forward + backward, of a scene by a backend; each returns its milliseconds."""

    def __init__(self, rasterize: gaussian_renderer.Rasterizer, kind: SceneKind, device: torch.device) -> None:
        self.gaussians, self.camera = make_scene(kind, device)
        self.background = torch.ones(3, device=device)
        self.cotangents = [torch.randn(n, kind.height, kind.width, device=device) for n in (3, 1)]
        self.rasterize = rasterize
        self.forward = timed(torch.no_grad()(self._draw), device)
        self.both = timed(self._pull_back, device)
        self.stages: dict[str, list[float]] = {}  # ms within the native kernels, by the passes of `both`
        self.entries = 0  # pairs of a tile and a Gaussian, of the native kernels

    def _draw(self) -> RenderOut:
        return self.rasterize(self.gaussians, self.camera, self.background, sh_degree=3)

    def _pull_back(self) -> None:
        out = self._draw()
        workspace = getattr(out.image.grad_fn, "workspace", None)
        torch.autograd.backward([out.image, out.alpha], self.cotangents)
        for field in self.gaussians:
            field.grad = None
        for stage, seconds in workspace.seconds().items() if workspace else ():
            self.stages.setdefault(stage, []).append(1e3 * seconds)
        self.entries = workspace.entries() if workspace else 0


def measure(kind: SceneKind, backends: list[str], device: torch.device, repeats: int) -> list[Row]:
    """A row for each backend."""
    peaks = {}
    for backend in backends:
        # A process each: here a backend would reuse what it holds from before.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[backend] = pool.submit(peak_bytes, backend, kind, device).result()
    passes = {
        backend: Passes(gaussian_renderer.choose_rasterizer(backend, device)[1], kind, device) for backend in backends
    }
    works: dict[str, Callable[[], float]] = {}
    for backend, of_backend in passes.items():
        works |= {f"{backend} forward": of_backend.forward, f"{backend} both": of_backend.both}
    times = interleaved(works, repeats, warm_up=2)
    pairs = count_pairs(passes[backends[0]].gaussians, passes[backends[0]].camera)
    size = f"{kind.number:,} Gaussians, σ {kind.sigma[0]:g}–{kind.sigma[1]:g} px, {kind.width}×{kind.height}"
    rows: list[Row] = []
    for backend, of_backend in passes.items():
        both = statistics.median(times[f"{backend} both"])
        rows.append(
            {
                "scene": size,
                "backend": backend,
                "forward": round(statistics.median(times[f"{backend} forward"]), 2),
                "forward + backward": round(both, 2),
                "million pairs/s": round(pairs / both / 1e3),
                "peak MB": round(peaks[backend] / 1e6),
                **{stage: round(statistics.median(ms[2:]), 2) for stage, ms in of_backend.stages.items()},
            }
        )
    return rows


def main() -> None:
    parser = new_parser(__doc__, "device", "repeats", "json")
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=["screen", "avatar"])
    parser.add_argument("--backends", nargs="+", help="default: all that run here except the reference")
    options = parser.parse_args()
    device = torch.device(options.device)
    backends = options.backends or [n for n in gaussian_renderer.available_backends(device) if n != "reference"]
    rows: list[Row] = []
    for name in options.scenes:
        rows += measure(SCENES[name], backends or ["reference"], device, options.repeats)
    publish(options, [Table("Median milliseconds:", rows)], device)


if __name__ == "__main__":
    run_script(main)
