"""The animated PLY of brush_avatar, a web viewer of moving heads: a mesh in motion, and Gaussians in its triangles.

Its rig is that of `ops/rig.py`, so the motion loses nothing. The elements, little endian:

    faces                 index_0 index_1 index_2, uint
    base_vertex           x y z, float: the mesh at the first moment
    vertex                x y z f_dc_0..2 f_rest_0.. opacity scale_0..2 rot_0..3 binding, float: as in the avatar's own
                          PLY, in the frame of the triangle `binding`
    meta_delta_min_00000  x y z, float, one row
    meta_delta_max_00000  likewise
    delta_vertex_00000    x y z, ushort: a vertex is at base_vertex + min + q / 65535 (max - min)

the last three for every moment. The viewer looks from -z, y is down, and plays 24 moments a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from arguments import ExportOptions
from exporters.moment import Splats, splats
from scene import Avatar
from utils.errors import UserError
from utils.files import atomic_path
from utils.progress import progress_bar

Array = np.ndarray

UP, SCALE = "y-down", 1.0
FPS = 24.0
LARGEST = 65535
XYZ = ("x", "y", "z")


def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the PLY `path`, with the avatar's own motion or that of `--motion`.

    Yields:
        What it does not hold, and how large it is.

    Raises:
        UserError: a static scene, or it cannot be written.
    """
    if avatar.model.flame is None:
        raise UserError(f"{avatar.path} is not bound to a head mesh, and this format is a mesh that moves: take ply")
    written = splats(avatar, options, up=UP, scale=SCALE, moving=True, fps=FPS)
    yield from written.notes
    yield from written.follows()
    faces = avatar.model.flame.faces.cpu().numpy().astype("<u4")
    base = written.mesh(0)
    gaussians = _gaussians(written)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        progress_bar(len(written), "Writing", "moment", quiet=options.quiet) as bar,
    ):
        file.write(_header(len(faces), len(base), gaussians.shape, len(written)))
        for block in (faces, base.astype("<f4"), gaussians):
            file.write(block.tobytes())
        for index in range(len(written)):
            file.write(packed(written.mesh(index) - base.astype("<f4")))
            bar.update()
    yield (
        f"{path}: {len(gaussians):,} Gaussians, {len(written):,} moments ({len(written) / FPS:.1f} seconds), "
        f"{path.stat().st_size / 1e6:.1f} MB"
    )


def packed(delta: Array) -> bytes:
    """The three elements of a moment whose vertices have moved by `delta` [V, 3]."""
    low, high = delta.min(0).astype("<f4"), delta.max(0).astype("<f4")
    # Never an empty range: readers divide by it. None so small either that a viewer takes it for zero.
    high = np.maximum(high, low + np.float32(1e-6) * np.maximum(1, np.abs(low)))
    share = (delta - low) / (high.astype(np.float64) - low)
    return low.tobytes() + high.tobytes() + np.rint(LARGEST * share.clip(0, 1)).astype("<u2").tobytes()


def _gaussians(written: Splats) -> Array:
    """[M, P] the rows of the element `vertex`."""
    fields = written.avatar.model.fields()
    binding = written.avatar.model.binding
    assert binding is not None  # what has a mesh is bound to it
    rotation = torch.nn.functional.normalize(fields["rotation"], dim=1)
    local = [fields["xyz"], fields["opacity"], fields["scaling"], rotation, binding[:, None]]
    xyz, *others = local if written.kept is None else [column[written.kept] for column in local]
    sh = written.sh.detach()
    colors = [sh[:, 0], sh[:, 1:].transpose(1, 2).flatten(1)]  # channel by channel
    return np.concatenate(
        [column.cpu().numpy() for column in (xyz, *colors, *others)], 1, dtype="<f4", casting="unsafe"
    )


def _header(faces: int, vertices: int, gaussians: tuple[int, ...], moments: int) -> bytes:
    first = [*XYZ, *(f"f_dc_{i}" for i in range(3))]
    last = ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4)), "binding"]
    names = [*first, *(f"f_rest_{i}" for i in range(gaussians[1] - len(first) - len(last))), *last]
    lines = ["ply", "format binary_little_endian 1.0", "comment vertical axis: y"]

    def element(name: str, count: int, kind: str, properties: tuple[str, ...] | list[str]) -> None:
        lines.append(f"element {name} {count}")
        lines.extend(f"property {kind} {each}" for each in properties)

    element("faces", faces, "uint", ("index_0", "index_1", "index_2"))
    element("base_vertex", vertices, "float", XYZ)
    element("vertex", gaussians[0], "float", names)
    for index in range(moments):
        element(f"meta_delta_min_{index:05d}", 1, "float", XYZ)
        element(f"meta_delta_max_{index:05d}", 1, "float", XYZ)
        element(f"delta_vertex_{index:05d}", vertices, "ushort", XYZ)
    return "\n".join([*lines, "end_header", ""]).encode()
