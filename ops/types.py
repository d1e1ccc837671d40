"""What passes between the rooms: cameras, Gaussians, pictures, and what is to be densified.

Conventions, once: quaternions wxyz; cameras OpenCV (x right, y down, z forward), world-to-camera; pixel centers at
+0.5; images [3, H, W] float 0..1; metres, radians, pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """One calibrated view at one moment.

    Axes are OpenCV's (x right, y down, z forward). A camera-space point
    (x, y, z) lands at the pixel (fx x/z + cx, fy y/z + cy); the center of the
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
        """[3] the optical center in world space, metres."""
        rotation = self.world_to_camera[:3, :3]
        return -rotation.T @ self.world_to_camera[:3, 3]

    def resized(self, width: int, height: int) -> Camera:
        """The same view on a grid of `width` x `height` pixels; intrinsics follow."""
        sx, sy = width / self.width, height / self.height
        return dataclasses.replace(
            self, width=width, height=height, fx=self.fx * sx, cx=self.cx * sx, fy=self.fy * sy, cy=self.cy * sy
        )

    def scaled(self, scale: float) -> Camera:
        """The same view at `scale` times the resolution (at least one pixel)."""
        if scale == 1.0:
            return self
        return self.resized(max(1, round(self.width * scale)), max(1, round(self.height * scale)))

    def to(self, device: torch.device | str) -> Camera:
        """The same camera with its matrix on `device`."""
        return dataclasses.replace(self, world_to_camera=self.world_to_camera.to(device))


class Gaussians(NamedTuple):
    """World-space Gaussians with their activations applied."""

    means: Tensor  # [N, 3]     metres
    quats: Tensor  # [N, 4]     wxyz, unit length
    scales: Tensor  # [N, 3]     metres, one standard deviation
    opacities: Tensor  # [N]        0..1
    sh: Tensor  # [N, K, 3]  K = (degree + 1)^2 coefficients per channel


class RenderOut(NamedTuple):
    """What every rasterizer backend returns."""

    image: Tensor  # [3, H, W]  linear blend over the background, not clamped
    alpha: Tensor  # [1, H, W]  1 - remaining transmittance
    radii: Tensor  # [N] int32  3-sigma screen radius in pixels, 0 = culled
    means2d: Tensor  # [N, 2]     a leaf whose .grad after backward is dL/d(2-D mean) in NDC units; rendered with
    #            `absolute`, the sum over the pixels of the absolute values of their shares in it


class Candidates(NamedTuple):
    """What is known of the N Gaussians since the last densification."""

    statistic: Tensor  # [N]       (absolute) gradient of the projected centre, NDC units, mean over views that saw it
    seen: Tensor  # [N] bool  some view saw it
    large: Tensor  # [N] bool  larger than --percent_dense of the scene extent
    radii: Tensor  # [N]       largest 3-sigma screen radius, pixels of the full image; 0 where never seen


class Selection(NamedTuple):
    """What is to be densified. A clone and a split each add one Gaussian."""

    clone: Tensor  # [N] bool
    split: Tensor  # [N] bool, disjoint from `clone`
    clone_threshold: float  # of the statistic, for the report
    split_threshold: float  # likewise
    name: str = ""  # of the policy, if it wants every densification told; "" = silent
