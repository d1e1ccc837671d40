"""Whether the densification statistic keeps its meaning when the resolution changes.

    python -m benchmarks.density_scale -m OUT [--views 60]

Renders training views of a trained avatar at scales 1, 0.75 and 0.5, takes the gradient of the loss with
respect to the projected centers as the density control does, with its signs and absolute, and prints
quantiles over the Gaussians relative to scale 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import Row, Table, new_parser, open_trained, publish
from ops.losses import photometric
from scene.images.cache import ImageCache
from scene.images.scaled import ScaledImages
from utils.errors import run_script

QUANTILES = (0.5, 0.75, 0.9, 0.97)
LOSSES = (
    ("0.8 L1 + 0.2 (1 − SSIM)", 0.2, False),
    ("L1 alone", 0.0, False),
    ("0.8 L1 + 0.2 (1 − SSIM), absolute", 0.2, True),
)


def main() -> None:
    parser = new_parser(__doc__, "model_path", "json")
    parser.add_argument("--views", type=int, default=60)
    options = parser.parse_args()
    avatar, dataset = open_trained(options.model_path)
    model = avatar.model
    device = model.device
    views = dataset.train[:: max(1, len(dataset.train) // options.views)][: options.views]
    images = ScaledImages(ImageCache(views, dataset.background, progress=False), len(views))

    def statistic(scale: float, dssim: float, absolute: bool) -> Tensor:
        gradients, seen = torch.zeros(len(model), device=device), torch.zeros(len(model), device=device)
        for index, view in enumerate(views):
            camera = view.camera.to(device).scaled(scale)
            out = avatar.draw(model(camera.timestep)[0], camera, absolute=absolute)
            l1, ssim = photometric(out.image, images.image(index, scale, device))
            ((1.0 - dssim) * l1 + dssim * (1.0 - ssim)).backward()
            assert out.means2d.grad is not None
            gradients += out.means2d.grad.norm(dim=1)
            seen += out.radii > 0
        return gradients / seen.clamp(min=1.0)

    wanted = torch.tensor(QUANTILES, device=device)

    def row(name: str, scale: float, ratios: Tensor) -> Row:
        quantiles = {f"{100 * q:g} %": round(ratio, 2) for q, ratio in zip(QUANTILES, ratios.tolist())}
        return {"loss": name, "scale": scale, **quantiles}

    rows = []
    for name, dssim, absolute in LOSSES:
        full = statistic(1.0, dssim, absolute)
        counted = full > 0
        base = full[counted].quantile(wanted)
        for scale in (0.75, 0.5):
            rows.append(row(name, scale, statistic(scale, dssim, absolute)[counted].quantile(wanted) / base))
        if dssim and not absolute:
            signed, signed_base = counted, base
    rows.append(row("absolute over signed", 1.0, full[signed].quantile(wanted) / signed_base))
    publish(options, [Table("Quantiles over the Gaussians, relative to those at full size:", rows)], device)


if __name__ == "__main__":
    run_script(main)
