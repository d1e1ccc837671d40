"""What is done to a motion before it is played: the same in `render.py`, `view.py` and `export.py`."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from arguments.fields import option

SOURCES = (
    "neutral, sweep (expressions, jaw, neck and eyes in turn), a folder of FLAME files or an .npz with a row per "
    "timestep, a .csv of ARKit's blendshape weights, a .json of key frames"
)

motion_scale_choice = partial(
    option, 1.0, "expression, jaw, eyes and neck this many times as far from rest", at_least=0, at_most=100
)
smooth_choice = partial(
    option,
    0.0,
    "average the motion over time, against the jitter of a tracker, by a Gaussian of this standard deviation",
    unit="seconds",
    at_least=0,
    at_most=60,
)
relative_choice = partial(
    option, False, "of another person's motion only its changes, from that person's face at rest to the avatar's"
)
rest_frames_choice = partial(
    option,
    (),
    "where the faces are at rest for --relative: a row of the motion and a row of the avatar's own; default: those "
    "nearest to the median",
    at_least=0,
)
NEEDS_MOTION = ("motion_scale", "smooth", "relative")  # where the avatar's own is not played


def motion_conflict(options: Any, *more: str) -> str | None:
    """What is wrong where `NEEDS_MOTION`, and `more`, change a motion that --motion names, as a sentence."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in (*NEEDS_MOTION, *more):
        if options.motion is None and getattr(options, name) != defaults[name]:
            return f"--{name} needs --motion"
    return rest_conflict(options)


def rest_conflict(options: Any) -> str | None:
    """What is wrong with --rest_frames, as a sentence."""
    if len(options.rest_frames) not in (0, 2):
        return f"--rest_frames needs two numbers, not {len(options.rest_frames)}"
    return "--rest_frames needs --relative" if options.rest_frames and not options.relative else None
