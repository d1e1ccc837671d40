"""The rig in plain arrays, for programs of one's own; doc/export.md says what they are, and how to pose it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from arguments import ExportOptions
from exporters import colors
from exporters.moment import Splats, splats
from ops.types import Gaussians
from scene import Avatar
from scene.motion.blendshapes import known_mapping, mode_names
from utils.blendshapes import NAMES
from utils.npz import write_npz

Array = np.ndarray


@torch.no_grad()
def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the .npz `path`: Gaussians, and of a head the mesh, what moves it, and a motion.

    Yields:
        What it does not hold, and how large it is.

    Raises:
        UserError: it cannot be written.
    """
    written = splats(avatar, options, up="world", scale=1.0, moving=avatar.head is not None)
    yield from written.notes
    arrays = _gaussians(written)
    if avatar.head is not None and avatar.head_file is not None:
        arrays |= _head(avatar) | _motion(written)
        mapping = known_mapping(options.mapping, avatar.head_file, avatar.head)
        if mapping is not None:
            arrays |= {"blendshapes": mapping.astype(np.float32), "blendshape_names": np.array(NAMES)}
        names = mode_names(avatar.head_file, avatar.head.n_expr)
        if names:
            arrays["expression_names"] = np.array(names)
        yield "the head model's part of this person is in it: its license says to whom it may be given"
    write_npz(path, arrays)
    yield f"{path}: {len(written.sh):,} Gaussians, {len(arrays)} arrays, {path.stat().st_size / 1e6:.1f} MB"


def _gaussians(written: Splats) -> dict[str, Array]:
    """Activated, in the frames of their triangles; of a static scene in the world."""
    model = written.avatar.model
    fields, kept = model.fields(), slice(None) if written.kept is None else written.kept
    values = Gaussians(
        means=fields["xyz"][kept],
        quats=torch.nn.functional.normalize(fields["rotation"][kept], dim=1),
        scales=fields["scaling"][kept].exp(),
        opacities=fields["opacity"][kept, 0].sigmoid(),
        sh=colors.at_moment(written.sh, written.first, model.features.detach(), written.kept),
    )
    arrays = {f"gaussian_{name}": value.cpu().numpy() for name, value in values._asdict().items()}
    if model.binding is not None:
        arrays["gaussian_triangles"] = model.binding[kept].cpu().numpy().astype(np.int32)
    if model.modes is not None and model.expression is not None:
        arrays["gaussian_modes"] = model.modes[kept].cpu().numpy()
        arrays |= {f"code_{name}": value.float().cpu().numpy() for name, value in model.expression._asdict().items()}
    return arrays


def _head(avatar: Avatar) -> dict[str, Array]:
    """The mesh of this person at rest, and what moves it."""
    head, motion = avatar.head, avatar.motion()
    assert head is not None
    at_rest = head.v_template + head.shapedirs @ motion.shape.cpu() + motion.static_offset.cpu()
    regressor = head.joint_regressor.double()
    arrays = {
        "vertices": at_rest,
        "triangles": head.faces.int(),
        "expressions": head.exprdirs,
        "correctives": head.posedirs,
        "joints": (regressor @ at_rest.double()).float(),
        "joint_expressions": torch.einsum("jv,vce->jce", regressor, head.exprdirs.double()).float(),
        "weights": head.weights,
        "parents": torch.tensor(head.parents, dtype=torch.int32),
    }
    return {name: value.contiguous().numpy() for name, value in arrays.items()}


def _motion(written: Splats) -> dict[str, Array]:
    """The poses, a row each, by the names of the parameters."""
    motion = written.avatar.motion()
    rows = motion.values.cpu().numpy() if isinstance(written.poses, range) else written.poses
    arrays = {f"motion_{name}": rows[:, part].astype(np.float32) for name, part in motion.columns.items()}
    if isinstance(written.poses, range):
        arrays["motion_timesteps"] = np.asarray(motion.timesteps, dtype=np.int64)
        if motion.dynamic_offset is not None:
            arrays["motion_offsets"] = motion.dynamic_offset.cpu().numpy()
    if written.fps:
        arrays["motion_fps"] = np.array(written.fps, dtype=np.float32)
    return arrays
