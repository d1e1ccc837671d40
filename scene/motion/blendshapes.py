"""Motions as 52 blendshape weights, as phones track them, and the mappings from them to a head's own parameters."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from scene.dataset.common import read_json, short
from scene.flame import HeadModel
from scene.flame.parameters import MOTION, fit_coefficients, row_columns
from scene.motion.rows import Motion
from utils.blendshapes import MAPPING_NAME, MODES_NAME, NAMES
from utils.errors import UserError, one_line
from utils.npz import read_npz
from utils.untrusted import read_regular

Array = np.ndarray

OPTIONAL = ("tongueOut",)  # trackers other than ARKit have none
FPS = 60.0  # of Live Link Face, where the time codes do not tell
# Half an hour at 60 rows a second takes 60 MB.
MAX_FILE_BYTES = 128 << 20
MAX_LINE = 1 << 16
LARGEST = 1000.0  # of a weight, and of what it adds
# Where names are all we have: how far eyeLook... turns an eyeball, and jawLeft and jawRight the jaw; radians.
EYE_TURN, JAW_TURN = math.radians(30), math.radians(6)
JAW_OPEN = 0.3  # radians, likewise, where the file does not say


def read_weights(path: Path) -> tuple[Array, float]:
    """[T, 52] the weights in a CSV file, in the order of `NAMES`, and how many rows a second has.

    Columns are found by their names, whatever their case and order; others (Timecode, BlendShapeCount, the rotations of
    head and eyes) are not used, but that time codes tell the rate.

    Raises:
        UserError: unreadable, no such table, a column missing or there twice, or a value that is no weight.
    """
    lines = _lines(path)
    header = next(lines, None)
    if header is None:
        raise UserError(f"{path} is empty: it must begin with a line of column names")
    keys = [_key(name) for name in header]
    twice = next((name for name, key in zip(header, keys) if key and keys.count(key) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has the column {short(twice)} twice")
    absent = [name for name in NAMES if _key(name) not in keys and name not in OPTIONAL]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UserError(
            f"{path} has no column {', '.join(absent[:3])}{more}: a table of ARKit's 52 blendshape weights is needed, "
            "as Live Link Face writes it"
        )
    columns = [keys.index(_key(name)) if _key(name) in keys else None for name in NAMES]
    code = keys.index("timecode") if "timecode" in keys else None
    rows, seconds = [], []
    for number, line in enumerate(lines, start=2):
        if not line:  # an empty line at the end
            continue
        if len(line) != len(header):
            raise UserError(f"{path}, line {number} has {len(line)} columns, but the first line has {len(header)}")
        try:
            row = np.array([0.0 if column is None else float(line[column]) for column in columns])
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {one_line(error)[:100]}") from error
        fits = np.abs(row) <= LARGEST
        if not fits.all():
            raise UserError(f"{path}, line {number}: {NAMES[int(fits.argmin())]} must be a weight of about 0 to 1")
        rows.append(row.astype(np.float32))
        seconds.append(_second(line[code]) if code is not None else None)
    if not rows:
        raise UserError(f"{path} has no rows below its column names")
    return np.stack(rows).astype(np.float64), _rate(seconds)


def _lines(path: Path):
    """The lines of a CSV file, each a list of strings."""
    try:
        content = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if content is None:
        raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: no table of blendshape weights")
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        if end - start > MAX_LINE:
            raise UserError(f"{path} has a line of more than {MAX_LINE:,} characters: no table of blendshape weights")
        text = content[start:end].decode("utf-8", "replace").strip()
        try:
            yield next(csv.reader([text]), [])
        except csv.Error as error:
            raise UserError(f"{path} is not a readable CSV file: {one_line(error)[:100]}") from error
        start = end + 1


def _key(name: str) -> str:
    """A name for comparing: browDown_L and BrowDownLeft are the same."""
    side = re.sub(r"_(L|R)$", lambda found: {"L": "Left", "R": "Right"}[found[1]], name.strip())
    return re.sub(r"[^a-z0-9]", "", side.lower())


def _second(code: str) -> int | None:
    """The whole second of a time code such as 12:34:56:07.123; None where it is none."""
    parts = re.fullmatch(r"(\d{1,4}):(\d{1,2}):(\d{1,2})(?:[:;.].*)?", code.strip())
    return None if parts is None else 3600 * int(parts[1]) + 60 * int(parts[2]) + int(parts[3])


def _rate(seconds: list[int | None]) -> float:
    """Rows a second, counted between the first and the last change of the second."""
    changes = [i for i in range(1, len(seconds)) if seconds[i] != seconds[i - 1]]
    if len(changes) < 2:
        return FPS
    first, last = seconds[changes[0]], seconds[changes[-1]]
    if first is None or last is None or last <= first:
        return FPS
    rate = (changes[-1] - changes[0]) / (last - first)
    return rate if 1.0 <= rate <= 1000.0 else FPS


def find_mapping(option: str | None, head_file: Path, head: HeadModel) -> Array:
    """[52, D]: what a weight of 1 of each blendshape adds to a row of FLAME parameters.

    `--mapping`, else `blendshape_mapping.npz` beside the head model, else made from the names in its `expr_names.json`.

    Raises:
        UserError: there is none, or it is broken.
    """
    if option:
        return read_mapping(Path(option), head)
    beside = head_file.parent / MAPPING_NAME
    if beside.is_file():
        return read_mapping(beside, head)
    names = head_file.parent / MODES_NAME
    if names.is_file():
        return mapping_from_names(names, head)
    raise UserError(
        f"how blendshape weights move {head_file} is not known: name a mapping with --mapping (an .npz, described in "
        f"doc/motion.md), or put it there as {MAPPING_NAME}"
    )


def known_mapping(option: str | None, head_file: Path, head: HeadModel) -> Array | None:
    """`find_mapping`, or None where there is none; UserError for a broken one."""
    beside = any((head_file.parent / name).is_file() for name in (MAPPING_NAME, MODES_NAME))
    return find_mapping(option, head_file, head) if option or beside else None


def read_mapping(path: Path, head: HeadModel) -> Array:
    """[52, D] from an .npz with a row for each of `NAMES`: `expr` [52, n], `jaw_pose` [52, 3] ...; absent ones are 0.

    Raises:
        UserError: missing, damaged, or an array of another shape or with NaN.
    """
    columns = row_columns(head.n_expr)
    arrays = read_npz(path, tuple(columns))
    if not arrays:
        raise UserError(f"{path} holds none of {', '.join(columns)}: a mapping needs at least one of them")
    mapping = np.zeros((len(NAMES), columns["translation"].stop))
    for name, array in arrays.items():
        width = MOTION.get(name)
        if array.ndim != 2 or len(array) != len(NAMES) or width not in (None, array.shape[1]):
            raise UserError(
                f"{path}: '{name}' has shape {array.shape}, expected ({len(NAMES)}, {width or 'any'}): a row for each "
                "of ARKit's blendshapes"
            )
        if not (np.abs(array) <= LARGEST).all():
            raise UserError(f"{path}: '{name}' holds values that are not finite, or beyond {LARGEST:g}")
        mapping[:, columns[name]] = array if width else fit_coefficients(array, head.n_expr, f"{path}: 'expr'")
    return mapping


def mapping_from_names(path: Path, head: HeadModel) -> Array:
    """[52, D] for a head whose expression modes are named after the blendshapes, as those of ICT-FaceKit are.

    A blendshape drives the modes of its name, of both sides where it has none itself. `jawOpen` also opens the jaw
    joint, by the file's `theta0_rad`; `jawLeft` and `jawRight` turn it only where there is no such mode; `eyeLook...`
    turns the eyeball by 30 degrees.

    Raises:
        UserError: a broken file, or names of which none is a blendshape's.
    """
    content = read_json(path)
    modes = _modes(content, path, head.n_expr)
    opening = content.get("theta0_rad", JAW_OPEN)
    if type(opening) not in (int, float) or not abs(opening) <= math.pi:
        raise UserError(f"{path}: 'theta0_rad' must be the angle of an open jaw in radians, not {short(opening)}")
    columns = row_columns(head.n_expr)
    mapping = np.zeros((len(NAMES), columns["translation"].stop))
    keys = [_key(mode) for mode in modes]
    for row, name in enumerate(NAMES):
        for wanted in (_key(name), _key(name + "_L"), _key(name + "_R")):
            if wanted in keys:
                mapping[row, columns["expr"].start + keys.index(wanted)] = 1.0
    if not mapping.any():
        raise UserError(f"{path}: none of the expression modes has the name of one of ARKit's blendshapes")
    jaw, eyes = columns["jaw_pose"].start, columns["eyes_pose"].start
    mapping[NAMES.index("jawOpen"), jaw] = opening
    for name, sign in (("jawLeft", 1.0), ("jawRight", -1.0)):
        if _key(name) not in keys:
            mapping[NAMES.index(name), jaw + 1] = sign * JAW_TURN
    # x turns downwards, y towards the subject's left.
    for start, side, outward in ((eyes, "Left", 1.0), (eyes + 3, "Right", -1.0)):
        for look, axis, sign in (("Down", 0, 1.0), ("Up", 0, -1.0), ("Out", 1, outward), ("In", 1, -outward)):
            mapping[NAMES.index(f"eyeLook{look}{side}"), start + axis] = sign * EYE_TURN
    return mapping


def mode_names(head_file: Path | None, n_expr: int) -> tuple[str, ...]:
    """The names of the expression modes, from the `expr_names.json` beside a head model; none without that file.

    Raises:
        UserError: a broken file.
    """
    path = head_file.parent / MODES_NAME if head_file else None
    return tuple(_modes(read_json(path), path, n_expr)) if path and path.is_file() else ()


def _modes(content: dict[str, Any], path: Path, n_expr: int) -> list[str]:
    modes = content.get("expression")
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes) or len(modes) > n_expr:
        raise UserError(f"{path}: 'expression' must be a list of the names of up to {n_expr} expression modes")
    return modes


def from_weights(path: Path, mapping: Array, rest: Array) -> Motion:
    """The motion in a CSV file of blendshape weights, around the pose `rest` [D]."""
    weights, fps = read_weights(path)
    return Motion(path.stem, rest + weights @ mapping, fps)
