"""`PYTHONPATH=.:tests python tests/synthetic/pictures.py OUT.jpg`: the picture of doc/procedural_head.md.

Rows: without wrinkles, with them, other persons; columns: rest, smile, frown with raised brows, by hair and seed.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image

from synthetic.model import Head, build_head, hair_offset
from synthetic.modes import EXPRESSION_NAMES
from synthetic.motion import identity, make_views
from synthetic.render import Assets, make_assets, render_frame

FACES: dict[str, dict[str, float]] = {
    "rest": {},
    "smile": {"smile": 1.0, "squint": 0.5},
    "frown": {"frown": 0.8, "brow_down": 1.0},
    "surprise": {"brow_up_left": 1.0, "brow_up_right": 1.0, "eyes_wide": 0.6},
}


def photograph(
    assets: Assets, expressions: dict[str, float], *, size: tuple[int, int], samples: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and mask [H, W] of a face seen from ahead, with coefficients by name of expression."""
    widths = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": 100}
    parameters: dict[str, Any] = {name: np.zeros((1, width)) for name, width in widths.items()}
    parameters["shape"] = identity(seed)
    for name, value in expressions.items():
        parameters["expr"][0, EXPRESSION_NAMES.index(name)] = value
    if len(assets.strands.faces):
        parameters["static_offset"] = hair_offset(assets.head)[None]
    views, frontal = make_views(3, size)
    return render_frame(assets, parameters, [views[frontal]], samples)[0]


def main(out: str) -> None:
    size = (300, 412)
    heads: dict[int, Head] = {}

    def pictures(seed: int, hair: str, wrinkles: bool, faces: list[str]) -> list[np.ndarray]:
        if seed not in heads:
            heads[seed] = build_head(seed)
        assets = make_assets(heads[seed], seed, hair, wrinkles)
        return [photograph(assets, FACES[name], size=size, samples=8, seed=seed)[0] for name in faces]

    rows = [pictures(0, "short", wrinkles, list(FACES)) for wrinkles in (False, True)]
    persons = ((0, "long"), (0, "none"), (3, "long"), (7, "short"))
    rows.append([pictures(seed, hair, True, ["smile"])[0] for seed, hair in persons])
    Image.fromarray(np.vstack([np.hstack(row) for row in rows])).save(out, quality=88)


if __name__ == "__main__":
    main(sys.argv[1])
