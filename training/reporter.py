"""What a training shows while it runs: the progress bar, the TensorBoard curves and train.log."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils.files import append_line
from utils.images import error_map, heat_map, to_bytes
from utils.progress import Lossy, progress_bar

LOG = "train.log"
# TensorBoard sorts its groups by name, and metrics are what one looks for.
GROUPS = {"val": "1_val", "test": "2_test", "train": "3_train"}
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}"
NARROWEST_BAR = 3  # columns
ESTIMATED_AFTER = 50  # iterations: then a run says how long it will take
GAUGES_EVERY = 10  # readings


class Reporter:
    """Writes curves and moves the bar, without making the device wait in every iteration.

    Losses stay tensors where they were computed; every `every` iterations they
    are averaged there and fetched with a single transfer, which is then the
    only host synchronisation. Curves therefore show means over `every`
    iterations.

    A run resumed at iteration `start` continues the curves: whatever a killed
    run wrote after its last checkpoint is discarded by TensorBoard (purge
    step). For the same reason call `flush` before saving a checkpoint. The
    losses that no curve shows yet are part of `state_dict`.
    """

    def __init__(
        self,
        folder: str | Path | None,
        iterations: int,
        *,
        start: int = 0,
        every: int | None = None,
        quiet: bool = False,
        views: int = 1,
    ) -> None:
        """
        Args:
            folder: of the event files and train.log; None writes none and says nothing at all.
            iterations: where the run ends.
            start: iterations done already (a resumed run).
            every: iterations between two readings; default 10, more for long
                runs, so that a curve has at most 10,000 points.
            quiet: no bar, no text.
            views: in a step, of all processes.

        Raises:
            UserError: the folder cannot be written.
        """
        from training.event_file import EventFile, NoEventFile  # TensorBoard takes a while to import

        # A run stopped while it measured the end has nothing to train, but its last step to show again.
        self._again = 0 < iterations <= start
        begin = start if self._again else start + 1 if start else 0
        self._writer: EventFile | NoEventFile = NoEventFile() if folder is None else EventFile(folder, begin)
        self._step = start
        self._scalars: dict[str, float] = {}  # what has been written at that step
        self.every = every or max(10, iterations // 10_000)
        self.quiet = quiet
        self._last = iterations
        self._pending: dict[str, list[Tensor | float]] = {}
        self._count = 0
        self._read_at = time.perf_counter()
        self._paused = 0.0
        self._pause_at: float | None = None  # since when, if now
        self._intervals: list[float] = []  # milliseconds per iteration, one for each reading
        self._seconds = 0.0
        self._first = start
        self._readings = 0  # since then
        self._estimated = False
        self._log = None if folder is None else Path(folder) / LOG
        self._views = views
        # To be set: what else to show as curves, when the evaluation after an iteration comes, who hears of all curves.
        self.gauges: Callable[[int], Mapping[str, float]] = lambda step: {}
        self.next_evaluation: Callable[[int], int] = lambda step: iterations
        self.on_scalars: Callable[[int, Mapping[str, float | None]], None] = lambda step, values: None
        self._bar = progress_bar(
            iterations, "Training", "it", quiet=quiet, initial=start, smoothing=0.1, bar_format=BAR
        )

    # ---- each iteration -----------------------------------------------------

    def step(self, iteration: int, losses: Mapping[str, Tensor | float], points: int) -> None:
        """Takes the losses (scalars, on any device) of `iteration`; call it once in each.

        A curve is `loss/<name>` for exactly the names in `losses`.
        """
        for name, value in losses.items():
            self._pending.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)
        self._count += 1
        if iteration % self.every == 0 or iteration == self._last:
            self._read(iteration, points)

    def _read(self, iteration: int, points: int) -> None:
        means = _means(self._pending)
        self._pending = {}
        # After the transfer above the device has finished, so this clock is true on a GPU too.
        now = time.perf_counter()
        elapsed = max(now - self._read_at - self._paused, 0.0)
        self._seconds += elapsed
        self._intervals.append(1e3 * elapsed / self._count)
        self.scalars(
            iteration,
            {
                **{f"loss/{name}": value for name, value in means.items()},
                "points/total": points,
                "time/iteration_ms": self._intervals[-1],
                "time/iterations_per_second": 1e3 / max(self._intervals[-1], 1e-6),
            },
        )
        self._readings += 1
        if iteration % (GAUGES_EVERY * self.every) == 0 or iteration == self._last:
            self.scalars(iteration, self.gauges(iteration))
        self._bar.set_postfix_str(self._note(means, points), refresh=False)
        self._bar.update(iteration - self._bar.n)
        self._count, self._read_at, self._paused = 0, now, 0.0
        if not self._estimated and self._readings >= 2 and self._first + ESTIMATED_AFTER <= iteration < self._last:
            self._estimated = True
            self.say(self._estimate(iteration))

    def _of_views(self, rate: float) -> str:
        """What so many iterations per second are in views, where a step has several."""
        return f" of {self._views} views each, {rate * self._views:.1f} views/s" if self._views > 1 else ""

    def _note(self, means: Mapping[str, float], points: int) -> str:
        """The Gaussians, the total loss and, as far as the terminal is wide, the terms that are on."""
        note = f"{points / 1e3:.1f}k Gaussians"
        for name, value in means.items():
            longer = f"{note}, {name} {value:.2g}"
            if name == "total" or value and len(longer) <= self._room():
                note = longer
        return note

    def _room(self) -> float:
        """The columns that are left for a note beside the bar."""
        if not isinstance(self._bar, tqdm) or not (width := self._bar.format_dict["ncols"]):
            return math.inf
        rest = self._bar.format_dict | {"bar_format": BAR.replace("{bar}", ""), "postfix": ""}
        return width - NARROWEST_BAR - len(tqdm.format_meter(**rest)) - len(", ")

    def _estimate(self, iteration: int) -> str:
        """How long the run will take, by its last readings: the first of all has built and loaded things."""
        rate = 1e3 / max(statistics.median(self._intervals[1 - self._readings :]), 1e-6)
        evaluation = self.next_evaluation(iteration)
        until = (tqdm.format_interval((step - iteration) / rate) for step in (self._last, evaluation))
        return (
            f"{rate:.1f} iterations/s{self._of_views(rate)}: about {next(until)} to go, longer as Gaussians are added; "
            f"the next evaluation is at iteration {evaluation:,}, in {next(until)}"
        )

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps what happens inside (evaluation, saving) out of the iteration time."""
        self._pause_at = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - self._pause_at
            self._pause_at = None

    # ---- now and then -------------------------------------------------------

    def scalars(self, iteration: int, values: Mapping[str, float | None]) -> None:
        """Writes values under their own full names ("val/psnr"); None is left out."""
        if iteration != self._step:
            self._step, self._scalars = iteration, {}
        for name, value in values.items():
            if value is not None:
                self._writer.scalar(name, value, iteration)
                self._scalars[name] = value
        self.on_scalars(iteration, values)

    def options(self, values: Mapping[str, Any], splits: Iterable[str]) -> None:
        """Shows the options as text, and as hparams beside the metrics of these splits at the end."""
        self._writer.options(values, [f"{GROUPS[split]}/{name}" for split in splits for name in ("psnr", "ssim", "l1")])

    def evaluation(self, iteration: int, split: str, means: Mapping[str, float | None]) -> None:
        """Writes `<group of the split>/<metric>` and says the main ones."""
        self.scalars(iteration, {f"{GROUPS.get(split, split)}/{name}": value for name, value in means.items()})
        values = [f"{name} {value:.4f}" for name, value in means.items() if value is not None]
        self.say(f"[{iteration}] {split}: {', '.join(values)}")

    def picture(self, iteration: int, split: str, view: str, image: Tensor, ground_truth: Tensor) -> None:
        """Writes a rendering [3, H, W], its ground truth and the error between them, side by side."""
        panels = torch.cat([image, ground_truth, error_map(image, ground_truth)], dim=2)
        self._image(f"{GROUPS.get(split, split)}/{view}/render_truth_error", panels, iteration)

    def heat_map(self, iteration: int, split: str, name: str, values: Tensor) -> None:
        """Writes a map [1, H, W] of numbers of at least 0, the largest of them brightest."""
        colors = heat_map(values[0], max(float(values.max()), 1e-12))
        self._image(f"{GROUPS.get(split, split)}/{name}", colors, iteration)

    def _image(self, tag: str, image: Tensor, iteration: int) -> None:
        self._writer.image(tag, to_bytes(image), iteration)

    def say(self, text: str, *, shown: bool = True) -> None:
        """Prints a line without tearing the bar, unless quiet or not `shown`; it stands in train.log anyway."""
        if self._log is not None:
            append_line(self._log, text)
        if shown and not self.quiet:
            tqdm.write(text, file=Lossy(sys.stdout))

    def warn(self, text: str) -> None:
        """Prints a line to stderr without tearing the bar, quiet or not."""
        if self._log is not None:
            append_line(self._log, text)
            tqdm.write(text, file=Lossy(sys.stderr))

    # ---- the end, and a new beginning ---------------------------------------

    @property
    def seconds(self) -> float:
        """Time spent in iterations, earlier parts of a resumed run included."""
        return self._seconds

    @property
    def iterations_per_second(self) -> float | None:
        """Median over the run; None before the first reading."""
        return 1e3 / statistics.median(self._intervals) if self._intervals else None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue the curves and to tell the time of the whole one."""
        return {
            "seconds": self._seconds,
            "intervals": list(self._intervals),
            "pending": _values(self._pending),
            "count": self._count,
            "elapsed": (self._pause_at or time.perf_counter()) - self._read_at - self._paused,
            "step": self._step,
            "scalars": dict(self._scalars),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seconds = float(state["seconds"])
        self._intervals = [float(value) for value in state["intervals"]]
        if "pending" not in state:  # of an earlier version, which lost them
            return
        self._pending = {str(name): [float(value) for value in values] for name, values in state["pending"].items()}
        self._count = int(state["count"])
        self._read_at = time.perf_counter() - float(state["elapsed"])
        if self._again and state["step"] == self._step:
            self.scalars(state["step"], state["scalars"])

    def flush(self) -> None:
        """Brings everything written so far to the disk; UserError when that is not possible."""
        self._writer.sync()

    def close(self) -> None:
        """Ends the bar and completes the event file; UserError when that is not possible."""
        self._bar.close()
        self._writer.close()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _values(pending: Mapping[str, list[Tensor | float]]) -> dict[str, list[float]]:
    """The scalars themselves, in float32, which is what `_means` makes of numbers too; one transfer for each list."""
    return {
        name: torch.stack([torch.as_tensor(v, dtype=torch.float32).reshape(()) for v in values]).tolist()
        for name, values in pending.items()
    }


def _means(pending: Mapping[str, list[Tensor | float]]) -> dict[str, float]:
    """The mean of each list of scalars; one transfer for all that are tensors."""
    device = next((v.device for values in pending.values() for v in values if isinstance(v, Tensor)), None)
    columns = [
        torch.stack([torch.as_tensor(v, dtype=torch.float32, device=device).reshape(()) for v in values]).mean()
        for values in pending.values()
    ]
    return dict(zip(pending, torch.stack(columns).tolist())) if columns else {}
