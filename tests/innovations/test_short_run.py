"""Learning rates by the length of the run."""

from __future__ import annotations

import pytest

from innovations.short_run import WHOLE, RateFactors, rate_factors


def test_the_shorter_the_larger() -> None:
    assert rate_factors(1, 20_000) == rate_factors(600, 20_000) == WHOLE
    assert rate_factors(20_000, 20_000) == rate_factors(600_000, 20_000) == RateFactors()
    # The middle in the logarithm has the root.
    assert rate_factors(round((600 * 20_000) ** 0.5), 20_000).scaling == pytest.approx(3**0.5, rel=1e-3)
    for more, fewer in zip(rate_factors(1000, 20_000), rate_factors(5000, 20_000)):
        assert more > fewer > 1
