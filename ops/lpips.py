"""LPIPS v0.1 (Zhang et al. 2018) in plain PyTorch: no torchvision, no downloads.

Two networks of the original: VGG16 and AlexNet. Both images pass through the
network; after five of its layers the features are normalized to unit length
over the channels, their squared differences weighted by a learned vector and
averaged over the pixels; the five numbers are added.

`utils.lpips_weights` installs and loads the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

        Raises:
            ValueError: shapes that do not fit, or images smaller than `MINIMUM_SIZE`.
        """
        if image.shape != ground_truth.shape:
            raise ValueError(f"expected two images [3, H, W], got {tuple(image.shape)} and {tuple(ground_truth.shape)}")
        distance = self.distance(self.features(image), self.features(ground_truth))
        return distance[0] if image.ndim == 3 else distance

    def features(
        self,
        image: Tensor,  # [3, H, W] or [B, 3, H, W]  0..1
    ) -> list[Tensor]:  # five, [B, C, h, w]  at least 0
        """What the network sees: its outputs after the ReLU of the layers that LPIPS compares.

        The conversion to the [-1, 1] that LPIPS expects, and from there to ImageNet's mean and deviation, happens here.
        Image and truth pass one after the other: together they would be no faster, and what comes out would depend,
        in its last bits, on the company.

        Raises:
            ValueError: another shape, or an image smaller than `MINIMUM_SIZE`.
        """
        least = MINIMUM_SIZE[self.network]
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(f"expected an image [3, H, W] or [B, 3, H, W], got {tuple(image.shape)}")
        if min(image.shape[-2:]) < least:
            raise ValueError(
                f"LPIPS ({self.network}) needs images of at least {least} pixels on each side, "
                f"got {tuple(image.shape[-2:])}"
            )
        image = image if image.ndim == 4 else image[None]
        found = []
        # cuDNN would round the convolutions' inputs to TF32: figures that depend on the GPU.
        full_precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.autocast(image.device.type, enabled=False), full_precision:
            image = image.to(self.scale.dtype)
            if image.device.type == "cpu":  # oneDNN's convolutions are faster with the channels last
                image = image.contiguous(memory_format=torch.channels_last)
            features = ((2 * image - 1) - self.shift) / self.scale
            for layer, convolution in zip(self.layers, self.convolutions):
                if layer.pool is not None:
                    features = F.max_pool2d(features, *layer.pool)
                features = convolution(features).relu_()
                if layer.tap:
                    found.append(features)
        return found

    def distance(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """[B] the distances of images whose `features` these are."""
        distance = features[0].new_zeros(len(features[0]))
        with torch.autocast(distance.device.type, enabled=False):
            for linear, first, second in zip(self.linear, features, others):
                weighted = (_unit(first) - _unit(second)).square() * linear.view(1, -1, 1, 1)
                distance = distance + weighted.sum(dim=1).mean(dim=(1, 2))
        return distance


def _unit(features: Tensor) -> Tensor:
    """[B, C, H, W] with length 1 over the channels.

    Zhang's epsilon is added to the norm, not under its root. linalg's norm has gradient 0 at 0.
    """
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)
