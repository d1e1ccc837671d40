"""Reader of rigged head captures: pre-processed NeRSemble, VHAP exports and merged sets."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scene.dataset.bad_frames import BadFrames
from scene.dataset.common import Dataset, View, locate, scene_extent, training_splits
from scene.dataset.transforms import Frame, read_frames
from scene.flame.parameters import MOTION, check_vertices
from utils.errors import UserError
from utils.memory import available_memory
from utils.npz import read_npz

CANONICAL = "canonical_flame_param.npz"
SPLITS = ("train", "val", "test")
IDENTITY = ("shape", "static_offset")
FIELDS = (*MOTION, "expr", *IDENTITY, "dynamic_offset")
MAX_MOTION_BYTES = 4 << 30  # 65,000 timesteps with a dynamic offset of FLAME's 5143 vertices
MAX_COEFFICIENTS = 10_000  # FLAME has 300 of identity and 100 of expression


def read_flame_file(path: Path, timestep: int | None = None) -> dict[str, np.ndarray]:
    """The fields that one `flame_param/*.npz` has, checked, float32, without the leading axis.

    `translation`, `rotation`, `neck_pose`, `jaw_pose` (3,), `eyes_pose` (6,),
    `expr` and `shape` (n,), `static_offset` and `dynamic_offset` (V, 3).

    Raises:
        UserError: unreadable, a field of another shape, or NaN or infinity in one.
    """
    fields = {}
    for name, array in read_npz(path, FIELDS).items():
        last = {**MOTION, "static_offset": 3, "dynamic_offset": 3}.get(name)
        axes = 2 if name.endswith("_offset") else 1
        value = array[0] if array.ndim == axes + 1 and array.shape[0] == 1 else array
        if value.ndim != axes or value.size == 0 or (last is not None and value.shape[-1] != last):
            expected = f"(1, V, {last})" if axes == 2 else f"(1, {last or 'n'})"
            raise UserError(f"{path}: '{name}' has the shape {array.shape} instead of {expected}")
        if axes == 1 and value.size > MAX_COEFFICIENTS:
            raise UserError(f"{path}: '{name}' has {value.size} coefficients, more than any head model")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, reported below
            value = np.ascontiguousarray(value, dtype=np.float32)
        if not np.isfinite(value).all():
            when = "" if timestep is None else f" at timestep {timestep}"
            raise UserError(
                f"{path}: '{name}' holds NaN or infinite values{when}: track it again, or leave its "
                "frames out with --skip_bad_frames"
            )
        fields[name] = value
    return fields


def split_frames(source: Path) -> dict[str, list[Frame]]:
    """The frames of the three splits.

    A missing split file is an empty split. Where none of them exists,
    `transforms.json` (all frames of an export that was never split) is the
    training split.

    Raises:
        UserError: there are no training frames to be found.
    """
    paths = {split: source / f"transforms_{split}.json" for split in SPLITS}
    if not any(path.exists() for path in paths.values()) and (source / "transforms.json").exists():
        print(f"note: {source} has no transforms_train.json, so all of transforms.json is trained on", file=sys.stderr)
        paths["train"] = source / "transforms.json"
    if not paths["train"].exists():
        raise UserError(f"{paths['train']} does not exist")
    frames = {split: read_frames(path) for split, path in paths.items()}
    if not frames["train"]:
        raise UserError(f"{paths['train']} has no frames")
    return frames


def flame_files(frames: dict[str, list[Frame]], source: Path) -> dict[int, Path]:
    """The FLAME file of every timestep of all splits, ascending.

    Raises:
        UserError: a frame without `timestep_index` or `flame_param_path`, or two
            frames of one timestep that name different files.
    """
    files: dict[int, Path] = {}
    for split in SPLITS:
        for frame in frames[split]:
            where = frame.where("flame_param_path")
            if frame.own.get("flame_param_path") is None:
                raise UserError(f"{where} is missing: every frame of a rigged capture needs its FLAME parameters")
            path = locate(frame.own["flame_param_path"], source, source, where)
            timestep = frame.integer("timestep_index")
            if files.setdefault(timestep, path) != path:
                raise UserError(
                    f"{where} names {path}, but another frame of timestep {timestep} names "
                    f"{files[timestep]}: give every moment its own timestep_index"
                )
    return dict(sorted(files.items()))


def read_motion(
    files: dict[int, Path], bad: BadFrames, vertices: Callable[[], int] | None = None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """The timesteps that can be used, and their parameters stacked: poses, `expr` and, where there is one,
    `dynamic_offset`, and the `shape` and `static_offset` of the first file that has them.

    Each file is read once, however many cameras share it. A timestep without a
    dynamic offset, in a capture where others have one, has zero.

    Args:
        vertices: gives the number of the head model's, where it is known; asked only when there is a dynamic offset.

    Raises:
        UserError: a field is missing, its length differs between timesteps, or there is no memory for all of them.
    """
    rows: dict[int, dict[str, np.ndarray]] = {}
    read: dict[Path, dict[str, np.ndarray]] = {}
    first_path = None
    size, limit = 0, min(MAX_MOTION_BYTES, available_memory() // 4)  # it is held twice when it is stacked
    too_large = f"take more than {limit / (1 << 30):.1f} GiB: leave dynamic_offset out of the files"
    expected = None
    for timestep, path in files.items():
        with bad.instead_of(f"timestep {timestep}"):
            if path not in read:  # any number of timesteps may name one file
                fields = _complete(read_flame_file(path, timestep), path)
                offset = fields.get("dynamic_offset")
                if offset is not None and not offset.any():  # as good as none, and takes no room
                    del fields["dynamic_offset"]
                elif offset is not None and vertices is not None:
                    expected = vertices() if expected is None else expected
                    check_vertices(len(offset), expected, f"{path}: 'dynamic_offset'")
                if read:  # of the person, and not of the moment: as large as all the rest
                    for name in IDENTITY:
                        fields.pop(name, None)
                read[path] = fields
            rows[timestep] = read[path]
        if timestep not in rows:
            continue
        first_path = first_path or path
        # Compressed, a file of zeros is a thousand times smaller, and any number of timesteps may name one file.
        size += sum(field.nbytes for field in rows[timestep].values())
        if size > limit:
            raise UserError(f"{path}: up to this timestep the FLAME parameters {too_large}")
    if not rows:
        raise UserError(next(iter(bad.problems.values())))
    motion = {}
    for name in (*MOTION, "expr"):
        columns = []
        for timestep, fields in rows.items():
            columns.append(fields[name])
            if columns[-1].shape != columns[0].shape:
                raise UserError(
                    f"{files[timestep]}: '{name}' has {columns[-1].size} coefficients, "
                    f"but {first_path} has {columns[0].size}"
                )
        motion[name] = np.stack(columns)
    offsets = {timestep: fields["dynamic_offset"] for timestep, fields in rows.items() if "dynamic_offset" in fields}
    if offsets:
        known, shape = next((files[timestep], offset.shape) for timestep, offset in offsets.items())
        for timestep, offset in offsets.items():
            if offset.shape != shape:
                raise UserError(
                    f"{files[timestep]}: 'dynamic_offset' has {offset.shape[0]} vertices, but {known} has {shape[0]}"
                )
        if len(rows) * math.prod(shape) * 4 > limit:  # a single file may have one
            raise UserError(f"{known}: the 'dynamic_offset' of {len(rows)} timesteps would {too_large}")
        zero = np.zeros(shape, dtype=np.float32)
        motion["dynamic_offset"] = np.stack([offsets.get(timestep, zero) for timestep in rows])
    first = next(iter(rows.values()))
    motion.update({name: first[name] for name in IDENTITY if name in first})
    return list(rows), motion


def _complete(fields: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """`fields`, if they are all that a timestep needs; else UserError."""
    for name in (*MOTION, "expr"):
        if name not in fields:
            raise UserError(f"{path} has no '{name}': every timestep needs it")
    return fields


def identity(source: Path, first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`shape` and `static_offset`: those of the first timestep, else of the canonical file, if there is one.

    A tracking without static offsets has none.

    Raises:
        UserError: neither has a shape.
    """
    found = {name: first[name] for name in IDENTITY if name in first}
    if len(found) < len(IDENTITY) and (source / CANONICAL).exists():
        found = {**read_flame_file(source / CANONICAL), **found}
    if "shape" not in found:
        raise UserError(f"{source}: neither {CANONICAL} nor the file of the first timestep has a 'shape'")
    return {name: found[name] for name in IDENTITY if name in found}


def is_rigged(folder: Path) -> bool:
    """Whether a head was tracked in this capture: single sequences of VHAP have no canonical file."""
    return (folder / CANONICAL).exists() or (folder / "flame_param").is_dir()


def read_rigged(
    source: Path,
    *,
    eval_split: bool,
    background: tuple[float, float, float],
    target: Path | None,
    resolution: float,
    select_camera_id: int,
    skip_bad_frames: bool = False,
    vertices: Callable[[], int] | None = None,
) -> Dataset:
    """The rigged capture in `source`; with `target`, moved and seen as that capture is.

    With `skip_bad_frames` a view whose image or camera cannot be used is left out, and so are all views of a timestep
    whose FLAME parameters cannot; one line on stderr names them.

    `vertices` gives the number of the head model's, where it is known.

    `source` and `target` are absolute and free of symbolic links.

    Raises:
        UserError: anything in the files that is not as it must be.
    """
    moving = source if target is None else target
    frames = split_frames(moving)
    files = flame_files(frames, moving)
    bad = BadFrames(skip_bad_frames)
    timesteps, motion = read_motion(files, bad, vertices)
    first_path = files[timesteps[0]]
    if target is None:
        person = identity(source, motion)
    else:
        first_path = next(iter(flame_files(split_frames(source), source).values()))
        person = identity(source, read_flame_file(first_path))
    flame = {**{name: value for name, value in motion.items() if name not in IDENTITY}, **person}

    row = {timestep: index for index, timestep in enumerate(timesteps)}
    splits: dict[str, list[View]] = {split: [] for split in SPLITS}
    missing_masks = 0
    for split in SPLITS:
        for frame in frames[split]:
            timestep = frame.integer("timestep_index")
            if timestep not in row:
                continue
            with bad.instead_of(f"frame {frame.index} of {frame.path.name}"):
                view, mask_missing = frame.view(moving, resolution, timestep)
                missing_masks += mask_missing
                camera = dataclasses.replace(view.camera, timestep=row[timestep])
                splits[split].append(dataclasses.replace(view, camera=camera))
        splits[split] = bad.whole_images(splits[split])
    total = sum(map(len, frames.values()))
    bad.conclude(moving, total - sum(map(len, splits.values())), total)
    if missing_masks:
        # People delete fg_masks to save space, and other trainers never open them.
        print(
            f"note: {missing_masks} of the masks that {moving} names are missing; "
            "those images keep the background they have",
            file=sys.stderr,
        )
    splits = training_splits(splits, eval_split)
    extent = scene_extent(splits["train"])
    if select_camera_id != -1:
        splits = _select_camera(splits, select_camera_id, moving)
    return Dataset(
        *splits.values(), extent=extent, background=background, timesteps=timesteps, flame=flame, flame_file=first_path
    )


def _select_camera(splits: dict[str, list[View]], camera_index: int, source: Path) -> dict[str, list[View]]:
    """The views of one camera (by `camera_index`) in every split."""
    chosen = {split: [view for view in views if view.camera_index == camera_index] for split, views in splits.items()}
    if not any(chosen.values()):
        known = sorted({view.camera_index for views in splits.values() for view in views})
        raise UserError(
            f"--select_camera_id {camera_index}: {source} has no such camera_index, only "
            f"{', '.join(map(str, known[:40]))}"
        )
    return chosen
