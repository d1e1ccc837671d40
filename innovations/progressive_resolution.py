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

    scales: tuple[float, ...] = (1.0,)  # of the full width and height, in order of use
    milestones: tuple[int, ...] = ()  # iterations, counted from 1: the first at each further scale

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a scale outside (0, 1], milestones that do not increase from 1 on, or not one less of them.
        """
        for scale in self.scales:
            if not (math.isfinite(scale) and 0.0 < scale <= 1.0):
                raise UserError(f"--resolution_schedule must hold scales above 0 and at most 1, not {scale:g}")
        if len(self.milestones) != len(self.scales) - 1:
            raise UserError(
                f"--resolution_schedule has {len(self.scales)} scales and --resolution_milestones "
                f"{len(self.milestones)}: give one milestone less than scales, where each but the first "
                "begins"
            )
        for before, after in zip((0, *self.milestones), self.milestones):
            if after <= before:
                raise UserError(
                    "--resolution_milestones must be iterations from 1 on that increase, not "
                    + ",".join(map(str, self.milestones))
                )

    def scale(self, step: int) -> float:
        """The resolution of iteration `step`, relative to the full one."""
        return self.scales[bisect_right(self.milestones, step)]

    def switch(self, step: int) -> str:
        """The line to print where `step` is the first iteration at another scale, else empty."""
        if step in self.milestones and self.scale(step) != self.scale(step - 1):
            return f"[ITER {step}] Switching to resolution scale {self.scale(step):g}"
        return ""
