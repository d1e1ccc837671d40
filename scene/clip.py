"""From poses and cameras to pictures: the frames of a clip, and a sheet of poses and views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ops.types import Camera
from scene.avatar import Avatar
from scene.motion import Motion, Still
from utils.images import to_bytes

Array = np.ndarray

MOST_COLUMNS = 10
LABEL_HEIGHT = 18  # pixels


@torch.no_grad()
def frames(
    avatar: Avatar,
    poses: Sequence[Tensor | None],  # [D] each; None: a static scene
    cameras: Sequence[Camera],  # as many
    background: Tensor | None = None,  # [3] 0..1; None: the one it was trained with
    *,
    alpha: bool = False,  # colors not multiplied by alpha, and alpha, instead of a background
) -> Iterator[Array]:
    """The pictures [H, W, 3 or 4] uint8, one after the other. A pose that stays is posed once."""
    last, gaussians = None, None
    for pose, camera in zip(poses, cameras):
        if gaussians is None or pose is not last:
            last, gaussians = pose, avatar.gaussians(pose)[0]
        out = avatar.look(gaussians, camera.to(avatar.model.device))
        if alpha:
            yield to_bytes(avatar.cut_out(out))
        else:
            yield to_bytes(out.image if background is None else avatar.over(out, background))


def chosen_stills(motion: Motion, count: int) -> list[Still]:
    """At most `count` rows that show the motion: of those worth a picture or, where none is, of all; evenly spaced."""
    stills = list(motion.stills) or [Still(row) for row in range(len(motion))]
    places = np.unique(np.linspace(0, len(stills) - 1, min(count, len(stills))).round().astype(int))
    return [stills[place] for place in places]


def contact_sheet(tiles: Sequence[Sequence[Array]], labels: Sequence[str]) -> Array:
    """One picture of `tiles` [views][poses], each [H, W, C] uint8: a column for each pose, under its label.

    More than ten columns are broken into blocks of equal width.
    """
    height, width, channels = tiles[0][0].shape
    count = len(labels)
    blocks = -(-count // MOST_COLUMNS)
    columns = -(-count // blocks)
    head = LABEL_HEIGHT if any(labels) else 0
    block_height = head + len(tiles) * height
    sheet = np.full((blocks * block_height, columns * width, channels), 255, dtype=np.uint8)
    if channels == 4:
        sheet[...] = 0
    for place, label in enumerate(labels):
        top, left = place // columns * block_height, place % columns * width
        for view, row in enumerate(tiles):
            start = top + head + view * height
            sheet[start : start + height, left : left + width] = row[place]
        if label:
            sheet[top : top + head, left : left + width] = _label(label, width, channels)
    return sheet


def _label(text: str, width: int, channels: int) -> Array:
    """[LABEL_HEIGHT, width, channels] black on white."""
    strip = Image.new("RGBA" if channels == 4 else "RGB", (width, LABEL_HEIGHT), "white")
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(strip).text((4, 1), text, fill="black", font=font)
    return np.asarray(strip)
