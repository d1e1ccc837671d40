"""Densification by percentiles, under a budget that is reached smoothly.

The classical rule densifies whatever passes a fixed gradient threshold. What
that means depends on the capture: at 256 x 352 pixels the usual 2e-4 grows more
Gaussians than there are pixels, at 802 x 550 it may be right. Percentiles adapt:
the top quarter is cloned, the top tenth is split. Alone they would grow
geometrically (some fraction is always on top, 295 times in a run), so

* no threshold falls below a floor tied to `--densify_grad_threshold`: what has
  converged is left alone;
* the number of Gaussians follows a curve that ends at `--max_gaussians`;
* where more pass than there is room for, the strongest statistic wins;
* what is larger on screen than some pixels is split although it is small in the
  scene: a clone lies exactly on its parent, with the same gradient, and at first
  does nothing but make the two more opaque, and on a head nearly all Gaussians
  are small against the scene.

The statistic is by default the *absolute* gradient of the projected center: the
absolute values of the pixels' shares are summed, not the shares. Where one side of a
Gaussian wants to go left and the other right, as in hair and along an outline, the
shares cancel, and the classical statistic sees nothing just where it should be split
(Ye et al. 2024, AbsGS).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ops.types import Candidates, Selection

# An absolute gradient is a sum without cancellation and several times larger; the floor rises by so much.
ABSOLUTE_SHARE = 3.0
# Exponent of the growth curve: the room left to the budget is (share of the schedule left) ** GROWTH. With 3, seven
# eighths of the growth come in the first half, so that what was added has time to converge.
GROWTH = 3.0


class SmartDensification:
    """A policy for `training.density_control.DensityControl`; without state, so that a resumed run goes on alike."""

    def __init__(
        self,
        *,
        gradient_threshold: float,  # --densify_grad_threshold, NDC units
        until_iter: int,  # --densify_until_iter: densification ends before this
        interval: int,  # --densification_interval
        percentile_clone: float,  # 0..100, of the non-zero statistic of the Gaussians seen
        percentile_split: float,  # likewise; not below the other
        max_gaussians: int,  # 0: no limit
        floor_share: float,  # of `gradient_threshold`: below it nothing is densified, whatever the percentiles say
        absolute: bool,  # the statistic is of absolute gradients
        split_radius: float,  # pixels of the full image, 3 sigma; infinity: by the size in the scene alone
    ) -> None:
        self.percentiles = (percentile_clone, percentile_split)
        self.floor = floor_share * gradient_threshold * (ABSOLUTE_SHARE if absolute else 1.0)
        self.until_iter, self.interval = until_iter, interval
        self.max_gaussians = max_gaussians
        self.split_radius = split_radius

    def __call__(self, step: int, candidates: Candidates) -> Selection:
        """Chooses what to clone and split at iteration `step`."""
        statistic = candidates.statistic
        eligible = candidates.seen & (statistic > 0) & torch.isfinite(statistic)
        clone_threshold, split_threshold = (
            max(value, self.floor) for value in percentiles(statistic[eligible], self.percentiles)
        )
        large = candidates.large | (candidates.radii > self.split_radius)
        clone = eligible & ~large & (statistic >= clone_threshold)
        split = eligible & large & (statistic >= split_threshold)
        if self.max_gaussians:
            chosen = strongest(statistic, clone | split, self.room(step, len(statistic)))
            clone, split = clone & chosen, split & chosen
        return Selection(clone, split, clone_threshold, split_threshold, "Smart Densification")

    def room(self, step: int, count: int) -> int:
        """How many Gaussians the densification at `step` may add to `count`; never past the budget.

        The curve is anchored at the present count, not at that of the start: it
        needs no memory, and what pruning removes is given back gradually.
        """
        left = max(1, (self.until_iter - 1) // self.interval - (step - 1) // self.interval)  # this one included
        share = 1.0 - ((left - 1) / left) ** GROWTH
        return max(0, math.ceil((self.max_gaussians - count) * share))


def percentiles(values: Tensor, wanted: tuple[float, ...]) -> list[float]:
    """The percentiles `wanted` (0..100) of `values` [M], linearly interpolated as `numpy.percentile` does; 0 if M = 0.

    One sort and one transfer to the host, whatever their number.
    """
    if not len(values):
        return [0.0] * len(wanted)
    ranks = [percentile / 100.0 * (len(values) - 1) for percentile in wanted]
    rows = [row for rank in ranks for row in (math.floor(rank), math.ceil(rank))]
    found = values.sort().values[torch.tensor(rows, device=values.device)].tolist()
    return [low + (high - low) * (rank - math.floor(rank)) for rank, low, high in zip(ranks, found[0::2], found[1::2])]


def strongest(statistic: Tensor, wanted: Tensor, room: int) -> Tensor:
    """[N] bool: the `room` rows of `wanted` [N] bool with the largest `statistic` [N]; the first of equals."""
    rows = torch.nonzero(wanted).squeeze(1)
    # A stable sort: top-k functions choose among equals as they please.
    order = torch.sort(statistic[rows], descending=True, stable=True).indices[:room]
    chosen = torch.zeros_like(wanted)
    chosen[rows[order]] = True
    return chosen
