"""After how much time a configuration is as good as a reference that trained for long.

    python -m benchmarks.time_to_quality -s DATA --out DIR [--reference baseline] [--iterations 6000]
        [--candidate fast] [--lengths 300 600] [-- any other train.py flag for both]

Trains the preset --reference for --iterations, and then the preset --candidate once for each of --lengths (rates and
schedules depend on a run's length, so that the beginning of a long run is no short run). On the way and at the end
avatars are saved, and afterwards measured on all views of `val`: the time to the reference's quality is the first at
which a candidate has its PSNR, SSIM and FLIP, all three.

One run after the other, each in a process of its own; time counts from where `train` begins, so that decoding the
images and the warm start are in it, and stands still while an avatar is saved (`benchmarks/clocked.py`). Nothing else
is done on the way. The reference is trained once per DIR (reference.json), so that more candidates are cheap: remove
that file when the machine or the code has changed. DIR gets psnr.png, ssim.png and flip.png: quality over time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from arguments import PRESETS, parse_train
from benchmarks.ablation.plots import lines
from benchmarks.common import HEAD, ROOT, UNDISTURBED, Row, Table, new_parser, publish
from evaluation.evaluate import calibrated, evaluate
from evaluation.metrics import Suite
from scene import load_avatar
from scene.images.cache import ImageCache
from training.setup import load_capture
from utils.errors import UserError, run_script
from utils.files import write_json

METRICS = {"psnr": 1, "ssim": 1, "flip": -1}  # and whether more of it is better
SHORT = ["--scale_schedule", "--densify_grad_threshold", "0.001"]  # a short run on small images


class Point(NamedTuple):
    """A saved avatar."""

    iteration: int
    seconds: float  # of training until then
    quality: dict[str, float]  # by metric, mean over `val`


def saves_of(iterations: int, count: int) -> list[int]:
    """The iterations at which a run is saved: evenly spread, the last one included."""
    return sorted({max(1, round(iterations * part / count)) for part in range(1, count + 1)})


def run(flags: Sequence[str], saves: Sequence[int]) -> list[Point]:
    """Trains and measures.

    Raises:
        UserError: the training failed; with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="time-to-quality-") as folder:
        times, model, log = Path(folder, "times.json"), Path(folder, "model"), Path(folder, "log")
        words = [*flags, *UNDISTURBED, "-m", str(model), "--save_iterations", *map(str, saves)]
        with log.open("w") as output:
            command = [sys.executable, "-m", "benchmarks.clocked", str(times), *words]
            status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False).returncode
        if status:
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise UserError(f"the training with {' '.join(flags)} stopped: {said[-1] if said else 'without a word'}")
        seconds = json.loads(times.read_text())
        return [Point(step, seconds[str(step)], quality) for step, quality in zip(saves, measure(model, saves))]


def measure(model: Path, saves: Sequence[int]) -> list[dict[str, float]]:
    """The metrics of each saved avatar over all views of `val`."""
    results, images = [], None
    for step in saves:
        avatar = load_avatar(model, iteration=step)
        views = load_capture(avatar.options).val
        images = images or ImageCache(views, tuple(avatar.background.tolist()), progress=False)
        means = evaluate(
            avatar.model,
            [view.camera.to(avatar.model.device) for view in views],
            partial(images.image, device=avatar.model.device),
            calibrated(avatar.draw, avatar.color),
            Suite(METRICS, avatar.model.device),
        )
        results.append({name: value for name, value in means.items() if value is not None})
    return results


def reference_of(options: argparse.Namespace, flags: Sequence[str], saves: Sequence[int]) -> list[Point]:
    """The reference's points, of an earlier run where there is one with the same flags."""
    path, words = options.out / "reference.json", list(flags)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["flags"] != words:
            raise UserError(f"{path} was made with other flags: remove it, or choose another --out")
        return [Point(**point) for point in kept["points"]]
    points = run(flags, saves)
    write_json(path, {"flags": words, "points": [point._asdict() for point in points]})
    return points


def first_as_good(points: Sequence[Point], wanted: dict[str, float]) -> Point | None:
    """The first point at which no metric is worse than in `wanted`."""
    return next(
        (point for point in points if all(s * point.quality[m] >= s * wanted[m] for m, s in METRICS.items())), None
    )


def row_of(name: str, point: Point, reference: Point) -> Row:
    """The table's row of a point."""
    ratio = f"1/{reference.seconds / point.seconds:.1f}"
    quality = {"PSNR": round(point.quality["psnr"], 2), "SSIM": round(point.quality["ssim"], 4)}
    row = {"run": name, "at iteration": point.iteration, "seconds": round(point.seconds, 2), "time": ratio}
    return {**row, **quality, "FLIP": round(point.quality["flip"], 4)}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of this script; what it does not know is for train.py (`extra`)."""
    parser = new_parser(__doc__, "source_path", "out", "json")
    parser.add_argument("--reference", choices=PRESETS, default="baseline", help="the preset to be as good as")
    parser.add_argument("--iterations", type=int, default=6000, help="length of its run")
    parser.add_argument("--candidate", choices=PRESETS, default="fast", help="the preset that is to be faster")
    parser.add_argument("--lengths", type=int, nargs="+", default=[300, 600], help="iterations of its runs")
    parser.add_argument("--saves", type=int, default=4, help="avatars measured per run, the last included")
    options, extra = parser.parse_known_args(list(argv))
    options.extra = [word for word in extra if word != "--"] or SHORT
    if min(options.iterations, options.saves, *options.lengths) < 1:
        raise UserError("--iterations, --lengths and --saves must be at least 1")
    options.source_path, options.out = options.source_path.absolute(), options.out.absolute()
    return options


def main() -> None:
    options = parse(sys.argv[1:])

    def flags(preset: str, iterations: int) -> list[str]:
        words = ["-s", str(options.source_path), *HEAD, *options.extra, "--preset", preset]
        return [*words, "--iterations", str(iterations)]

    for preset in (options.reference, options.candidate):  # a mistyped flag shows before anything is trained
        parse_train([*flags(preset, 1), "-m", str(options.out)])
    options.out.mkdir(parents=True, exist_ok=True)
    long = flags(options.reference, options.iterations)
    curves: dict[str, list[Point]] = {}
    name = f"{options.reference}, {options.iterations:,} iterations"
    curves[name] = reference_of(options, long, saves_of(options.iterations, options.saves))
    goal = curves[name][-1]
    rows, reached = [row_of(name, goal, goal)], []
    for length in options.lengths:
        name = f"{options.candidate}, {length:,} iterations"
        curves[name] = run(flags(options.candidate, length), saves_of(length, options.saves))
        as_good = first_as_good(curves[name], goal.quality)
        reached += [as_good] if as_good else []
        rows.append(row_of(name, as_good or curves[name][-1], goal) | {"all three": "yes" if as_good else "no"})
    for metric in METRICS:
        of_metric = {name: [(point.seconds, point.quality[metric]) for point in run] for name, run in curves.items()}
        lines(options.out / f"{metric}.png", f"{metric} on val", "seconds of training", of_metric)
    title = "Quality on `val`, at the end of a run or where it first is as good as the reference:"
    publish(options, [Table(title, rows)])
    if reached:
        seconds = min(point.seconds for point in reached)
        print(f"\nAs good as the reference after {seconds:.2f} s, 1/{goal.seconds / seconds:.1f} of its time")
    else:
        print("\nNo run is as good as the reference: give longer --lengths")


if __name__ == "__main__":
    run_script(main)
