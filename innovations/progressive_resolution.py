"""Training at a coarse resolution first, at the full one later.

The camera is scaled before it renders, so a coarse step costs less from the
rasterizer to the loss and back; rendering at full size and reducing the picture
saves nothing (`benchmarks/progressive.py`, doc/training_time.md). Without state:
the scale follows from the iteration alone, so a resumed run goes on alike.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class ProgressiveResolution:
    """Which resolution to train at, by iteration; the default is the full one throughout.

    The last scale need not be 1, though pictures are always evaluated and
    rendered at full size: a Gaussian that was only ever seen at a coarser one
    may show gaps there.
    """

    scales: tuple[float, ...] = (1.0,)   # of the full width and height, in order of use
    milestones: tuple[int, ...] = ()     # iterations, counted from 1: the first at each further scale

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a scale outside (0, 1], milestones that do not increase from 1 on, or not one less of them.
        """
        for scale in self.scales:
            if not (math.isfinite(scale) and 0.0 < scale <= 1.0):
                raise UserError(f"--resolution_schedule must hold scales above 0 and at most 1, not {scale:g}")
        if len(self.milestones) != len(self.scales) - 1:
            raise UserError(f"--resolution_schedule has {len(self.scales)} scales and --resolution_milestones "
                            f"{len(self.milestones)}: give one milestone less than scales, where each but the first "
                            "begins")
        for before, after in zip((0, *self.milestones), self.milestones):
            if after <= before:
                raise UserError("--resolution_milestones must be iterations from 1 on that increase, not "
                                + ",".join(map(str, self.milestones)))

    @classmethod
    def parse(cls, schedule: str, milestones: str) -> ProgressiveResolution:
        """From the command line: "0.5,0.75,1.0" and "100000,300000".

        Raises:
            UserError: not such lists, or they do not fit each other.
        """
        return cls(parse_scales(schedule), parse_milestones(milestones))

    def scale(self, step: int) -> float:
        """The resolution of iteration `step`, relative to the full one."""
        return self.scales[bisect_right(self.milestones, step)]

    def switch(self, step: int) -> str:
        """The line to print where `step` is the first iteration at another scale, else empty."""
        if step in self.milestones and self.scale(step) != self.scale(step - 1):
            return f"[ITER {step}] Switching to resolution scale {self.scale(step):g}"
        return ""

    def scaled(self, factor: float) -> ProgressiveResolution:
        """The same with every milestone times `factor`, for `--scale_schedule`; they stay apart by one at least."""
        milestones: list[int] = []
        for milestone in self.milestones:
            milestones.append(max(round(milestone * factor), milestones[-1] + 1 if milestones else 1))
        return ProgressiveResolution(self.scales, tuple(milestones))

    def note(self, iterations: int) -> str:
        """A line for the user where a run of so many iterations never trains at full size, else empty."""
        if self.scale(iterations) == 1.0:
            return ""
        return (f"note: {iterations} iterations end at resolution scale {self.scale(iterations):g}; fine detail is "
                "learnt at scale 1 only: give earlier --resolution_milestones, or --scale_schedule")


def parse_scales(text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        UserError
    """
    return tuple(_numbers(text, float, "--resolution_schedule", "scales such as 0.5,0.75,1.0"))


def parse_milestones(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, or none.

    Raises:
        UserError
    """
    if not text.strip():
        return ()
    return tuple(_numbers(text, int, "--resolution_milestones", "iterations such as 100000,300000"))


def _numbers(text: str, kind: type, flag: str, expected: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{flag} must be {expected}, not {text!r}") from error
