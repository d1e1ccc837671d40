"""Spoiling files: bytes of any kind, numbers in text, zip archives with valid checksums, PNG chunks, pickles, JSON."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

EXTREME_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"2147483647",
    b"4294967295",
    b"-9223372036854775808",
    b"1000000000000",
    b"1e308",
    b"-1e999",
    b"5e-324",
    b"NaN",
    b"Infinity",
    b"0x7f",
    b"9" * 5000,
    b"1_0",
    b"",
    b"true",
    b"null",
    b'"x"',
    b"[]",
    b"{}",
    b"[" * 2000,
    b"nan",
    b"inf",
    b"(1,)",
    b"-" * 300 + b"1",
)
EXTREME_BYTES = tuple(
    struct.pack(layout, value)
    for layout, value in (
        ("<B", 0),
        ("<B", 255),
        ("<H", 0xFFFF),
        ("<i", -1),
        ("<i", 2**31 - 1),
        ("<I", 2**31),
        (">I", 2**31 - 1),
        (">I", 100_000),
        ("<I", 10**9),
        ("<Q", 10**12),
        ("<Q", 2**64 - 1),
        ("<Q", 2**40),
        ("<q", -(2**63)),
        ("<d", math.nan),
        ("<d", math.inf),
        ("<d", 1e308),
        ("<f", math.nan),
        ("<f", 3e38),
        ("<d", -0.0),
    )
)
EXTREME_VALUES = (
    None,
    True,
    0,
    -1,
    1.5,
    10**12,
    -(10**12),
    10**4000,
    2**63,
    1e308,
    -1e308,
    5e-324,
    math.nan,
    math.inf,
    "",
    "x",
    "\0",
    "\ud800",
    "../../../etc/passwd",
    "/dev/zero",
    "a" * 5000,
    "\x1b[2J",
    [],
    [[]],
    {},
    {"x": {}},
    [1, 2, 3],
    [[1, 2], [3]],
    [None] * 50,
    {"": 0},
)
PICKLE_PIECES = (
    b"cos\nsystem\n(S'exit 3'\ntR",
    b"cbuiltins\neval\n(S'1'\ntR",
    b"cbuiltins\ngetattr\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"\x96" + struct.pack("<Q", 10**11),
    b"\x8e" + struct.pack("<Q", 10**11),
    b"r" + struct.pack("<I", 2**32 - 1),
    b"\x8b" + struct.pack("<i", 2**31 - 1),
    b"\x95" + struct.pack("<Q", 10**12),
    b"cbuiltins\nbytearray\n(I100000000000\ntR",
    b"2\x86" * 40,
    b"(lp0\n" + b"(h\x00h\x00l" * 30,
    b"0",
    b".",
    b"(",
    b"t",
    b"]" * 1000,
    b"}" * 1000,
    b"\x8f" * 1000,
    b"R",
    b"b",
    b"\x81",
    b"N",
    b"I01\n",
    b"L1L\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n)R",
    b"Q",
    b"P1\n",
    b"\x97",
    b"ctorch._utils\n_rebuild_qtensor\n",
    b"cscipy.sparse\ncsc_matrix\n)\x81",
)


def spoil_bytes(random: Random, data: bytes, other: bytes) -> bytes:
    """One to four changes at random places; `other` is a valid file to splice with."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(result) + 1)
        length = random.choice((1, 2, 4, 8, 40, 400))
        kind = random.randrange(9)
        if kind == 0 and result:
            for _ in range(random.choice((1, 1, 8))):
                result[random.randrange(len(result))] ^= 1 << random.randrange(8)
        elif kind == 1:
            del result[place:]
        elif kind == 2:
            del result[place : place + length]
        elif kind == 3:
            result[place:place] = result[place : place + length] * random.choice((1, 2, 50))
        elif kind == 4:
            start = random.randrange(len(other) + 1)
            result[place:] = other[start:]
        elif kind == 5:
            result[place:place] = random.randbytes(length)
        elif kind == 6:
            extreme = random.choice(EXTREME_BYTES)
            result[place : place + len(extreme)] = extreme
        elif kind == 7:
            numbers = list(re.finditer(rb"-?[0-9]+(\.[0-9]+)?", result))
            if numbers:
                number = random.choice(numbers)
                result[number.start() : number.end()] = random.choice(EXTREME_NUMBERS)
        elif kind == 8:
            words = list(re.finditer(rb"[A-Za-z_]{2,}", result))
            if words:
                first, second = random.choice(words), random.choice(words)
                result[first.start() : first.end()] = second[0]
    return bytes(result)


def spoil_zip(random: Random, data: bytes, other: bytes) -> bytes:
    """An archive whose entries are spoilt and whose checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(io.BytesIO(other)) as archive:
        foreign = archive.read(random.choice(archive.infolist()))
    method = random.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    chosen = random.randrange(len(entries))
    if random.random() < 0.5:  # what describes the others
        chosen = next((i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")), chosen)
    name, content = entries[chosen]
    kind = random.randrange(8)
    if kind < 4:
        content = (
            spoil_pickle(random, content, foreign) if name.endswith(".pkl") else spoil_bytes(random, content, foreign)
        )
    elif kind == 4:
        name = random.choice(("../" + name, "/" + name, name + "x", "", entries[0][0]))
    elif kind == 5:
        content = bytes(random.choice((0, 1, 100_000)))
    elif kind == 6:
        content = foreign
    elif kind == 7:
        header = b"{'descr': %b, 'fortran_order': %b, 'shape': %b, }" % (
            random.choice(
                (
                    b"'<f4'",
                    b"'|O'",
                    b"'<f8'",
                    b"'<M8[s]'",
                    b"[('a', '<f4')]",
                    b"'<U9'",
                    b"'|V8'",
                    b"'<c16'",
                    b"'>i8'",
                    b"'|b1'",
                )
            ),
            random.choice((b"False", b"True", b"0", b"None")),
            random.choice(
                (
                    b"(1000000000000,)",
                    b"(1, 3)",
                    b"(-1,)",
                    b"()",
                    b"(0,)",
                    b"(True,)",
                    b"(1,)" * 40,
                    b"(2.0,)",
                    b"(" * 500,
                )
            ),
        )
        content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content[-12:]
    entries[chosen] = name, content
    if random.random() < 0.1:
        entries.append(random.choice(entries))
    if random.random() < 0.1:
        del entries[random.randrange(len(entries))]
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    result = written.getvalue()
    return spoil_bytes(random, result, other) if random.random() < 0.2 else result


def spoil_pickle(random: Random, data: bytes, other: bytes) -> bytes:
    """A pickle with opcodes put in, or bytes spoilt."""
    if random.random() < 0.6:
        return spoil_bytes(random, data, other)
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2))):
        place = random.choice((2, len(result) - 1, random.randrange(len(result) + 1)))
        result[place:place] = random.choice(PICKLE_PIECES)
    return bytes(result)


def spoil_json(random: Random, data: bytes, other: bytes) -> bytes:
    """A JSON text with one or two of its values exchanged, or its bytes spoilt."""
    if random.random() < 0.3:
        return spoil_bytes(random, data, other)
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2))):
        value = spoil_tree(random, value)
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of too many digits
        return spoil_bytes(random, data, other)
    return text.replace('"x"', "[" * random.choice((1, 100_000)) if random.random() < 0.05 else '"x"', 1).encode()


def spoil_tree(random: Random, value: Any, values: tuple = EXTREME_VALUES) -> Any:
    """`value` (dicts, lists, tuples, leaves) with one node exchanged, dropped or doubled."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        if random.random() < 0.08:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: spoil_tree(random, value[key], values)}
    if isinstance(value, (list, tuple)) and value and random.random() < 0.85:
        items = list(value)
        place = random.randrange(len(items))
        if random.random() < 0.1:
            items[place : place + 1] = items[place : place + 1] * random.choice((0, 2, 30))
        else:
            items[place] = spoil_tree(random, items[place], values)
        return type(value)(items)
    return random.choice(values)


def spoil_png(random: Random, data: bytes, other: bytes) -> bytes:
    """A PNG whose chunks are spoilt and whose checksums are right again."""
    if random.random() < 0.3:
        return spoil_bytes(random, data, other)
    chunks, place = [], 8
    while place < len(data):
        size = struct.unpack_from(">I", data, place)[0]
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += size + 12
    chosen = random.randrange(len(chunks))
    kind, content = chunks[chosen]
    what = random.randrange(7)
    if what < 3:
        content = spoil_bytes(random, content, other) if content else random.randbytes(9)
    elif what == 3:
        kind = random.choice(
            (
                b"IHDR",
                b"PLTE",
                b"IDAT",
                b"tRNS",
                b"iCCP",
                b"zTXt",
                b"iTXt",
                b"gAMA",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"eXIf",
                b"tEXt",
                b"cHRM",
                b"pHYs",
                b"sRGB",
            )
        )
    elif what == 4:
        bomb = zlib.compress(bytes(random.choice((10, 3_000_000))))
        chunks.insert(chosen, (random.choice((b"zTXt", b"iCCP", b"iTXt")), b"a\0\0" + bomb))
    elif what == 5 and chunks[0][0] == b"IHDR":
        header = bytearray(chunks[0][1])
        struct.pack_into(
            ">I", header, random.choice((0, 4)), random.choice((0, 1, 2**31 - 1, 2**32 - 1, 20_000, 70_000))
        )
        header[random.choice((8, 9, 10, 11, 12))] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = b"IHDR", bytes(header)
        chosen, kind, content = 0, b"IHDR", bytes(header)
    else:
        del chunks[chosen]
        chosen, (kind, content) = 0, chunks[0]
    if what != 4:
        chunks[chosen] = kind, content
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def spoil_values(random: Random, value: Any, values: tuple) -> Any:
    """A dictionary of arrays or tensors with one to three of its values exchanged."""
    for _ in range(random.choice((1, 1, 3))):
        value = spoil_tree(random, value, values)
    return value


def dump_pickle(random: Random, value: Any) -> bytes:
    return pickle.dumps(value, protocol=random.choice((0, 2, 4, 5)))


# ---- a format ----------------------------------------------------------------

Spoiler = Callable[[Random, bytes, bytes], bytes]


class Format(NamedTuple):
    """A format under test; it belongs to the folder that `fuzz_formats.formats` was given."""

    place: Path  # where the spoilt file goes
    seeds: list[bytes]  # valid files
    spoil: Spoiler  # (random, a seed, another) -> a spoilt file
    read: Callable[[Path], object]


def saved_bytes(write: Callable[[Path], object], path: Path) -> bytes:
    write(path)
    return path.read_bytes()


ARRAYS = (
    *EXTREME_VALUES,
    np.zeros(0),
    np.zeros((1, 3)),
    np.full((1, 3), np.nan),
    np.full(3, 1e300),
    np.ones(3, "O"),
    np.zeros((2, 2, 2), "<f2"),
    np.array(["x"]),
    np.ones(3, bool),
    np.ones((1, 6), ">f8"),
    np.ones(2, "c8"),
    np.arange(5),
    np.array(7),
    np.full((40, 3), 10**9),
    np.array([2**64 - 1], "u8"),
)
