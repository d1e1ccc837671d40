"""Whether the densification statistic keeps its meaning when the resolution changes.

    python benchmarks/density_scale.py -s DATA -m OUT [--views 60]

Renders training views of a trained avatar at scales 1, 0.75 and 0.5, takes the
gradient of the loss with respect to the projected centres as the density control
does, with its signs and absolute, and prints quantiles over the Gaussians relative to scale 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from gaussian_renderer import choose_device_and_rasterizer, render
from ops.losses import photometric
from scene.dataset import load_dataset
from scene.flame.head_model import find_head_model, load_head_model
from scene.flame.model import Flame, FlameParameters
from scene.gaussian_model import FLAME_NAME, GaussianModel
from scene.images.cache import ImageCache
from scene.images.scaled import ScaledImages
from utils.errors import UserError, run_script

QUANTILES = (0.5, 0.75, 0.9, 0.97)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-s", "--source_path", type=Path, required=True)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("--views", type=int, default=60)
    options = parser.parse_args()
    saved = sorted((options.model_path / "point_cloud").glob("iteration_*"), key=lambda p: int(p.name.split("_")[1]))
    if not saved:
        raise UserError(f"{options.model_path} holds no saved avatar")

    device, _, rasterize = choose_device_and_rasterizer("auto", "auto")
    dataset = load_dataset(options.source_path, bind_to_mesh=True, eval_split=True, white_background=True)
    head = load_head_model(find_head_model(None, options.source_path))
    avatar = GaussianModel.load(
        saved[-1],
        flame=Flame(head, device=device),
        device=device,
        flame_parameters=FlameParameters.load(saved[-1] / FLAME_NAME, head, device=device),
    )
    views = dataset.train[:: max(1, len(dataset.train) // options.views)][: options.views]
    images = ScaledImages(ImageCache(views, dataset.background, progress=False), len(views))
    background = torch.tensor(dataset.background, device=device)

    def statistic(scale: float, dssim: float, absolute: bool) -> Tensor:
        gradients, seen = torch.zeros(len(avatar), device=device), torch.zeros(len(avatar), device=device)
        for index, view in enumerate(views):
            camera = view.camera.to(device).scaled(scale)
            out = render(
                avatar(camera.timestep)[0],
                camera,
                background,
                sh_degree=avatar.active_sh_degree,
                rasterize=rasterize,
                absolute=absolute,
            )
            l1, ssim = photometric(out.image, images.image(index, scale, device))
            ((1.0 - dssim) * l1 + dssim * (1.0 - ssim)).backward()
            gradients += out.means2d.grad.norm(dim=1)
            seen += out.radii > 0
        return gradients / seen.clamp(min=1.0)

    signed = statistic(1.0, 0.2, False)
    ratio = statistic(1.0, 0.2, True)[signed > 0].quantile(0.9) / signed[signed > 0].quantile(0.9)
    print(f"absolute over signed, 90 % quantile: {ratio:.2f}")
    for name, dssim, absolute in (
        ("0.8 L1 + 0.2 (1 - SSIM)", 0.2, False),
        ("L1", 0.0, False),
        ("absolute, 0.8 L1 + 0.2 (1 - SSIM)", 0.2, True),
    ):
        full = statistic(1.0, dssim, absolute)
        counted = full > 0
        wanted = torch.tensor(QUANTILES, device=device)
        for scale in (0.75, 0.5):
            ratio = statistic(scale, dssim, absolute)[counted].quantile(wanted) / full[counted].quantile(wanted)
            told = ", ".join(f"{q:g}: {value:.2f}" for q, value in zip(QUANTILES, ratio.tolist()))
            print(f"{name}, scale {scale}: quantiles relative to scale 1: {told}")


if __name__ == "__main__":
    run_script(main)
