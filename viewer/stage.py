"""What all browsers share: the avatar, the capture's cameras, how the training goes, and the notes they leave."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ops.types import Camera
from scene import Avatar
from viewer.shows import Shot

Shots = Mapping[str, Mapping[int, Shot]]  # camera of the capture -> row of the motion -> its photograph


@dataclass
class Status:
    """How it goes; whoever owns the viewer keeps it up to date."""

    headline: str = ""  # markdown, one line
    figures: dict[str, str] = field(default_factory=dict)  # name -> value
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # name -> (iteration, value), ascending
    charts: dict[str, dict[str, str]] = field(default_factory=dict)  # title -> label -> name of the curve
    training: bool = False  # there is a training to pause and to stop
    paused: bool = False  # it should wait
    stop: bool = False  # it should save and end


class Stage:
    """Belongs to the thread that draws; all threads may leave notes."""

    def __init__(self, avatar: Avatar, folder: Path, shots: Shots, expression_names: tuple[str, ...] = ()) -> None:
        """
        Args:
            folder: of the avatar.
            expression_names: of the head's modes, as far as they have any.
        """
        self.avatar, self.folder, self.shots, self.expression_names = avatar, folder, shots, expression_names
        self.state: object = None  # of the avatar: pictures of another one are old
        self.status = Status()
        # A browser that compares goes back and forth between a few.
        self.photograph: Callable[[str, int], Tensor] = lru_cache(maxsize=4)(
            lambda name, row: self.shots[name][row].photograph()
        )
        self.jobs: deque[Generator[None, None, None]] = deque()  # what takes long, done piece by piece
        self.woken = threading.Event()
        self.notes: deque[tuple[int, Callable[[], None]]] = deque()  # number of a browser, what it wants

    def note(self, browser: int, act: Callable[[], None]) -> None:
        """Has `act` done by the thread that draws; from any thread."""
        self.notes.append((browser, act))
        self.woken.set()

    @property
    def rigged(self) -> bool:
        """Whether it has poses."""
        return self.avatar.model.flame_parameters is not None

    @property
    def rows(self) -> int:
        """The timesteps of the motion; 1 of a static scene."""
        return len(self.avatar.motion()) if self.rigged else 1

    @property
    def cameras(self) -> list[Camera]:
        """One view of each camera of the capture."""
        return [next(iter(rows.values())).camera for rows in self.shots.values()]

    def shot(self, name: str | None, row: int) -> Shot | None:
        """What a camera took at a row of the motion, or else at its first; None for no such camera."""
        rows = self.shots.get(name or "", {})
        return rows.get(row) or next(iter(rows.values()), None)
