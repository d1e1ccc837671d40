"""glTF with KHR_gaussian_splatting (Khronos): the Gaussians as points, whose attributes are 32-bit floats.

Activated values: deviations in units, opacities 0..1, quaternions xyzw; the colors as coefficients of the spherical
harmonics. COLOR_0 is for programs without the extension, which show a cloud of points. Axes are those of glTF: y up,
the face to +z; one unit is a meter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arguments import ExportOptions
from exporters.gltf import ARRAY_BUFFER, POINTS, Parts
from exporters.moment import splats, write_all
from ops import sh as harmonics
from ops.types import Gaussians
from scene import Avatar
from utils.files import atomic_path

UP, SCALE = "y", 1.0
EXTENSION = "KHR_gaussian_splatting"
RULES = {
    "kernel": "ellipse",
    "colorSpace": "srgb_rec709_display",
    "projection": "perspective",
    "sortingMethod": "cameraDistance",
}


def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the GLB `path`, or of a motion the folder `path`; see `write_all`."""
    return write_all(splats(avatar, options, up=UP, scale=SCALE), path, options, write)


def write(path: Path, gaussians: Gaussians) -> None:
    """Writes activated Gaussians.

    Raises:
        UserError: more than 4 GB, or it cannot be written.
    """
    means, quats, scales, opacities, sh = (value.detach().cpu() for value in gaussians)
    constant = torch.cat([harmonics.C0 * sh[:, 0] + 0.5, opacities[:, None]], dim=1)
    columns = {
        "POSITION": means,
        f"{EXTENSION}:ROTATION": quats.roll(-1, 1),
        f"{EXTENSION}:SCALE": scales,
        f"{EXTENSION}:OPACITY": opacities[:, None],
        **{f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{order}": sh[:, k] for k, degree, order in _orders(sh.shape[1])},
    }
    parts = Parts()
    attributes = {
        name: parts.add(
            np.ascontiguousarray(column.numpy(), dtype="<f4"), _kind(column), ARRAY_BUFFER, limits=name == "POSITION"
        )
        for name, column in columns.items()
    }
    rgba = (255 * constant.clamp(0, 1)).round().byte()
    attributes["COLOR_0"] = parts.add(rgba.numpy(), _kind(rgba), ARRAY_BUFFER, normalized=True)
    points = {"mode": POINTS, "attributes": attributes, "extensions": {EXTENSION: RULES}}
    content = parts.file(
        {
            "extensionsUsed": [EXTENSION],
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": "avatar"}],
            "meshes": [{"name": "avatar", "primitives": [points]}],
        }
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _orders(count: int) -> Iterator[tuple[int, int, int]]:
    """Number, degree and number within the degree of so many coefficients."""
    for k in range(count):
        degree = math.isqrt(k)
        yield k, degree, k - degree * degree


def _kind(column: Tensor) -> str:
    return {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[column.shape[1]]
