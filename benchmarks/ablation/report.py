"""From the runs of an ablation to figures: tables, CSV and plots."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ablation import BASELINE
from benchmarks.ablation.plots import bars, colors, lines
from benchmarks.common import Row, Table
from utils.files import atomic_path

TIME = (
    "Time is per iteration relative to the baseline, in turns; the baseline's own is that of a second baseline, the "
    "control"
)
METRICS = {"psnr": "PSNR", "ssim": "SSIM", "flip": "FLIP", "lpips_vgg": "LPIPS"}  # of the tables; the CSV has all


class Spread(NamedTuple):
    """Several seeds of one figure."""

    middle: float  # mean over the seeds, or where it is said, the median
    half_range: float  # (largest - smallest) / 2
    seeds: int


def spread(
    values: Iterable[float | None], middle: Callable[[Sequence[float]], float] = statistics.fmean
) -> Spread | None:
    """The middle and the half range of those that are there; None where there are none."""
    known = [value for value in values if value is not None]
    return Spread(middle(known), (max(known) - min(known)) / 2, len(known)) if known else None


def flatten(run: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one run by column name: "points", "val/psnr", "val/psnr/eyes", ..."""
    memory = run["peak_memory"]
    flat = {
        "seconds": run["seconds"],
        "points": run["points"],
        "host_bytes": memory["host_bytes"],
        "cuda_bytes": memory["cuda_bytes"],
    }
    for split, means in run["metrics"].items():
        flat.update({f"{split}/{name}": value for name, value in means.items()})
    for split, regions in run.get("regions", {}).items():
        for name, of_region in regions.items():
            flat[f"{split}/psnr/{name}"] = of_region["psnr"]
            flat[f"{split}/error_share/{name}"] = of_region["error_share"]
    return flat


def is_decibel(column: str) -> bool:
    return "psnr" in column.split("/")


def compare(
    runs: Sequence[Mapping[str, Any]], ratios: Mapping[str, Mapping[int, float]]
) -> dict[str, dict[str, dict[str, Spread]]]:
    """Per row and column the figure ("value") and its change against the baseline ("change").

    A run is compared with the baseline of its own seed, and the spread is taken
    of these pairs. Changes are differences in dB for PSNR, else ratios. `ratios`
    are the timings of each row by round, comparisons already: their median is the
    value of the column "time_ratio".
    """
    flat = {(run["row"], run["seed"]): flatten(run) for run in runs}
    summary: dict[str, dict[str, dict[str, Spread]]] = {}
    for row in dict.fromkeys(run["row"] for run in runs):
        seeds = [seed for name, seed in flat if name == row]
        summary[row] = {"value": {}, "change": {}}
        for column in dict.fromkeys(column for seed in seeds for column in flat[row, seed]):
            value = spread(flat[row, seed].get(column) for seed in seeds)
            change = spread(
                _change(column, flat[row, seed].get(column), flat.get((BASELINE, seed), {}).get(column))
                for seed in seeds
            )
            if value is not None:
                summary[row]["value"][column] = value
            if change is not None and column != "seconds":  # those of separate runs drift apart
                summary[row]["change"][column] = change
        timed = spread(ratios.get(row, {}).values(), statistics.median)
        if timed is not None:
            summary[row]["value"]["time_ratio"] = timed
    return summary


def _change(column: str, value: float | None, base: float | None) -> float | None:
    if value is None or base is None:
        return None
    if is_decibel(column):
        return value - base
    return value / base if base else None


# ---- tables -----------------------------------------------------------------------


def cell(figure: Spread | None, form: str, scale: float = 1.0, suffix: str = "") -> str | None:
    """ "31.18 ±0.05", without the spread for a single seed; None for None. `form` is a format such as "+.2f"."""
    if figure is None:
        return None
    text = format(figure.middle * scale, form)
    if figure.seeds > 1:
        text += f" ±{format(figure.half_range * scale, form.lstrip('+'))}"
    return text + suffix


def percent(figure: Spread | None) -> str | None:
    """A ratio as a change in percent."""
    return cell(figure and figure._replace(middle=figure.middle - 1), "+.1f", 100, " %")


Summary = Mapping[str, Mapping[str, Mapping[str, Spread]]]  # of `compare`


def tables_of(summary: Summary) -> list[Table]:
    """The baseline as it is, the others as changes; then the PSNR by region."""
    columns = dict.fromkeys(column for row in summary.values() for column in row["value"])
    splits = list(dict.fromkeys(column.split("/")[0] for column in columns if column.endswith("/psnr")))
    title = f"Mean ± half the range over the seeds; changes are against the baseline of the same seed. {TIME}:"
    tables = [Table(title, [_row(name, of_row, splits) for name, of_row in summary.items()])]
    for split in splits:
        regions = [column for column in columns if column.startswith(f"{split}/psnr/")]
        if regions:
            title = f"PSNR by region on {split} (in brackets the share of the squared error):"
            rows = [
                {"row": name, **{column.split("/")[2]: _region(name, of_row, column) for column in regions}}
                for name, of_row in summary.items()
            ]
            tables.append(Table(title, rows))
    return tables


def times_alone(ratios: Mapping[str, Mapping[int, float]]) -> Table:
    """Where rows were timed and none was trained to its end: the median of each row's rounds."""
    rows = [
        {"row": name, "time": cell(spread(of_row.values(), statistics.median), ".3f")}
        for name, of_row in ratios.items()
    ]
    return Table(f"{TIME}:", rows)


def _row(name: str, of_row: Mapping[str, Mapping[str, Spread]], splits: Sequence[str]) -> Row:
    value, change, base = of_row["value"], of_row["change"], name == BASELINE
    points = cell(value.get("points"), ",.0f") if base else cell(change.get("points"), ".2f")
    row: Row = {
        "row": name,
        "seeds": value["points"].seeds,
        "time": cell(value.get("time_ratio"), ".3f"),
        "memory, GB": cell(value.get("cuda_bytes") or value.get("host_bytes"), ".2f", 1e-9),
        "Gaussians": points if base or points is None else f"×{points}",
    }
    for split in splits:
        for metric, title in METRICS.items():
            column = f"{split}/{metric}"
            if metric == "psnr":
                text = cell(value.get(column), ".2f") if base else cell(change.get(column), "+.2f")
            else:
                text = cell(value.get(column), ".4f") if base else percent(change.get(column))
            if text is not None:
                row[f"{split} {title}"] = text
    return row


def _region(name: str, of_row: Mapping[str, Mapping[str, Spread]], column: str) -> str | None:
    if name != BASELINE:
        return cell(of_row["change"].get(column), "+.2f")
    share = of_row["value"].get(column.replace("/psnr/", "/error_share/"))
    return f"{cell(of_row['value'].get(column), '.2f')} ({cell(share and share._replace(seeds=1), '.0f', 100)} %)"


def write_csv(path: Path, runs: Sequence[Mapping[str, Any]], ratios: Mapping[str, Mapping[int, float]]) -> None:
    """One line per run, one column per figure; empty where there is none."""
    flat = [
        {
            "row": run["row"],
            "seed": run["seed"],
            "time_ratio": ratios.get(run["row"], {}).get(run["seed"]),
            **flatten(run),
        }
        for run in runs
    ]
    names = list(dict.fromkeys(name for line in flat for name in line))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


# ---- curves -----------------------------------------------------------------------


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    """The mean over the seeds at the iterations that all of them have."""
    tables = [{step: value for step, value in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(step, statistics.fmean(table[step] for table in tables)) for step in shared]


def over_time(
    values: Sequence[tuple[float, float]], seconds: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """(iteration, value) and (iteration, seconds) to (seconds, value); the clock is read every few iterations."""
    result = []
    for step, value in values:
        time = next((at for known, at in seconds if known >= step), None)
        if time is not None:
            result.append((time, value))
    return result


def draw_plots(folder: Path, runs: Sequence[Mapping[str, Any]], summary: Summary) -> None:
    """psnr_<split>.png over the training time, points.png over iterations, regions_<split>.png."""

    def curve(row: str, name: str) -> list[tuple[float, float]]:
        found = [run["curves"].get(name, []) for run in runs if run["row"] == row]
        return mean_curve(found)

    rows = list(summary)
    palette = colors([BASELINE, *(row for row in rows if row != BASELINE)])
    clock = clocks(runs)
    for split in ("val", "test"):
        lines(
            folder / f"psnr_{split}.png",
            f"{split} PSNR, dB (a few views)",
            "seconds of training",
            {row: over_time(curve(row, f"{split}/psnr"), clock[row]) for row in palette if row in rows},
        )
        prefix = f"{split}/psnr/"
        changes = {
            row: {
                column.removeprefix(prefix): figure.middle
                for column, figure in of_row["change"].items()
                if column.startswith(prefix)
            }
            for row, of_row in summary.items()
            if row != BASELINE
        }
        bars(
            folder / f"regions_{split}.png",
            f"{split} PSNR by region, change against the baseline, dB",
            {row: of_row for row, of_row in changes.items() if of_row},
            palette,
        )
    lines(
        folder / "points.png",
        "Gaussians, thousands",
        "iteration",
        {row: [(step, count / 1e3) for step, count in curve(row, "points")] for row in palette if row in rows},
    )


def clocks(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(iteration, seconds of training) per row.

    As timed in turns, in units of the baseline's duration, where all rows were;
    else as their own runs took, which drift apart with the machine.
    """
    rows = dict.fromkeys(run["row"] for run in runs)

    def curve(row: str, name: str) -> list[tuple[float, float]]:
        return mean_curve([run["curves"][name] for run in runs if run["row"] == row and name in run["curves"]])

    base = spread(run["seconds"] for run in runs if run["row"] == BASELINE)
    in_turns = {row: curve(row, "baseline_durations") for row in rows}
    if base is not None and all(in_turns.values()):
        return {row: [(step, share * base.middle) for step, share in points] for row, points in in_turns.items()}
    return {row: curve(row, "seconds") for row in rows}
