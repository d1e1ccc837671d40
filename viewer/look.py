"""What one browser looks at: where it stands, how the head is held, how it is shown; and when that has to be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from scene import Avatar
from scene.cameras import Viewpoint
from viewer.film import Film

REST = 0.2  # seconds without a change after which a picture is drawn in full
REFRESH = 1.0  # seconds between pictures of an avatar that changes while nothing else does
RATE = 25.0  # timesteps a second at speed 1
MOVING_FRAME = 0.05  # seconds that a picture may take while something moves
PORTRAIT = 1.3  # from this height of a window on, in widths, the panel lies over its lower half
LIFTED = 0.22  # of its height, what is looked at then
FEWEST_PIXELS = 64 * 64
MOST_PIXELS = 1 << 22  # of one picture, however large a window pretends to be
LARGEST_SIDE = 8192


@dataclass
class Pace:
    """How many pixels can be drawn in the time that a moving picture may take; learned from those drawn."""

    pixels: float = 160_000.0

    def note(self, pixels: int, seconds: float) -> None:
        """Takes the time of one picture."""
        step = min(max(MOVING_FRAME / max(seconds, 1e-4), 0.4), 1.4)
        # A picture has a cost without pixels, so that a full step would overshoot: the square root settles.
        self.pixels = min(max(pixels * math.sqrt(step), FEWEST_PIXELS), MOST_PIXELS)


@dataclass
class Look:
    """The wishes of one browser. Only the thread that draws touches it."""

    width: int  # of the window, pixels of the screen
    height: int
    fov: float  # vertical, radians
    position: np.ndarray  # [3] metres
    orientation: np.ndarray  # [3, 3] camera to world, OpenCV axes

    show: str = "Picture"
    background: tuple[float, float, float] | None = None  # None: that of the training
    resolution: float = 1.0  # share of the window's sides
    through: str | None = None  # the camera of the capture that is looked through
    blend: float = 0.0  # share of the photograph over the picture
    beside: bool = False  # the photograph beside the picture

    clock: float = 0.0  # row of the motion, and how far to the next
    playing: bool = False
    speed: float = 1.0
    loop: bool = True
    held: dict[int, float] = field(default_factory=dict)  # column of a row -> its value, whatever the motion says
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the head about its own axes, radians

    film: Film | None = None  # key frames that are previewed
    film_from: float = 0.0  # since when, seconds of the monotonic clock

    pace: Pace = field(default_factory=Pace)
    changed: float = -math.inf  # when something last did, seconds of the monotonic clock
    drawn: float = -math.inf  # when the last picture was begun
    sharp: bool = False  # it shows the last change, in full
    model: object = None  # which state of the avatar it shows

    def touch(self, now: float) -> None:
        """Something has changed: the picture is old."""
        self.changed, self.sharp = now, False

    @property
    def row(self) -> int:
        """The row of the motion that is shown."""
        return int(self.clock)

    def play(self, now: float, elapsed: float, rows: int) -> None:
        """Moves the clock on by `elapsed` seconds, if it runs, and the preview of a film."""
        if self.film is not None:
            self.touch(now)
            if now - self.film_from > self.film.seconds:
                self.film = None
        if not self.playing or rows < 2:
            return
        before, last = self.row, rows - 1
        self.clock += elapsed * RATE * self.speed
        if self.clock >= rows:
            self.clock = self.clock % rows if self.loop else last
            self.playing = self.loop
        if self.row != before:
            self.touch(now)

    def due(self, now: float, model: object) -> str | None:
        """ "moving", "rest" or None: whether a picture is to be drawn now, quickly or in full."""
        if self.drawn < self.changed:
            return "moving" if now - self.changed < REST else "rest"
        if not self.sharp and now - self.changed >= REST:
            return "rest"
        if model != self.model and now - self.drawn >= REFRESH:
            return "rest"
        return None

    @property
    def standing(self) -> Viewpoint:
        """Where it stands."""
        return Viewpoint(self.position, self.orientation, self.fov)

    def view(self) -> Viewpoint:
        """What is drawn: from there, or as the preview says; on a phone what is looked at is lifted above the panel."""
        if self.film is not None:
            return self.film.view(self.drawn - self.film_from)
        lifted = LIFTED if self.height > PORTRAIT * self.width else 0.0
        return replace(self.standing, shift=(0.0, -lifted))

    def size(self, full: bool) -> tuple[int, int]:
        """Width and height of the picture to draw, in the proportions of the window."""
        wanted = self.width * self.height * self.resolution**2
        pixels = min(wanted, MOST_PIXELS if full else self.pace.pixels)
        scale = math.sqrt(pixels / (self.width * self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def pose(self, avatar: Avatar) -> tuple[Tensor | None, int | None]:
        """The pose [D], and the row of the motion if it is exactly that; (None, None) of a static scene."""
        if avatar.model.flame_parameters is None:
            return None, None
        if self.film is not None:
            return self.film.pose(self.drawn - self.film_from), None
        motion = avatar.motion()
        row = min(self.row, len(motion) - 1)
        values = motion.values[row].detach()
        if not self.held and not any(self.turn):
            return values, row
        values = values.clone()
        for column, value in self.held.items():
            values[column] = value
        if any(self.turn):
            part = motion.columns["rotation"]
            turned = Rotation.from_rotvec(values[part].double().cpu().numpy()) * Rotation.from_rotvec(self.turn)
            values[part] = torch.from_numpy(turned.as_rotvec()).to(values)
        return values, None


def strongest_expressions(avatar: Avatar) -> list[int]:
    """The expression coefficients that do anything, first those that move this head most in its motion."""
    flame, motion = avatar.model.flame, avatar.motion()
    assert flame is not None  # what has a motion has a head
    coefficients = motion.values[:, motion.columns["expr"]].detach()
    spread = coefficients.std(0, correction=0) if len(motion) > 1 else torch.ones_like(coefficients[0])
    reach = flame.exprdirs.square().sum((0, 1)).sqrt()  # of one unit
    strength = (spread + 1e-6) * reach  # without motion, the strongest modes
    order = torch.argsort(strength, descending=True, stable=True)
    return order[reach[order] > 0].tolist()  # head models are padded to FLAME's number of modes


def expression_bound(avatar: Avatar) -> float:
    """How far the sliders of the coefficients go, either way: a little further than the motion does."""
    motion = avatar.motion()
    return max(1.0, 1.25 * float(motion.values[:, motion.columns["expr"]].abs().max()))


def window_size(width: float, height: float) -> tuple[int, int]:
    """The size of a browser's window in pixels, whatever it says that is."""
    if not (math.isfinite(width) and math.isfinite(height)):
        return 640, 480
    return min(max(int(width), 16), LARGEST_SIDE), min(max(int(height), 16), LARGEST_SIDE)


def same_place(look: Look, position: np.ndarray, orientation: np.ndarray) -> bool:
    """Whether the browser stands there, but for rounding: 0.5 mm and a tenth of a degree."""
    turned = np.trace(look.orientation.T @ orientation)
    return bool(np.linalg.norm(look.position - position) < 5e-4 and turned > 3 - math.radians(0.1) ** 2)
