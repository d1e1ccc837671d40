"""SPZ, a sixth of the PLY: version 3 of Niantic's format, whose readers of version 4 read it too.

A gzip stream of a header of 16 bytes and, one behind the other, the arrays of

    positions   24 bits, a fixed point number with as many fractional bits as the largest leaves
    opacities   8 bits of 0..1
    colors      8 bits; constant coefficients within +-3.33 (0.0074 in the color)
    deviations  8 bits; their logarithms in steps of 1/16, from -10 to 5.9
    rotations   2 bits for the largest component of the quaternion, 10 bits for each of the others (0.0014)
    harmonics   8 bits; the other coefficients in steps of 1/128, within +-1

A value is off by at most half of such a step. The axes are x right, y up, z to the viewer.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from arguments import ExportOptions
from exporters.moment import splats, write_all
from ops.sh import degree_of
from ops.types import Gaussians
from scene import Avatar
from utils.errors import UserError
from utils.files import atomic_path

UP, SCALE = "y", 10.0
MAGIC, VERSION = 0x5053474E, 3
COLOR = 0.15 * 255  # steps for a unit of the constant coefficient
MOST_FRACTIONAL = 22  # bits
LEVEL = 6  # of gzip


def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the SPZ `path`, or of a motion the folder `path`; see `write_all`."""
    written = splats(avatar, options, up=UP, scale=SCALE)
    written.notes.append("its numbers are rounded to 8 to 24 bits; what is said of its pictures was measured before")
    beyond = int((written.sh[:, 1:].abs() > 1).sum())
    if beyond:
        written.notes.append(
            f"{beyond:,} of {written.sh[:, 1:].numel():,} coefficients of the view-dependent color are cut to +-1, the "
            "largest that SPZ holds"
        )
    return write_all(written, path, options, write)


def write(path: Path, gaussians: Gaussians) -> None:
    """Writes activated Gaussians.

    Raises:
        UserError: positions too far away for 24 bits, or it cannot be written.
    """
    means, quats, scales, opacities, sh = (_array(value) for value in gaussians)
    reach = float(np.abs(means).max())
    if not reach < (1 << 23) - 1:
        raise UserError(f"cannot write {path}: a Gaussian is {reach:g} units away: give a smaller --scale")
    fractional = min(MOST_FRACTIONAL, math.floor(math.log2(((1 << 23) - 1) / max(reach, 1e-9))))
    positions = np.rint(means * (1 << fractional)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
    parts = [
        positions,
        _byte(255 * opacities),
        _byte(COLOR * sh[:, 0] + 127.5),
        _byte(16 * (np.log(np.maximum(scales, 1e-12)) + 10)),
        _rotations(quats),
        _byte(128 * sh[:, 1:] + 128),
    ]
    degree = degree_of(sh.shape[1])
    header = struct.pack("<IIIBBBB", MAGIC, VERSION, len(means), degree, fractional, 0, 0)
    content = gzip.compress(b"".join([header, *(part.tobytes() for part in parts)]), LEVEL, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()


def _byte(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _rotations(quats: np.ndarray) -> np.ndarray:
    """[N] uint32: two bits say which component is the largest; of the others a sign and nine bits of size each."""
    xyzw = np.roll(quats, -1, axis=1)
    xyzw /= np.maximum(np.linalg.norm(xyzw, axis=1, keepdims=True), 1e-12)
    largest = np.abs(xyzw).argmax(axis=1)
    # q and -q are one rotation; the sign of the largest is not stored.
    xyzw *= np.where(np.take_along_axis(xyzw, largest[:, None], 1) < 0, -1, 1)
    others = xyzw[np.arange(4) != largest[:, None]].reshape(-1, 3)
    size = np.rint(511 * math.sqrt(2) * np.abs(others)).clip(0, 511).astype(np.uint32)
    coded = size | (others < 0).astype(np.uint32) << 9
    first, second, third = coded.T
    return (largest.astype(np.uint32) << 30 | first << 20 | second << 10 | third).astype("<u4")
