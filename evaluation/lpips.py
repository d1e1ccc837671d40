"""LPIPS v0.1 (Zhang et al. 2018) in plain PyTorch: no torchvision, no downloads.

Two networks of the original: VGG16 and AlexNet. Both images pass through the
network; after five of its layers the features are normalised to unit length
over the channels, their squared differences weighted by a learned vector and
averaged over the pixels; the five numbers are added.

The weights are installed once by `python -m utils.lpips_weights`; `load` reads
them from the user's cache and never from the network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError
from utils.tensor_reader import load_tensors

INSTALL_COMMAND = "python -m utils.lpips_weights"


class Layer(NamedTuple):
    """One convolution with the ReLU after it, and the max-pooling before it, if any."""

    channels: int  # of its output
    kernel: int  # pixels, square
    stride: int
    padding: int
    pool: tuple[int, int] | None = None  # (window, stride) before the convolution
    tap: bool = False  # whether LPIPS compares its output


def _vgg16() -> tuple[Layer, ...]:
    layers = []
    for block, (channels, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for i in range(count):
            pool = (2, 2) if block > 0 and i == 0 else None
            layers.append(Layer(channels, 3, 1, 1, pool, tap=i == count - 1))
    return tuple(layers)


NETWORKS: dict[str, tuple[Layer, ...]] = {
    "vgg": _vgg16(),
    "alex": (
        Layer(64, 11, 4, 2, None, True),
        Layer(192, 5, 1, 2, (3, 2), True),
        Layer(384, 3, 1, 1, (3, 2), True),
        Layer(256, 3, 1, 1, None, True),
        Layer(256, 3, 1, 1, None, True),
    ),
}
# Below this the last pooling has no pixel left.
MINIMUM_SIZE = {"vgg": 16, "alex": 31}


class LPIPS(nn.Module):
    """The distance between images; weights as created are random, see `load`."""

    shift: Tensor  # of the network's own input normalization, in its units: images in [-1, 1]
    scale: Tensor

    def __init__(self, network: str) -> None:
        """`network` is "vgg" or "alex"."""
        super().__init__()
        self.network = network
        self.layers = NETWORKS[network]
        self.convolutions = nn.ModuleList()
        self.linear = nn.ParameterList()
        channels = 3
        for layer in self.layers:
            self.convolutions.append(nn.Conv2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding))
            channels = layer.channels
            if layer.tap:
                self.linear.append(torch.rand(channels) / channels)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(
        self,
        image: Tensor,  # [3, H, W] or [B, 3, H, W]  0..1
        ground_truth: Tensor,  # as image
    ) -> Tensor:  # [] or [B]  0 = alike
        """The distance of each pair; differentiable with respect to both.

        The conversion to the [-1, 1] that LPIPS expects happens here.

        Raises:
            ValueError: shapes that do not fit, or images smaller than `MINIMUM_SIZE`.
        """
        least = MINIMUM_SIZE[self.network]
        if image.shape != ground_truth.shape or image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(f"expected two images [3, H, W], got {tuple(image.shape)} and {tuple(ground_truth.shape)}")
        if min(image.shape[-2:]) < least:
            raise ValueError(
                f"LPIPS ({self.network}) needs images of at least {least} pixels on each side, "
                f"got {tuple(image.shape[-2:])}"
            )
        single = image.ndim == 3
        pair = torch.stack([image, ground_truth]) if single else torch.cat([image, ground_truth])
        # cuDNN would round the convolutions' inputs to TF32: figures that depend on the GPU.
        full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.autocast(pair.device.type, enabled=False), full_precision:
            distance = self._distance(pair.to(self.scale.dtype))
        return distance[0] if single else distance

    def _distance(self, pair: Tensor) -> Tensor:
        """[2B, 3, H, W], the images and then their ground_truths -> [B]."""
        features = ((2 * pair - 1) - self.shift) / self.scale
        distance = features.new_zeros(pair.shape[0] // 2)
        linear = iter(self.linear)
        for layer, convolution in zip(self.layers, self.convolutions):
            if layer.pool is not None:
                features = F.max_pool2d(features, *layer.pool)
            features = convolution(features).relu()
            if layer.tap:
                # Zhang's epsilon is added to the norm, not under its root. linalg's norm has gradient 0 at 0.
                unit = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
                first, second = unit.chunk(2)
                weighted = (first - second).square() * next(linear).view(1, -1, 1, 1)
                distance = distance + weighted.sum(dim=1).mean(dim=(1, 2))
        return distance


def weights_folder() -> Path:
    """Where the installed weights are: LPIPS_CACHE, else the user's cache folder."""
    if os.environ.get("LPIPS_CACHE"):
        return Path(os.environ["LPIPS_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "efficient-gaussian-avatars" / "lpips"


def weights_path(network: str) -> Path:
    """The file of one network's weights (it may not exist)."""
    return weights_folder() / f"{network}.pt"


def load(network: str, device: torch.device | str = "cpu") -> LPIPS:
    """The network with its published weights.

    Raises:
        UserError: the weights are not installed or their file is damaged; the message names the command.
    """
    path = weights_path(network)
    if not path.exists():
        raise UserError(f"the LPIPS weights ({network}) are not installed: run `{INSTALL_COMMAND}` once")
    model = LPIPS(network)
    try:
        model.load_state_dict(load_tensors(path))
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(
            f"{path} does not hold the LPIPS weights ({type(error).__name__}): delete it and run `{INSTALL_COMMAND}`"
        ) from error
    return model.to(device).eval()
