"""The trap of progressive resolution: scaling the picture after rendering instead of the camera before.

    python -m benchmarks.progressive [--device cpu] [--threads N] [--repeats 15]

Times what an iteration does with the picture (forward, L1 + SSIM, backward) at full resolution, with the
camera scaled before rendering, and with the picture rendered at full size and reduced for the loss; and
the median, over the turns, of the time relative to full resolution.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.common import Row, Table, interleaved, new_parser, publish, timed
from benchmarks.raster import SceneKind, make_scene
from gaussian_renderer import Rasterizer, choose_device_and_rasterizer
from ops.losses import photometric
from utils.errors import run_script

SCENES = (SceneKind(20_000, 256, 352, (2.0, 4.0), (0.05, 0.9)), SceneKind(60_000, 550, 802, (2.0, 4.0), (0.05, 0.9)))
SCALES = (0.5, 0.75)


def measure(kind: SceneKind, device: torch.device, rasterize: Rasterizer, repeats: int) -> list[Row]:
    """A row for each scale."""
    gaussians, camera = make_scene(kind, device)
    background = torch.ones(3, device=device)
    random = torch.Generator().manual_seed(1)
    ground_truth = {
        scale: torch.rand(3, camera.scaled(scale).height, camera.scaled(scale).width, generator=random).to(device)
        for scale in (1.0, *SCALES)
    }

    def iteration(drawn_at: float, compared_at: float) -> None:
        image = rasterize(gaussians, camera.scaled(drawn_at), background, sh_degree=3).image
        if drawn_at != compared_at:
            image = F.interpolate(image[None], ground_truth[compared_at].shape[1:], mode="area")[0]
        l1, ssim = photometric(image, ground_truth[compared_at])
        (0.8 * l1 + 0.2 * (1.0 - ssim)).backward()
        for field in gaussians:
            field.grad = None

    sizes = [(1.0, 1.0), *((drawn, scale) for scale in SCALES for drawn in (scale, 1.0))]
    works = {str(pair): timed(partial(iteration, *pair), device) for pair in sizes}
    times = interleaved(works, repeats, warm_up=2)
    full = times[str((1.0, 1.0))]

    def of_full(drawn_at: float, compared_at: float) -> float:
        taken = times[str((drawn_at, compared_at))]
        return round(statistics.median(mine / whole for mine, whole in zip(taken, full)), 2)

    name = f"{kind.width}×{kind.height}, {kind.number:,} Gaussians ({statistics.median(full):.0f} ms at full size)"
    return [
        {
            "scene": name,
            "scale": scale,
            "camera scaled before": of_full(scale, scale),
            "picture reduced after": of_full(1.0, scale),
        }
        for scale in SCALES
    ]


def main() -> None:
    options = new_parser(__doc__, "device", "threads", "repeats", "json").parse_args()
    device, _, rasterize = choose_device_and_rasterizer(options.device, "auto", options.threads)
    rows = [row for kind in SCENES for row in measure(kind, device, rasterize, options.repeats)]
    title = "Forward, L1 + SSIM and backward, median of the time relative to full resolution:"
    publish(options, [Table(title, rows)], device)


if __name__ == "__main__":
    run_script(main)
