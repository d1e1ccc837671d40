"""Reading head models.

The official FLAME files are Python-2 pickles of NumPy arrays, scipy.sparse
matrices and chumpy arrays; `utils.array_pickle` reads them without running what
is in them. chumpy, which no longer imports with a current NumPy, is not needed.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from utils.array_pickle import ArrayUnpickler, Resolvable, resolve
from utils.errors import UserError, one_line
from utils.plain_pickle import Refused
from utils.untrusted import read_regular

# The largest official file is 53 MB; a file beyond this is not a head model.
MAX_BYTES = 1 << 30
# J_regressor has 5 rows; as a dense matrix FLAME's takes 200 KB.
_MOST_DENSE = 8_000_000


class _Sparse(Resolvable):
    """Stands for a scipy.sparse matrix in compressed columns (`by_column`) or rows.

    scipy itself would take indices unchecked and could then write out of bounds.
    """

    by_column = True

    def resolve(self, depth: int) -> np.ndarray:
        if not isinstance(self.state, dict):
            raise ValueError("sparse matrix without content")
        shape: Any = self.state.get("_shape", self.state.get("shape"))
        values, indices, pointers = (resolve(self.state.get(key), depth) for key in ("data", "indices", "indptr"))
        rows, columns = (int(n) for n in shape)
        outer, inner = (columns, rows) if self.by_column else (rows, columns)
        if rows < 0 or columns < 0 or rows * columns > _MOST_DENSE:
            raise ValueError(f"sparse matrix of impossible shape {reprlib.repr(shape)}")
        if (
            pointers.shape != (outer + 1,)
            or values.ndim != 1
            or values.shape != indices.shape
            or indices.dtype.kind not in "iu"
            or pointers.dtype.kind not in "iu"
            or pointers[0] != 0
            or pointers[-1] != len(indices)
            or (np.diff(pointers.astype(np.int64)) < 0).any()
            or (len(indices) and (indices.min() < 0 or indices.max() >= inner))
        ):
            raise ValueError("sparse matrix whose indices do not fit its shape")
        lengths: Any = np.diff(pointers.astype(np.int64))
        dense = np.zeros((outer, inner), dtype=np.float64)
        row = np.repeat(np.arange(outer), lengths)
        np.add.at(dense, (row, indices), values)  # entries named twice add up, as in scipy
        return dense.T.copy() if self.by_column else dense


class _SparseRows(_Sparse):
    by_column = False


class _Chumpy(Resolvable):
    """Stands for any chumpy class; plain arrays (`Ch`) and selections (`Select`) can be evaluated."""

    kind = ""

    def resolve(self, depth: int) -> np.ndarray:
        if isinstance(self.state, dict):
            if self.kind.endswith(".Ch") and "x" in self.state:
                return resolve(self.state["x"], depth)
            if self.kind.endswith(".Select") and {"a", "idxs"} <= self.state.keys():
                # Select = a.ravel()[idxs], reshaped where a shape is given.
                chosen = resolve(self.state["a"], depth).ravel()[resolve(self.state["idxs"], depth)]
                shape = self.state.get("preferred_shape")
                return chosen if shape is None else chosen.reshape([int(n) for n in shape])
        raise ValueError(f"{self.kind} expression, which cannot be evaluated without chumpy")


_SPARSE = {"csc_matrix": _Sparse, "csc_array": _Sparse, "csr_matrix": _SparseRows, "csr_array": _SparseRows}


class _HeadUnpickler(ArrayUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[:2] == ["scipy", "sparse"] and name in _SPARSE:
            return _SPARSE[name]
        if module.split(".")[0] == "chumpy":
            return self.chumpy_class(f"{module}.{name}")
        return super().find_class(module, name)

    def chumpy_class(self, kind: str) -> type[_Chumpy]:
        """One class for each kind; chumpy has about 60."""
        known = self.__dict__.setdefault("known_kinds", {})
        if kind not in known and len(known) == 100:
            raise Refused("more than 100 kinds of chumpy expressions")
        return known.setdefault(kind, type("_Chumpy", (_Chumpy,), {"kind": kind}))


def read_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary in `path`, its arrays still as stand-ins for `resolve`.

    Strings of Python 2 are read as latin1, as NumPy arrays require.

    Raises:
        UserError: missing, damaged, not a dictionary, or naming a global that
            no head model needs (such a file may be an attack; nothing of it has run).
    """
    path = Path(path)
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if content is None:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no head model is")
    try:
        value = _HeadUnpickler(content, encoding="latin1").load()
    except Refused as error:
        raise UserError(
            f"{path} refused: it asks for {error}, which no head model needs, so it may be malicious "
            "(nothing of it was run)"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}: {one_line(error)[:200]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a dictionary")
    return value
