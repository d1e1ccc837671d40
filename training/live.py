"""The live viewer of a run: drawn between two steps, for a share of the time, and only when somebody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from arguments import Options, RunOptions
from gaussian_renderer import Rasterizer
from innovations.color_calibration import ColorCalibration, NoColorCalibration
from scene import Avatar
from scene.avatar import saved_folder
from scene.dataset import Dataset
from scene.flame import find_head_model
from scene.gaussian_model import PLY_NAME, GaussianModel
from scene.motion.blendshapes import mode_names
from training.listeners import Listener
from training.reporter import GROUPS, Reporter
from training.views import Views
from utils.interrupt import StopSignals

if TYPE_CHECKING:  # the web server takes a while to import: only who opens a port pays
    from viewer.server import Doorkeeper
    from viewer.session import Viewer

SAVED_UP = 0.25  # seconds of drawing that a pause of the browser may save up
CURVE = 2000  # points; a longer one loses every other
FIGURES_EVERY = 0.3  # seconds


def open_door(stack: ExitStack, run: RunOptions) -> Doorkeeper | None:
    """Takes the port, if there is one, until `stack` ends; browsers are served later.

    Raises:
        UserError: it is in use, or cannot be had.
    """
    if run.port is None:
        return None
    from viewer.server import Doorkeeper, listen

    door = Doorkeeper(listen(run.ip, run.port), run.viewer_token)
    stack.callback(door.listening.close)
    if not run.quiet:
        print(f"viewer, as soon as the training begins: {door.url}")  # not into train.log, because of the token
    if door.warning:
        print(f"warning: {door.warning}", file=sys.stderr)
    return door


def build_live(
    stack: ExitStack,
    door: Doorkeeper | None,
    options: Options,
    model: GaussianModel,
    color: ColorCalibration | NoColorCalibration,
    dataset: Dataset,
    views: Views,
    rasterizer: tuple[str, Rasterizer],  # its name, and itself
    reporter: Reporter,
    stop: StopSignals,
) -> Listener:
    """Serves browsers at the door until `stack` ends; without one, nothing."""
    if door is None:
        return Listener()
    from viewer.capture import shots_of
    from viewer.session import Viewer
    from viewer.stage import Stage

    output = Path(options.model.model_path)
    path = saved_folder(output, options.optimization.iterations) / PLY_NAME
    # The parts of the training itself, so that a picture shows this very step. (Nobody asks here for the head model.)
    avatar = Avatar(model, None, color, options, 0, path, views.background, *rasterizer)

    splits = [(name, index) for name in ("train", "val", "test") for index in range(len(views.cameras[name]))]

    def photograph(number: int) -> Tensor:
        split, index = splits[number]
        return views.ground_truth[split](index)

    everything = dataset.train + dataset.val + dataset.test
    shots = shots_of(everything, range(max(1, len(dataset.timesteps))), dataset.background, photograph)
    names: tuple[str, ...] = ()
    if model.flame is not None:
        head_file = find_head_model(options.model.head_model, options.model.source_path)
        names = mode_names(head_file, model.flame.exprdirs.shape[2])
    viewer = Viewer(door, Stage(avatar, output, shots, names))
    stack.callback(viewer.close)
    return Live(viewer, reporter, stop, share=options.run.viewer_share, iterations=options.optimization.iterations)


class Live(Listener):
    """Lets the viewer draw at the end of a step, when it has been left its share of the time."""

    def __init__(self, viewer: Viewer, reporter: Reporter, stop: StopSignals, *, share: float, iterations: int) -> None:
        self.viewer, self.reporter, self.stop, self.iterations = viewer, reporter, stop, iterations
        self.status = viewer.stage.status
        self.status.training = True
        self.status.charts = {
            "Loss": {"total": "loss/total"},
            "PSNR, dB": {split: f"{group}/psnr" for split, group in GROUPS.items()},
            "Gaussians": {"number": "points/total"},
        }
        self._earned = share / (1.0 - share)  # seconds of drawing by a second of training
        self._credit = SAVED_UP  # seconds
        self._left: float | None = None  # when the loop went on, while somebody looks
        self._shown = 0.0
        reporter.on_scalars = self._keep

    def _keep(self, step: int, values: Mapping[str, float | None]) -> None:
        """What the panel shows as curves."""
        wanted = {name for names in self.status.charts.values() for name in names.values()}
        for name in wanted & values.keys():
            value = values[name]
            if value is not None:
                curve = self.status.curves.setdefault(name, [])
                curve.append((float(step), float(value)))
                if len(curve) > CURVE:
                    del curve[1:-1:2]

    def end_of_step(self, step: int) -> None:
        viewer = self.viewer
        if viewer.idle:
            self._left = None
            return
        with self.reporter.pause():
            began = time.perf_counter()
            if self._left is not None:
                self._credit = min(self._credit + (began - self._left) * self._earned, SAVED_UP)
            self._serve(step)
            self._left = time.perf_counter()
            self._credit = max(self._credit - (self._left - began), -SAVED_UP)
            self._wait_for_browsers()

    def _serve(self, step: int) -> None:
        """Hears what browsers want, and draws a picture if there is time for it."""
        self.viewer.stage.state = step
        now = time.perf_counter()
        if now - self._shown > FIGURES_EVERY:
            self._shown = now
            self._show_figures(step)
        self.viewer.hear()
        if self._credit > 0:
            self.viewer.draw()

    def _wait_for_browsers(self) -> None:
        """Draws as long as a browser wants the training to wait, and asks it to stop if one wants that."""
        viewer, status = self.viewer, self.status
        while status.paused and viewer.visitors and not (self.stop.signal or status.stop):
            if not viewer.turn():
                viewer.wait(0.1)
            self._left = None  # this time is nobody's
        status.paused = False  # whoever asked for it may have gone
        if status.stop:
            self.stop.ask()

    def _show_figures(self, step: int) -> None:
        status = self.status
        points = len(self.viewer.stage.avatar.model)
        status.headline = f"iteration {step:,} of {self.iterations:,} · {points:,} Gaussians"
        latest = {name: curve[-1][1] for name, curve in status.curves.items()}
        rate = self.reporter.iterations_per_second
        figures = {
            "Iteration": f"{step:,} of {self.iterations:,}",
            "Iterations a second": f"{rate:.1f}" if rate else None,
            "Gaussians": f"{points:,}",
            "Loss": f"{latest['loss/total']:.4f}" if "loss/total" in latest else None,
            **{
                f"PSNR of {split}": f"{latest[f'{group}/psnr']:.2f} dB" if f"{group}/psnr" in latest else None
                for split, group in GROUPS.items()
            },
        }
        status.figures = {name: text for name, text in figures.items() if text is not None}
