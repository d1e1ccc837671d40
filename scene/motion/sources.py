"""Where motions come from: FLAME files of other captures and avatars, blendshape weights, key frames, and nothing."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arguments import ExportOptions, RenderOptions, ViewOptions
from scene.avatar import Avatar
from scene.dataset.bad_frames import BadFrames
from scene.dataset.rigged import MAX_COEFFICIENTS, read_motion
from scene.flame import FlameParameters, HeadModel
from scene.flame.parameters import MOTION
from scene.motion.blendshapes import find_mapping, from_weights
from scene.motion.key_frames import KeyFrames
from scene.motion.rows import FPS, Motion, Still
from utils.errors import UserError
from utils.npz import read_npz

Array = np.ndarray

NEUTRAL, SWEEP = "neutral", "sweep"
SWEPT_EXPRESSIONS = 10
LARGEST = 1e4
# An expression is swept until the vertex that it moves most has moved so far, but no further than so many units: the
# modes of FLAME are standard deviations, those of other heads whole actions.
SWEPT_DISTANCE, SWEPT_UNITS = 0.010, 2.0  # metres, coefficients
# label, parameter, axis, there and back again: radians
SWEPT_JOINTS = (
    ("jaw open", "jaw_pose", (0,), 0.35, 0.0),
    ("jaw sideways", "jaw_pose", (1,), 0.10, -0.10),
    ("neck turn", "neck_pose", (1,), 0.45, -0.45),
    ("neck nod", "neck_pose", (0,), 0.25, -0.25),
    ("neck tilt", "neck_pose", (2,), 0.25, -0.25),
    ("eyes sideways", "eyes_pose", (1, 4), 0.40, -0.40),
    ("eyes up, down", "eyes_pose", (0, 3), -0.25, 0.25),
)


def load_motion(source: str, avatar: Avatar, *, fps: float | None = None, mapping: str | None = None) -> Motion:
    """The motion that `source` names, as rows of the avatar's FLAME parameters.

    It is checked against what no face does, which no camera could be placed before.

    Args:
        source: `neutral`; `sweep`; a folder of FLAME files, one per timestep, or of a capture that has one; an .npz
            with a row per timestep; a .csv of blendshape weights; a .json of key frames.
        fps: rows a second of what is made here; None: as the file of key frames says, else 25.
        mapping: the .npz that says what blendshape weights do, see `find_mapping`.

    Raises:
        UserError: a static scene, no such motion, or a broken file.
    """
    motion = _read_motion(source, avatar, fps, mapping)
    if np.abs(motion.rows).max() > LARGEST:
        raise UserError(f"{source} holds values beyond {LARGEST:g}, as no radians, metres and coefficients are")
    return motion


def chosen_motion(
    options: RenderOptions | ViewOptions | ExportOptions, avatar: Avatar, source: str, *, fps: float | None = None
) -> Motion:
    """The motion that `source` names, changed as a command line says; `fps` as in `load_motion`."""
    return adapted(
        load_motion(source, avatar, fps=fps, mapping=options.mapping),
        avatar,
        smooth=options.smooth,
        relative=options.relative,
        rest_frames=options.rest_frames,
        scale=options.motion_scale,
        fps=fps,
    )


def _read_motion(source: str, avatar: Avatar, fps: float | None, mapping: str | None) -> Motion:
    motion = avatar.motion()
    assert avatar.head is not None and avatar.head_file is not None  # what has a motion has a head
    rest = avatar.neutral().double().cpu().numpy()
    if source == NEUTRAL:
        return Motion(NEUTRAL, rest[None])
    if source == SWEEP:
        return sweep(avatar.head, rest, motion.columns, fps or FPS)
    path = Path(source)
    if path.is_dir():
        return from_arrays(path.name, *_read_folder(path, avatar.head), avatar)
    if path.suffix.lower() == ".npz":
        # Its offsets tell whether it is of the same head; they are the other person's, and not used.
        arrays = read_npz(path, ("expr", *MOTION, "static_offset"))
        name = path.stem if path.stem != "flame_param" else path.absolute().parent.name
        return from_arrays(name, arrays, path, avatar)
    if path.suffix.lower() == ".csv":
        return from_weights(path, find_mapping(mapping, avatar.head_file, avatar.head), rest)
    if path.suffix.lower() == ".json":
        keys = KeyFrames.load(path)
        return keys.motion(rest, motion.columns, fps or keys.fps or FPS, path.stem)
    raise UserError(
        f"--motion {source} is neither '{NEUTRAL}', '{SWEEP}', a folder of FLAME files, nor an existing .npz, .csv or "
        ".json file"
    )


def adapted(
    motion: Motion,
    avatar: Avatar,
    *,
    smooth: float = 0.0,  # seconds, see `Motion.smoothed`
    relative: bool = False,  # only the changes from the other's face at rest, from the avatar's, see `Motion.relative`
    rest_frames: Sequence[int] = (),  # the rows at rest, of the motion and of the avatar's own; (): see `Motion.rest`
    scale: float = 1.0,  # see `Motion.scaled`
    fps: float | None = None,  # rows a second, where the motion does not know
) -> Motion:
    """The motion as it is to be played.

    Raises:
        UserError: there are no such rows.
    """
    motion = motion.smoothed(smooth, fps or FPS)
    rest = avatar.neutral().double().cpu().numpy()
    if relative:
        own = Motion("own", avatar.motion().values.detach().double().cpu().numpy())
        theirs, ours = rest_frames or (motion.rest(), own.rest())
        for rows, row in ((motion, theirs), (own, ours)):
            if row >= len(rows):
                raise UserError(f"--rest_frames {theirs} {ours}: there is no row {row}, only 0 to {len(rows) - 1}")
        rest = own.rows[ours]
        note = f"at rest: row {theirs} of the motion, row {ours} of the avatar's own (--rest_frames takes others)"
        motion = dataclasses.replace(motion.relative(motion.rows[theirs], rest), notes=(*motion.notes, note))
    return motion.scaled(scale, rest)


def _read_folder(folder: Path, head: HeadModel) -> tuple[dict[str, Array], Path]:
    """The parameters in a folder of FLAME files, and the folder they are in."""
    inner = folder / "flame_param"
    if inner.is_dir():
        folder = inner
    found = sorted(path for path in folder.glob("*.npz") if re.fullmatch(r"\D*[0-9]+\D*", path.stem))
    if not found:
        raise UserError(f"{folder} holds no FLAME files such as 00000.npz, one per timestep")
    return read_motion(dict(enumerate(found)), BadFrames(False), lambda: head.n_vertices)[1], folder


def from_arrays(name: str, arrays: dict[str, Array], source: Path, avatar: Avatar) -> Motion:
    """The motion in FLAME arrays over time, as in `flame_param.npz`; coefficients that the head lacks are cut off.

    Raises:
        UserError: a field is missing, not finite, of a shape that does not fit, or of a head with other vertices.
    """
    head, own = avatar.head, avatar.motion()
    assert head is not None
    notes = []
    expr = np.asarray(arrays.get("expr", np.empty(0)))
    if expr.ndim == 2 and expr.shape[1] > MAX_COEFFICIENTS:
        raise UserError(f"{source}: 'expr' has {expr.shape[1]} coefficients, more than any head model")
    if expr.ndim == 2 and expr.shape[1] > head.n_expr and np.any(expr[:, head.n_expr :]):
        notes.append(
            f"{source} has {expr.shape[1]} expression coefficients, the head model {head.n_expr}: the last are left out"
        )
        arrays = {**arrays, "expr": expr[:, : head.n_expr]}
    fields = {name: array for name, array in arrays.items() if name not in ("shape", "dynamic_offset")}
    person = {"shape": own.shape.cpu().numpy()}
    read = FlameParameters({**fields, **person}, None, head, trainable=False, source=source)
    return Motion(name, read.values.double().numpy(), notes=tuple(notes))


def sweep(head: HeadModel, rest: Array, columns: dict[str, slice], fps: float) -> Motion:
    """Each of the first ten expressions, jaw, neck and eyes in turn, a second each, from the pose `rest` [D] and back.

    How far: see `SWEPT_DISTANCE` and `SWEPT_JOINTS`. The stills are the turning points.
    """
    steps = max(4, round(fps))
    wave = np.sin(2 * math.pi * np.arange(steps) / steps)
    turning = steps // 4, steps - steps // 4
    moves: list[tuple[str, list[int], float, float]] = []
    reach = head.exprdirs.norm(dim=1).amax(dim=0).numpy()  # [n_expr] metres
    for index in np.flatnonzero(reach > 1e-6)[:SWEPT_EXPRESSIONS]:
        far = min(SWEPT_UNITS, SWEPT_DISTANCE / float(reach[index]))
        moves.append((f"expr {index}", [columns["expr"].start + int(index)], far, -far))
    for label, name, axes, there, back in SWEPT_JOINTS:
        moves.append((label, [columns[name].start + axis for axis in axes], there, back))
    parts: list[Array] = []
    stills: list[Still] = []
    for label, places, there, back in moves:
        rows = np.repeat(rest[None], steps, axis=0)
        change = np.where(wave > 0, there * wave, -back * wave)
        rows[:, places] += change[:, None]
        for row, value in zip(turning, (there, back)):
            if value:
                stills.append(Still(len(parts) * steps + row, f"{label} {value:+.2g}"))
        parts.append(rows)
    return Motion(SWEEP, np.concatenate(parts), fps, tuple(stills))
