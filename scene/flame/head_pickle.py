"""Reading head-model pickles without running what is in them.

The official FLAME files are Python-2 pickles of NumPy arrays, scipy.sparse
matrices and chumpy arrays. A pickle is a program: `pickle.load` on a file from
the internet runs whatever the file names. Here no foreign callable is ever
reached. Each global that a head model needs is answered with a stand-in class
of this module, which only collects the state, and every array is then rebuilt
from its raw bytes with its shape and type checked; any other global is refused.
chumpy, which no longer imports with a current NumPy, is not needed.

What a value may cost is bounded as well: a few bytes can describe a list whose
elements are one list many times over, which as an array would fill any memory.
"""

from __future__ import annotations

import math
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, one_line
from utils.plain_pickle import PlainUnpickler, Refused
from utils.untrusted import read_regular

# The largest official file is 53 MB; a file beyond this is not a head model.
MAX_BYTES = 1 << 30

# A number is written as a list only where it stands alone; everything large is an array.
_MOST_LISTED = 1_000_000
# J_regressor has 5 rows; as a dense matrix FLAME's takes 200 KB.
_MOST_DENSE = 8_000_000
# The official files nest chumpy expressions once. One that names another twice doubles the work.
_DEEPEST = 6

_NUMBER = re.compile(r"f[248]|[iu][1248]|b1")


class _Opaque:
    """A stand-in: accepts any arguments and any state and does nothing with them.

    Every stand-in defines `__setstate__`, so that the BUILD opcode can set
    neither attributes of an instance nor of the class itself.
    """

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Opaque):
    """Stands for `numpy.dtype`: type code such as 'f8', byte order from the state."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code

    def resolve(self) -> np.dtype:
        order = "<"
        if isinstance(self.state, tuple) and len(self.state) > 1 and self.state[1] in ("<", ">", "|", "="):
            order = self.state[1]
        if not isinstance(self.code, str) or not _NUMBER.fullmatch(self.code):
            raise ValueError(f"array of type {reprlib.repr(self.code)}, not of numbers")
        return np.dtype(self.code).newbyteorder(order)


def _array(dtype: Any, shape: Any, fortran: bool, data: Any) -> np.ndarray:
    """Builds an array from its bytes; never larger than the bytes that the file holds."""
    if isinstance(data, str):  # a Python-2 str arrives decoded as latin1
        data = data.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise ValueError("array of objects, not of numbers")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"array of impossible shape {reprlib.repr(shape)}")
    number = dtype.resolve()
    if math.prod(shape) * number.itemsize != len(data):
        raise ValueError(f"array of shape {reprlib.repr(shape)} with {len(data)} bytes of {number}")
    array = np.frombuffer(data, dtype=number).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype=number.newbyteorder("="))


class _Array(_Opaque):
    """Stands for `numpy.ndarray` and for the functions that rebuild one."""

    def resolve(self, _: int) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) not in (4, 5):
            raise ValueError("array without content")
        shape, dtype, fortran, data = self.state[-4:]
        return _array(dtype, shape, bool(fortran), data)


class _FromBuffer(_Opaque):
    """Stands for NumPy's `_frombuffer(data, dtype, shape, order)` of pickle protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.arguments = (dtype, shape, order == "F", data)

    def resolve(self, _: int) -> np.ndarray:
        return _array(*self.arguments)


class _Scalar(_Opaque):
    """Stands for NumPy's `scalar(dtype, data)`."""

    def __init__(self, dtype: Any = None, data: Any = b"") -> None:
        self.arguments = (dtype, (), False, data)

    def resolve(self, _: int) -> np.ndarray:
        return _array(*self.arguments)


class _Sparse(_Opaque):
    """Stands for a scipy.sparse matrix in compressed columns (`by_column`) or rows.

    scipy itself would take indices unchecked and could then write out of bounds.
    """

    by_column = True

    def resolve(self, depth: int) -> np.ndarray:
        if not isinstance(self.state, dict):
            raise ValueError("sparse matrix without content")
        shape = self.state.get("_shape", self.state.get("shape"))
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
        dense = np.zeros((outer, inner), dtype=np.float64)
        row = np.repeat(np.arange(outer), np.diff(pointers.astype(np.int64)))
        np.add.at(dense, (row, indices), values)  # entries named twice add up, as in scipy
        return dense.T.copy() if self.by_column else dense


class _SparseRows(_Sparse):
    by_column = False


class _Chumpy(_Opaque):
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


class _Encode(_Opaque):
    """Stands for `_codecs.encode`, with which Python 3 writes bytes into protocol-2 pickles."""

    def __new__(cls, text: Any = "", encoding: Any = "latin1", *_: Any) -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii"):
            raise Refused(f"_codecs.encode with encoding {reprlib.repr(encoding)}")
        return text.encode(encoding)


class _EmptyBytes(_Opaque):
    """Stands for `bytes()`, with which Python 3 writes empty bytes; a length is refused."""

    def __new__(cls, *arguments: Any) -> Any:
        if arguments:
            raise Refused("builtins.bytes with arguments")
        return b""


class _Reconstructor(_Opaque):
    """Stands for `copyreg._reconstructor(cls, base, state)` of pickle protocols 0 and 1."""

    def __new__(cls, kind: Any = None, *_: Any) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, _Opaque)):
            raise Refused("copyreg._reconstructor of a foreign class")
        return kind()


_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("copyreg", "_reconstructor"): _Reconstructor,
    ("builtins", "object"): _Opaque,
    ("builtins", "set"): _Opaque,
    ("builtins", "bytes"): _EmptyBytes,
    ("builtins", "bytearray"): _EmptyBytes,
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Scalar
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _FromBuffer
_PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_SPARSE = {"csc_matrix": _Sparse, "csc_array": _Sparse, "csr_matrix": _SparseRows, "csr_array": _SparseRows}


class _HeadUnpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2_NAMES.get(module, module)
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        if module.split(".")[:2] == ["scipy", "sparse"] and name in _SPARSE:
            return _SPARSE[name]
        if module.split(".")[0] == "chumpy":
            return self.chumpy_class(f"{module}.{name}")
        raise Refused(f"{module}.{name}")

    def chumpy_class(self, kind: str) -> type[_Chumpy]:
        """One class for each kind; chumpy has about 60."""
        known = self.__dict__.setdefault("known_kinds", {})
        if kind not in known and len(known) == 100:
            raise Refused("more than 100 kinds of chumpy expressions")
        return known.setdefault(kind, type("_Chumpy", (_Chumpy,), {"kind": kind}))


def resolve(value: Any, depth: int = 0) -> np.ndarray:
    """The NumPy array behind a value of `read_pickle`; `depth` counts the expressions around it.

    Raises:
        ValueError: it is not an array of numbers, with the reason.
    """
    if depth > _DEEPEST:
        raise ValueError(f"expressions nested more than {_DEEPEST} deep")
    if isinstance(value, _Opaque) and hasattr(value, "resolve"):
        return value.resolve(depth + 1)
    if isinstance(value, (bool, int, float, list, tuple)):
        if _listed(value, {}) > _MOST_LISTED:
            raise ValueError(f"a list of more than {_MOST_LISTED:,} numbers")
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return array
    raise ValueError(f"a {type(value).__name__}, not an array of numbers")


def _listed(value: Any, done: dict[int, int]) -> int:
    """How many numbers a nested list holds, counting a shared part each time but walking it once."""
    if not isinstance(value, (list, tuple)):
        return 1
    if id(value) not in done:
        done[id(value)] = 1 + sum(_listed(item, done) for item in value)
    return done[id(value)]


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
