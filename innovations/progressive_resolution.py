"""Training at a coarse resolution first, at the full one later.

The camera is scaled before it renders, so a coarse step costs less from the
rasterizer to the loss and back; rendering at full size and reducing the picture
saves nothing. Without state:
the scale follows from the iteration alone, so a resumed run goes on alike.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressiveResolution:
    """Which resolution to train at, by iteration; the default is the full one throughout.

    The last scale need not be 1, though pictures are always evaluated and
    rendered at full size: a Gaussian that was only ever seen at a coarser one
    may show gaps there.
    """

    scales: tuple[float, ...] = (1.0,)  # above 0, at most 1, of the full width and height, in order of use
    milestones: tuple[int, ...] = ()  # iterations, counted from 1: the first at each further scale; they increase

    def scale(self, step: int) -> float:
        """The resolution of iteration `step`, relative to the full one."""
        return self.scales[bisect_right(self.milestones, step)]

    def switch(self, step: int) -> str:
        """The line to print where `step` is the first iteration at another scale, else empty."""
        if step in self.milestones and self.scale(step) != self.scale(step - 1):
            return f"[ITER {step}] Switching to resolution scale {self.scale(step):g}"
        return ""
