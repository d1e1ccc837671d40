"""What the blendshapes that phones track do to the procedural head."""

from __future__ import annotations

import math

import numpy as np

from synthetic.modes import EXPRESSION_NAMES
from utils.blendshapes import NAMES

Array = np.ndarray

# The modes that a weight of 1 drives. What moves one side of a face moves half of a mode that has no sides.
_MODES = {
    "browDownLeft": "0.5 brow_down",
    "browDownRight": "0.5 brow_down",
    "browInnerUp": "0.6 brow_up_left 0.6 brow_up_right",
    "browOuterUpLeft": "0.7 brow_up_left",
    "browOuterUpRight": "0.7 brow_up_right",
    "cheekPuff": "1 cheek_puff",
    "cheekSquintLeft": "0.3 squint",
    "cheekSquintRight": "0.3 squint",
    "eyeBlinkLeft": "1 blink_left",
    "eyeBlinkRight": "1 blink_right",
    "eyeSquintLeft": "0.5 squint",
    "eyeSquintRight": "0.5 squint",
    "eyeWideLeft": "0.5 eyes_wide",
    "eyeWideRight": "0.5 eyes_wide",
    "mouthFrownLeft": "0.5 frown",
    "mouthFrownRight": "0.5 frown",
    "mouthFunnel": "1 funnel",
    "mouthLeft": "1 mouth_left",
    "mouthLowerDownLeft": "0.5 lower_lip_down",
    "mouthLowerDownRight": "0.5 lower_lip_down",
    "mouthPucker": "0.8 funnel",
    "mouthRight": "-1 mouth_left",
    "mouthShrugLower": "1 chin_up",
    "mouthSmileLeft": "0.5 smile",
    "mouthSmileRight": "0.5 smile",
    "mouthStretchLeft": "0.5 stretch",
    "mouthStretchRight": "0.5 stretch",
    "mouthUpperUpLeft": "0.5 upper_lip_up",
    "mouthUpperUpRight": "0.5 upper_lip_up",
    "noseSneerLeft": "0.5 sneer",
    "noseSneerRight": "0.5 sneer",
}
_LOOK, _OPEN, _SIDEWAYS = math.radians(30), 0.35, 0.10  # radians


def blendshape_mapping() -> dict[str, Array]:
    """`expr` [52, 17], `jaw_pose` [52, 3] and `eyes_pose` [52, 6], float32: what a weight of 1 adds to each."""
    expr = np.zeros((len(NAMES), len(EXPRESSION_NAMES)), dtype=np.float32)
    jaw, eyes = (np.zeros((len(NAMES), width), dtype=np.float32) for width in (3, 6))
    row = {name: index for index, name in enumerate(NAMES)}
    for name, text in _MODES.items():
        words = text.split()
        for weight, mode in zip(words[::2], words[1::2]):
            expr[row[name], EXPRESSION_NAMES.index(mode)] = float(weight)
    # About x, a jaw opens and an eye looks down; about y, both turn to the head's left.
    jaw[row["jawOpen"], 0], jaw[row["jawLeft"], 1], jaw[row["jawRight"], 1] = _OPEN, _SIDEWAYS, -_SIDEWAYS
    for column, side, outwards in ((0, "Left", _LOOK), (3, "Right", -_LOOK)):
        eyes[row[f"eyeLookDown{side}"], column], eyes[row[f"eyeLookUp{side}"], column] = _LOOK, -_LOOK
        eyes[row[f"eyeLookOut{side}"], column + 1], eyes[row[f"eyeLookIn{side}"], column + 1] = outwards, -outwards
    return {"expr": expr, "jaw_pose": jaw, "eyes_pose": eyes}
