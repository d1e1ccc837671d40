"""Adaptive densification against thresholds computed one by one, under both policies, and its children."""

from __future__ import annotations

import math

import pytest
import torch

from innovations.adaptive_densification import AdaptiveDensification
from innovations.smart_densification import SmartDensification
from ops.types import Candidates, Selection
from training.density_control import fixed_threshold
from utils.errors import UserError

# Five triangles in a row: of the nose, on its border with two corners inside, of the face, of it with one, elsewhere.
FACES = torch.tensor([[0, 1, 2], [1, 2, 3], [3, 4, 5], [4, 5, 6], [7, 8, 9]])
MASKS = {
    "nose": torch.tensor([0, 1, 2]),
    "face": torch.arange(6),
    "lips": torch.tensor([0]),
    "scalp": torch.tensor([7]),
}
FACTORS = [1.5, 1.5, math.sqrt(1.5), math.sqrt(1.5), 1.0]
BINDING = torch.tensor([4, 0, 2, 1, 3, 0, 4])


def adaptive(binding: torch.Tensor = BINDING, masks: dict[str, torch.Tensor] = MASKS) -> AdaptiveDensification:
    return AdaptiveDensification(1.5, lambda: binding, FACES, masks)


def candidates(statistic: torch.Tensor) -> Candidates:
    large = torch.arange(len(statistic)) % 2 == 0
    return Candidates(statistic, statistic > 0, large, torch.ones(len(statistic)))


def test_triangles_are_as_important_as_their_masks_say() -> None:
    part = adaptive()
    assert part.factors.tolist() == pytest.approx(FACTORS)
    assert part.note == (
        "The head model has no masks for eyes, mouth: adaptive densification treats them as what is around them"
    )


def test_each_gaussian_has_its_own_threshold() -> None:
    statistic = torch.tensor([0.9, 0.7, 0.82, 0.66, 0.8, 0.68, 1.1])
    select = adaptive().policy(fixed_threshold(1.0))
    chosen = select(1, candidates(statistic))
    passes = [value >= 1.0 / FACTORS[triangle] for value, triangle in zip(statistic.tolist(), BINDING.tolist())]
    assert passes == [False, True, True, False, False, True, True]
    assert (chosen.clone | chosen.split).tolist() == passes
    assert chosen.split.tolist() == [p and i % 2 == 0 for i, p in enumerate(passes)]


def test_smart_densification_ranks_by_the_raised_statistic() -> None:
    seen: list[torch.Tensor] = []

    def noted(step: int, among: Candidates) -> Selection:
        seen.append(among.statistic)
        return smart(step, among)

    smart = SmartDensification(
        gradient_threshold=1e-9,
        until_iter=100,
        interval=10,
        percentile_clone=0.0,
        percentile_split=0.0,
        max_gaussians=9,
        floor_share=1.0,
        absolute=False,
        split_radius=4.0,
    )
    statistic = torch.full((7,), 0.5)
    chosen = adaptive().policy(noted)(90, candidates(statistic))
    torch.testing.assert_close(seen[0], 0.5 * torch.tensor([FACTORS[triangle] for triangle in BINDING.tolist()]))
    # Two may be added: those on the nose.
    assert torch.nonzero(chosen.clone | chosen.split).flatten().tolist() == [1, 3]
    assert torch.equal(statistic, torch.full((7,), 0.5))


def test_children_are_as_important_as_their_parents() -> None:
    """The binding is asked for at every densification."""
    binding = BINDING
    part = AdaptiveDensification(1.5, lambda: binding, FACES, MASKS)
    select = part.policy(fixed_threshold(1.0))
    binding = torch.tensor([0, 0, 4])
    chosen = select(2, candidates(torch.full((3,), 0.7)))
    assert (chosen.clone | chosen.split).tolist() == [True, True, False]


def test_without_masks_nothing_would_be_important() -> None:
    with pytest.raises(UserError, match="--use_adaptive_densification: the head model has no masks"):
        adaptive(masks={"scalp": torch.tensor([7])})
