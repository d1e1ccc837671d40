"""More Gaussians where people look first: a lower threshold on eyes, mouth and nose.

One of the costly flags that the efficient presets came to replace. A Gaussian passes the threshold of the density
control already at a `ratio`-th of it where its triangle is in one of these regions, on the rest of the face at a
`ratio`-th's root; elsewhere nothing changes. Written as a factor on the statistic, it goes with whatever policy
decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from innovations.region_adaptive_loss import REGION_MASKS, RegionAdaptiveLoss
from ops.types import Candidates, Selection
from utils.errors import UserError

Policy = Callable[[int, Candidates], Selection]


class AdaptiveDensification:
    """Importance of triangles, and policies of `training.density_control` that heed it.

    Attributes:
        note: one line on regions that no mask describes, else "".
    """

    def __init__(
        self,
        ratio: float,  # at least 1
        binding: Callable[[], Tensor],  # [N] int64, the triangle of each Gaussian there is now
        faces: Tensor,  # [F, 3] int64
        masks: Mapping[str, Tensor],  # name -> vertex ids, of the head model
    ) -> None:
        """Raises UserError when the head model has no mask of any region: nothing would be important."""
        regions = RegionAdaptiveLoss(ratio, ratio, ratio, math.sqrt(ratio), faces=faces, masks=masks)
        if len(regions.missing) == len(REGION_MASKS):
            raise UserError(
                f"--use_adaptive_densification: the head model has no masks for {', '.join(REGION_MASKS)}: name one "
                "that has with --head_model (FLAME's are in FLAME_masks.pkl, beside it), or add "
                "--no_adaptive_densification"
            )
        self.note = ""
        if regions.missing:
            self.note = (
                f"The head model has no masks for {', '.join(regions.missing)}: adaptive densification treats them as "
                "what is around them"
            )
        self.binding = binding
        self.factors = regions.triangle_weights()  # [F]

    def policy(self, policy: Policy) -> Policy:
        """`policy`, with the statistic raised where it is important."""

        def select(step: int, candidates: Candidates) -> Selection:
            raised = candidates.statistic * self.factors[self.binding()]
            return policy(step, candidates._replace(statistic=raised))

        return select


class NoAdaptiveDensification:
    """Switched off: every policy stays what it is."""

    note = ""

    def policy(self, policy: Policy) -> Policy:
        """`policy` itself."""
        return policy


NO_ADAPTIVE_DENSIFICATION = NoAdaptiveDensification()
