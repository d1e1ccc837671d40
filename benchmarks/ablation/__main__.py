"""What each innovation and each preset changes: time, memory, Gaussians, quality, error by region.

    python -m benchmarks.ablation -s DATA --iterations 6000 --seeds 3 --out DIR [--rows baseline,ultra]
        [--timings 3] [-- any other train.py flag, such as --scale_schedule --densify_grad_threshold 0.001]
    python -m benchmarks.ablation --out DIR --report_only

The rows are the baseline, each innovation alone, each part of the warm start alone, the presets, and the
three costly flags that these came to replace, alone and together (`full`). Two kinds of runs. *Quality*: every
row of `ROWS` is trained once per seed, one `train.py` after the other; all rows of a seed come before the next
seed, so that an interrupted ablation is a complete one with fewer seeds. With `--address` they are the subjects of a
Ray cluster (see `train_many.py`), in the same order; DIR has to be on a file system that all its machines share.
*Timing*: rows and baseline are trained again, together and in turns (see
`benchmarks/timing.py`), because the speed of a
machine drifts by more than what is to be told apart; `--timings 0` leaves them out.

Everything lands in DIR: runs/<row>_seed<k>, timing/<row>_<k>.json, and the report: results.json (the tables,
for `benchmarks.report`), results.csv, psnr_*.png, points.png, regions_*.png. The same command again goes on
where the last one stopped, and the report covers all finished runs in DIR, so rows and seeds may come from
several commands.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from arguments import ManyOptions, parse_train
from benchmarks.ablation import BASELINE
from benchmarks.ablation.measure import Judge
from benchmarks.ablation.report import compare, draw_plots, tables_of, times_alone, write_csv
from benchmarks.common import HEAD, ROOT, Table, format_tables, new_parser, pyplot, typed_command, write_tables
from benchmarks.timing import SLICE, ratio, slice_count, time_in_turns
from evaluation.results import device_name, git_commit
from fleet.run import run_all
from fleet.work import Work, is_trained
from utils.errors import UserError, run_script
from utils.files import only_writer, write_json

# What switches off each part of the warm start; a row of a part alone has all the others.
WITHOUT = {
    "colors": ["--no_warm_colors"],
    "opacity": ["--warm_opacity", "0.1"],
    "scale": ["--warm_scale", "1"],
    "reset": ["--no_warm_skip_resets"],
    "feature_lr": ["--warm_feature_lr_factor", "1"],
    "flame_lr": ["--warm_expr_lr_factor", "1", "--warm_trans_lr_factor", "1", "--warm_pose_lr_factor", "1"],
}
ROWS: dict[str, list[str]] = {
    BASELINE: [],
    "region": ["--use_region_adaptive_loss"],
    "densification": ["--use_smart_densification"],
    "densification_signed": ["--use_smart_densification", "--no_densify_absolute"],
    "color": ["--use_color_calibration"],
    "color_per_camera": ["--use_color_calibration", "--color_per_camera"],
    "expression": ["--use_expression_appearance"],
    "amp": ["--use_amp"],
    "progressive": ["--use_progressive_resolution"],
    "warm_start": ["--use_warm_start"],
    **{
        f"warm_{part}": ["--use_warm_start", *itertools.chain(*(WITHOUT[other] for other in WITHOUT if other != part))]
        for part in WITHOUT
    },
    "warm_dense": ["--use_warm_start", "--warm_gaussians", "20000"],
    "short_run_rates": ["--use_short_run_rates"],
    "cooldown": ["--lr_cooldown", "0.2"],
    "alpha": ["--lambda_alpha", "0.2"],
    "ultra": ["--preset", "ultra"],
    "balanced": ["--preset", "balanced"],
    "quality": ["--preset", "quality"],
    "fast": ["--preset", "fast"],
    "vgg": ["--use_vgg_loss"],
    "adaptive": ["--use_adaptive_densification"],
    "temporal": ["--use_temporal_consistency"],
    "full": ["--preset", "full"],
}
NOTE = "ablation.json"  # in a run's folder: the flags it was made with
Todo = Literal["skip", "continue", "start"]


def progress(*args: Any, **settings: Any) -> tqdm:
    """A bar; a log file wants a line now and then, not a film."""
    return tqdm(*args, **settings, mininterval=0.3 if sys.stderr.isatty() else 30.0)


def folder_of(out: Path, row: str, seed: int) -> Path:
    return out / "runs" / f"{row}_seed{seed}"


def command_of(options: argparse.Namespace, row: str, seed: int) -> list[str]:
    """The train.py flags of a run, without its folder."""
    length = ["--iterations", str(options.iterations), "--seed", str(seed)]
    return ["-s", str(options.source_path), *HEAD, *options.extra, *ROWS[row], *length]


def what_to_do(folder: Path, flags: Sequence[str]) -> Todo:
    """Whether the run in `folder` is finished, has a checkpoint to go on from, or must begin (again).

    Raises:
        UserError: the folder holds a run with other flags.
    """
    if not folder.exists():
        return "start"
    note = _read(folder / NOTE)
    if note is not None and note["flags"] != list(flags):
        raise UserError(
            f"{folder} was trained with other flags ({shlex.join(note['flags'])}): remove it or choose another --out"
        )
    if note is None:
        # Our own runs begin with the note: never remove a folder that is somebody else's.
        raise UserError(
            f"{folder} was not made by this benchmark (it has no {NOTE}): remove it or choose another --out"
        )
    if (folder / "results.json").exists():
        return "skip"
    return "continue" if any(folder.glob("chkpnt*.pth")) else "start"


def _read(path: Path) -> Any:
    """What a JSON file holds; None when it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from error


def prepare(folder: Path, flags: Sequence[str], iterations: int) -> list[str]:
    """Makes the folder of a quality run; the words behind `train.py`, which go on from its last checkpoint, if any."""
    todo = what_to_do(folder, flags)
    words = [
        *flags,
        "-m",
        str(folder),
        # The last avatar is all that is measured; two checkpoints on the way are enough to go on from.
        "--save_iterations",
        str(iterations),
        "--checkpoint_iterations",
        *(str(max(1, iterations * part // 3)) for part in (1, 2, 3)),
    ]
    if todo == "start":
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / NOTE, {"flags": list(flags)})
        return words
    return [*words, "--start_checkpoint", "auto"]


def train_one(folder: Path, flags: Sequence[str], iterations: int) -> None:
    """One quality run, from its last checkpoint if it has one.

    Raises:
        UserError: it failed; with the last line it wrote.
    """
    words = [sys.executable, str(ROOT / "train.py"), *prepare(folder, flags, iterations), "--quiet"]
    with open(folder / "train.log", "a", encoding="utf-8") as log:
        status = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False).returncode
    if status != 0:
        lines = (folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
        raise UserError(
            f"the training in {folder} stopped with status {status}: {lines[-1] if lines else ''} (see train.log there)"
        )
    remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Dozens of runs of them would fill the disk."""
    for checkpoint in folder.glob("chkpnt*.pth"):
        checkpoint.unlink()


def train_on_cluster(options: argparse.Namespace, missing: Sequence[tuple[str, int]]) -> None:
    """The same for many, side by side, as subjects of train_many.py.

    Raises:
        UserError: some failed.
    """
    runs = folder_of(options.out, BASELINE, 0).parent
    cluster = ManyOptions(output=str(runs), address=options.address, cpus=options.cpus)
    # A retry goes on from the checkpoint of the machine that was lost.
    more = ["--threads", str(max(1, round(options.cpus))), "--start_checkpoint", "auto"]
    works = []
    with only_writer(runs):
        for row, seed in missing:
            folder = folder_of(options.out, row, seed)
            words = ["train.py", *prepare(folder, command_of(options, row, seed), options.iterations), *more]
            works.append(Work(folder.name, str(folder), options.iterations, tuple(words), retries=cluster.retries))
        ended = run_all(runs, [work.name for work in works], works, cluster)
    for work in works:
        if is_trained(Path(work.folder), options.iterations):
            remove_checkpoints(Path(work.folder))
    failed = [state["name"] for state in ended if state["state"] == "failed"]
    if failed:
        raise UserError(f"{', '.join(failed)} failed: why, says {runs / 'summary.md'}; the same command goes on")


def run_quality(options: argparse.Namespace) -> None:
    """All quality runs that are not finished yet."""
    wanted = [(row, seed) for seed in range(options.seeds) for row in options.rows]
    missing = [
        (row, seed)
        for row, seed in wanted
        if what_to_do(folder_of(options.out, row, seed), command_of(options, row, seed)) != "skip"
    ]
    if missing and options.address:
        return train_on_cluster(options, missing)
    with progress(total=len(wanted), initial=len(wanted) - len(missing), desc="Quality runs", unit="run") as bar:
        for row, seed in missing:
            bar.set_postfix_str(f"{row}, seed {seed}", refresh=sys.stderr.isatty())
            folder = folder_of(options.out, row, seed)
            train_one(folder, command_of(options, row, seed), options.iterations)
            results = _read(folder / "results.json")
            means = ", ".join(f"{split} {values['psnr']:.2f} dB" for split, values in results["metrics"].items())
            bar.write(f"{row}, seed {seed}: {means}, {results['points']:,} Gaussians, {results['seconds']:.0f} s")
            bar.update()


def run_timings(options: argparse.Namespace) -> None:
    """All timings that are not finished yet, `--together` trainings at a time, one of them the baseline."""
    slices = slice_count(options.iterations)
    for seed in range(options.timings):
        missing = [row for row in options.rows if not timing_is_done(options, row, seed)]
        for start in range(0, len(missing), options.together - 1):
            group = missing[start : start + options.together - 1]
            # Two baselines where the row is the baseline itself: the control.
            commands = {row: command_of(options, row, seed) for row in group}
            commands[""] = command_of(options, BASELINE, seed)
            total, title = slices * len(commands), f"Timing {', '.join(group)}, round {seed}"
            with progress(total=total, desc=title, unit="slice") as bar:
                seconds = time_in_turns(commands, slices, on_slice=bar.update)
                for row in group:
                    timing = {"flags": commands[row], "slice": SLICE, "seconds": seconds[row], "baseline": seconds[""]}
                    write_json(timing_of(options.out, row, seed), timing)
                    bar.write(f"{row}, round {seed}: {ratio(seconds[row], seconds['']):.3f}x the time per iteration")


def timing_of(out: Path, row: str, seed: int) -> Path:
    return out / "timing" / f"{row}_{seed}.json"


def timing_is_done(options: argparse.Namespace, row: str, seed: int) -> bool:
    """Raises UserError when it was made with other flags."""
    found = _read(timing_of(options.out, row, seed))
    if found is not None and found["flags"] != command_of(options, row, seed):
        raise UserError(
            f"{timing_of(options.out, row, seed)} was made with other flags: remove it or choose another --out"
        )
    return found is not None


# ---- the report -------------------------------------------------------------------


def collect_timings(out: Path) -> dict[str, dict[int, float]]:
    """The time ratios of every row that was timed, by round."""
    ratios: dict[str, dict[int, float]] = {}
    for path in (out / "timing").glob("*_*.json"):
        row, _, number = path.stem.rpartition("_")
        timing = _read(path)
        ratios.setdefault(row, {})[int(number)] = ratio(timing["seconds"], timing["baseline"])
    return {row: dict(sorted(ratios[row].items())) for row in sorted(ratios, key=place)}


def place(row: str) -> tuple[int, str]:
    """Where a row stands in the tables."""
    return list(ROWS).index(row) if row in ROWS else len(ROWS), row


def collect(out: Path, judge: Judge) -> list[dict[str, Any]]:
    """Every finished run in `out`, measured; the measurements are kept in its folder."""
    found = []
    for folder in (out / "runs").glob("*_seed*"):
        match = re.fullmatch(r"(.+)_seed([0-9]+)", folder.name)
        if match and (folder / "results.json").exists():
            found.append((match[1], int(match[2]), folder))
    found.sort(key=lambda item: (place(item[0]), item[1]))
    runs = []
    for row, seed, folder in progress(found, desc="Measuring", unit="run"):
        results = _read(folder / "results.json")
        measured = _read(folder / "measured.json")
        if measured is None:
            measured = judge.measure(folder, results)
            write_json(folder / "measured.json", measured)
        run = {"row": row, "seed": seed, "flags": _read(folder / NOTE)["flags"], **results, **measured}
        add_clock(run, _read(timing_of(out, row, seed)))
        runs.append(run)
    return runs


def add_clock(run: dict[str, Any], timing: Mapping[str, Any] | None) -> None:
    """Puts the timed clock into the run's curves, in units of the baseline's duration."""
    if timing is None:
        return
    whole = sum(timing["baseline"])
    run["curves"]["baseline_durations"] = [
        [1 + timing["slice"] * (number + 1), seconds / whole]
        for number, seconds in enumerate(itertools.accumulate(timing["seconds"]))
    ]


def report(out: Path, judge: Judge) -> list[Table]:
    """Writes the report on all that is finished in `out`; returns its tables.

    Raises:
        UserError: nothing is finished there.
    """
    runs, ratios = collect(out, judge), collect_timings(out)
    if not runs and not ratios:
        raise UserError(f"{out} holds no finished run")
    about = _read(out / "command.json") or {}
    if not runs:
        tables = [times_alone(ratios)]
        write_tables(out / "results.json", tables, **about)
        return tables
    summary = compare(runs, ratios)
    tables = tables_of(summary)
    commits, machines = (", ".join(sorted({str(run[key]) for run in runs})) for key in ("git_commit", "device"))
    write_tables(out / "results.json", tables, **{**about, "commit": commits, "machine": machines})
    write_csv(out / "results.csv", runs, ratios)
    draw_plots(out, runs, summary)
    return tables


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of this script; what it does not know is for train.py (`extra`), and checked for every row.

    Raises:
        UserError: an option, a row, or a flag of a row that train.py does not accept.
    """
    parser = new_parser(__doc__, "out", "seeds")
    parser.add_argument("-s", "--source_path", type=Path, help="folder of the capture")
    parser.add_argument("--iterations", type=int, default=6000, help="length of every run")
    parser.add_argument("--timings", type=int, default=1, help="timings per row")
    parser.add_argument(
        "--together", type=int, default=4, help="trainings in memory at once while timing, one of them the baseline"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument(
        "--address", help="a Ray cluster, as HOST:PORT, that trains the rows side by side (doc/scale.md)"
    )
    parser.add_argument("--cpus", type=float, default=1.0, help="there: cores, and --threads, for each run")
    parser.add_argument("--report_only", action="store_true", help="only make the report anew")
    options, extra = parser.parse_known_args(list(argv))
    options.out = options.out.absolute()  # the runs have another working directory
    options.extra = [word for word in extra if word != "--"]
    options.rows = list(dict.fromkeys(filter(None, options.rows.split(","))))
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        raise UserError(f"--rows {unknown[0]}: there is no such row, only {', '.join(ROWS)}")
    if options.cpus <= 0 or (options.cpus != 1 and not options.address):
        raise UserError("--cpus is for --address, and more than 0: give an --address with it")
    if options.report_only:
        return options
    if options.source_path is None:
        raise UserError("-s/--source_path is missing: folder of the capture")
    options.source_path = options.source_path.absolute()
    if options.iterations < 1 or options.seeds < 0 or options.timings < 0 or options.together < 2:
        raise UserError("--iterations must be at least 1, --seeds and --timings at least 0, --together at least 2")
    if options.timings and slice_count(options.iterations) < 2:
        raise UserError(
            f"--iterations {options.iterations} is too short to be timed in slices of {SLICE}: "
            "give more, or --timings 0"
        )
    for row in options.rows:
        try:
            parse_train([*command_of(options, row, 0), "-m", str(options.out)])
        except UserError as error:
            raise UserError(f"row {row}: {error}") from error
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    pyplot()  # a missing library is told now, not after the runs
    if not options.report_only:
        about = {"command": typed_command(options), "commit": git_commit(), "machine": device_name("cpu")}
        write_json(options.out / "command.json", about)
        run_quality(options)
        run_timings(options)
    print(format_tables(report(options.out, Judge())))
    print(f"Written to {options.out}")


if __name__ == "__main__":
    run_script(main)
