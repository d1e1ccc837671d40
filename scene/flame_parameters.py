"""The FLAME parameters of a capture, one row per timestep, and the optimizer that moves single rows.

Everything that varies over time is one tensor [T, D]; a row is

    expression (n_expr) | rotation 3 | neck_pose 3 | jaw_pose 3 | eyes_pose 6 | translation 3

with rotations as axis-angle in radians and the translation in metres. An
iteration sees one timestep, so it touches one row, with a handful of small
operations instead of one for each parameter.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from scene import teeth
from scene.head_model import HeadModel
from utils.errors import UserError
from utils.files import atomic_path

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
        raise UserError(f"{label} has {values.shape[-1]} coefficients, but the head model has {width}: "
                        "use the head model that the capture was tracked with")
    fitted = np.zeros((*values.shape[:-1], width), dtype=np.float32)
    shared = min(width, values.shape[-1])
    fitted[..., :shared] = values[..., :shared]
    return fitted


def fit_offset(offset: np.ndarray, vertices: int, label: str) -> np.ndarray:
    """[..., V, 3] offsets for `vertices` vertices; FLAME's 5023 get zeros for the teeth.

    Raises:
        UserError: another number of vertices.
    """
    count = offset.shape[-2]
    if count == teeth.FLAME_VERTICES and vertices == teeth.FLAME_VERTICES + teeth.TEETH_VERTICES:
        padding = np.zeros((*offset.shape[:-2], teeth.TEETH_VERTICES, 3), dtype=offset.dtype)
        offset = np.concatenate([offset, padding], axis=-2)
    elif count != vertices:
        raise UserError(f"{label} has {count} vertices, but the head model has {vertices}: "
                        "use the head model that the capture was tracked with")
    return np.ascontiguousarray(offset, dtype=np.float32)


class FlameParameters:
    """FLAME parameters over all timesteps; expression and motion are trainable row by row.

    `shape`, `static_offset` and `dynamic_offset` are constants.
    """

    def __init__(
        self,
        flame: Mapping[str, np.ndarray],   # as in a data set: shape (n,), expr (T, n), ... (T, 3), static_offset (V, 3)
        timesteps: Sequence[int] | None,   # [T] the number of each row in the capture; None = 0..T-1
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
            if not np.isfinite(array).all():
                raise UserError(f"{source}: '{key}' holds values that are not finite")
            return array.astype(np.float32)

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
            dynamic = fit_offset(read("dynamic_offset", count, None, 3), head.n_vertices,
                                 f"{source}: 'dynamic_offset'")
        ids = list(range(count)) if timesteps is None else [int(t) for t in timesteps]
        if len(ids) != count:
            raise UserError(f"{source}: {len(ids)} timestep numbers for {count} rows")

        self.device = torch.device(device)
        self.trainable = trainable
        self.timesteps = ids
        self.n_expr = head.n_expr
        self.columns = row_columns(head.n_expr)
        self.values = torch.from_numpy(np.concatenate(parts, axis=1)).to(self.device)  # [T, D]
        self.shape = torch.from_numpy(shape).to(self.device)                           # [n_shape]
        self.static_offset = torch.from_numpy(static).to(self.device)                  # [V, 3] metres
        self.dynamic_offset = None if dynamic is None else torch.from_numpy(dynamic).to(self.device)  # [T, V, 3]
        self._leaves: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """The number of timesteps."""
        return self.values.shape[0]

    def row(self, timestep: int) -> Tensor:
        """[D] the row of `timestep`: an autograd leaf sharing memory with `values`.

        All calls between two `clear_gradients` give the same leaf, so gradients
        add up. Without gradients, or when nothing is fine-tuned, it is a plain view.
        """
        if not (self.trainable and torch.is_grad_enabled()):
            return self.values[timestep]
        leaf = self._leaves.get(timestep)
        if leaf is None:
            leaf = self._leaves[timestep] = self.values[timestep].detach().requires_grad_()
        return leaf

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """The parameters in a row (or in rows [..., D]) by name, as views."""
        return {name: row[..., columns] for name, columns in self.columns.items()}

    def gradients(self) -> dict[int, Tensor]:
        """The gradient [D] of every row that has one."""
        return {timestep: leaf.grad for timestep, leaf in self._leaves.items() if leaf.grad is not None}

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
        with atomic_path(path) as temporary:
            np.savez(temporary, **self.arrays())

    @classmethod
    def load(cls, path: str | Path, head: HeadModel, *, device: torch.device | str = "cpu",
             trainable: bool = True) -> FlameParameters:
        """Reads a `flame_param.npz`, ours or another trainer's.

        Raises:
            UserError: damaged, or not fitting the head model; names the field.
        """
        path = Path(path)
        wanted = {"expr", "shape", "static_offset", "dynamic_offset", "timestep_index", *MOTION}
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if entry.file_size > MAX_FIELD_BYTES:
                        raise UserError(f"{path}: '{entry.filename}' is larger than {MAX_FIELD_BYTES >> 30} GiB")
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files if name in wanted}
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist") from error
        except UserError:
            raise
        except Exception as error:  # a damaged archive can fail in any way
            raise UserError(f"{path} is not a readable npz file ({type(error).__name__}: {error})") from error
        ids = arrays.pop("timestep_index", None)
        if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise UserError(f"{path}: 'timestep_index' has shape {ids.shape} of {ids.dtype}, expected whole numbers")
        return cls(arrays, None if ids is None else ids.tolist(), head, device=device, trainable=trainable,
                   source=path)

    # ---- checkpoint ---------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and lists for a checkpoint."""
        return {"values": self.values.detach(), "shape": self.shape, "static_offset": self.static_offset,
                "dynamic_offset": self.dynamic_offset, "timesteps": list(self.timesteps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            UserError: the checkpoint has other timesteps or another head model.
        """
        for name in ("values", "shape", "static_offset"):
            mine, theirs = getattr(self, name), state[name]
            if mine.shape != theirs.shape:
                raise UserError(f"the checkpoint's FLAME '{name}' has shape {tuple(theirs.shape)}, the data set's "
                                f"{tuple(mine.shape)}: the data or the head model changed")
        if list(state["timesteps"]) != self.timesteps:
            raise UserError("the checkpoint's timesteps are not the data set's: the data changed")
        self.clear_gradients()
        self.values.copy_(state["values"])
        # New tensors, not copies in place: `Flame` caches what it derives from these two by identity.
        self.shape, self.static_offset = state["shape"].to(self.device), state["static_offset"].to(self.device)
        dynamic = state["dynamic_offset"]
        self.dynamic_offset = None if dynamic is None else dynamic.to(self.device)


class RowAdam:
    """Adam that moves only the rows that have a gradient.

    A dense Adam over [T, D] would move every row in every iteration: a row not
    visited has gradient zero, but its momentum still carries it, and the bias
    correction counts steps it never took. So each row has its own moments and
    its own step count, advanced only when its timestep was rendered (Kingma &
    Ba 2015, applied per row, as in a lazy or sparse Adam). Rows never visited,
    such as the held-out sequence, stay bit for bit as they were tracked.
    """

    def __init__(
        self,
        parameters: FlameParameters,
        *,
        expr_lr: float,
        translation_lr: float,
        pose_lr: float,  # rotation, neck, jaw and eyes
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
    ) -> None:
        self.parameters = parameters
        self.betas = betas
        self.eps = eps
        self._first = torch.zeros_like(parameters.values)
        self._second = torch.zeros_like(parameters.values)
        self._steps = [0] * len(parameters)
        self.set_lr(expr_lr=expr_lr, translation_lr=translation_lr, pose_lr=pose_lr)

    def set_lr(self, *, expr_lr: float, translation_lr: float, pose_lr: float) -> None:
        """Sets the learning rates per unit: coefficient, metre, radian."""
        lr = torch.empty(self.parameters.values.shape[1])
        lr[self.parameters.columns["expr"]] = expr_lr
        lr[self.parameters.columns["translation"]] = translation_lr
        for name in POSES:
            lr[self.parameters.columns[name]] = pose_lr
        self._lr = lr.to(self.parameters.device)  # [D]

    @torch.no_grad()
    def step(self) -> None:
        """One Adam step for every row that has a gradient."""
        beta1, beta2 = self.betas
        for timestep, gradient in self.parameters.gradients().items():
            self._steps[timestep] += 1
            count = self._steps[timestep]
            first, second = self._first[timestep], self._second[timestep]
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (second.sqrt() / (1 - beta2 ** count) ** 0.5).add_(self.eps)
            self.parameters.values[timestep].addcdiv_(first * self._lr, denominator, value=-1 / (1 - beta1 ** count))

    def zero_grad(self) -> None:
        """Forgets the gradients of all rows."""
        self.parameters.clear_gradients()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors for a checkpoint."""
        return {"first": self._first, "second": self._second, "steps": torch.tensor(self._steps), "lr": self._lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            UserError: the state belongs to another number of timesteps or coefficients.
        """
        if state["first"].shape != self._first.shape:
            raise UserError(f"the checkpoint's FLAME optimizer state has shape {tuple(state['first'].shape)}, "
                            f"expected {tuple(self._first.shape)}: the data or the head model changed")
        self._first.copy_(state["first"])
        self._second.copy_(state["second"])
        self._steps = state["steps"].tolist()
        self._lr = state["lr"].to(self.parameters.device)
