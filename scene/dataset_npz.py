"""Reading `.npz` files from strangers: no pickle, no allocation beyond what the file holds."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from utils.errors import UserError

# A FLAME file holds about 70 KB, its largest relatives a few MB.
MAX_ARRAY_BYTES = 64 << 20


def read_npz(path: Path, names: tuple[str, ...], limit: int = MAX_ARRAY_BYTES) -> dict[str, np.ndarray]:
    """Those arrays of `names` that the file has, as stored.

    `np.load` allocates what an array's header announces before it looks for the
    data, so a file of a few bytes could ask for terabytes. Here the size of the
    zip entry is limited to `limit` bytes first, and the header must agree with it.

    Raises:
        UserError: missing, not an .npz file, or an array that is no plain numbers.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            for name in names:
                info = entries.get(f"{name}.npy")
                if info is None:
                    continue
                if info.file_size > limit:
                    raise UserError(f"{path}: '{name}' is larger than {limit >> 20} MiB: "
                                    "not a file of FLAME parameters")
                arrays[name] = _parse(archive.read(info))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable .npz file: {error}") from error
    return arrays


def _parse(data: bytes) -> np.ndarray:
    """The array of one .npy file; `ValueError` for anything but plain numbers."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"unknown .npy version {version}")
    shape, fortran, dtype = header(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"an array of {dtype} instead of numbers")
    body = memoryview(data)[stream.tell():]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"an array announced as {shape} {dtype} holds {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
