"""Times the colour network as a network of per-pixel linear layers, as 1x1 convolutions, and as the native kernel.

    python benchmarks/color_network.py [--size 512 512] [--hidden 16] [--layers 3] [--repeats 15] [--device cpu]
    python benchmarks/color_network.py --rates    which learning rate finds known colour changes
    python benchmarks/color_network.py --half     what bfloat16 costs or gains on the CPU

All variants hold the same weights and give the same picture; "not learning" is the native kernel
in those iterations in which its weights are left alone. Their
repeats are interleaved, and a ratio is the median of the ratios within a round,
so that a busy machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from evaluation import lpips
from innovations.color_calibration import ColorCalibration, ColorCalibrationNetwork
from ops import kernels
from utils.errors import run_script

STEPS = (100, 300, 1000)  # of --rates


class PerPixel(nn.Module):
    """The trap: every pixel a row of a matrix, with a copy into that layout and one back."""

    def __init__(self, network: ColorCalibrationNetwork) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for convolution in network.convolutions:
            linear = nn.Linear(convolution.in_channels, convolution.out_channels)
            linear.weight.data = convolution.weight.data[:, :, 0, 0].clone()
            linear.bias.data = convolution.bias.data.clone()
            layers += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor) -> Tensor:  # [3, H, W]
        _, height, width = image.shape
        x = image.clamp(0, 1).permute(1, 2, 0).reshape(-1, 3)
        growth = self.layers(x).exp()
        return (x * growth / ((1 - x) + x * growth)).reshape(height, width, 3).permute(2, 0, 1).contiguous()


class Convolutions(nn.Module):
    """The same module without its native kernel."""

    def __init__(self, network: ColorCalibrationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        with mock.patch.object(kernels, "available", lambda: False):
            return self.network(image)


def trained_network(hidden: int, layers: int) -> ColorCalibrationNetwork:
    """A network away from the identity, so that no gradient is zero."""
    random = torch.Generator().manual_seed(0)
    network = ColorCalibrationNetwork(hidden, layers, generator=random)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return network


def interleaved(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each, `repeats` times in turns after two rounds of warming up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 2):
        for name, work in works.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def table(title: str, times: dict[str, list[float]]) -> None:
    """Medians, and how many times faster than the first each is."""
    first = next(iter(times.values()))
    print(title)
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, values))
        print(f"  {name:<24} {statistics.median(values):8.2f} ms   fastest {min(values):7.2f} ms   {ratio:6.1f}x")


def compare(height: int, width: int, hidden: int, layers: int, repeats: int, device: torch.device) -> None:
    """The variants, on noise (for the native kernel the worst case: no pixel of plain background)."""
    network = trained_network(hidden, layers).to(device)
    variants: dict[str, nn.Module] = {
        "linear layers per pixel": PerPixel(network).to(device),
        "1x1 convolutions": Convolutions(network),
    }
    if device.type == "cpu" and kernels.available():
        variants["native kernel"] = network
        variants["native, not learning"] = copy.deepcopy(network).requires_grad_(False)
    image = torch.rand(3, height, width, device=device).requires_grad_()
    cotangent = torch.randn_like(image)

    def forward(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return module(image)

    def both(module: nn.Module) -> None:
        image.grad = None
        module.zero_grad()
        module(image).backward(cotangent)

    pictures = [forward(module) for module in variants.values()]
    difference = max((picture - pictures[0]).abs().max().item() for picture in pictures)
    print(
        f"{width}x{height}, hidden {hidden}, {layers} layers, {torch.get_num_threads()} threads on {device}; "
        f"pictures differ by {difference:.1e} at most"
    )
    for title, work in (("forward", forward), ("forward and backward", both)):
        works = {name: (lambda m=module: work(m)) for name, module in variants.items()}
        table(title, interleaved(works, repeats, device))


def rates() -> None:
    """Root mean squared error against known colour changes, after some steps of one noisy picture each."""
    random = torch.Generator().manual_seed(0)
    cameras = [f"camera {i}" for i in range(8)]
    coarse = torch.rand(8, 3, 8, 8, generator=random)
    pictures = nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1)
    gains = 1 + 0.1 * torch.randn(8, 3, 1, 1, generator=random)
    offsets = 0.03 * torch.randn(8, 3, 1, 1, generator=random)
    gains, offsets = gains - gains.mean(dim=0) + 1, offsets - offsets.mean(dim=0)
    curve = torch.tensor([0.8, 1.0, 1.25]).view(3, 1, 1)  # a gamma for each channel
    print("rms error, at the start and after " + ", ".join(map(str, STEPS)) + " steps")
    for part, targets in (("network", pictures**curve), ("cameras", gains * pictures + offsets)):
        for rate in (3e-4, 1e-3, 2e-3, 5e-3, 1e-2):
            color = ColorCalibration(
                cameras,
                network=part == "network",
                per_camera=part == "cameras",
                rate=rate,
                generator=torch.Generator().manual_seed(1),
            )
            draws = torch.Generator().manual_seed(2)
            errors = []
            for step in range(STEPS[-1] + 1):
                if step in (0, *STEPS):
                    with torch.no_grad():
                        errors.append(
                            torch.stack(
                                [(color(p, c) - t).square().mean() for p, c, t in zip(pictures, cameras, targets)]
                            )
                            .mean()
                            .sqrt()
                            .item()
                        )
                i = int(torch.randint(8, (1,), generator=draws))
                noisy = pictures[i] + 0.05 * torch.randn(3, 64, 64, generator=draws)
                (color(noisy, cameras[i]) - targets[i]).abs().mean().backward()
                for optimizer in color.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            print(f"  {part}  rate {rate:<7g}" + "".join(f"{error:9.4f}" for error in errors), flush=True)


def half(height: int, width: int, hidden: int, layers: int, repeats: int) -> None:
    """bfloat16 against float32 on the CPU."""
    cpu = torch.device("cpu")
    convolutions = Convolutions(trained_network(hidden, layers))
    kernel = convolutions.network
    image = torch.rand(3, height, width).requires_grad_()
    cotangent = torch.randn_like(image)

    def train(module: nn.Module, low: bool) -> None:
        image.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            out = module(image)
        out.backward(cotangent)

    table(
        f"colour network {width}x{height}, forward and backward",
        interleaved(
            {
                "1x1 convolutions, fp32": lambda: train(convolutions, False),
                "1x1 convolutions, bf16": lambda: train(convolutions, True),
                "native kernel, fp32": lambda: train(kernel, False),
            },
            repeats,
            cpu,
        ),
    )

    other = torch.rand(3, height, width)
    for name in lpips.NETWORKS:
        network = lpips.load(name) if lpips.weights_path(name).exists() else lpips.LPIPS(name)
        weights = "published" if lpips.weights_path(name).exists() else "random"

        def distance(low: bool) -> float:
            # LPIPS.forward switches autocast off for the sake of its figures.
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                return network._distance(torch.stack([image.detach(), other])).item()

        exact, rounded = distance(False), distance(True)
        table(
            f"LPIPS {name}, {weights} weights, one pair: {exact:.5f} in fp32, {rounded:.5f} in bf16",
            interleaved({"fp32": lambda: distance(False), "bf16": lambda: distance(True)}, max(3, repeats // 3), cpu),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rates", action="store_true", help="compare learning rates instead")
    parser.add_argument("--half", action="store_true", help="measure mixed precision on the CPU instead")
    options = parser.parse_args()
    width, height = options.size
    if options.rates:
        rates()
    elif options.half:
        half(height, width, options.hidden, options.layers, options.repeats)
    else:
        compare(height, width, options.hidden, options.layers, options.repeats, torch.device(options.device))


if __name__ == "__main__":
    run_script(main)
