"""Reading what `torch.save` wrote, without PyTorch's unpickler: tensors and plain values, nothing else.

`torch.load(weights_only=True)` runs no code, but it calls a number of functions
by name, some of which allocate whatever the file asks for, checks no checksum,
and reads the archive with other rules than the check before it would. A file of
tensors and plain values needs three names; they are answered here, and every
tensor is bounded by the bytes that the file really holds.
"""

from __future__ import annotations

import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.plain_pickle import PLAIN, PlainUnpickler, Refused, StandIn, opcodes
from utils.untrusted import open_archive, read_entry

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_SCALARS = (bool, int, float, str, type(None))
_MOST_VALUES = 2_000_000  # shared ones counted each time
_LARGEST_PICKLE = 64 << 20  # bytes; the tensors are outside of it


def load_tensors(path: str | Path) -> Any:
    """The tensors, numbers, strings, None, lists, tuples and dicts in a file of `torch.save`.

    Tensors are on the CPU and own their memory together with those that shared it
    when they were saved. Subclasses of dict come back as dict.

    Raises:
        OSError: missing, unreadable, or not a file.
        Exception: a damaged or hostile file can fail in any way; whichever it is, no code of it ran.
    """
    with open_archive(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        main = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(main) != 1 or len(entries) != len(archive.infolist()):
            raise zipfile.BadZipFile("it is not an archive of PyTorch")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise zipfile.BadZipFile("PyTorch does not compress its files")
        if entries[main[0]].file_size > _LARGEST_PICKLE:
            raise zipfile.BadZipFile("the description of its tensors is too large")
        folder = main[0].removesuffix("data.pkl")
        order = entries.get(f"{folder}byteorder")
        if order is not None and bytes(read_entry(archive, order)).decode("ascii") != sys.byteorder:
            raise Refused("numbers in the other byte order")
        reader = _Reader(
            archive,
            {
                name.removeprefix(f"{folder}data/"): entry
                for name, entry in entries.items()
                if name.startswith(f"{folder}data/")
            },
            read_entry(archive, entries[main[0]]),
        )
        value, _ = _plain(reader.load(), {})
        # What no tensor asked for was not read above; a flipped bit there is damage as well.
        for name, entry in entries.items():
            if name not in reader.read_entries:
                read_entry(archive, entry)
        return value


class _Storage(StandIn):
    """The memory of one or more tensors."""

    def __init__(self, values: Tensor) -> None:
        self.values = values  # [n]


class _Dict(StandIn, dict):
    """Stands for `collections.OrderedDict`; attributes set on one are dropped."""

    def __init__(self) -> None:
        dict.__init__(self)


class _Tensor(StandIn):
    """Stands for the functions that rebuild a tensor from (storage, offset, size, stride, ...)."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if not (
            isinstance(storage, _Storage)
            and len(size) == len(stride) <= 64
            and all(type(number) is int and 0 <= number < 1 << 63 for number in (offset, *size, *stride))
        ):
            raise Refused("a tensor of an unusual kind")
        available = storage.values.numel()
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if count else 0
        # The second: a stride of zero shows one number any number of times.
        if last >= max(available, 1) or count > available or (count and not available):
            raise Refused("a tensor that claims more bytes than its storage has")
        self.value = storage.values[:0].reshape(size) if not count else storage.values.as_strided(size, stride, offset)


class _Parameter(StandIn):
    """Stands for the function that rebuilds `torch.nn.Parameter`, here a plain tensor."""

    def __init__(self, tensor: Any, *_: Any) -> None:
        if not isinstance(tensor, _Tensor):
            raise Refused("a parameter that is no tensor")
        self.value = tensor.value


class _Reader(PlainUnpickler):
    """Unpickles `content`; the tensors' numbers are in the entries `data` of `archive`."""

    allowed = PLAIN | opcodes("BINPERSID")
    globals = {
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch._utils", "_rebuild_parameter"): _Parameter,
        ("collections", "OrderedDict"): _Dict,
    }

    def __init__(self, archive: zipfile.ZipFile, data: dict[str, zipfile.ZipInfo], content: bytearray) -> None:
        super().__init__(content)
        self.archive, self.data = archive, data
        self.storages: dict[str, tuple[torch.dtype, _Storage]] = {}
        self.read_entries: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        try:
            return super().find_class(module, name)
        except Refused as error:
            raise Refused(
                f"it asks for {error}, which such a file does not need, so it may be malicious (nothing of it was run)"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise Refused("a reference to something that is no storage of numbers")
        if key not in self.storages:
            content = read_entry(self.archive, self.data[key])
            self.read_entries.add(self.data[key].filename)
            if type(count) is not int or count * dtype.itemsize != len(content):
                raise Refused("a storage that claims more bytes than it holds, or fewer")
            values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            self.storages[key] = dtype, _Storage(values)
        known, storage = self.storages[key]
        if known is not dtype:
            raise Refused("one storage of two types")
        return storage


def _plain(value: Any, done: dict[int, tuple[Any, int]]) -> tuple[Any, int]:
    """`value` with the stand-ins replaced, and how many values it holds; `done` has what is finished by its identity.

    A pickle of a few bytes can nest references to one list so that whoever walks, compares or prints
    it never ends; values that are shared count each time.
    """
    if type(value) in _SCALARS:
        return value, 1
    if id(value) not in done:
        count = 1
        if isinstance(value, (_Tensor, _Parameter)):
            result: Any = value.value
        elif isinstance(value, dict):
            if any(type(key) not in _SCALARS for key in value):
                raise Refused("a dict with unusual keys")
            result = {}
            for key, item in value.items():
                result[key], more = _plain(item, done)
                count += more
        elif type(value) in (list, tuple):
            parts = [_plain(item, done) for item in value]
            result = type(value)(part for part, _ in parts)
            count += sum(more for _, more in parts)
        else:
            raise Refused(f"a value of type {type(value).__name__}")
        if count > _MOST_VALUES:
            raise Refused(f"more than {_MOST_VALUES:,} values")
        done[id(value)] = result, count
    return done[id(value)]
