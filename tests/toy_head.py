"""Small random head models, as tensors and as files, for the tests of FLAME and the rig."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scene.flame.head_model import HeadModel
from scene.flame.parameters import MOTION


def toy_arrays(vertices: int = 40, faces: int = 60, modes: int = 400, seed: int = 0) -> dict[str, Any]:
    """The arrays of a FLAME-format file, with the types of the official ones."""
    rng = np.random.default_rng(seed)
    weights = rng.random((vertices, 5)) ** 3
    regressor = rng.random((5, vertices)) * (rng.random((5, vertices)) < 0.5) + 1e-3
    return {
        "v_template": rng.normal(size=(vertices, 3)) * 0.1,
        "f": np.stack([rng.permutation(vertices)[:3] for _ in range(faces)]).astype(np.uint32),
        "shapedirs": rng.normal(size=(vertices, 3, modes)) * 0.002,
        "posedirs": rng.normal(size=(vertices, 3, 36)) * 0.002,
        "J_regressor": sparse.csc_matrix(regressor / regressor.sum(1, keepdims=True)),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32),
        "bs_style": "lbs",
    }


def write_pickle(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def toy_head(vertices: int = 40, faces: int = 60, n_shape: int = 4, n_expr: int = 6, seed: int = 0) -> HeadModel:
    """A random head model with `n_shape` + `n_expr` modes."""
    arrays = toy_arrays(vertices, faces, n_shape + n_expr, seed)
    tensors = {
        key: torch.from_numpy(np.asarray(value)).float()
        for key, value in arrays.items()
        if isinstance(value, np.ndarray) and key in ("v_template", "shapedirs", "posedirs", "weights")
    }
    modes = tensors.pop("shapedirs")
    return HeadModel(
        faces=torch.from_numpy(arrays["f"].astype(np.int64)),
        shapedirs=modes[..., :n_shape],
        exprdirs=modes[..., n_shape:],
        joint_regressor=torch.from_numpy(arrays["J_regressor"].toarray()).float(),
        **tensors,
    )


def motion_of(head: HeadModel, count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """FLAME arrays as a data set gives them."""
    rng = np.random.default_rng(seed)
    widths = {"expr": head.n_expr, **MOTION}
    arrays = {name: rng.normal(size=(count, width)).astype(np.float32) * 0.3 for name, width in widths.items()}
    arrays["shape"] = rng.normal(size=head.n_shape).astype(np.float32)
    arrays["static_offset"] = rng.normal(size=(head.n_vertices, 3)).astype(np.float32) * 0.01
    return arrays
