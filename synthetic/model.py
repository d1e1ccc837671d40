"""The head model as a dictionary in the layout of a FLAME pickle, and posing it with NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from synthetic import modes, shape
from synthetic.mesh import SKIN, HeadMesh, build_mesh

Array = np.ndarray

SHAPE_COLUMNS, EXPRESSION_COLUMNS = 300, 100


@dataclass
class Head:
    """What the capture needs to know of a procedural head."""

    mesh: HeadMesh
    model: dict[str, Any]  # in the layout of a FLAME pickle
    masks: dict[str, Array]  # region -> vertex ids


def build_head(seed: int = 0) -> Head:
    """The head of `seed`: mesh, model and masks. Deterministic."""
    mesh = build_mesh(seed)
    count = len(mesh.vertices)
    directions = np.zeros((count, 3, SHAPE_COLUMNS + EXPRESSION_COLUMNS), dtype=np.float32)
    identity, expression = modes.identity_modes(mesh), modes.expression_modes(mesh)
    directions[:, :, : identity.shape[-1]] = identity
    directions[:, :, SHAPE_COLUMNS : SHAPE_COLUMNS + expression.shape[-1]] = expression
    regressor = modes.joint_regressor(mesh)
    model = {
        "v_template": mesh.vertices.copy(),
        "f": mesh.faces.astype(np.uint32),
        "shapedirs": directions,
        "posedirs": modes.pose_correctives(mesh).astype(np.float32),
        "J_regressor": regressor,
        "J": np.asarray(regressor @ mesh.vertices),
        "weights": modes.skinning_weights(mesh),
        # FLAME marks "no parent" by the largest uint32.
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }
    return Head(mesh, model, modes.region_masks(mesh))


def make_head_model(seed: int = 0) -> tuple[dict[str, Any], dict[str, Array]]:
    """(model, masks): the content of `head_model.pkl` and `masks.pkl`.

    The model's arrays are plain NumPy, `J_regressor` a `scipy.sparse.csc_matrix`;
    V about 4,200, F about 8,200.
    """
    head = build_head(seed)
    return head.model, head.masks


def hair_offset(head: Head, thickness: float = 0.0060) -> Array:
    """[V, 3] float32 metres: the hair cap, a static offset along the template's normals."""
    mesh = head.mesh
    depth = shape.hair_depth(mesh.chart[:, 0], mesh.chart[:, 1])
    height = thickness * shape.smoothstep(depth, -0.0030, 0.0140)
    height[np.setdiff1d(np.arange(len(height)), mesh.parts["skin"])] = 0.0
    normals = vertex_normals(mesh.vertices, mesh.faces[mesh.kind == SKIN])
    return (height[:, None] * normals).astype(np.float32)


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """[V, 3] unit area-weighted normals."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    flat = np.cross(b - a, c - a)
    total = np.stack(
        [sum(np.bincount(faces[:, i], flat[:, axis], len(vertices)) for i in range(3)) for axis in range(3)], axis=-1
    )
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)


def pose_head(model: dict[str, Any], parameters: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Poses the model as FLAME is posed: blend shapes, pose correctives, linear blend skinning, translation.

    Args:
        parameters: one timestep's arrays under the names of `flame_param/*.npz`.

    Returns:
        Vertices [V, 3] in world space, unposed shaped vertices [V, 3], joint transforms [5, 4, 4]
        that take unposed points to world space.
    """
    coefficients = np.concatenate(
        [_padded(parameters["shape"], SHAPE_COLUMNS), _padded(parameters["expr"], EXPRESSION_COLUMNS)]
    )
    used = np.flatnonzero(coefficients)
    shaped = model["v_template"] + model["shapedirs"][:, :, used] @ coefficients[used]
    offset = parameters.get("static_offset")
    if offset is not None:
        shaped = shaped + offset[0]
    joints = np.asarray(model["J_regressor"] @ shaped)
    rotation_vectors = np.concatenate(
        [np.ravel(parameters[k]) for k in ("rotation", "neck_pose", "jaw_pose", "eyes_pose")]
    ).reshape(5, 3)
    rotations = Rotation.from_rotvec(rotation_vectors.astype(np.float64)).as_matrix()
    feature = (rotations[1:] - np.eye(3)).reshape(36)
    active = np.flatnonzero(np.abs(feature) > 0)
    posed = shaped + model["posedirs"][:, :, active] @ feature[active]
    globals_: list[Array] = []
    for joint, parent in enumerate(modes.PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0.0)
        globals_.append(local if parent < 0 else globals_[parent] @ local)
    transforms = np.stack(globals_)
    transforms[:, :3, 3] -= np.einsum("jab,jb->ja", transforms[:, :3, :3], joints)
    transforms[:, :3, 3] += np.ravel(parameters["translation"])
    blended = np.einsum("vj,jab->vab", model["weights"], transforms)
    world = np.einsum("vab,vb->va", blended[:, :3, :3], posed) + blended[:, :3, 3]
    return world, shaped, transforms


def _padded(values: Array, length: int) -> Array:
    flat = np.ravel(values).astype(np.float64)
    return np.concatenate([flat, np.zeros(length - len(flat))])
