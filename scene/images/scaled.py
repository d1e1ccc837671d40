"""The training images at the resolution of the moment."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.images.cache import ImageCache


class ScaledImages:
    """The first `count` images of a cache at any scale; those of the last scale asked for are kept.

    Training stays at one scale for thousands of iterations, so each is computed
    once in a run. The full-size images stay beside it, since evaluation and the
    next scale need them: half the resolution takes a quarter more memory, 0.75
    takes 56 % more, and the full one nothing.
    """

    def __init__(self, images: ImageCache, count: int) -> None:
        self._images = images
        self._count = count
        self._scale = 1.0
        self._scaled = images

    def image(self, index: int, scale: float, device: torch.device | str) -> Tensor:
        """[3, h, w] float32, 0..1: the image at `scale`, on the pixel grid of `Camera.scaled(scale)`; a new tensor.

        Raises:
            UserError: there is no room for the images of this scale.
        """
        return self._at(scale).image(index, device)

    def alpha(self, index: int, scale: float, device: torch.device | str) -> Tensor | None:
        """[1, h, w] float32, 0..1, as `ImageCache.alpha`; errors as above."""
        return self._at(scale).alpha(index, device)

    def _at(self, scale: float) -> ImageCache:
        if scale != self._scale:
            del self._scaled  # the old one is freed before room for the new one is looked for
            self._scaled = self._images.at_scale(scale, self._count)
            self._scale = scale
        return self._scaled
