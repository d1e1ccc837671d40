"""Faces of the procedural head without a capture, and the picture of doc/procedural_head.md.

`PYTHONPATH=.:tests python tests/procedural_faces.py OUT.jpg` makes that picture: four expressions without and with
wrinkles, then other hair and other persons.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image

from synthetic.model import Head, build_head, hair_offset
from synthetic.modes import EXPRESSION_NAMES
from synthetic.motion import identity, make_views
from synthetic.render import make_assets, render_frame

FACES: dict[str, dict[str, float]] = {
    "rest": {},
    "smile": {"smile": 1.0, "squint": 0.5},
    "frown": {"frown": 0.8, "brow_down": 1.0},
    "surprise": {"brow_up_left": 1.0, "brow_up_right": 1.0, "eyes_wide": 0.6},
}


def parameters_of(head: Head, person: np.ndarray, expressions: dict[str, float], hair: str = "none") -> dict[str, Any]:
    """One timestep: a person's shape [300] with coefficients by name of expression, everything else at rest."""
    widths = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": 100}
    parameters: dict[str, Any] = {name: np.zeros((1, width)) for name, width in widths.items()}
    parameters["shape"] = person
    for name, value in expressions.items():
        parameters["expr"][0, EXPRESSION_NAMES.index(name)] = value
    if hair != "none":
        parameters["static_offset"] = hair_offset(head)[None]
    return parameters


def main(out: str) -> None:
    views, frontal = make_views(3, (300, 412))
    view = views[frontal]
    heads: dict[int, Head] = {}

    def pictures(seed: int, hair: str, wrinkles: bool, faces: list[str]) -> list[np.ndarray]:
        if seed not in heads:
            heads[seed] = build_head(seed)
        assets = make_assets(heads[seed], seed, hair, wrinkles)
        moments = [parameters_of(heads[seed], identity(seed), FACES[name], hair) for name in faces]
        return [render_frame(assets, moment, [view], 8)[0][0] for moment in moments]

    rows = [pictures(0, "short", wrinkles, list(FACES)) for wrinkles in (False, True)]
    persons = ((0, "long"), (0, "none"), (3, "long"), (7, "short"))
    rows.append([pictures(seed, hair, True, ["smile"])[0] for seed, hair in persons])
    Image.fromarray(np.vstack([np.hstack(row) for row in rows])).save(out, quality=88)


if __name__ == "__main__":
    main(sys.argv[1])
