"""From poses and cameras to pictures: clips, written while they are drawn, and a sheet of poses and views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ops.types import Gaussians
from scene.avatar import Avatar
from scene.cameras import Viewpoint
from scene.motion import Motion, Still
from utils.images import to_bytes
from utils.video import clip_writer

Array = np.ndarray

MOST_COLUMNS = 10
LABEL_HEIGHT = 18  # pixels


@dataclass(frozen=True)
class Painter:
    """What the pictures of a clip have in common."""

    avatar: Avatar
    size: tuple[int, int]  # (width, height) pixels
    background: Tensor | None = None  # [3] 0..1; None: the one it was trained with
    alpha: bool = False  # colors not multiplied by alpha, and alpha, instead of a background

    @torch.no_grad()
    def posed(self, row: Array) -> Gaussians:
        """The Gaussians in a pose [D]; a static scene has [0]."""
        device = self.avatar.model.device
        return self.avatar.gaussians(torch.from_numpy(row).to(device, torch.float32) if len(row) else None)[0]

    @torch.no_grad()
    def picture(self, gaussians: Gaussians, view: Viewpoint) -> Array:
        """[H, W, 3], or with alpha [H, W, 4], uint8."""
        out = self.avatar.look(gaussians, view.camera(*self.size).to(self.avatar.model.device))
        if self.alpha:
            return to_bytes(self.avatar.cut_out(out))
        return to_bytes(out.image if self.background is None else self.avatar.over(out, self.background))

    def pictures(self, rows: Array, views: Iterable[Viewpoint]) -> Iterator[Array]:
        """The pictures of the poses [T, D] seen one by one by the `views`; a single pose is seen by all of them."""
        posed = map(self.posed, rows) if len(rows) > 1 else repeat(self.posed(rows[0]))
        for gaussians, view in zip(posed, views):
            yield self.picture(gaussians, view)


def write_clip(
    path: str | Path,
    painter: Painter,
    motion: Motion,
    views: Iterable[Viewpoint],  # one for each picture
    *,
    fps: float,
    on_picture: Callable[[], object] = lambda: None,  # called after each, for a progress bar; what it raises ends it
) -> None:
    """Writes the motion as a clip; it is encoded beside the drawing. Where it goes: see `clip_writer`.

    Raises:
        UserError: it cannot be written, or too large a picture; no half of a file is left.
    """
    with clip_writer(path, *painter.size, fps=fps, alpha=painter.alpha) as add:
        for picture in painter.pictures(motion.rows, views):
            add(picture)
            on_picture()


def chosen_stills(motion: Motion, count: int) -> list[Still]:
    """At most `count` rows that show the motion: of those worth a picture or, where none is, of all; evenly spaced."""
    stills = list(motion.stills) or [Still(row) for row in range(len(motion))]
    places = np.unique(np.linspace(0, len(stills) - 1, min(count, len(stills))).round().astype(int))
    return [stills[place] for place in places]


def contact_sheet(painter: Painter, motion: Motion, stills: Sequence[Still], views: Sequence[Viewpoint]) -> Array:
    """One picture [H, W, C] uint8: a column for each pose, under its label, and a row for each view."""
    columns = [list(painter.pictures(motion.rows[still.row : still.row + 1], views)) for still in stills]
    return tiled(columns, [still.label for still in stills])


def tiled(tiles: Sequence[Sequence[Array]], labels: Sequence[str]) -> Array:
    """The `tiles` [columns][rows], each [H, W, C] uint8, in one picture, with a label over each column.

    More than ten columns are broken into blocks of equal width, one under the other.
    """
    height, width, channels = tiles[0][0].shape
    count = len(labels)
    blocks = -(-count // MOST_COLUMNS)
    columns = -(-count // blocks)
    head = LABEL_HEIGHT if any(labels) else 0
    block_height = head + len(tiles[0]) * height
    sheet = np.full((blocks * block_height, columns * width, channels), 0 if channels == 4 else 255, dtype=np.uint8)
    for place, label in enumerate(labels):
        top, left = place // columns * block_height, place % columns * width
        for row, tile in enumerate(tiles[place]):
            start = top + head + row * height
            sheet[start : start + height, left : left + width] = tile
        if label:
            sheet[top : top + head, left : left + width] = _label(label, width, channels)
    return sheet


def _label(text: str, width: int, channels: int) -> Array:
    """[LABEL_HEIGHT, width, channels] black on white."""
    strip = Image.new("RGBA" if channels == 4 else "RGB", (width, LABEL_HEIGHT), "white")
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(strip).text((4, 1), text, fill="black", font=font)
    return np.asarray(strip)
