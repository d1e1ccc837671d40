"""A pickle reader for files from strangers.

A pickle is a program. This reader runs no foreign callable: a subclass answers
every global with a `StandIn` or refuses it, and names the opcodes that its files
need; an object is called, or given a state, only if it is a stand-in. Nor can a
file take much more memory or time than its own size:

* it is Python's own unpickler, not the C one, which allocates a table of
  whatever length one opcode names;
* an opcode of one byte can make an object of two hundred, so opcodes are counted;
* `bytearray` is read like `bytes`, not made of the announced length first;
* what an opcode looks at again and again is short: integers and the lines they
  are written on, the arguments of a call, the keys of dictionaries, which are
  scalars and few, so that no choice of keys makes a dictionary slow.

What comes out can still be lists that hold one list many times over: cut it with
`reprlib` before it is printed, and count before it is walked.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

# A head model takes a few hundred opcodes, a checkpoint a few thousand; lists of numbers one for each.
_MOST_OPCODES = 500_000
_LARGEST_INTEGER = 1 << 256  # states of random generators have 128 bits
_LARGEST_KEY = 1 << 31
_LONGEST_NUMBER = 100  # characters of a number that is written as text
_LONGEST_KEY = 4096
_MOST_KEYS = 20_000  # of one dictionary
_MOST_ARGUMENTS = 16  # of one call


class Refused(Exception):
    """The file asks for something that such a file does not need."""


class StandIn:
    """What a global of a pickle is answered with: accepts any arguments and any state and does nothing with them."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def opcodes(names: str) -> frozenset[int]:
    """The opcodes of these names, as in the module `pickle`."""
    return frozenset(getattr(pickle, name)[0] for name in names.split())


# What torch.save writes, and whoever writes plain values in protocol 2.
PLAIN = opcodes(
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL REDUCE BUILD BINPUT LONG_BINPUT "
    "BINGET LONG_BINGET"
)
# The other protocols, and what Python 2 writes; neither sets, nor what no writer of such files uses.
ANY_PROTOCOL = PLAIN | opcodes(
    "FRAME INT LONG FLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 LIST DICT STACK_GLOBAL NEWOBJ PUT MEMOIZE GET POP POP_MARK"
)
_NUMBERS_AS_TEXT = opcodes("INT LONG FLOAT PUT GET")
_INTEGERS = opcodes("INT LONG LONG1")
_STORED = opcodes("PUT BINPUT LONG_BINPUT")
_CALLS = opcodes("REDUCE NEWOBJ")
_BUILD = pickle.BUILD[0]
# The opcodes that hash what is on the stack, and what of it.
_HASHED = {pickle.SETITEM[0]: slice(-2, -1), pickle.SETITEMS[0]: slice(0, None, 2), pickle.DICT[0]: slice(0, None, 2)}


def _check_key(key: Any) -> None:
    if type(key) is int and abs(key) < _LARGEST_KEY or type(key) in (bool, float, type(None)):
        return
    if type(key) not in (str, bytes) or len(key) > _LONGEST_KEY:
        raise Refused("a dictionary with unusual keys")


def _check_before(reader: PlainUnpickler, code: int) -> None:
    """Refuses what would take long, or reach anything but a stand-in."""
    stack = reader.stack
    if code in _CALLS:
        kind, arguments = stack[-2:]
        if not (isinstance(kind, type) and issubclass(kind, StandIn)):
            raise Refused("a call of something that cannot be called")
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise Refused(f"a call with anything but up to {_MOST_ARGUMENTS} arguments")
    elif code == _BUILD and not isinstance(stack[-2], StandIn):
        raise Refused("a state for something that has none")
    elif code in _HASHED:
        for key in stack[_HASHED[code]]:
            _check_key(key)


def _check_after(reader: PlainUnpickler, code: int) -> None:
    """Refuses what later opcodes could look at again and again."""
    if code in _INTEGERS and abs(reader.stack[-1]) >= _LARGEST_INTEGER:
        raise Refused("an integer of too many digits")
    if code in _HASHED and len(reader.stack[-1]) > _MOST_KEYS:
        raise Refused(f"a dictionary of more than {_MOST_KEYS:,} keys")
    if code in _STORED and next(reversed(reader.memo)) >= _MOST_OPCODES:
        raise Refused("a reference of too large a number")


def _checked(code: int, handler: Callable[[Any], None]) -> Callable[[Any], None]:
    before, after = code in _CALLS or code == _BUILD or code in _HASHED, code in _INTEGERS | _HASHED.keys() | _STORED

    def run(reader: PlainUnpickler) -> None:
        reader.opcodes += 1
        if reader.opcodes > _MOST_OPCODES:
            raise Refused(f"more than {_MOST_OPCODES:,} pickle opcodes")
        if code not in reader.allowed:
            raise Refused(f"the pickle opcode {bytes([code])!r}")
        if before:
            _check_before(reader, code)
        if code in _NUMBERS_AS_TEXT:
            readline, line = reader.readline, reader.readline()
            if len(line) > _LONGEST_NUMBER:
                raise Refused("a number of too many digits")
            reader.readline = lambda: line
            handler(reader)
            reader.readline = readline
        else:
            handler(reader)
        if after:
            _check_after(reader, code)

    return run


class PlainUnpickler(pickle._Unpickler):
    """Unpickles `content`; subclasses say which opcodes and which globals it may name."""

    allowed: ClassVar[frozenset[int]] = PLAIN
    globals: ClassVar[Mapping[tuple[str, str], type]] = {}  # (module, name) -> what it is answered with
    # Of the base class, which the type checker does not know.
    stack: list[Any]
    memo: dict[int, Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    append: Callable[[Any], None]

    dispatch = {code: _checked(code, handler) for code, handler in pickle._Unpickler.dispatch.items()}

    def __init__(self, content: bytes | bytearray, **options: Any) -> None:
        super().__init__(io.BytesIO(content), **options)
        self.opcodes = 0

    def load_bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(size))

    dispatch[pickle.BYTEARRAY8[0]] = _checked(pickle.BYTEARRAY8[0], load_bytearray)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.globals:
            raise Refused(f"{module}.{name}")
        return self.globals[module, name]
