"""Reading pickles of NumPy arrays without running what is in them.

A pickle is a program: `pickle.load` on a file from the internet runs whatever the file names. Here no foreign callable
is ever reached. Each global that an array needs is answered with a stand-in class of this module, which only collects
the state, and every array is then rebuilt from its raw bytes by `resolve`, with its shape and type checked.

What a value may cost is bounded as well: a few bytes can describe a list whose elements are one list many times over,
which as an array would fill any memory.
"""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any

import numpy as np

from utils.plain_pickle import ANY_PROTOCOL, PlainUnpickler, Refused, StandIn

# A number is written as a list only where it stands alone; everything large is an array.
_MOST_LISTED = 1_000_000
_MOST_AXES = 8
# Files of head models nest expressions once. One that names another twice doubles the work.
_DEEPEST = 6

_NUMBER = re.compile(r"f[248]|[iu][1248]|b1")


class Dtype(StandIn):
    """Stands for `numpy.dtype`: type code such as 'f8', byte order from the state."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code

    def number(self) -> np.dtype:
        """The type, if it is one of numbers; else ValueError."""
        order: Any = "<"
        if isinstance(self.state, tuple) and len(self.state) > 1 and self.state[1] in ("<", ">", "|", "="):
            order = self.state[1]
        if not isinstance(self.code, str) or not _NUMBER.fullmatch(self.code):
            raise ValueError(f"array of type {reprlib.repr(self.code)}, not of numbers")
        return np.dtype(self.code).newbyteorder(order)


class Resolvable(StandIn):
    """A stand-in that can be turned into an array."""

    def resolve(self, depth: int) -> np.ndarray:
        """The array; `depth` counts the expressions around it. ValueError, with the reason, where there is none."""
        raise NotImplementedError


class Array(Resolvable):
    """Stands for `numpy.ndarray` and for the functions that rebuild one."""

    def resolve(self, depth: int = 0) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) not in (4, 5):
            raise ValueError("array without content")
        shape, dtype, fortran, data = self.state[-4:]
        return _array(dtype, shape, bool(fortran), data)


class _FromBuffer(Resolvable):
    """Stands for NumPy's `_frombuffer(data, dtype, shape, order)` of pickle protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.arguments = (dtype, shape, order == "F", data)

    def resolve(self, depth: int) -> np.ndarray:
        return _array(*self.arguments)


class _Scalar(_FromBuffer):
    """Stands for NumPy's `scalar(dtype, data)`."""

    def __init__(self, dtype: Any = None, data: Any = b"") -> None:
        super().__init__(data, dtype, (), "C")


class _Encode(StandIn):
    """Stands for `_codecs.encode`, with which Python 3 writes bytes into protocol-2 pickles."""

    def __init__(self, text: Any = "", encoding: Any = "latin1", *_: Any) -> None:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii"):
            raise Refused(f"_codecs.encode with encoding {reprlib.repr(encoding)}")
        self.text = text  # not encoded yet: a short pickle can ask for that any number of times


class _EmptyBytes(StandIn):
    """Stands for `bytes()`, with which Python 3 writes empty bytes; a length is refused."""

    def __new__(cls, *arguments: Any) -> Any:
        if arguments:
            raise Refused("builtins.bytes with arguments")
        return b""


class _Reconstructor(StandIn):
    """Stands for `copyreg._reconstructor(cls, base, state)` of pickle protocols 0 and 1."""

    def __new__(cls, kind: Any = None, *_: Any) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, StandIn)):
            raise Refused("copyreg._reconstructor of a foreign class")
        return kind()


_PYTHON_2_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class ArrayUnpickler(PlainUnpickler):
    """Reads arrays, numbers, strings and containers; the arrays stay stand-ins for `resolve`.

    Even NumPy's own functions are replaced: what a pickle names is looked up here, not imported.
    """

    allowed = ANY_PROTOCOL
    globals = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): _Encode,
        ("copyreg", "_reconstructor"): _Reconstructor,
        ("builtins", "object"): StandIn,
        ("builtins", "set"): StandIn,
        ("builtins", "bytes"): _EmptyBytes,
        ("builtins", "bytearray"): _EmptyBytes,
        **{
            (f"{core}.{name}", function): kind
            for core in ("numpy.core", "numpy._core")
            for name, function, kind in (
                ("multiarray", "_reconstruct", Array),
                ("multiarray", "scalar", _Scalar),
                ("numeric", "_frombuffer", _FromBuffer),
            )
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(_PYTHON_2_NAMES.get(module, module), name)


def resolve(value: Any, depth: int = 0) -> np.ndarray:
    """The NumPy array behind a value that `ArrayUnpickler` read; `depth` counts the expressions around it.

    Raises:
        ValueError: it is not an array of numbers, with the reason.
        Exception: a malformed stand-in can fail in any way.
    """
    if depth > _DEEPEST:
        raise ValueError(f"expressions nested more than {_DEEPEST} deep")
    if isinstance(value, Resolvable):
        return value.resolve(depth + 1)
    if isinstance(value, (bool, int, float, list, tuple)):
        if _listed(value, {}) > _MOST_LISTED:
            raise ValueError(f"a list of more than {_MOST_LISTED:,} numbers")
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return array
    raise ValueError(f"a {type(value).__name__}, not an array of numbers")


def _array(dtype: Any, shape: Any, fortran: bool, data: Any) -> np.ndarray:
    """Builds an array from its bytes; never larger than the bytes that the file holds."""
    if isinstance(data, _Encode):
        data = data.text
    if isinstance(data, str):  # a Python-2 str arrives decoded as latin1
        data = data.encode("latin1")
    if not isinstance(dtype, Dtype) or not isinstance(data, (bytes, bytearray)):
        raise ValueError("array of objects, not of numbers")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(shape) > _MOST_AXES or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"array of impossible shape {reprlib.repr(shape)}")
    number = dtype.number()
    if math.prod(shape) * number.itemsize != len(data):
        raise ValueError(f"array of shape {reprlib.repr(shape)} with {len(data)} bytes of {number}")
    array = np.frombuffer(data, dtype=number).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype=number.newbyteorder("="))


def _listed(value: Any, done: dict[int, int]) -> int:
    """How many numbers a nested list holds, counting a shared part each time but walking it once."""
    if not isinstance(value, (list, tuple)):
        return 1
    if id(value) not in done:
        done[id(value)] = 1 + sum(_listed(item, done) for item in value)
    return done[id(value)]
