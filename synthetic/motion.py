"""Where the cameras stand and what the head does."""

from __future__ import annotations

import numpy as np

from synthetic.model import EXPRESSION_COLUMNS, SHAPE_COLUMNS
from synthetic.modes import EXPRESSION_NAMES, IDENTITY_NAMES
from synthetic.render import View

Array = np.ndarray

TARGET = np.array([0.0, -0.0120, 0.0050])  # the cameras look here
DISTANCE = 1.05  # metres
FRAME_HEIGHT = 0.345  # metres of the head's plane that the picture's height shows
# A frame narrower than this share of its height moves back instead of cutting the head.
WIDEST_HEAD = 0.250
PITCHES = (8.0, -14.0, 20.0, 0.0, -20.0, 14.0)


def make_views(count: int, size: tuple[int, int]) -> tuple[list[View], int]:
    """`count` cameras on a sector in front of the head (yaw +-60, pitch +-20 degrees) and the frontal one's index."""
    width, height = size
    frontal = count // 2
    views = []
    others = [60.0] if count == 2 else list(np.linspace(-60.0, 60.0, max(count - 1, 1)))
    focal = DISTANCE * min(height / FRAME_HEIGHT, width / WIDEST_HEAD)
    for index in range(count):
        if index == frontal:
            yaw, pitch = 0.0, 0.0
        else:
            position = index if index < frontal else index - 1
            yaw, pitch = others[position], PITCHES[position % len(PITCHES)]
        yaw, pitch = np.radians(yaw), np.radians(pitch)
        backward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        pose = np.eye(4)
        pose[:3, :3] = np.column_stack([right, np.cross(backward, right), backward])
        pose[:3, 3] = TARGET + DISTANCE * backward
        # As in a real rig, no principal point is centred and pixels are not quite square.
        shift = 0.010 * np.array([np.sin(1.7 * index), np.cos(2.3 * index)]) * [width, height]
        cx, cy = width / 2 + shift[0], height / 2 + shift[1]
        views.append(View(pose, focal, focal * (1.0 + 0.004 * np.cos(index)), cx, cy, width, height))
    return views, frontal


def identity(seed: int) -> Array:
    """(300,) float32 shape coefficients of the person `seed`; seed 0 is close to the template."""
    rng = np.random.default_rng([seed, 8])
    shape = np.zeros(SHAPE_COLUMNS, dtype=np.float32)
    shape[: len(IDENTITY_NAMES)] = rng.normal(0, 0.5 if seed else 0.25, len(IDENTITY_NAMES))
    return shape


def _smooth_noise(rng: np.random.Generator, count: int, period: float) -> Array:
    """[count] values in about -1..1 that change over `period` timesteps."""
    t = np.arange(count)
    phases, rates = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.7, 1.5, 3)
    return sum(np.sin(2 * np.pi * t / period * r + p) for r, p in zip(rates, phases)) / 3.0


def _pulse(t: Array, center: float, width: float) -> Array:
    return np.exp(-0.5 * ((t - center) / width) ** 2)


def make_motion(count: int, held_out: int, seed: int, offset: Array) -> list[dict[str, Array]]:
    """Parameters of `count` timesteps under the names of `flame_param/*.npz`, in its shapes, float32.

    The first `count - held_out` go through speech, smile, brows, blink and gaze, head turns, puff and
    funnel; the `held_out` last are a free mixture of all.
    """
    rng = np.random.default_rng([seed, 9])
    column = {name: i for i, name in enumerate(EXPRESSION_NAMES)}
    expression = np.zeros((count, EXPRESSION_COLUMNS))
    rotation, neck, jaw, translation = (np.zeros((count, 3)) for _ in range(4))
    eyes = np.zeros((count, 6))
    train = count - held_out
    t = np.arange(count, dtype=np.float64)
    u = t / max(train, 1) * 60.0  # the training performance lasts 60 units, whatever the count

    talk = np.clip(_pulse(u, 6, 9) + _pulse(u, 34, 8) * 0.6 + (t >= train) * 0.9, 0, 1)
    syllables = 0.5 + 0.5 * np.sin(u * 1.9 + 4.5)
    jaw[:, 0] = 0.015 + 0.20 * talk * syllables**1.5
    jaw[:, 1] = 0.02 * _smooth_noise(rng, count, 13)

    def act(name: str, value: Array) -> None:
        expression[:, column[name]] += value

    act("funnel", 0.55 * talk * np.clip(np.sin(u * 0.95 + 1.0), 0, 1) + 0.9 * _pulse(u, 57, 2.0))
    act("upper_lip_up", 0.35 * talk * np.clip(np.sin(u * 1.3), 0, 1) + 0.45 * _pulse(u, 19, 3))
    act("lower_lip_down", 0.30 * talk * np.clip(np.cos(u * 1.1), 0, 1))
    act("smile", 1.0 * _pulse(u, 19, 4) + 0.12 + 0.10 * _smooth_noise(rng, count, 17))
    act("frown", 0.9 * _pulse(u, 27, 2.5))
    act("brow_down", 0.8 * _pulse(u, 27, 3))
    act("brow_up_left", 0.9 * _pulse(u, 31, 2.5) + 0.25 * _smooth_noise(rng, count, 11))
    act("brow_up_right", 0.9 * _pulse(u, 33, 2.5) + 0.25 * _smooth_noise(rng, count, 11))
    act("squint", 0.5 * _pulse(u, 19, 4))
    act("eyes_wide", 0.8 * _pulse(u, 32, 2.5))
    act("cheek_puff", 0.9 * _pulse(u, 53, 2.0))
    act("sneer", 0.7 * _pulse(u, 24, 1.5))
    act("stretch", 0.5 * _pulse(u, 12, 2.0))
    act("mouth_left", 0.5 * _pulse(u, 50, 1.5) * np.sin(u))
    act("chin_up", 0.5 * _pulse(u, 29, 2))
    blink = np.clip(sum(_pulse(u, c, 0.9) for c in (4, 15, 36, 40, 55)), 0, 1)
    free = t >= train
    if held_out:
        s = (t - train) / held_out
        for name, size in (
            ("smile", 0.6),
            ("funnel", 0.4),
            ("brow_up_left", 0.6),
            ("brow_up_right", 0.6),
            ("frown", 0.3),
            ("squint", 0.3),
            ("cheek_puff", 0.3),
        ):
            act(name, free * size * np.clip(_smooth_noise(rng, count, 9), 0, 1))
        blink = np.maximum(blink, free * _pulse(s, 0.45, 0.07))
    for name in ("blink_left", "blink_right"):
        act(name, blink)

    gaze = _pulse(u, 38, 4) + 0.25
    eyes[:, [1, 4]] = (0.35 * gaze * np.sin(u * 0.8))[:, None] + 0.08 * free[:, None] * np.sin(t)[:, None]
    eyes[:, [0, 3]] = (0.12 * gaze * np.cos(u * 0.6))[:, None]
    turn = np.clip(_pulse(u, 46, 6) + 0.12 + 0.5 * free, 0, 1)
    neck[:, 1] = 0.30 * turn * np.sin(u * 0.55 + 0.4)
    neck[:, 0] = 0.10 * turn * np.cos(u * 0.75)
    neck[:, 2] = 0.07 * turn * np.sin(u * 0.42)
    for axis in range(3):
        rotation[:, axis] = 0.025 * _smooth_noise(rng, count, 21)
        translation[:, axis] = 0.0015 * _smooth_noise(rng, count, 19)

    shape = identity(seed)
    fields = {
        "translation": translation,
        "rotation": rotation,
        "neck_pose": neck,
        "jaw_pose": jaw,
        "eyes_pose": eyes,
        "expr": expression,
    }
    return [
        {
            **{name: value[i : i + 1].astype(np.float32) for name, value in fields.items()},
            "shape": shape,
            "static_offset": offset[None].astype(np.float32),
        }
        for i in range(count)
    ]


def tracked(parameters: dict[str, Array], scale: float, seed: int, timestep: int) -> dict[str, Array]:
    """What a tracker would report: the truth plus noise of `scale` x (0.3 mm, 0.3 degrees, 0.03 expression units)."""
    rng = np.random.default_rng([seed, 10, timestep])
    angles = dict.fromkeys(("rotation", "neck_pose", "jaw_pose", "eyes_pose"), float(np.radians(0.3)))
    sigma = {"translation": 0.0003, **angles, "expr": 0.03}
    result = dict(parameters)
    for name, size in sigma.items():
        noise = scale * size * rng.standard_normal(parameters[name].shape)
        if name == "expr":
            noise[:, len(EXPRESSION_NAMES) :] = 0.0
        result[name] = (parameters[name] + noise).astype(np.float32)
    return result
