"""From the runs of an ablation to figures: JSON, CSV, a Markdown table and plots."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ablation_plots import bars, colors, lines

from utils.files import atomic_path, write_json

BASELINE = "baseline"
METRICS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "l1": "L1",
    "flip": "FLIP",
    "lpips_vgg": "LPIPS VGG",
    "lpips_alex": "LPIPS Alex",
}


class Spread(NamedTuple):
    """Several seeds of one figure."""

    middle: float  # mean over the seeds, or where it is said, the median
    half_range: float  # (largest - smallest) / 2
    seeds: int


class About(NamedTuple):
    """What was run on what, for the head of the table; names, no paths of the machine."""

    command: str
    data: str
    commits: list[str]
    machines: list[str]


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


def cell(figure: Spread | None, form: str, scale: float = 1.0, suffix: str = "") -> str:
    """ "31.18 ±0.05", without the spread for a single seed; "n/a" for None. `form` is a format such as "+.2f"."""
    if figure is None:
        return "n/a"
    text = format(figure.middle * scale, form)
    if figure.seeds > 1:
        text += f" ±{format(figure.half_range * scale, form.lstrip('+'))}"
    return text + suffix


def percent(figure: Spread | None) -> str:
    """A ratio as a change in percent."""
    return cell(figure and figure._replace(middle=figure.middle - 1), "+.1f", 100, " %")


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))


def format_report(
    summary: Mapping[str, Mapping[str, Mapping[str, Spread]]], flags: Mapping[str, Sequence[str]], about: About
) -> str:
    """All tables, as Markdown."""
    columns = dict.fromkeys(column for row in summary.values() for column in row["value"])
    splits = list(dict.fromkeys(column.split("/")[0] for column in columns if column.endswith("/psnr")))
    commits = ", ".join(f"`{commit}`" for commit in about.commits)
    parts = [
        f"```\n{about.command}\n```",
        f"Data `{about.data}`, commit {commits}, on {', '.join(about.machines)}. Mean ± half the range over the "
        "seeds; changes are against the baseline of the same seed. Time is per iteration relative to the "
        "baseline, measured in turns, median of the rounds; the baseline's own figure is that of a second "
        "baseline, the control.",
    ]
    shown = [name for name in METRICS if f"{splits[0]}/{name}" in columns] if splits else []

    parts.append(
        markdown(
            [
                "row",
                "seeds",
                "time",
                "memory, GB",
                "Gaussians",
                "× baseline",
                *(f"{split} PSNR, dB" for split in splits),
                *(f"{split} {METRICS[name]}" for split in splits for name in shown if name != "psnr"),
            ],
            [
                [
                    row,
                    str(of_row["value"]["points"].seeds),
                    cell(of_row["value"].get("time_ratio"), ".3f", suffix="×"),
                    cell(_memory(of_row["value"]), ".2f", 1e-9),
                    cell(of_row["value"].get("points"), ",.0f"),
                    cell(of_row["change"].get("points"), ".2f"),
                    *(
                        cell(
                            of_row["change" if row != BASELINE else "value"].get(f"{split}/psnr"),
                            "+.2f" if row != BASELINE else ".2f",
                        )
                        for split in splits
                    ),
                    *(
                        percent(of_row["change"].get(f"{split}/{name}"))
                        if row != BASELINE
                        else cell(of_row["value"].get(f"{split}/{name}"), ".4f")
                        for split in splits
                        for name in shown
                        if name != "psnr"
                    ),
                ]
                for row, of_row in summary.items()
            ],
        )
    )
    parts.append("The baseline's figures as they are, the others' as changes. As they are:")
    parts.append(
        markdown(
            ["row", *(f"{split} {METRICS[name]}" for split in splits for name in shown)],
            [
                [
                    row,
                    *(
                        cell(of_row["value"].get(f"{split}/{name}"), ".2f" if name == "psnr" else ".4f")
                        for split in splits
                        for name in shown
                    ),
                ]
                for row, of_row in summary.items()
            ],
        )
    )
    for split in splits:
        regions = [column for column in columns if column.startswith(f"{split}/psnr/")]
        if regions:
            parts.append(
                f"PSNR by region on {split}, dB (of the mean squared error over all pixels of the region); in "
                "brackets the baseline's share of the squared error:"
            )
            parts.append(
                markdown(
                    ["row", *(column.split("/")[2] for column in regions)],
                    [[row, *(_region(row, of_row, column) for column in regions)] for row, of_row in summary.items()],
                )
            )
    parts.append("Flags of the rows:")
    parts.append("\n".join(f"* {row}: `{' '.join(flags[row])}`" for row in summary if flags.get(row)) or "* none")
    return "\n\n".join(parts) + "\n"


def _memory(values: Mapping[str, Spread]) -> Spread | None:
    return values.get("cuda_bytes") or values.get("host_bytes")


def _region(row: str, of_row: Mapping[str, Mapping[str, Spread]], column: str) -> str:
    if row != BASELINE:
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
    tables = [dict(map(tuple, curve)) for curve in curves]
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


def draw_plots(
    folder: Path, runs: Sequence[Mapping[str, Any]], summary: Mapping[str, Mapping[str, Mapping[str, Spread]]]
) -> None:
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
        groups = list(dict.fromkeys(region for of_row in changes.values() for region in of_row))
        bars(
            folder / f"regions_{split}.png",
            f"{split} PSNR by region, change against the baseline, dB",
            groups,
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


def write_report(
    folder: Path,
    runs: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Mapping[int, float]],
    flags: Mapping[str, Sequence[str]],
    about: About,
) -> str:
    """Writes results.json, results.csv, table.md and the plots; returns the Markdown."""
    summary = compare(runs, ratios)
    text = format_report(summary, flags, about)
    write_json(
        folder / "results.json",
        {
            **about._asdict(),
            "flags": {row: list(flags.get(row, [])) for row in summary},
            "summary": {
                row: {
                    kind: {column: figure._asdict() for column, figure in figures.items()}
                    for kind, figures in of_row.items()
                }
                for row, of_row in summary.items()
            },
            "time_ratios": {row: dict(of_row) for row, of_row in ratios.items()},
            # The curves stay in the runs' folders: they would be most of this file.
            "runs": [{name: value for name, value in run.items() if name != "curves"} for run in runs],
        },
    )
    write_csv(folder / "results.csv", runs, ratios)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw_plots(folder, runs, summary)
    return text
