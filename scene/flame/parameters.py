"""The FLAME parameters of a capture, one row per timestep.

Everything that varies over time is one tensor [T, D]; a row is

    expression (n_expr) | rotation 3 | neck_pose 3 | jaw_pose 3 | eyes_pose 6 | translation 3

with rotations as axis-angle in radians and the translation in metres. An
iteration sees one timestep, so it touches one row, with a handful of small
operations instead of one for each parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene.flame import teeth
from scene.flame.head_model import HeadModel
from utils.errors import UserError
from utils.npz import read_npz, write_npz

MOTION = {"rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}
POSES = ("rotation", "neck_pose", "jaw_pose", "eyes_pose")
# A field beyond this is an attack or an accident: the largest, dynamic_offset,
# has 60 KB per timestep.
MAX_FIELD_BYTES = 1 << 30


def row_columns(n_expr: int) -> dict[str, slice]:
    """The columns of each parameter in a row."""
    columns, start = {}, 0
    for name, width in {"expr": n_expr, **MOTION}.items():
        columns[name] = slice(start, start + width)
        start += width
    return columns


def fit_coefficients(values: np.ndarray, width: int, label: str) -> np.ndarray:
    """[..., n] coefficients as [..., width] float32: missing ones are zero.

    Raises:
        UserError: there are more than `width`, and the surplus is not all zero.
    """
    if values.shape[-1] > width and np.any(values[..., width:]):
        raise UserError(
            f"{label} has {values.shape[-1]} coefficients, but the head model has {width}: "
            "use the head model that the capture was tracked with"
        )
    fitted = np.zeros((*values.shape[:-1], width), dtype=np.float32)
    shared = min(width, values.shape[-1])
    fitted[..., :shared] = values[..., :shared]
    return fitted


def fit_offset(offset: np.ndarray, vertices: int, label: str) -> np.ndarray:
    """[..., V, 3] offsets for `vertices` vertices; FLAME's 5023 get zeros for the teeth.

    Raises:
        UserError: another number of vertices.
    """
    check_vertices(offset.shape[-2], vertices, label)
    if offset.shape[-2] != vertices:
        padding = np.zeros((*offset.shape[:-2], teeth.TEETH_VERTICES, 3), dtype=offset.dtype)
        offset = np.concatenate([offset, padding], axis=-2)
    return np.ascontiguousarray(offset, dtype=np.float32)


def check_vertices(count: int, vertices: int, label: str) -> None:
    """Raises UserError unless offsets of `count` vertices fit a head model of `vertices`, as they are or with teeth."""
    with_teeth = count == teeth.FLAME_VERTICES and vertices == teeth.FLAME_VERTICES + teeth.TEETH_VERTICES
    if count != vertices and not with_teeth:
        raise UserError(
            f"{label} has {count} vertices, but the head model has {vertices}: "
            "use the head model that the capture was tracked with"
        )


class FlameParameters:
    """FLAME parameters over all timesteps; expression and motion are trainable row by row.

    `shape` and `static_offset` are constants; so is `dynamic_offset`, until
    `train_dynamic_offset` makes it trainable as well.
    """

    def __init__(
        self,
        flame: Mapping[str, np.ndarray],  # as in a data set: shape (n,), expr (T, n), ... (T, 3), static_offset (V, 3)
        timesteps: Sequence[int] | None,  # [T] the number of each row in the capture; None = 0..T-1
        head: HeadModel,
        *,
        device: torch.device | str = "cpu",
        trainable: bool = True,
        source: str | Path = "FLAME parameters",  # named in error messages
    ) -> None:
        """Checks and fits the arrays to the head model.

        `static_offset` and `dynamic_offset` may be missing. Coefficients that
        the file lacks are zero; a 5023-vertex offset is padded for the teeth.

        Raises:
            UserError: a field is missing, not finite, or of a shape that does not fit.
        """

        def read(key: str, *shape: int | None) -> np.ndarray:
            if key not in flame:
                raise UserError(f"{source}: '{key}' is missing")
            array = np.asarray(flame[key])
            if len(shape) < array.ndim and array.shape[0] == 1:  # files keep a leading 1 on constants
                array = array[0]
            if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise UserError(f"{source}: '{key}' has shape {tuple(array.shape)}, expected ({wanted})")
            if array.dtype.kind not in "fiu":
                raise UserError(f"{source}: '{key}' holds {array.dtype}, not numbers")
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise UserError(f"{source}: '{key}' holds values that are not finite")
            return array

        expr = read("expr", None, None)
        count = len(expr)
        if count == 0:
            raise UserError(f"{source}: 'expr' holds no timestep")
        parts = [fit_coefficients(expr, head.n_expr, f"{source}: 'expr'")]
        parts += [read(name, count, width) for name, width in MOTION.items()]
        shape = fit_coefficients(read("shape", None), head.n_shape, f"{source}: 'shape'")
        static = np.zeros((head.n_vertices, 3), dtype=np.float32)
        if "static_offset" in flame:
            static = fit_offset(read("static_offset", None, 3), head.n_vertices, f"{source}: 'static_offset'")
        dynamic = None
        if "dynamic_offset" in flame and np.any(flame["dynamic_offset"]):
            dynamic = fit_offset(read("dynamic_offset", count, None, 3), head.n_vertices, f"{source}: 'dynamic_offset'")
        ids = list(range(count)) if timesteps is None else [int(t) for t in timesteps]
        if len(ids) != count:
            raise UserError(f"{source}: {len(ids)} timestep numbers for {count} rows")

        self.device = torch.device(device)
        self.trainable = trainable
        self.timesteps = ids
        self.n_expr = head.n_expr
        self.columns = row_columns(head.n_expr)
        self.values = torch.from_numpy(np.concatenate(parts, axis=1)).to(self.device)  # [T, D]
        self.shape = torch.from_numpy(shape).to(self.device)  # [n_shape]
        self.static_offset = torch.from_numpy(static).to(self.device)  # [V, 3] metres
        self.dynamic_offset = None if dynamic is None else torch.from_numpy(dynamic).to(self.device)  # [T, V, 3]
        self.dynamic_trainable = False
        self._leaves: dict[tuple[str, int], Tensor] = {}  # (table, timestep) -> its leaf

    def __len__(self) -> int:
        """The number of timesteps."""
        return self.values.shape[0]

    def row(self, timestep: int) -> Tensor:
        """[D] the row of `timestep`: an autograd leaf sharing memory with `values`.

        All calls between two `clear_gradients` give the same leaf, so gradients
        add up. Without gradients, or when nothing is fine-tuned, it is a plain view.
        """
        return self._leaf("values", timestep, self.trainable)

    def dynamic_row(self, timestep: int) -> Tensor:
        """[V, 3] metres, the dynamic offset of `timestep`, a leaf like `row`'s where it is trained."""
        return self._leaf("dynamic_offset", timestep, self.dynamic_trainable)

    def touch(self, timestep: int) -> None:
        """Gives the trained rows of `timestep` a gradient of zero, to which a backward pass adds.

        Of several processes, all then have gradients of the same rows in the same order, whoever rendered them.
        """
        for table in self.tables():
            leaf = self._leaf(table, timestep, True)
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)

    def train_dynamic_offset(self) -> None:
        """Makes the per-timestep vertex offsets trainable, from zero where the capture has none.

        They take T x V x 3 floats, three times that with Adam's moments: about
        185 MB per 1,000 timesteps of FLAME.
        """
        self.dynamic_trainable = True
        if self.dynamic_offset is None:
            self.dynamic_offset = torch.zeros(len(self), *self.static_offset.shape, device=self.device)

    def tables(self) -> dict[str, Tensor]:
        """What is trained row by row: name -> [T, ...]."""
        tables = {"values": self.values} if self.trainable else {}
        if self.dynamic_trainable and self.dynamic_offset is not None:
            tables["dynamic_offset"] = self.dynamic_offset
        return tables

    def _leaf(self, table: str, timestep: int, trained: bool) -> Tensor:
        row = getattr(self, table)[timestep]
        if not (trained and torch.is_grad_enabled()):
            return row
        return self._leaves.setdefault((table, timestep), row.detach().requires_grad_())

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """The parameters in a row (or in rows [..., D]) by name, as views."""
        return {name: row[..., columns] for name, columns in self.columns.items()}

    def gradients(self) -> dict[tuple[str, int], Tensor]:
        """(table, timestep) -> gradient, of every row that has one."""
        return {key: leaf.grad for key, leaf in self._leaves.items() if leaf.grad is not None}

    def clear_gradients(self) -> None:
        self._leaves.clear()

    # ---- files --------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """All parameters by name, in the layout of `flame_param.npz`."""
        result = {name: value.cpu().numpy() for name, value in self.split(self.values.detach()).items()}
        result["shape"] = self.shape.cpu().numpy()
        result["static_offset"] = self.static_offset.cpu().numpy()[None]
        if self.dynamic_offset is not None:
            result["dynamic_offset"] = self.dynamic_offset.cpu().numpy()
        result["timestep_index"] = np.asarray(self.timesteps, dtype=np.int64)
        return result

    def save(self, path: str | Path) -> None:
        """Writes `flame_param.npz`: all T timesteps, and their numbers in the capture as `timestep_index`."""
        write_npz(path, self.arrays())

    @classmethod
    def load(
        cls, path: str | Path, head: HeadModel, *, device: torch.device | str = "cpu", trainable: bool = True
    ) -> FlameParameters:
        """Reads a `flame_param.npz`, ours or another trainer's.

        Raises:
            UserError: damaged, or not fitting the head model; names the field.
        """
        path = Path(path)
        wanted = ("expr", "shape", "static_offset", "dynamic_offset", "timestep_index", *MOTION)
        arrays = read_npz(path, wanted, limit=MAX_FIELD_BYTES)
        ids = arrays.pop("timestep_index", None)
        if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise UserError(f"{path}: 'timestep_index' has shape {ids.shape} of {ids.dtype}, expected whole numbers")
        return cls(arrays, None if ids is None else ids.tolist(), head, device=device, trainable=trainable, source=path)

    # ---- checkpoint ---------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and lists for a checkpoint."""
        return {
            "values": self.values.detach(),
            "shape": self.shape,
            "static_offset": self.static_offset,
            "dynamic_offset": self.dynamic_offset,
            "timesteps": list(self.timesteps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            UserError: the checkpoint has other timesteps or another head model.
        """
        for name in ("values", "shape", "static_offset"):
            mine, theirs = getattr(self, name), state[name]
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise UserError(
                    f"the checkpoint's FLAME '{name}' has shape {tuple(theirs.shape)}, the data set's "
                    f"{tuple(mine.shape)}: the data or the head model changed"
                )
        if list(state["timesteps"]) != self.timesteps:
            raise UserError("the checkpoint's timesteps are not the data set's: the data changed")
        self.clear_gradients()
        self.values.copy_(state["values"])
        # New tensors, not copies in place: `Flame` caches what it derives from these two by identity.
        self.shape, self.static_offset = state["shape"].to(self.device), state["static_offset"].to(self.device)
        dynamic = state["dynamic_offset"]
        if dynamic is not None:
            if dynamic.shape != (len(self), *self.static_offset.shape) or dynamic.dtype != torch.float32:
                raise UserError(
                    f"the checkpoint's FLAME 'dynamic_offset' has shape {tuple(dynamic.shape)}: "
                    "the data or the head model changed"
                )
            self.dynamic_offset = dynamic.to(self.device)
