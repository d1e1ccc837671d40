"""The container of glTF (GLB): arrays one behind the other, and the JSON that says what they are."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from utils.errors import UserError

Array = np.ndarray

FLOAT, UBYTE, USHORT, UINT = 5126, 5121, 5123, 5125  # numbers of the glTF specification
ARRAY_BUFFER, ELEMENTS = 34962, 34963
POINTS, TRIANGLES = 0, 4
LARGEST = (1 << 32) - (1 << 20)  # bytes: its sizes have 32 bits


class Parts:
    """The arrays of a GLB, and what its JSON says about them."""

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.body = bytearray()

    def view(self, array: Array, target: int | None = None) -> int:
        """Number of the buffer view that holds an array."""
        about = {"buffer": 0, "byteOffset": len(self.body), "byteLength": array.nbytes}
        self.views.append(about if target is None else {**about, "target": target})
        self.body += array.tobytes() + bytes(-array.nbytes % 4)
        return len(self.views) - 1

    def add(
        self, array: Array, kind: str, target: int | None = None, *, limits: bool = False, normalized: bool = False
    ) -> int:
        """Number of the accessor of an array whose rows are of that kind: SCALAR, VEC3, ..."""
        about = {"bufferView": self.view(array, target), **_typed(array), "count": len(array), "type": kind}
        if normalized:
            about["normalized"] = True
        if limits:
            rows = array.reshape(len(array), -1)
            about |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append(about)
        return len(self.accessors) - 1

    def add_sparse(self, who: Array, by: Array, count: int) -> int:
        """Number of the accessor of `count` vectors: `by` [n, 3] at the rows `who` [n], else zero."""
        if not len(who):  # a sparse accessor has at least one entry
            who, by = np.zeros(1, np.int64), np.zeros((1, 3), np.float32)
        who = who.astype("<u2" if count <= 1 << 16 else "<u4")
        limits = np.concatenate([by, np.zeros((int(len(by) < count), 3), np.float32)])
        sparse = {
            "count": len(who),
            "indices": {"bufferView": self.view(who), **_typed(who)},
            "values": {"bufferView": self.view(by)},
        }
        about = {"componentType": FLOAT, "count": count, "type": "VEC3", "sparse": sparse}
        self.accessors.append({**about, "min": limits.min(0).tolist(), "max": limits.max(0).tolist()})
        return len(self.accessors) - 1

    def file(self, description: dict[str, Any]) -> bytes:
        """The GLB of the scene that is described, of these arrays.

        Raises:
            UserError: more than 4 GB.
        """
        about = {"asset": {"version": "2.0", "generator": "Efficient Gaussian Avatars"}, "scene": 0, **description}
        about |= {"accessors": self.accessors, "bufferViews": self.views, "buffers": [{"byteLength": len(self.body)}]}
        text = json.dumps(about, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        size = 12 + 8 + len(text) + 8 + len(self.body)
        if size > LARGEST:
            raise UserError(f"{size / 1e9:.1f} GB are more than a GLB holds: give --prune")
        head = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON") + text
        return b"".join([head, struct.pack("<I4s", len(self.body), b"BIN\0"), self.body])


def _typed(array: Array) -> dict[str, int]:
    return {"componentType": {"f4": FLOAT, "u1": UBYTE, "u2": USHORT, "u4": UINT}[array.dtype.str[1:]]}
