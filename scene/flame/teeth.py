"""The teeth that public head tracks and avatars add to the FLAME topology.

Two rows of 15 upper and 15 lower teeth columns behind the lips: 120 vertices
and 168 faces, appended to FLAME's 5023 and 9976. The integers are in
`teeth.json`; the geometry follows from the template's lips.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

FLAME_VERTICES = 5023
FLAME_FACES = 9976
TEETH_VERTICES = 120

_NECK, _JAW = 1, 2
_TABLES = Path(__file__).with_name("teeth.json")


def is_flame_topology(vertices: int, faces: int) -> bool:
    """Whether a model of this size is FLAME without teeth."""
    return vertices == FLAME_VERTICES and faces == FLAME_FACES


def add_teeth(
    v_template: np.ndarray,  # [5023, 3] metres
    faces: np.ndarray,  # [9976, 3]
    shapedirs: np.ndarray,  # [5023, 3, n_shape]
    exprdirs: np.ndarray,  # [5023, 3, n_expr]
    posedirs: np.ndarray,  # [5023, 3, 36]
    joint_regressor: np.ndarray,  # [5, 5023]
    weights: np.ndarray,  # [5023, 5]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same seven arrays with 120 vertices and 168 faces appended.

    Teeth follow identity as their two lips do on average, never expression or
    pose correctives; upper teeth move with the neck joint (the skull), lower
    ones with the jaw.
    """
    tables = json.loads(_TABLES.read_text(encoding="utf-8"))
    upper_lip = np.asarray(tables["lip_outside_ring_upper"])
    lower_lip = np.asarray(tables["lip_outside_ring_lower"])

    opening = np.linalg.norm(v_template[upper_lip] - v_template[lower_lip], axis=1).mean()
    up, back = np.array([0.0, opening, 0.0]), np.array([0.0, 0.0, -opening])
    middle = (v_template[upper_lip] + v_template[lower_lip]) / 2
    middle[:, 1] = middle[:, 1].mean()
    middle = middle + 1.5 * back

    rows = {"upper_edge": middle + 0.1 * up, "lower_edge": middle - 0.1 * up + 0.4 * back}
    rows["upper_root"] = rows["upper_edge"] + 2.0 * up
    rows["lower_root"] = rows["lower_edge"] - 2.0 * up
    rows |= {f"{name}_back": row + back for name, row in rows.items()}

    order = tables["added_vertex_groups_of_15_in_order"]
    teeth = np.concatenate([rows[name] for name in order])
    teeth_weights = np.zeros((TEETH_VERTICES, weights.shape[1]))
    for start, name in zip(range(0, TEETH_VERTICES, 15), order):
        teeth_weights[start : start + 15, _NECK if name.startswith("upper") else _JAW] = 1.0
    teeth_shapedirs = np.tile((shapedirs[upper_lip] + shapedirs[lower_lip]) / 2, (len(order), 1, 1))
    teeth_faces = np.asarray(tables["faces_upper"] + tables["faces_lower"]) + len(v_template)

    def still(modes: np.ndarray) -> np.ndarray:
        return np.concatenate([modes, np.zeros((TEETH_VERTICES, *modes.shape[1:]), modes.dtype)])

    return (
        np.concatenate([v_template, teeth]),
        np.concatenate([faces, teeth_faces]),
        np.concatenate([shapedirs, teeth_shapedirs.astype(shapedirs.dtype)]),
        still(exprdirs),
        still(posedirs),
        np.concatenate([joint_regressor, np.zeros((len(joint_regressor), TEETH_VERTICES))], axis=1),
        np.concatenate([weights, teeth_weights]),
    )
