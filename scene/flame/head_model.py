"""The head model: a FLAME-format file, checked and turned into tensors.

Any mesh in this format works; the numbers of vertices and faces come from the
file. The five joints are FLAME's: root, neck, jaw, left eye, right eye.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene.flame import teeth
from scene.flame.head_pickle import read_pickle
from utils.array_pickle import resolve
from utils.errors import UserError, one_line

ROOT = Path(__file__).resolve().parents[2]
FLAME_FILE = Path("flame_model/assets/flame/flame2023.pkl")
PARENTS = (-1, 0, 1, 1, 1)
POSE_FEATURES = 36  # 9 entries of R - I for each joint but the root
FLAME_SHAPE, FLAME_EXPR = 300, 100
_LARGEST = 1e12
# FLAME has 14 regions; a mask may name a vertex more than once, but not without end.
_MOST_MASKS, _MOST_REPEATS = 1000, 4


@dataclass(frozen=True)
class HeadModel:
    """A linear head model with five joints; all tensors float32 or int64 on the CPU, metres."""

    v_template: Tensor  # [V, 3]
    faces: Tensor  # [F, 3]  int64, vertex ids
    shapedirs: Tensor  # [V, 3, n_shape]  metres per unit of an identity coefficient
    exprdirs: Tensor  # [V, 3, n_expr]   metres per unit of an expression coefficient
    posedirs: Tensor  # [V, 3, 36]       metres per unit of an entry of R_j - I, joints 1..4
    joint_regressor: Tensor  # [5, V]
    weights: Tensor  # [V, 5]  skinning weights
    parents: tuple[int, ...] = field(default=PARENTS, kw_only=True)
    masks: dict[str, Tensor] = field(default_factory=dict, kw_only=True)  # region -> vertex ids, int64

    @property
    def n_vertices(self) -> int:
        return self.v_template.shape[0]

    @property
    def n_faces(self) -> int:
        return self.faces.shape[0]

    @property
    def n_shape(self) -> int:
        return self.shapedirs.shape[2]

    @property
    def n_expr(self) -> int:
        return self.exprdirs.shape[2]


def _field(content: dict[str, Any], path: Path, key: str, shape: tuple[int | None, ...], kinds: str) -> np.ndarray:
    """One array of the file, of the given shape (None = any) and NumPy kinds, finite."""
    if key not in content:
        raise UserError(f"{path} is no FLAME-format head model: it has no '{key}'")
    try:
        array = resolve(content[key])
    except Exception as error:  # every stand-in reports a malformed array in its own way
        raise UserError(f"{path}: '{key}' is {one_line(error)[:200] or type(error).__name__}") from error
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UserError(f"{path}: '{key}' has shape {tuple(array.shape)}, expected ({wanted})")
    if array.dtype.kind not in kinds:
        wanted = "numbers" if "f" in kinds else "integers"
        raise UserError(f"{path}: '{key}' holds {array.dtype}, expected {wanted}")
    if array.size == 0 and array.ndim > 1:  # a region mask may be empty
        raise UserError(f"{path}: '{key}' is empty")
    # Beyond the largest, float32 would make infinities of them somewhere along the way.
    if array.dtype.kind == "f" and not (np.abs(array) < _LARGEST).all():
        raise UserError(f"{path}: '{key}' holds values that are not finite or larger than {_LARGEST:g}")
    return array


def _check_ids(ids: np.ndarray, count: int, path: Path, key: str) -> np.ndarray:
    ids = ids.astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        raise UserError(
            f"{path}: '{key}' names vertex {int(ids.min() if ids.min() < 0 else ids.max())}, "
            f"but the model has vertices 0 to {count - 1}"
        )
    return ids


def _check_chain(table: np.ndarray, path: Path) -> None:
    # The root's parent is -1, which the official files store as unsigned 2^32 - 1.
    parents = tuple(int(p) if 0 <= int(p) < 5 else -1 for p in table[0])
    if parents != PARENTS or tuple(int(j) for j in table[1]) != (0, 1, 2, 3, 4):
        raise UserError(
            f"{path}: 'kintree_table' gives the joints {table[1].tolist()} the parents {list(parents)}, "
            f"expected FLAME's five joints (root, neck, jaw, eyes) with parents {list(PARENTS)}"
        )


def _shape_columns(content: dict[str, Any], columns: int, path: Path) -> int:
    """How many leading columns of 'shapedirs' are identity; the rest are expression."""
    if "n_shape" in content:
        try:
            count = int(resolve(content["n_shape"]))
        except Exception as error:
            raise UserError(f"{path}: 'n_shape' is not a whole number") from error
        if not 0 <= count <= columns:
            raise UserError(f"{path}: 'n_shape' is {count}, but 'shapedirs' has {columns} columns")
        return count
    if columns != FLAME_SHAPE + FLAME_EXPR:
        raise UserError(
            f"{path}: 'shapedirs' has {columns} columns; expected 400 (300 identity, 100 expression), "
            "or a key 'n_shape' that says how many are identity"
        )
    return FLAME_SHAPE


def _load_masks(model: Path, vertices: int) -> dict[str, Tensor]:
    for name in ("FLAME_masks.pkl", "masks.pkl"):
        path = model.parent / name
        if path.is_file():
            break
    else:
        return {}
    content = read_pickle(path)
    if len(content) > _MOST_MASKS or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is no file of region masks: it must hold up to {_MOST_MASKS} regions by name")
    masks = {}
    for key in content:
        ids = _field(content, path, key, (None,), "iu")
        if len(ids) > _MOST_REPEATS * vertices:
            raise UserError(f"{path}: '{key}' names {len(ids)} vertices, but the model has {vertices}")
        masks[key] = torch.from_numpy(_check_ids(ids, vertices, path, key))
    return masks


def load_head_model(path: str | Path) -> HeadModel:
    """Reads a FLAME-format pickle, official or open, and the region masks beside it.

    A model of FLAME's own topology (5023 vertices, 9976 faces) gets teeth; one
    of any other size is taken as it is. Masks come from `FLAME_masks.pkl` or
    `masks.pkl` in the same folder; without either there are none.

    Raises:
        UserError: missing, damaged or hostile file, or a field of wrong shape, type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"head model {path} does not exist")
    content = read_pickle(path)

    v_template = _field(content, path, "v_template", (None, 3), "f").astype(np.float64)
    count = len(v_template)
    faces = _check_ids(_field(content, path, "f", (None, 3), "iu"), count, path, "f")
    modes = _field(content, path, "shapedirs", (count, 3, None), "f").astype(np.float32)
    posedirs = _field(content, path, "posedirs", (count, 3, POSE_FEATURES), "f").astype(np.float32)
    joint_regressor = _field(content, path, "J_regressor", (5, count), "fiu").astype(np.float64)
    weights = _field(content, path, "weights", (count, 5), "fiu").astype(np.float64)
    _check_chain(_field(content, path, "kintree_table", (2, 5), "iuf"), path)
    if np.abs(weights.sum(axis=1) - 1).max() > 1e-3:
        raise UserError(f"{path}: 'weights' do not sum to 1 for every vertex")

    split = _shape_columns(content, modes.shape[2], path)
    arrays = (v_template, faces, modes[:, :, :split], modes[:, :, split:], posedirs, joint_regressor, weights)
    with_teeth = teeth.is_flame_topology(count, len(faces))
    if with_teeth:
        arrays = teeth.add_teeth(*arrays)
    # Masks of the FLAME topology may have been written for the mesh with teeth.
    masks = _load_masks(path, len(arrays[0]))
    if with_teeth:
        masks["teeth"] = torch.arange(count, len(arrays[0]))

    def tensor(array: np.ndarray) -> Tensor:
        kind = np.int64 if array.dtype.kind in "iu" else np.float32
        return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))

    return HeadModel(*map(tensor, arrays), masks=masks)


def find_head_model(option: str | Path | None, source: str | Path, avatar: str | Path | None = None) -> Path:
    """The head model's file: `--head_model`, else beside the data, else the installed FLAME.

    `source` is empty where nobody knows the data. `avatar`, where given, is an avatar's folder whose own
    `head_model.pkl` is looked at after the data's.

    Raises:
        UserError: there is none; says which files were looked for and where to get one.
    """
    if option:
        path = Path(option)
        if not path.is_file():
            raise UserError(f"--head_model {path} does not exist")
        return path
    candidates = [Path(source) / "head_model.pkl"] if source else []
    if avatar is not None:
        candidates.append(Path(avatar) / "head_model.pkl")
    candidates.append(ROOT / FLAME_FILE)
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"no head model: looked for {', '.join(str(path) for path in candidates)}; get flame2023.pkl from "
        f"https://flame.is.tue.mpg.de (free registration, FLAME 2023) and put it at {FLAME_FILE}, or name a file "
        "with --head_model; `./train_efficient.sh demo` runs without it, on a procedural head"
    )
