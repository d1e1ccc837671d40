"""glTF with KHR_gaussian_splatting (Khronos): the Gaussians as points, whose attributes are 32-bit floats.

Activated values: deviations in units, opacities 0..1, quaternions xyzw; the colors as coefficients of the spherical
harmonics. COLOR_0 is for programs without the extension, which show a cloud of points. Axes are those of glTF: y up,
the face to +z; one unit is a meter.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arguments import ExportOptions
from exporters.moment import splats, write_all
from ops import sh as harmonics
from ops.types import Gaussians
from scene import Avatar
from utils.errors import UserError
from utils.files import atomic_path

UP, SCALE = "y", 1.0
EXTENSION = "KHR_gaussian_splatting"
POINTS, FLOAT, BYTE, ARRAY_BUFFER = 0, 5126, 5121, 34962  # numbers of the specification
LARGEST = (1 << 32) - (1 << 20)  # bytes: its sizes have 32 bits


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
    arrays = {name: np.ascontiguousarray(column.numpy(), dtype="<f4") for name, column in columns.items()}
    arrays["COLOR_0"] = (255 * constant.clamp(0, 1)).round().byte().numpy()
    body = b"".join(array.tobytes() for array in arrays.values())  # every array is a multiple of four bytes
    content = container(_description(arrays), body)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def container(description: dict[str, Any], body: bytes) -> bytes:
    """A GLB of a glTF's JSON and its one buffer, whose length is a multiple of four.

    Raises:
        UserError: more than 4 GB.
    """
    text = json.dumps(description, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(body)
    if size > LARGEST:
        raise UserError(f"{size / 1e9:.1f} GB are more than a GLB holds: give --prune")
    head = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON") + text
    return b"".join([head, struct.pack("<I4s", len(body), b"BIN\0"), body])


def _orders(count: int) -> Iterator[tuple[int, int, int]]:
    """Number, degree and number within the degree of so many coefficients."""
    for k in range(count):
        degree = math.isqrt(k)
        yield k, degree, k - degree * degree


def _description(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The JSON of the file whose buffer holds the arrays one behind the other."""
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    place = 0
    for name, array in arrays.items():
        views.append({"buffer": 0, "byteOffset": place, "byteLength": array.nbytes, "target": ARRAY_BUFFER})
        kind = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[array.shape[1]]
        about: dict[str, Any] = {"bufferView": len(accessors), "count": len(array), "type": kind}
        about["componentType"] = FLOAT if array.dtype == np.float32 else BYTE
        if about["componentType"] == BYTE:
            about["normalized"] = True
        if name == "POSITION":
            about["min"], about["max"] = array.min(0).tolist(), array.max(0).tolist()
        accessors.append(about)
        place += array.nbytes
    points = {
        "mode": POINTS,
        "attributes": {name: index for index, name in enumerate(arrays)},
        "extensions": {
            EXTENSION: {
                "kernel": "ellipse",
                "colorSpace": "srgb_rec709_display",
                "projection": "perspective",
                "sortingMethod": "cameraDistance",
            }
        },
    }
    return {
        "asset": {"version": "2.0", "generator": "Efficient Gaussian Avatars"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "avatar"}],
        "meshes": [{"name": "avatar", "primitives": [points]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": place}],
    }
