"""Reads the zip of `--format lam` with programs of others, for the tests."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plyfile
import pytest


def columns(element: Any, *names: str) -> np.ndarray:
    return np.stack([element[name] for name in names], axis=1).astype(np.float64)


class Lam(NamedTuple):
    """What is in such a zip, by plyfile and pygltflib."""

    names: list[str]
    ply: Any
    skin: Any
    animation: Any
    order: list[int]
    vertices: np.ndarray  # [N, 3]
    moves: dict[str, np.ndarray]  # name of a blendshape -> [N, 3]


def read_lam(path: Path) -> Lam:
    library = pytest.importorskip("pygltflib", reason="no pygltflib: pip install -r tests/requirements.txt")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        ply = plyfile.PlyData.read(io.BytesIO(archive.read(f"{names[0]}offset.ply")))["vertex"]
        skin, animation = (
            library.GLTF2().load_from_bytes(archive.read(f"{names[0]}{name}.glb")) for name in ("skin", "animation")
        )
        order = json.loads(archive.read(f"{names[0]}vertex_order.json"))
    primitive = skin.meshes[0].primitives[0]
    vertices = array(skin, skin.accessors[primitive.attributes.POSITION].bufferView, "<f4", 3)
    moves = {}
    for name, target in zip(skin.meshes[0].extras["targetNames"], primitive.targets):
        sparse = skin.accessors[target["POSITION"]].sparse
        moves[name] = np.zeros(vertices.shape)
        who = array(skin, sparse.indices.bufferView, "<u2", 1)[: sparse.count, 0]
        moves[name][who] = array(skin, sparse.values.bufferView, "<f4", 3)[: sparse.count]
    return Lam(names, ply, skin, animation, order, vertices, moves)


def array(file: Any, view: int, kind: str, width: int) -> np.ndarray:
    about = file.bufferViews[view]
    count = about.byteLength // np.dtype(kind).itemsize
    return np.frombuffer(file.binary_blob(), kind, count, about.byteOffset).reshape(-1, width)
