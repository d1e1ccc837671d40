"""What passes between the density control and the policy that chooses what to densify."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Candidates(NamedTuple):
    """What is known of the N Gaussians since the last densification."""

    statistic: Tensor  # [N]       (absolute) gradient of the projected centre, NDC units, mean over views that saw it
    seen: Tensor  # [N] bool  some view saw it
    large: Tensor  # [N] bool  larger than --percent_dense of the scene extent
    radii: Tensor  # [N]       largest 3-sigma screen radius, pixels of the full image; 0 where never seen


class Selection(NamedTuple):
    """What is to be densified. A clone and a split each add one Gaussian."""

    clone: Tensor  # [N] bool
    split: Tensor  # [N] bool, disjoint from `clone`
    clone_threshold: float  # of the statistic, for the report
    split_threshold: float  # likewise
    name: str = ""  # of the policy, if it wants every densification told; "" = silent
