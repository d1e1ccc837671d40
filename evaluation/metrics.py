"""How close a rendered picture is to the photograph.

All metrics take images [3, H, W] in 0..1, clamp them to that range and return
a float. A picture is never a batch: what is averaged, and over what, shows in
`Suite`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Mapping

import torch
from torch import Tensor

from arguments import METRICS
from evaluation import flip as difference
from ops import losses
from ops.lpips import LPIPS, MINIMUM_SIZE
from utils import lpips_weights
from utils.errors import UserError
from utils.memory import Keep

# Identical images would have an infinite PSNR, which spoils every mean and is
# no JSON number; with this floor they read 100 dB.
SMALLEST_MSE = 1e-10


def psnr(image: Tensor, ground_truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, from the squared error over all channels and pixels together."""
    image, ground_truth = _clamped(image, ground_truth)
    error = (image.double() - ground_truth.double()).square().mean().item()
    return -10.0 * math.log10(error if math.isnan(error) else max(error, SMALLEST_MSE))


def l1(image: Tensor, ground_truth: Tensor) -> float:
    """Mean absolute difference, 0..1."""
    image, ground_truth = _clamped(image, ground_truth)
    return (image.double() - ground_truth.double()).abs().mean().item()


def ssim(image: Tensor, ground_truth: Tensor) -> float:
    """Mean structural similarity, at most 1: the one of `losses.photometric`, over the full image."""
    image, ground_truth = _clamped(image, ground_truth)
    with torch.no_grad():
        return losses.photometric(image, ground_truth)[1].item()


def flip(image: Tensor, ground_truth: Tensor) -> float:
    """Mean LDR-FLIP (Andersson et al. 2020), 0..1, at the authors' default viewing distance."""
    return difference.flip(*_clamped(image, ground_truth)).item()


class Suite:
    """Several metrics over several images.

    A metric that cannot be had here (LPIPS without its weights, an image too
    small for it) reads None, and `notes` says why in one line each.
    """

    def __init__(
        self, names: Iterable[str] = METRICS, device: torch.device | str = "cpu", kept: Keep | None = None
    ) -> None:
        """`names` out of `METRICS`; `device` is where the LPIPS networks run.

        Args:
            kept: where what the networks see of the photographs is kept, for whoever measures against them again.

        Raises:
            UserError: an unknown name.
        """
        self.names = tuple(dict.fromkeys(names))
        unknown = [name for name in self.names if name not in METRICS]
        if unknown:
            raise UserError(f"unknown metric {', '.join(unknown)}: choose from {', '.join(METRICS)}")
        self.notes: list[str] = []
        self._kept = kept
        self._networks: dict[str, LPIPS] = {}
        self._values: dict[str, list[float]] = {name: [] for name in self.names}
        self._functions: dict[str, Callable[[Tensor, Tensor], float]] = {
            "psnr": psnr,
            "ssim": ssim,
            "l1": l1,
            "flip": flip,
        }
        for name in self.names:
            if name.startswith("lpips_"):
                self._load_lpips(name, torch.device(device))

    def again(self, kept: Keep | None = None) -> Suite:
        """The same metrics with nothing measured yet; `kept` is for other photographs than those seen so far."""
        fresh = copy.copy(self)
        fresh._values, fresh._kept = {name: [] for name in self.names}, kept or self._kept
        return fresh

    def add(self, image: Tensor, ground_truth: Tensor, key: Hashable = None) -> dict[str, float | None]:
        """Measures one image [3, H, W] and keeps the values for `mean`; `key` tells one photograph from another."""
        result: dict[str, float | None] = {}
        for name in self.names:
            value = result[name] = self._measure(name, image, ground_truth, key)
            if value is not None:
                self._values[name].append(value)
        return result

    def mean(self) -> dict[str, float | None]:
        """The mean over the images of each metric; None where there was nothing to measure."""
        return {name: sum(values) / len(values) if values else None for name, values in self._values.items()}

    def _measure(self, name: str, image: Tensor, ground_truth: Tensor, key: Hashable) -> float | None:
        if name in self._networks:
            return self._perceptual(self._networks[name], image, ground_truth, key)
        return self._functions[name](image, ground_truth) if name in self._functions else None

    @torch.no_grad()
    def _perceptual(self, model: LPIPS, image: Tensor, ground_truth: Tensor, key: Hashable) -> float | None:
        device, least = model.shift.device, MINIMUM_SIZE[model.network]
        image, ground_truth = _clamped(image.to(device), ground_truth.to(device))
        if min(image.shape[-2:]) < least:
            self._note(f"LPIPS ({model.network}) reads n/a for images under {least} pixels")
            return None
        if self._kept is None:
            seen = model.features(ground_truth)
        else:
            seen = self._kept.get((model.network, key), lambda: model.features(ground_truth))
        return model.distance(model.features(image), seen).item()

    def _load_lpips(self, name: str, device: torch.device) -> None:
        network = name.removeprefix("lpips_")
        try:
            self._networks[name] = lpips_weights.load(network, device)
        except UserError:
            missing = not lpips_weights.weights_path(network).exists()
            state = "its weights are not installed" if missing else "its installed weights are damaged"
            command = f"{lpips_weights.INSTALL_COMMAND}{'' if missing else ' --force'}"
            self._note(f"LPIPS reads n/a, {state}: run `{command}`")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def format_table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """An aligned text table: one line per row, one column per metric, "n/a" for None or absent.

    The columns come in the order in which they first appear.
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [["", *columns]]
    for name, row in rows.items():
        cells.append([name, *(_cell(column, row.get(column)) for column in columns)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:]))])
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.2f}" if column == "psnr" else f"{value:.4f}"


def _clamped(image: Tensor, ground_truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both in 0..1, detached, at least float32, on the image's device; a NaN stays one."""
    if image.ndim != 3 or image.shape != ground_truth.shape or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"expected two images [3, H, W], got {tuple(image.shape)} and {tuple(ground_truth.shape)}")
    dtype = torch.promote_types(image.dtype, torch.float32)
    return (image.detach().to(dtype).clamp(0, 1), ground_truth.detach().to(image.device, dtype).clamp(0, 1))
