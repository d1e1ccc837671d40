"""The views of a capture as training uses them: cameras on the device, decoded images, the scales of the moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from arguments import Options
from ops.types import Camera
from scene.dataset import Dataset
from scene.images.cache import ImageCache
from scene.images.scaled import ScaledImages

Images = Callable[[int], Tensor]  # index of a view in its split -> its ground truth [3, H, W] 0..1, a new tensor


class Views:
    """Cameras and images of the three splits.

    Attributes:
        background: [3] what the images are composited over.
        cameras: the views of each split, by its name; on the device.
        ground_truth: the images of each split, by its name.
        measured: the names of the splits that evaluations measure.
    """

    def __init__(self, dataset: Dataset, options: Options, device: torch.device, *, shared: bool = False) -> None:
        """Decodes all images, or takes over those of an earlier run.

        Args:
            shared: by several processes of this machine: one of them decodes, into a file that all map into memory.

        Raises:
            UserError: an image is missing or broken, or there is no room for them.
        """
        model, run = options.model, options.run
        splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
        self.background = torch.tensor(dataset.background, device=device)
        self.cameras = {name: [view.camera.to(device) for view in views] for name, views in splits.items()}
        cache = ImageCache(
            dataset.train + dataset.val + dataset.test,
            dataset.background,
            device=device if model.data_device == "auto" else model.data_device,
            ram_share=0.0 if shared else run.ram_share,
            folder=Path(model.model_path) / "cache",
            progress=not run.quiet,
            alpha=options.innovations.lambda_alpha > 0,
        )
        start = {"train": 0, "val": len(dataset.train), "test": len(dataset.train) + len(dataset.val)}
        self.ground_truth: dict[str, Images] = {
            name: partial(lambda first, index: cache.image(first + index, device), first)
            for name, first in start.items()
        }
        self.measured = [name for name in ("val", "test") if self.cameras[name]] or ["train"]
        self._timesteps = {name: [view.timestep_index for view in views] for name, views in splits.items()}
        self._rigged = dataset.flame is not None
        self._scaled = ScaledImages(cache, len(dataset.train))
        self._device, self._alpha = device, options.innovations.lambda_alpha > 0

    def label(self, split: str, index: int) -> str:
        """A name for a view: of a head by camera and timestep as in the capture, of a static scene by its image."""
        camera = self.cameras[split][index]
        if not self._rigged:
            return f"{index:05d}_{camera.name}"
        return f"camera_{camera.camera_id}_timestep_{self._timesteps[split][index]:05d}"

    def training(self, index: int, scale: float) -> tuple[Camera, Tensor, Tensor | None]:
        """A training view at `scale` times its resolution: the camera, the ground truth [3, h, w], and its alpha.

        The alpha [1, h, w] is None where the capture has none, or nobody wants it.
        """
        alpha = self._scaled.alpha(index, scale, self._device) if self._alpha else None
        return self.cameras["train"][index].scaled(scale), self._scaled.image(index, scale, self._device), alpha
