"""`.npz` files: read from strangers, without pickle and allocation beyond what the file holds; written atomically."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, one_line
from utils.files import atomic_path
from utils.memory import available_memory
from utils.untrusted import open_archive, read_entry

# A FLAME file holds about 70 KB, its largest relatives a few MB.
MAX_FILE_BYTES = 64 << 20


def read_npz(path: Path, names: tuple[str, ...], limit: int = MAX_FILE_BYTES) -> dict[str, np.ndarray]:
    """Those arrays of `names` that the file has, as stored.

    `np.load` allocates what an array's header announces before it looks for the
    data, so a file of a few bytes could ask for terabytes; and a compressed entry
    unpacks to a thousand times its size. Here the wanted arrays together are
    limited to `limit` bytes, and each header must agree with its data.

    Raises:
        UserError: missing, not an .npz file, too large, or an array that is no plain numbers.
    """
    try:
        with open_archive(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            wanted = {name: entries[f"{name}.npy"] for name in names if f"{name}.npy" in entries}
            total = 0
            for name, entry in wanted.items():
                total += entry.file_size
                if total > limit:
                    raise UserError(
                        f"{path}: with '{name}' its arrays are larger than {limit >> 20} MiB: "
                        "no file of FLAME parameters or of an avatar's colors is"
                    )
            if total > 8 << 20 and 2 * total > available_memory():  # as bytes, and as numbers
                raise UserError(f"{path}: its arrays take {total >> 20} MiB, for which there is too little memory")
            return {name: _parse(read_entry(archive, entry)) for name, entry in wanted.items()}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive or header can fail in any way
        reason = one_line(error)[:200] or type(error).__name__
        raise UserError(f"{path} is not a readable .npz file: {reason}") from error


def _parse(data: bytearray) -> np.ndarray:
    """The array of one .npy file; any exception for anything but plain numbers."""
    stream = io.BytesIO(memoryview(data)[: 1 << 16])  # headers have some 100 bytes
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"unknown .npy version {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on headers in the style of Python 2
        shape, fortran, dtype = header(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"an array of {dtype} instead of numbers")
    body = memoryview(data)[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"an array announced as {shape} {dtype} holds {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def write_npz(path: str | Path, arrays: dict[str, Any]) -> None:
    """Writes `arrays` by name, uncompressed.

    Raises:
        UserError: the file cannot be written.
    """
    content = io.BytesIO()  # NumPy's writer, stopped by a full disk, would raise whatever its clean-up meets
    np.savez(content, **arrays)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
