"""Who listens to the loop: evaluation, saved avatars, checkpoints, the end on request.

Each hears twice of a step: before the density control, when the avatar looks as it was trained (right after an opacity
reset it is a ghost, and resets and saves fall on the same iterations), and at the end of the step, when everything
that belongs to it is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arguments import Options, RunOptions, milestones
from arguments.schedule import DueIterations
from evaluation.evaluate import Evaluated, evaluate, evenly_spaced, mean_metrics
from evaluation.metrics import Suite
from evaluation.pose_refinement import SplitViews, refine_motion
from innovations.color_calibration import ColorCalibration, NoColorCalibration
from innovations.region_adaptive_loss import NoRegionWeights, RegionAdaptiveLoss
from ops.types import RenderOut
from scene.avatar import save_avatar
from scene.gaussian_model import GaussianModel
from training import checkpoint
from training.ranks import ALONE, AgreedStop, Alone
from training.reporter import Reporter
from training.views import Views
from utils.interrupt import Alarm, StopSignals
from utils.memory import Keep

# Evaluation on the way looks at this many views of a split; at the end, at all.
VIEWS_ON_THE_WAY = 10
# ... unless nothing was held out: then so many of the training views stand in.
VIEWS_OF_TRAIN = 50
PICTURED_VIEWS = 3
QUICK_METRICS = ("psnr", "ssim", "l1")

Means = dict[str, float | None]


class Listener:
    """Hears of every step, and does nothing."""

    def before_density(self, step: int) -> None:
        """The parameters have moved, none was added or removed yet."""

    def end_of_step(self, step: int) -> None:
        """All of the step is done: what is saved now goes on with the next."""


class Evaluation(Listener):
    """Measures the held-out splits, and hands curves and a few pictures to TensorBoard."""

    def __init__(
        self,
        avatar: GaussianModel,
        views: Views,
        draw: Callable[..., RenderOut],  # in calibrated colors
        region: RegionAdaptiveLoss | NoRegionWeights,
        reporter: Reporter,
        due: DueIterations,
        run: RunOptions,
        ranks: Alone = ALONE,
    ) -> None:
        self.ranks = ranks
        self.avatar, self.views, self.draw, self.region, self.reporter = avatar, views, draw, region, reporter
        self.due, self.run = due, run
        self.quick = Suite([name for name in run.metrics if name in QUICK_METRICS], avatar.device)

    def before_density(self, step: int) -> None:
        if self.due(step) and step < self.due.last:
            with self.reporter.pause():
                for split in self.views.measured:
                    self._measure(step, split, self.avatar, self.quick.again(), VIEWS_ON_THE_WAY)

    def final(self, avatar: GaussianModel, refinable: SplitViews | None, steps: int) -> tuple[dict[str, Means], set]:
        """The metrics of `avatar`, which is the saved one, on all splits; and the notes on what could not be had.

        Args:
            refinable: which test views to fit in `steps` and which to measure, for the rows test_as_tracked and
                test_refined, both over the measured ones; None for no such rows.
        """
        means: dict[str, Means] = {}
        all_metrics = Suite(self.run.metrics, self.avatar.device)
        figures: dict[str, dict[int, Means]] = {}
        kept = Keep(self.run.ram_share, self.avatar.device) if refinable else None
        for split in self.views.measured:
            suite = all_metrics.again(kept if split == "test" else None)
            limit = VIEWS_OF_TRAIN if split == "train" else len(self.views.cameras[split])
            means[split], figures[split] = self._measure(self.due.last, split, avatar, suite, limit)
        if refinable is not None and self.ranks.first:
            cameras, ground_truth = self.views.cameras["test"], self.views.ground_truth["test"]
            draw = partial(self.draw, sh_degree=avatar.active_sh_degree)
            means["test_as_tracked"] = mean_metrics((figures["test"][i] for i in refinable.measured), all_metrics.names)
            refine_motion(avatar, cameras, ground_truth, draw, refinable.looked_at, steps)
            suite = all_metrics.again(kept)
            means["test_refined"] = evaluate(avatar, cameras, ground_truth, draw, suite, indices=refinable.measured)
        return means, set(all_metrics.notes)

    def _measure(
        self, step: int, split: str, avatar: GaussianModel, suite: Suite, limit: int
    ) -> tuple[Means, dict[int, Means]]:
        """Measures at most `limit` views of a split: the means, and the figures of each."""
        cameras = self.views.cameras[split]
        pictured = evenly_spaced(len(cameras), PICTURED_VIEWS)
        figures: dict[int, Means] = {}

        def on_image(view: Evaluated) -> None:
            figures[view.index] = view.metrics
            if view.ground_truth is not None and view.index in pictured:
                self.reporter.picture(step, split, self.views.label(split, view.index), view.image, view.ground_truth)

        evaluate(
            avatar,
            cameras,
            self.views.ground_truth[split],
            partial(self.draw, sh_degree=avatar.active_sh_degree),
            suite,
            indices=self.ranks.split(evenly_spaced(len(cameras), limit), pictured),
            on_image=on_image,
        )
        figures = self.ranks.collect(figures)
        means = mean_metrics(figures.values(), suite.names)
        if means:
            self.reporter.evaluation(step, split, means)
        if pictured:
            camera = cameras[pictured[0]]
            with torch.no_grad():
                _, vertices = avatar(camera.timestep)
                weights = self.region.weights(None, camera, vertices)
            if weights is not None:
                self.reporter.heat_map(step, split, f"{self.views.label(split, pictured[0])}/region_weights", weights)
        return means, figures


class SavedAvatars(Listener):
    """Saves the avatar where everybody looks for it."""

    def __init__(
        self,
        output: Path,
        avatar: GaussianModel,
        color: ColorCalibration | NoColorCalibration,
        reporter: Reporter,
        due: DueIterations,
        finished: Callable[[], GaussianModel],
        ranks: Alone = ALONE,
    ) -> None:
        """`finished` gives what is saved of the avatar."""
        self.output, self.avatar, self.color, self.reporter, self.due = output, avatar, color, reporter, due
        self.finished = finished
        self.ranks = ranks

    def before_density(self, step: int) -> None:
        if self.due(step) and self.ranks.first:
            with self.reporter.pause():
                save_avatar(self.folder(step), self.finished(), self.color)

    def folder(self, step: int) -> Path:
        """Where the avatar of iteration `step` is."""
        return self.output / "point_cloud" / f"iteration_{step}"


class Checkpoints(Listener):
    """Saves the state of all parts: when it is due, by the clock, and when the run is told to stop, which it then does.

    Raises (at the end of a step):
        SystemExit: a signal came; everything is saved.
    """

    def __init__(
        self,
        output: Path,
        options: Options,
        parts: Mapping[str, Any],
        reporter: Reporter,
        stop: StopSignals | AgreedStop,
        ranks: Alone = ALONE,
    ) -> None:
        self.output, self.parts, self.reporter, self.stop, self.ranks = output, parts, reporter, stop, ranks
        self.options = dataclasses.asdict(options)
        self.keep = options.run.keep_checkpoints
        self.due = milestones(options).checkpoint
        self.clock = Alarm(60.0 * options.run.checkpoint_every_minutes)

    def end_of_step(self, step: int) -> None:
        if self.ranks.first and (self.due(step) or self.clock.due() or self.stop.signal):
            with self.reporter.pause():
                self.reporter.flush()
                state = {name: part.state_dict() for name, part in self.parts.items()}
                checkpoint.save(self.output / f"chkpnt{step}.pth", {"step": step, "options": self.options, **state})
                checkpoint.remove_old(self.output, self.keep, step, self.due.listed)
                self.clock.restart()
        if self.stop.signal:
            self.ranks.meet()  # nobody ends before it is saved
            self.reporter.close()
            self.reporter.warn(
                f"stopped by {self.stop.signal.name} after iteration {step}; the same command with "
                "--start_checkpoint auto goes on from there"
            )
            raise SystemExit(128 + self.stop.signal)
