"""The cameras and photographs of a capture, as browsers look through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from scene.dataset import View
from scene.images.decode import DecodeError, decode
from utils.errors import UserError
from viewer.shows import Shot
from viewer.stage import Shots


def shots_of(
    views: Sequence[View],
    rows: Sequence[int],  # of the avatar's motion, by `camera.timestep`
    background: tuple[float, float, float],
    photograph: Callable[[int], Tensor] | None = None,  # index of a view -> its image; None: the files are read
) -> Shots:
    """Camera -> row of the motion -> photograph. In a static scene every image has a camera of its own."""
    names = {view.camera.camera_id for view in views}
    several = len(names) > 1 or any(names)
    shots: dict[str, dict[int, Shot]] = {}
    for index, view in enumerate(views):
        name = view.camera.camera_id if several and view.camera_index >= 0 else view.camera.name
        row = rows[view.camera.timestep]
        read = partial(photograph, index) if photograph else partial(_read, view, background)
        shots.setdefault(name, {}).setdefault(row, Shot(dataclasses.replace(view.camera, timestep=row), read))
    return dict(sorted(shots.items()))


def _read(view: View, background: tuple[float, float, float]) -> Tensor:
    """[3, H, W] 0..1."""
    size = (view.camera.width, view.camera.height)
    try:
        return torch.from_numpy(decode({**view.job(), "size": size, "background": background})).float() / 255.0
    except DecodeError as error:
        raise UserError(str(error)) from error
