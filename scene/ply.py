"""Point clouds of Gaussians as PLY, in the layout of the Gaussian-splatting ecosystem.

Binary little endian, one element `vertex`, every property float32, in the order

    x y z nx ny nz  f_dc_0..2  f_rest_0..  opacity  scale_0..2  rot_0..3  [binding_0]

with raw values (before the activations), triangle-local when `binding_0` is
there. `f_rest` is channel-major: all red coefficients, then green, then blue.
This is the only place that knows these names; everywhere else the tensors of
`Gaussians` or of the avatar are used.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import plyfile
import torch
from torch import Tensor

from ops.types import Gaussians
from utils.errors import UserError, one_line
from utils.files import atomic_path
from utils.untrusted import open_regular

# A header has a line of about 20 bytes per property; ours have 63 properties.
_LONGEST_HEADER = 1 << 16  # bytes
_MOST_ELEMENTS = 50_000_000  # a dozen GB of Gaussians
_MOST_LISTS = 5_000_000
# Triangle numbers are stored as float32, which counts exactly up to here.
_LARGEST_EXACT = 2**24
_SIZES = {
    name: size
    for size, names in (
        (1, "char uchar int8 uint8"),
        (2, "short ushort int16 uint16"),
        (4, "int uint int32 uint32 float float32"),
        (8, "double float64"),
    )
    for name in names.split()
}


def _names(rest: int, bound: bool) -> list[str]:
    """The properties in file order; `rest` counts the f_rest columns."""
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split() + [f"f_rest_{i}" for i in range(rest)]
    return names + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split() + ["binding_0"] * bound


def write_ply(path: str | Path, fields: Mapping[str, Tensor | None]) -> None:
    """Writes raw Gaussian parameters, atomically.

    Args:
        path: the file; its folder is made when missing.
        fields: as of `ply_parts`.

    Raises:
        UserError: the file cannot be written.
    """
    header, rows = ply_parts(fields)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(header)
        stream.write(rows.data)


def ply_parts(fields: Mapping[str, Tensor | None]) -> tuple[bytes, np.ndarray]:
    """The header of a PLY, and the rows [N, P] that follow it.

    Args:
        fields: xyz [N, 3], features_dc [N, 1, 3], features_rest [N, K-1, 3],
            opacity [N, 1], scaling [N, 3], rotation [N, 4] (wxyz), on any device,
            and binding [N] (triangle of each, integers) or None.

    Raises:
        UserError: more triangles than the format can number.
    """
    tensors = {name: tensor for name, tensor in fields.items() if tensor is not None}
    count = len(tensors["xyz"])
    binding = tensors.get("binding")
    rest = tensors["features_rest"]
    if binding is not None and count and int(binding.max()) >= _LARGEST_EXACT:
        raise UserError(f"triangle numbers of {_LARGEST_EXACT} and more do not fit a PLY of Gaussians")

    def columns(tensor: Tensor) -> np.ndarray:
        return tensor.detach().cpu().reshape(count, -1).numpy()

    blocks = [
        columns(tensors["xyz"]),
        np.zeros((count, 3)),  # normals: unused, but part of the layout
        columns(tensors["features_dc"]),
        columns(rest.transpose(1, 2)),  # [N, K-1, 3] -> channel-major
        columns(tensors["opacity"]),
        columns(tensors["scaling"]),
        columns(tensors["rotation"]),
    ]
    if binding is not None:
        blocks.append(columns(binding))
    names = _names(3 * rest.shape[1], binding is not None)
    # Every column has the same type, so the records are the rows of one matrix.
    rows = np.concatenate(blocks, axis=1, dtype="<f4", casting="unsafe")
    assert rows.shape == (count, len(names)), f"{rows.shape} values for {len(names)} properties"
    header = "".join(
        [
            "ply\nformat binary_little_endian 1.0\n",
            f"element vertex {count}\n",
            *(f"property float {name}\n" for name in names),
            "end_header\n",
        ]
    )
    return header.encode("ascii"), rows


def export_world(path: str | Path, gaussians: Gaussians) -> None:
    """Writes activated world-space Gaussians as an ordinary 3DGS file that any splat viewer opens.

    The colour coefficients are copied: in this method the view direction is
    always a world direction, so they do not turn with the triangle.

    Raises:
        UserError: the file cannot be written.
    """
    write_ply(path, raw_fields(gaussians))


def raw_fields(gaussians: Gaussians) -> dict[str, Tensor | None]:
    """The fields of activated Gaussians."""
    # An opacity of exactly 0 or 1, or a scale of 0, has no finite raw value.
    opacity = gaussians.opacities.detach().double().clamp(1e-6, 1 - 1e-6)
    return {
        "xyz": gaussians.means,
        "features_dc": gaussians.sh[:, :1],
        "features_rest": gaussians.sh[:, 1:],
        "opacity": torch.logit(opacity)[:, None],
        "scaling": gaussians.scales.detach().clamp_min(1e-12).log(),
        "rotation": gaussians.quats,
        "binding": None,
    }


def read_ply(path: str | Path) -> dict[str, Tensor | None]:
    """Reads raw Gaussian parameters, whoever wrote them.

    Accepted beyond our own layout: any order and number type of the properties,
    extra ones, ASCII and big endian, no normals, no `binding_0` (an unbound
    scene), any degree of the view-dependent colour.

    Returns:
        The fields of `write_ply`, float32 on the CPU; binding is int64 or None.

    Raises:
        UserError: unreadable, truncated or malformed file, a missing property, a value that is not finite.
    """
    path = Path(path)
    vertices = read_vertices(path)
    names = vertices.dtype.names or ()
    if not len(vertices):
        raise UserError(f"{path} holds no Gaussians")

    def column(name: str) -> np.ndarray:
        if name not in names:
            raise UserError(f"{path} has no property {name}, so it is not a Gaussian point cloud")
        if vertices.dtype[name].hasobject:
            raise UserError(f"{path}: property {name} must be a number, not a list")
        with np.errstate(over="ignore"):
            values = vertices[name].astype(np.float32)
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            raise UserError(f"{path}: property {name} of vertex {broken[0]} is not a finite number")
        return values

    def block(*wanted: str) -> Tensor:
        return torch.from_numpy(np.stack([column(name) for name in wanted], axis=1))

    rest = sum(re.fullmatch(r"f_rest_[0-9]+", name) is not None for name in names)
    coefficients = rest // 3 + 1
    if rest % 3 or math.isqrt(coefficients) ** 2 != coefficients:
        raise UserError(f"{path} has {rest} f_rest properties; degrees 0 to 3 have 0, 9, 24 and 45")
    features_rest = (
        block(*(f"f_rest_{i}" for i in range(rest))).reshape(-1, 3, coefficients - 1)
        if rest
        else torch.zeros(len(vertices), 3, 0)
    )
    return {
        "xyz": block("x", "y", "z"),
        "features_dc": block("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        "features_rest": features_rest.transpose(1, 2).contiguous(),
        "opacity": block("opacity"),
        "scaling": block("scale_0", "scale_1", "scale_2"),
        "rotation": block("rot_0", "rot_1", "rot_2", "rot_3"),
        "binding": _binding(path, column("binding_0")) if "binding_0" in names else None,
    }


def is_bound(path: Path) -> bool:
    """Whether the Gaussians of a PLY ride on the triangles of a head mesh; only its header is read.

    Raises:
        UserError: as `read_ply`, as far as the header tells.
    """
    element = ""
    with _opened(path) as stream:
        for line in _check_header(path, stream):
            if line[:1] == ["element"]:
                element = line[1]
            elif line[:1] == ["property"] and line[-1] == "binding_0" and element == "vertex":
                return True
    return False


def _binding(path: Path, values: np.ndarray) -> Tensor:
    """Checked triangle numbers [N] int64; whether the head has so many triangles is the caller's to know."""
    wrong = np.flatnonzero((values < 0) | (values >= _LARGEST_EXACT) | (values != np.floor(values)))
    if len(wrong):
        raise UserError(
            f"{path}: property binding_0 of vertex {wrong[0]} is {values[wrong[0]]:g}, "
            "which is not the number of a triangle"
        )
    return torch.from_numpy(values.astype(np.int64))


def read_vertices(path: Path) -> np.ndarray:
    """The structured array [N] of the element `vertex`, read by plyfile.

    Raises:
        UserError: unreadable or malformed file, or one that announces more than it holds.
    """
    with _opened(path) as stream:
        _check_header(path, stream)
        with np.errstate(over="ignore"), warnings.catch_warnings():  # too large for float32: reported later
            warnings.simplefilter("ignore")  # NumPy's, about empty lists
            data = plyfile.PlyData.read(stream)
    if "vertex" not in data:
        raise UserError(f"{path} has no element vertex, so it is not a point cloud")
    return data["vertex"].data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open; whatever goes wrong while it is read becomes a UserError."""
    try:
        with open_regular(path) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except Exception as error:  # a malformed file can fail in any way in plyfile
        reason = one_line(error)[:200] or type(error).__name__
        raise UserError(f"{path} is not a readable PLY file: {reason}") from error


def _check_header(path: Path, stream: BinaryIO) -> list[list[str]]:
    """Refuses a file too short for what its header announces, before anything of that size is allocated.

    Leaves `stream` at its beginning; returns the words of each line of the header.
    """
    start = stream.read(_LONGEST_HEADER)
    stream.seek(0)
    ending = re.match(rb"ply(\r\n|\r|\n)", start)
    newline = ending[1] if ending else b""
    end = start.find(newline + b"end_header" + newline) if ending else -1
    if end < 0:
        raise UserError(f"{path} is not a PLY file: it does not begin with a PLY header")
    body = end + len(b"end_header") + 2 * len(newline)
    lines = start[:end].split(newline)
    # Line breaks of another kind inside of a line: plyfile and we could see different headers.
    if any(re.search(rb"[\x00-\x08\x0a-\x1f]", line) for line in lines):
        raise UserError(f"{path} is not a PLY file: its header holds control characters")
    words = [line.decode("ascii", errors="replace").split() for line in lines]
    ascii_format = ["format", "ascii", "1.0"] in words
    # The least number of bytes that the elements can take: in ASCII a digit and
    # a separator per value, for a list its length alone.
    needed, largest, count, properties = 0, 0, 0, 0
    for line in [*words, ["element", "", "0"]]:
        if line[:1] == ["element"] and len(line) == 3:
            if count and not properties:
                raise UserError(f"{path} announces {count} elements without properties")
            count, properties = int(line[2]), 0
            largest = max(largest, count)
            if count < 0:
                raise UserError(f"{path} announces {count} elements")
        elif line[:1] == ["property"] and len(line) >= 3:
            kind = line[2] if line[1] == "list" else line[1]
            # Every list becomes an object of a hundred bytes, even an empty one.
            if line[1] == "list" and count > _MOST_LISTS:
                raise UserError(f"{path} announces {count} lists; up to {_MOST_LISTS:,} are read")
            properties += 1
            needed += count * (2 if ascii_format else _SIZES.get(kind, 1))
    available = os.fstat(stream.fileno()).st_size - body
    # The last separator of an ASCII file may be missing.
    if needed > available + ascii_format:
        raise UserError(f"{path} is cut short: its header announces at least {needed} bytes, {available} follow it")
    if largest > _MOST_ELEMENTS:
        raise UserError(f"{path} announces {largest} elements; up to {_MOST_ELEMENTS:,} are read")
    return words
