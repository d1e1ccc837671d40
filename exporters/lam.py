"""The zip that the web renderer of LAM and OpenAvatarChat loads: a head that ARKit's blendshape weights move.

A folder of the zip's name, with an entry of its own, and in it

    skin.glb           a vertex per Gaussian, where that is at rest; a sparse morph target for each of ARKit's
                       blendshapes but tongueOut, by name; a skeleton of the bones `hip` and `head`, weights on `head`
    offset.ply         the Gaussians in the order of the vertices: x y z is what is added to the vertex, f_dc the color
                       0..1 itself; opacity, scale and rot as in every such PLY
    animation.glb      clips of that skeleton by number: 2 hello, 1 idle, 6 speak, 3 think; here it holds still
    vertex_order.json  the Gaussians from the back to the front

The renderer adds weight times morph to a center, and the shape and color of a Gaussian stay as they are. Its camera
stands at (0, 1.8, 1) and looks 10 degrees down, y is up: that is where the head is put. Layout and limits are those of
gaussian-splat-renderer-for-lam 0.0.8 (its `render.ts`, `SplatMesh.js`).
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from arguments import ExportOptions
from exporters import colors
from exporters.gltf import ARRAY_BUFFER, ELEMENTS, TRIANGLES, Parts
from exporters.moment import Place, place_of, posed_at
from exporters.view import first_view
from ops import sh as harmonics
from ops.kernels import CONSTANTS
from ops.types import Gaussians
from scene import Avatar
from scene.motion.blendshapes import find_mapping
from scene.ply import ply_parts, raw_fields
from utils.blendshapes import NAMES
from utils.errors import UserError
from utils.files import atomic_path
from utils.progress import progress_bar

Array = np.ndarray

SHAPES = tuple(name for name in NAMES if name != "tongueOut")
# Its texture has room for 4096 x 2048 places, of a rest and 51 blendshapes each.
MOST_GAUSSIANS = 160_000
STILL = 1e-5  # meters: who is moved by less is not moved
CENTER = (0.0, 1.8 - math.tan(math.radians(10)), 0.0)  # what its camera looks at, a meter away
CLIPS = {"hello": 2, "idle": 1, "speak": 6, "think": 3}
CLIP_SECONDS = 4.0
WHEN = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip knows: the same avatar gives the same bytes


@torch.no_grad()
def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the zip `path`.

    Yields:
        What it does not hold, and how large it is.

    Raises:
        UserError: a static scene, no mapping of blendshapes, more Gaussians than the renderer takes, or it cannot be
            written.
    """
    if avatar.head is None or avatar.head_file is None:
        raise UserError(f"{avatar.path} is not bound to a head mesh, and this format is a face that moves")
    if path.suffix.lower() != ".zip":
        raise UserError(f"{path}: the renderer takes files that end in .zip")
    mapping = find_mapping(options.mapping, avatar.head_file, avatar.head)
    rest = avatar.neutral().double().cpu().numpy()
    posed = posed_at(avatar, rest)[0]
    view = first_view(avatar, rest[None])
    changed = colors.prepare(avatar, [posed], view, prune=options.prune, degree=0)
    yield from changed.notes
    place = place_of(view, "y", 1.0)
    assert place is not None  # only the world's axes need none
    of_colors = torch.arange(len(posed.means), device=posed.means.device) if changed.kept is None else changed.kept
    seen = posed.opacities[of_colors] >= CONSTANTS["kMinAlpha"]  # too faint ones nobody draws
    kept, dc = of_colors[seen], changed.sh[seen, 0]
    if len(kept) > MOST_GAUSSIANS:
        raise UserError(
            f"{avatar.path} has {len(kept):,} Gaussians, the renderer takes {MOST_GAUSSIANS:,}: give --prune"
        )
    placed = place.of(colors.taken(posed, kept))
    placed = placed._replace(means=placed.means + placed.means.new_tensor(CENTER))
    moves = _moves(avatar, rest, mapping, posed, place, kept, quiet=options.quiet)
    yield "the face moves, but its Gaussians neither turn nor grow with it, and show one color from everywhere"
    if avatar.model.modes is not None:
        yield "the colors are those of the face at rest: they do not follow the expression"
    still = [name for name, move in zip(SHAPES, moves) if not len(move.who)]
    if still:
        more = f" and {len(still) - 3} more" if len(still) > 3 else ""
        yield f"the mapping moves nothing for {', '.join(still[:3])}{more}"
    _write(path, placed, harmonics.C0 * dc + 0.5, moves)
    yield f"{path}: {len(kept):,} Gaussians, {len(SHAPES)} blendshapes, {path.stat().st_size / 1e6:.1f} MB"


class Move(NamedTuple):
    """What a blendshape does at weight 1."""

    who: Array  # [n] the Gaussians that it moves
    by: Array  # [n, 3] meters, float32


def _moves(
    avatar: Avatar, rest: Array, mapping: Array, posed: Gaussians, place: Place, kept: torch.Tensor, *, quiet: bool
) -> list[Move]:
    """What each of `SHAPES` does to the kept Gaussians, in the axes of the file."""
    moves = []
    with progress_bar(len(SHAPES), "Posing", "blendshape", quiet=quiet) as bar:
        for name in SHAPES:
            means = posed_at(avatar, rest + mapping[NAMES.index(name)])[0].means
            by = ((means - posed.means)[kept].cpu().double() @ place.turn.T).numpy()
            index = np.flatnonzero(np.linalg.norm(by, axis=1) >= STILL)
            moves.append(Move(index, by[index].astype(np.float32)))
            bar.update()
    return moves


def _write(path: Path, placed: Gaussians, rgb: torch.Tensor, moves: list[Move]) -> None:
    fields = raw_fields(placed)
    fields["xyz"] = torch.zeros_like(placed.means)
    # The renderer cuts off what is behind the last of 8 bits: with half a step more, it rounds.
    fields["features_dc"] = (rgb.clamp(0, 1) + 0.5 / 255)[:, None]
    fields["features_rest"] = rgb.new_zeros(len(rgb), 0, 3)
    header, rows = ply_parts(fields)
    order = placed.means[:, 2].argsort(stable=True).tolist()
    content = {
        "": b"",  # the renderer finds the folder by its entry
        "skin.glb": skin_glb(placed.means.cpu().numpy(), moves),
        "offset.ply": header + rows.tobytes(),
        "animation.glb": animation_glb(),
        "vertex_order.json": json.dumps(order, separators=(",", ":")).encode(),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(f"{path.stem}/{name}", WHEN)
            entry.external_attr = (0o644 if name else 0o40755) << 16  # permissions, where somebody unpacks it
            entry.compress_type = zipfile.ZIP_DEFLATED if data else zipfile.ZIP_STORED
            archive.writestr(entry, data)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed.getbuffer())


def _bones() -> list[dict[str, Any]]:
    """The nodes of the skeleton; the head turns about what is in the middle of the picture."""
    return [{"name": "hip", "children": [1]}, {"name": "head", "translation": list(CENTER)}]


def skin_glb(vertices: Array, moves: list[Move]) -> bytes:
    """The mesh [N, 3] of the Gaussians, its morph targets and its skeleton."""
    parts, count = Parts(), len(vertices)
    weights = np.zeros((count, 4), "<f4")
    weights[:, 0] = 1
    joints = np.zeros((count, 4), np.uint8)
    joints[:, 0] = 1
    inverse = np.tile(np.eye(4, dtype="<f4"), (2, 1, 1))
    inverse[1, 3, :3] = np.negative(CENTER)  # columns one behind the other
    primitive = {
        "mode": TRIANGLES,
        "attributes": {
            "POSITION": parts.add(vertices.astype("<f4"), "VEC3", ARRAY_BUFFER, limits=True),
            "JOINTS_0": parts.add(joints, "VEC4", ARRAY_BUFFER),
            "WEIGHTS_0": parts.add(weights, "VEC4", ARRAY_BUFFER),
        },
        # Nobody sees the mesh, but only of triangles there is a skin.
        "indices": parts.add(np.minimum(np.arange(3), count - 1).astype("<u4"), "SCALAR", ELEMENTS),
        "targets": [{"POSITION": parts.add_sparse(*move, count)} for move in moves],
    }
    skin = {"joints": [0, 1], "skeleton": 0, "inverseBindMatrices": parts.add(inverse.reshape(2, 16), "MAT4")}
    mesh = {"name": "avatar", "primitives": [primitive], "weights": [0.0] * len(moves)}
    return parts.file(
        {
            "scenes": [{"nodes": [0, 2]}],
            "nodes": [*_bones(), {"name": "avatar", "mesh": 0, "skin": 0}],
            "meshes": [{**mesh, "extras": {"targetNames": list(SHAPES)}}],
            "skins": [skin],
        }
    )


def animation_glb() -> bytes:
    """As many clips as the renderer counts on, in all of which the head holds still."""
    parts = Parts()
    times = parts.add(np.array([0, CLIP_SECONDS], "<f4"), "SCALAR", limits=True)
    turns = parts.add(np.tile(np.array([0, 0, 0, 1], "<f4"), (2, 1)), "VEC4")
    clip = {
        "samplers": [{"input": times, "output": turns, "interpolation": "LINEAR"}],
        "channels": [{"sampler": 0, "target": {"node": 1, "path": "rotation"}}],
    }
    names = [f"{name}{number}" for name, count in CLIPS.items() for number in range(count)]
    return parts.file(
        {"scenes": [{"nodes": [0]}], "nodes": _bones(), "animations": [{"name": name, **clip} for name in names]}
    )
