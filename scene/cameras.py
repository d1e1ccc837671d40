"""The camera: OpenCV axes, world-to-camera, intrinsics in pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.files import write_json


@dataclass(frozen=True)
class Camera:
    """One calibrated view at one moment.

    Axes are OpenCV's (x right, y down, z forward). A camera-space point
    (x, y, z) lands at the pixel (fx x/z + cx, fy y/z + cy); the centre of the
    first pixel is (0.5, 0.5).
    """

    world_to_camera: Tensor  # [4, 4] float32, metres
    fx: float  # pixels
    fy: float  # pixels
    cx: float  # pixels
    cy: float  # pixels
    width: int  # pixels
    height: int  # pixels
    timestep: int = 0  # row of the FLAME parameters (not the id in the files); 0 for a static scene
    camera_id: str = ""  # as the capture names it
    name: str = ""  # of the image, for messages and output files

    @property
    def center(self) -> Tensor:
        """[3] the optical centre in world space, metres."""
        rotation = self.world_to_camera[:3, :3]
        return -rotation.T @ self.world_to_camera[:3, 3]

    def resized(self, width: int, height: int) -> "Camera":
        """The same view on a grid of `width` x `height` pixels; intrinsics follow."""
        sx, sy = width / self.width, height / self.height
        return dataclasses.replace(
            self, width=width, height=height, fx=self.fx * sx, cx=self.cx * sx, fy=self.fy * sy, cy=self.cy * sy
        )

    def scaled(self, scale: float) -> "Camera":
        """The same view at `scale` times the resolution (at least one pixel)."""
        if scale == 1.0:
            return self
        return self.resized(max(1, round(self.width * scale)), max(1, round(self.height * scale)))

    def to(self, device: torch.device | str) -> "Camera":
        """The same camera with its matrix on `device`."""
        return dataclasses.replace(self, world_to_camera=self.world_to_camera.to(device))


def write_cameras_json(path: Path, cameras: Sequence[Camera]) -> None:
    """Writes the list of views in the layout that 3DGS viewers read.

    Each entry: `id`, `img_name`, `width`, `height`, `position` [3] (the optical
    centre), `rotation` [3][3] (camera-to-world, OpenCV axes), `fy`, `fx`.
    """
    entries = []
    for index, camera in enumerate(cameras):
        rotation = camera.world_to_camera[:3, :3].T
        entries.append(
            {
                "id": index,
                "img_name": camera.name,
                "width": camera.width,
                "height": camera.height,
                "position": camera.center.tolist(),
                "rotation": rotation.tolist(),
                "fy": camera.fy,
                "fx": camera.fx,
            }
        )
    write_json(path, entries)
