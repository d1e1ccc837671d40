"""Times every rasterizer backend that runs here, side by side on the same scenes.

    python benchmarks/raster.py [--device cpu] [--scenes screen avatar] [--repeats 15] [--json FILE]

Prints the median milliseconds of the forward and of forward + backward (with
gradients for image and alpha). The repeats of the backends are interleaved, so
that a busy machine slows them all alike. For the native backend the stages
inside the kernels follow; what is missing to the total is Python and autograd.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.threads  # noqa: E402, F401  (before PyTorch: sets how its threads wait)
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import gaussian_renderer  # noqa: E402
from scene.cameras import Camera  # noqa: E402
from utils.errors import run_script  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.types import Gaussians  # noqa: E402


class SceneKind(NamedTuple):
    """A random scene, uniform over the image."""

    count: int
    width: int                         # pixels
    height: int                        # pixels
    sigma: tuple[float, float]         # pixels, range of one standard deviation per axis
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


def measure(
    backends: dict[str, gaussian_renderer.Rasterizer], kind: SceneKind, device: torch.device, repeats: int,
) -> dict[str, dict[str, float]]:
    """Median milliseconds by backend: `forward`, `forward+backward` and, for native, the stages of the kernels."""
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

    times: dict[str, dict[str, list[float]]] = {name: {} for name in backends}
    for repeat in range(repeats + 2):
        for name, rasterize in backends.items():
            alone, _ = clock(lambda: forward(rasterize))
            total, stages = clock(lambda: both(rasterize))
            if repeat >= 2:  # the first ones warm caches and buffers
                for key, value in {"forward": alone, "forward+backward": total, **stages}.items():
                    times[name].setdefault(key, []).append(value * 1e3)
    return {name: {key: statistics.median(values) for key, values in by_key.items()} for name, by_key in times.items()}


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
    report: dict[str, object] = {"device": str(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    for scene in options.scenes:
        kind = SCENES[scene]
        print(f"{scene}: {kind.count} Gaussians, {kind.width}x{kind.height}, sigma {kind.sigma} px, "
              f"opacity {kind.opacity}, {torch.get_num_threads()} threads; median of {options.repeats}, ms")
        report[scene] = figures = measure(backends, kind, device, max(1, options.repeats))
        for name, by_key in figures.items():
            print(f"  {name:10}" + "  ".join(f"{key} {value:.2f}" for key, value in by_key.items()))
    if options.json:
        write_json(options.json, report)


if __name__ == "__main__":
    run_script(main)
