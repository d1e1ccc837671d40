"""A pickle reader for files from strangers.

A pickle is a program. This reader runs no foreign callable: a subclass answers
every global with a `StandIn` or refuses it. Nor can a file take much more memory
than its own size:

* it is Python's own unpickler, not the C one, which allocates a table of
  whatever length one opcode names;
* an opcode of one byte can make an object of two hundred, so opcodes are counted;
* `bytearray` is read like `bytes`, not made of the announced length first;
* a tuple of two references to a tuple of two references, and so on, takes no room, but to hash it
  takes for ever. So does printing it: cut what comes out of here with `reprlib`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

# A head model takes a few hundred opcodes, a checkpoint a few thousand; lists of numbers one for each.
_MOST_OPCODES = 500_000


class Refused(Exception):
    """The file asks for something that such a file does not need."""


class StandIn:
    """What a global of a pickle is answered with: accepts any arguments and any state and does nothing with them.

    Whatever a pickle can get hold of defines `__setstate__`, so that the BUILD opcode can set neither attributes of an
    instance nor of the class itself.
    """

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The opcodes that hash what is on the stack, and what of it.
_HASHED = {
    pickle.SETITEM[0]: slice(-2, -1),
    pickle.SETITEMS[0]: slice(0, None, 2),
    pickle.DICT[0]: slice(0, None, 2),
    pickle.ADDITEMS[0]: slice(None),
    pickle.FROZENSET[0]: slice(None),
}


def _checked(code: int, handler: Callable[[Any], None]) -> Callable[[Any], None]:
    hashed = _HASHED.get(code)

    def run(reader: PlainUnpickler) -> None:
        reader.opcodes += 1
        if reader.opcodes > _MOST_OPCODES:
            raise Refused(f"more than {_MOST_OPCODES:,} pickle opcodes")
        if hashed and any(
            isinstance(key, tuple) and any(isinstance(item, (tuple, frozenset)) for item in key)
            for key in reader.stack[hashed]
        ):
            raise Refused("a dictionary with nested keys")
        handler(reader)

    return run


class PlainUnpickler(pickle._Unpickler):
    """Unpickles `content`; subclasses have the `globals` that it may name, and `persistent_load` where needed."""

    globals: ClassVar[Mapping[tuple[str, str], type]] = {}  # (module, name) -> what it is answered with
    # Of the base class, which the type checker does not know.
    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    dispatch = {
        code: _checked(code, handler)
        for code, handler in pickle._Unpickler.dispatch.items()
        if code
        not in (*pickle.EXT1, *pickle.EXT2, *pickle.EXT4, *pickle.PERSID, *pickle.NEXT_BUFFER, *pickle.READONLY_BUFFER)
    }

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
