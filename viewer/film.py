"""Clips: key frames of camera and pose, what lies between them, and the file that becomes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scene import Avatar
from scene.cameras import Viewpoint
from scene.clip import Painter
from scene.motion.key_frames import KeyFrame, KeyFrames
from utils.errors import UserError
from utils.files import refuse_escaping_links
from utils.video import clip_writer

FOLDER = "clips"
PREVIEW_RATE = 25.0  # poses a second
LONGEST_NAME = 60


class Film:
    """Key frames, ready to be shown at any moment."""

    def __init__(self, keys: KeyFrames, avatar: Avatar, rate: float = PREVIEW_RATE) -> None:
        self.seconds, self.rate, self.count, self.view = keys.seconds, rate, keys.pictures(rate), keys.views()
        self.rows = np.zeros((1, 0))  # [T, D] poses, `rate` a second; of a static scene [1, 0]
        if keys.has_poses and avatar.model.flame_parameters is not None:
            rest = avatar.neutral().double().cpu().numpy()
            self.rows = keys.motion(rest, avatar.motion().columns, rate).rows

    def pose(self, seconds: float) -> Tensor | None:
        """[D] the pose at a moment; None of a static scene."""
        row = self.rows[min(max(round(seconds * self.rate), 0), len(self.rows) - 1)]
        return torch.from_numpy(row).float() if len(row) else None

    def shoot(self, path: Path, drawn: Painter) -> Iterator[tuple[int, int]]:
        """Writes the mp4, a frame at a step; gives how many are done, and of how many."""
        views = (self.view(index / self.rate) for index in range(self.count))
        with clip_writer(path, *drawn.size, fps=self.rate) as add:
            for done, picture in enumerate(drawn.pictures(self.rows, views), start=1):
                add(picture)
                yield done, self.count


def key_frame(seconds: float, view: Viewpoint, avatar: Avatar, pose: Tensor | None) -> KeyFrame:
    """A moment as a browser sees it now."""
    named = None
    if pose is not None:
        named = {name: pose[part].double().cpu().numpy() for name, part in avatar.motion().columns.items()}
    return KeyFrame(seconds, view, named)


def joined(moments: list[KeyFrame], gap: float) -> KeyFrames:
    """The moments, `gap` seconds from one to the next."""
    return KeyFrames(tuple(KeyFrame(gap * index, moment.view, moment.pose) for index, moment in enumerate(moments)))


def new_file(folder: Path, name: str, ending: str) -> Path:
    """A file in the clips of an avatar's folder that is not there yet.

    Raises:
        UserError: the name is more than a name, or the folder leads elsewhere.
    """
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9 _-]{{0,{LONGEST_NAME}}}", name):
        raise UserError("a clip's name is of letters, digits, spaces, - and _ only")
    refuse_escaping_links(folder)
    clips = folder / FOLDER
    if clips.is_symlink():
        raise UserError(f"{clips} is a link: clips are written into a folder of the avatar's own")
    numbered = (clips / f"{name}{f'_{number}' if number > 1 else ''}{ending}" for number in range(1, 10_000))
    found = next((path for path in numbered if not path.exists()), None)
    if found is None:
        raise UserError(f"there are too many clips called {name}")
    return found


def saved_key_frames(folder: Path) -> tuple[str, ...]:
    """The names of the key frames in the clips of an avatar's folder."""
    return tuple(
        sorted(path.name for path in (folder / FOLDER).glob("*.json") if path.is_file() and not path.is_symlink())
    )


def load_key_frames(folder: Path, name: str) -> list[KeyFrame]:
    """Those of one of `saved_key_frames`; UserError when they are broken, or lack what a clip needs."""
    if name not in saved_key_frames(folder):
        raise UserError(f"there are no key frames {name}")
    keys = KeyFrames.load(folder / FOLDER / name)
    if not keys.has_views:
        raise UserError(f"{name} has poses but no cameras")
    return list(keys.frames)


def seconds_between(moments: list[KeyFrame]) -> float:
    """The time from one moment to the next, on the average."""
    return float(np.mean(np.diff([moment.seconds for moment in moments]))) if len(moments) > 1 else 1.5
