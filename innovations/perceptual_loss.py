"""A loss on what a network sees: the features of VGG16 for picture and photograph, compared.

One of the costly flags that the efficient presets came to replace; theirs was VGG19. This is the VGG16 of the LPIPS
weights, five stages deep, with weights that grow with the depth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops.lpips import LPIPS, MINIMUM_SIZE
from utils.errors import UserError
from utils.lpips_weights import INSTALL_COMMAND, load, weights_path
from utils.memory import Keep

STAGE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # from shallow to deep


class PerceptualLoss:
    """The weighted mean absolute difference of VGG16's features, with a gradient to the picture only.

    The features of photographs are kept while there is room: 44 MB for 256x352 pixels. All are made one by one, so
    that what is kept and what is made anew are the same bits, and a resumed run goes on alike.
    """

    def __init__(self, weight: float, network: LPIPS, kept: Keep) -> None:
        """`network` is VGG16 with its weights; `kept` is where features of photographs go."""
        self.weight, self.network, self.kept = weight, network, kept

    @classmethod
    def published(cls, weight: float, share: float, device: torch.device, smallest: int) -> PerceptualLoss:
        """With the installed weights; `share` of the free memory may hold features.

        Args:
            smallest: side of all images that will be looked at, pixels.

        Raises:
            UserError: too small an image, or the weights are not installed, or damaged.
        """
        if smallest < MINIMUM_SIZE["vgg"]:
            raise UserError(
                f"--use_vgg_loss needs images of at least {MINIMUM_SIZE['vgg']} pixels on each side, and {smallest} is "
                "the smallest here: raise --resolution or --resolution_schedule, or add --no_vgg_loss"
            )
        if not weights_path("vgg").exists():
            raise UserError(
                f"--use_vgg_loss needs the LPIPS weights, which are not installed: run `{INSTALL_COMMAND}` once, or "
                "add --no_vgg_loss"
            )
        return cls(weight, load("vgg", device), Keep(share, device))

    def __call__(
        self,
        index: int,  # of the view
        image: Tensor,  # [3, H, W]  0..1, or outside as a rendering may be
        ground_truth: Tensor,  # [3, H, W]
    ) -> dict[str, Tensor]:
        """The term of the loss."""
        with torch.no_grad():
            known = self.kept.get(index, lambda: self.network.features(ground_truth), version=ground_truth.shape)
        seen = self.network.features(image)
        stages = (weight * (a - b).abs().mean() for weight, a, b in zip(STAGE_WEIGHTS, seen, known))
        return {"perceptual": self.weight * torch.stack(list(stages)).sum()}


class NoPerceptualLoss:
    """Switched off: no term."""

    def __call__(self, index: int, image: Tensor, ground_truth: Tensor) -> dict[str, Tensor]:
        """Nothing."""
        return {}


NO_PERCEPTUAL_LOSS = NoPerceptualLoss()
