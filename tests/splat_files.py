"""Exported splats: written by the command, read by programs that are not ours, and drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from arguments import parse_export
from export import export
from gaussian_renderer import choose_rasterizer
from ops.types import Camera, Gaussians
from scene import Avatar


def write(folder: Path, kind: str, *words: object) -> Path:
    return export(parse_export(["-m", str(folder), "--format", kind, "--quiet", *map(str, words)]))


def read(path: Path) -> Gaussians:
    return {".ply": read_ply, ".spz": read_spz, ".glb": read_glb}[path.suffix](path)


def read_ply(path: Path) -> Gaussians:
    """By trimesh."""
    data = trimesh.load(path, process=False).metadata["_ply_raw"]["vertex"]["data"]

    def columns(*names: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(data[name], np.float32).reshape(-1) for name in names], 1))

    rest = sorted((name for name in data.dtype.names if name.startswith("f_rest")), key=lambda name: int(name[7:]))
    sh = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if rest:
        sh = torch.cat([sh, columns(*rest).view(len(sh), 3, -1).transpose(1, 2)], dim=1)
    return Gaussians(
        columns("x", "y", "z"),
        columns(*(f"rot_{i}" for i in range(4))),
        columns(*(f"scale_{i}" for i in range(3))).exp(),
        columns("opacity")[:, 0].sigmoid(),
        sh,
    )


def read_spz(path: Path) -> Gaussians:
    """By gsply, whose 40 MB (numba) no one else here needs."""
    data = pytest.importorskip("gsply", reason="no gsply: pip install gsply").read_spz(path)
    means, quats, scales, opacities, constant = (
        torch.from_numpy(np.asarray(getattr(data, name), np.float32).copy())
        for name in ("means", "quats", "scales", "opacities", "sh0")
    )
    sh = constant[:, None]
    if data.shN is not None:
        sh = torch.cat([sh, torch.from_numpy(data.shN.astype(np.float32)).reshape(len(means), -1, 3)], dim=1)
    return Gaussians(means, quats, scales.exp(), opacities.reshape(-1).sigmoid(), sh)


def read_glb(path: Path) -> Gaussians:
    """By pygltflib."""
    library = pytest.importorskip("pygltflib", reason="no pygltflib: pip install -r tests/requirements.txt")
    file = library.GLTF2().load(str(path))
    attributes = vars(file.meshes[0].primitives[0].attributes)
    body = file.binary_blob()

    def column(name: str) -> torch.Tensor:
        accessor = file.accessors[attributes[name]]
        view = file.bufferViews[accessor.bufferView]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
        assert accessor.componentType == library.FLOAT and view.byteLength == 4 * width * accessor.count
        values = np.frombuffer(body, "<f4", width * accessor.count, view.byteOffset)
        return torch.from_numpy(values.reshape(-1, width).copy())

    names = [name for name in attributes if name.startswith("KHR_gaussian_splatting:SH")]
    sh = torch.stack([column(name) for name in sorted(names)], dim=1)
    quats = column("KHR_gaussian_splatting:ROTATION").roll(1, 1)
    scales, opacities = (column(f"KHR_gaussian_splatting:{name}") for name in ("SCALE", "OPACITY"))
    return Gaussians(column("POSITION"), quats, scales, opacities[:, 0], sh)


def picture(avatar: Avatar, gaussians: Gaussians, camera: Camera) -> torch.Tensor:
    degree = math.isqrt(gaussians.sh.shape[1]) - 1
    rasterize = choose_rasterizer("auto", "cpu")[1]
    return rasterize(gaussians, camera, avatar.background, sh_degree=degree).image.detach().clamp(0, 1)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (one - other).detach().square().mean().log10())
