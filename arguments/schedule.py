"""When things happen: the shortened schedule, and the iterations that evaluate and save."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from arguments.options import DEFAULT_ITERATIONS, Options, groups

# Iteration-valued options and the least that each may shrink to.
_SCALED = {
    "position_lr_max_steps": 1,
    "sh_increase_interval": 1,
    "densify_from_iter": 10,
    "densify_until_iter": 1,
    # The gradient statistic is a mean over views; fewer than these say little.
    "densification_interval": 10,
    # After a reset an opacity needs about 100 Adam steps to climb back to one half.
    "opacity_reset_interval": 100,
    # Evaluating takes as long as many iterations do.
    "interval": 100,
    "resolution_milestones": 1,
}


def scale_schedule(options: Options, typed: frozenset[str] = frozenset()) -> Options:
    """The same options with every iteration-valued one multiplied by iterations / 600,000.

    Values round to the nearest iteration and do not fall below the minimum of
    their kind. Explicit lists (`--test_iterations` ...) and `--debug_from` name
    iterations of this very run and stay.

    Args:
        options: with the values of a 600,000 iteration run.
        typed: names of options that the user set; they are taken as typed. (Those of a preset are not: it is made
            for a long run, too.)
    """
    iterations = options.optimization.iterations

    def shrunk(value: int, least: int) -> int:
        return max(least, round(value * iterations / DEFAULT_ITERATIONS))

    def scaled(group: Any) -> Any:
        changes: dict[str, Any] = {}
        for name in {field.name for field in dataclasses.fields(group)} & _SCALED.keys() - typed:
            value, least = getattr(group, name), _SCALED[name]
            if isinstance(value, tuple):
                # In a tiny run, too, they have to increase.
                kept: list[int] = []
                for iteration in value:
                    kept.append(max(shrunk(iteration, least), kept[-1] + 1 if kept else least))
                changes[name] = tuple(kept)
            else:
                changes[name] = shrunk(value, least)
        return dataclasses.replace(group, **changes)

    return dataclasses.replace(options, **{name: scaled(group) for name, group in groups(options)})


@dataclass(frozen=True)
class DueIterations:
    """The iterations at which one kind of event is due; call it with an iteration counted from 1."""

    last: int  # iterations of the run
    interval: int  # used where nothing is listed
    listed: frozenset[int]  # replaces the interval where not empty
    early: int = 0  # also at this one, unless something is listed

    def __call__(self, iteration: int) -> bool:
        # The last one is always due: a run that ends between two multiples of
        # the interval must not lose its result.
        if iteration == self.last:
            return True
        return iteration in self.listed if self.listed else iteration % self.interval == 0 or iteration == self.early

    def after(self, iteration: int) -> int:
        """The first one that comes after `iteration`; the last of the run where none does."""
        next_multiple = (iteration // self.interval + 1) * self.interval
        return min([i for i in self.listed or (self.early, next_multiple) if i > iteration] + [self.last])


class Milestones(NamedTuple):
    """When to evaluate, save the avatar, and write a checkpoint."""

    test: DueIterations
    save: DueIterations
    checkpoint: DueIterations


def milestones(options: Options) -> Milestones:
    """The three kinds of events of the run that `options` describes.

    Each is every multiple of `--interval` up to the actual number of
    iterations, or the explicit list where one was given, and always the last
    iteration. Without a list the first evaluation comes already at 1 % of the
    run: whoever waits for hours wants to see early that it goes well. Listed
    iterations beyond the run never come, so that a script with
    `--test_iterations 7000 30000` also works for a short run.
    """
    run, last = options.run, options.optimization.iterations
    return Milestones(
        DueIterations(last, run.interval, frozenset(run.test_iterations), early=last // 100),
        DueIterations(last, run.interval, frozenset(run.save_iterations)),
        DueIterations(last, run.interval, frozenset(run.checkpoint_iterations)),
    )
