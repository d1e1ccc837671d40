"""The order in which training views are visited."""

from __future__ import annotations

from typing import Any

import torch


class ShuffledSampler:
    """Endless passes over `count` views, each pass in a new random order.

    It owns its random generator, so evaluation or logging cannot shift the
    order, and its whole state goes into a checkpoint.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)
        self.order: list[int] = []
        self.position = 0

    def next(self) -> int:
        """The index of the next view."""
        if self.position >= len(self.order):
            self.order = torch.randperm(self.count, generator=self.generator).tolist()
            self.position = 0
        index = self.order[self.position]
        self.position += 1
        return index

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "order": torch.tensor(self.order, dtype=torch.int64),
            "position": self.position,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state belongs to another number of views, or is not one."""
        if type(state["count"]) is not int:
            raise ValueError("its count is no number")
        if state["count"] != self.count:
            raise ValueError(f"it was trained on {state['count']} views, the data set has {self.count}")
        order = state["order"].tolist()
        if not all(type(index) is int and 0 <= index < self.count for index in order):
            raise ValueError("its order names views that the data set does not have")
        if type(state["position"]) is not int or state["position"] < 0:
            raise ValueError("its position is no number")
        self.order, self.position = order, state["position"]
        self.generator.set_state(state["generator"])
