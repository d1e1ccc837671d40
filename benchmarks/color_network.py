"""Times the color network as per-pixel linear layers, as 1x1 convolutions, and on its lattice of colors.

    python -m benchmarks.color_network [--size 512 512] [--hidden 16] [--layers 3] [--repeats 15] [--device cpu]
    python -m benchmarks.color_network --rates    which learning rate finds known color changes
    python -m benchmarks.color_network --half     what bfloat16 costs or gains on the CPU

All variants hold the same weights and, but for what the lattice interpolates, give the same picture: the error is
that of a color between 0 and 1, mean and largest. In brackets stands how many times as fast as the
first a variant is, the median of the ratios within a round.
"""

from __future__ import annotations

import copy
import statistics
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.common import Row, Table, interleaved, new_parser, publish, timed
from innovations.color_calibration import ColorCalibration, ColorCalibrationNetwork
from utils.errors import run_script

STEPS = (100, 300, 1000)  # of --rates


class Plain(nn.Module):
    """The network without its lattice: 1x1 convolutions."""

    def __init__(self, network: ColorCalibrationNetwork) -> None:
        super().__init__()
        self.network = network

    def residual(self, image: Tensor) -> Tensor:
        *hidden, last = self.network.convolutions
        for convolution in hidden:
            image = convolution(image).relu()
        return last(image)

    def forward(self, image: Tensor) -> Tensor:  # [3, H, W]
        x = image.clamp(0, 1)
        growth = self.residual(x).to(x.dtype).exp()
        return x * growth / ((1 - x) + x * growth)


class PerPixel(Plain):
    """The trap: every pixel a row of a matrix, with a copy into that layout and one back."""

    def __init__(self, network: ColorCalibrationNetwork) -> None:
        super().__init__(network)
        layers: list[nn.Module] = []
        for module in network.convolutions:
            convolution = cast(nn.Conv2d, module)
            linear = nn.Linear(convolution.in_channels, convolution.out_channels)
            linear.weight.data = convolution.weight.data[:, :, 0, 0].clone()
            linear.bias.data = cast(Tensor, convolution.bias).data.clone()
            layers += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def residual(self, image: Tensor) -> Tensor:
        rows = image.permute(1, 2, 0).reshape(-1, 3)
        return self.layers(rows).reshape(*image.shape[1:], 3).permute(2, 0, 1).contiguous()


def trained_network(options: Namespace) -> ColorCalibrationNetwork:
    """A network away from the identity, so that no gradient is zero."""
    random = torch.Generator().manual_seed(0)
    network = ColorCalibrationNetwork(options.hidden, options.layers, generator=random)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network.to(options.device)


class Work:
    """Pictures of the wanted size, on noise (for the lattice the worst case: no pixel of plain background)."""

    def __init__(self, options: Namespace) -> None:
        width, height = options.size
        self.image = torch.rand(3, height, width, device=options.device).requires_grad_()
        self.cotangent = torch.randn_like(self.image)

    def forward(self, module: nn.Module) -> Tensor:
        with torch.no_grad():
            return module(self.image)

    def both(self, module: nn.Module, low: bool = False) -> None:
        self.image.grad = None
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            out = module(self.image)
        out.backward(self.cotangent)


def medians(works: dict[str, Callable[[], object]], options: Namespace) -> dict[str, str]:
    """Milliseconds, and how many times as fast as the first."""
    clocks = {name: timed(work, options.device) for name, work in works.items()}
    times = interleaved(clocks, options.repeats, warm_up=2)
    first = next(iter(times.values()))
    return {
        name: f"{statistics.median(taken):.2f} ms ({statistics.median(a / b for a, b in zip(first, taken)):.1f}×)"
        for name, taken in times.items()
    }


def compare(options: Namespace) -> list[Table]:
    """The variants."""
    network = trained_network(options)
    variants: dict[str, nn.Module] = {"linear layers per pixel": PerPixel(network).to(options.device)}
    variants["1×1 convolutions"] = Plain(network)
    variants["the lattice"] = network
    variants["the lattice, weights standing still"] = copy.deepcopy(network).requires_grad_(False)
    work = Work(options)
    first, *others = (work.forward(module) for module in variants.values())
    apart = [(picture - first).abs() for picture in others]
    errors = ["–", *(f"{error.mean():.1e}, {error.max():.1e}" for error in apart)]
    forward = medians({name: partial(work.forward, module) for name, module in variants.items()}, options)
    both = medians({name: partial(work.both, module) for name, module in variants.items()}, options)
    rows = [
        {"variant": name, "forward": forward[name], "forward + backward": both[name], "error": error}
        for name, error in zip(variants, errors)
    ]
    return [Table(f"{options.size[0]}×{options.size[1]}, hidden {options.hidden}, {options.layers} layers:", rows)]


def rates() -> list[Table]:
    """Root mean squared error against known color changes, after some steps of one noisy picture each."""
    random = torch.Generator().manual_seed(0)
    cameras = [f"camera {i}" for i in range(8)]
    coarse = torch.rand(8, 3, 8, 8, generator=random)
    pictures = nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1)
    gains = 1 + 0.1 * torch.randn(8, 3, 1, 1, generator=random)
    offsets = 0.03 * torch.randn(8, 3, 1, 1, generator=random)
    gains, offsets = gains - gains.mean(dim=0) + 1, offsets - offsets.mean(dim=0)
    curve = torch.tensor([0.8, 1.0, 1.25]).view(3, 1, 1)  # a gamma for each channel
    rows: list[Row] = []
    for part, wanted in (("network", pictures**curve), ("cameras", gains * pictures + offsets)):
        for rate in (3e-4, 1e-3, 2e-3, 5e-3, 1e-2):
            color = ColorCalibration(
                cameras,
                network=part == "network",
                per_camera=part == "cameras",
                rate=rate,
                generator=torch.Generator().manual_seed(1),
            )
            draws = torch.Generator().manual_seed(2)
            row: dict[str, object] = {"part": part, "rate": f"{rate:g}"}
            for step in range(STEPS[-1] + 1):
                if step in (0, *STEPS):
                    with torch.no_grad():
                        squares = [(color(p, c) - w).square().mean() for p, c, w in zip(pictures, cameras, wanted)]
                    row[f"{step} steps"] = round(torch.stack(squares).mean().sqrt().item(), 4)
                i = int(torch.randint(8, (1,), generator=draws))
                noisy = pictures[i] + 0.05 * torch.randn(3, 64, 64, generator=draws)
                (color(noisy, cameras[i]) - wanted[i]).abs().mean().backward()
                for optimizer in color.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            rows.append(row)
    return [Table("Root mean squared error of the colors:", rows)]


def half(options: Namespace) -> list[Table]:
    """bfloat16 against float32 on the CPU."""
    network, work = trained_network(options), Work(options)
    plain = Plain(network)
    works: dict[str, Callable[[], object]] = {
        "1×1 convolutions, float32": lambda: work.both(plain),
        "1×1 convolutions, bfloat16": lambda: work.both(plain, low=True),
        "the lattice, float32": lambda: work.both(network),
    }
    rows = [{"variant": name, "forward + backward": text} for name, text in medians(works, options).items()]
    return [Table(f"{options.size[0]}×{options.size[1]}:", rows)]


def main() -> None:
    parser = new_parser(__doc__, "device", "repeats", "json")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rates", action="store_true", help="compare learning rates instead")
    parser.add_argument("--half", action="store_true", help="measure mixed precision on the CPU instead")
    options = parser.parse_args()
    tables = rates() if options.rates else half(options) if options.half else compare(options)
    publish(options, tables, options.device)


if __name__ == "__main__":
    run_script(main)
