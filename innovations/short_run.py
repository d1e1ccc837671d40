"""Learning rates that follow the length of the run.

The rates in use were found for 600,000 iterations. Whoever has a few hundred has no time for small steps, and a run
that is over before the noise of large ones shows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

FULL_AT = 600  # iterations: the rates of so short a run, and of shorter ones, get the whole of their factors


class RateFactors(NamedTuple):
    """What the learning rates of the Gaussians are multiplied by."""

    position: float = 1.0  # at the beginning of the run
    last_position: float = 1.0  # at its end
    feature: float = 1.0
    opacity: float = 1.0
    scaling: float = 1.0
    rotation: float = 1.0


WHOLE = RateFactors(position=5.0, last_position=10.0, feature=2.0, opacity=2.0, scaling=3.0, rotation=3.0)


def rate_factors(iterations: int, none_from: int) -> RateFactors:
    """The factors for a run of so many iterations: between `FULL_AT` and `none_from` an even share of the logarithm."""
    share = math.log(none_from / iterations) / math.log(none_from / FULL_AT)
    return RateFactors(*(factor ** min(max(share, 0.0), 1.0) for factor in WHOLE))
