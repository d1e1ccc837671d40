"""What the presets gain on several heads: a gain on one may be its own.

    python -m benchmarks.heads --out DIR [--captures NAME=FOLDER ...] [--rows baseline,ultra,balanced]
        [--iterations 3000] [-- any other option of benchmarks.ablation or train.py]

Trains the rows of `benchmarks.ablation` on the four procedural heads of `HEADS`, which are made in DIR/heads, and on
captures of one's own, each as `python -m benchmarks.ablation -s HEAD --out DIR/NAME` does, and puts the changes against
the baseline of the same head side by side. The same command again goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ablation import BASELINE
from benchmarks.ablation.__main__ import collect, collect_timings
from benchmarks.ablation.measure import Judge
from benchmarks.ablation.report import Spread, Summary, compare
from benchmarks.common import ROOT, Row, Table, format_tables, new_parser, typed_command, write_tables
from utils.errors import UserError, run_script

# Options of `python -m synthetic`: other persons, with hair within the model's outline, outside of it, and without.
HEADS: dict[str, list[str]] = {
    "short": [],
    "long": ["--seed", "3", "--hair", "long"],
    "long, wrinkles": ["--seed", "5", "--hair", "long", "--wrinkles"],
    "shaved, wrinkles": ["--seed", "7", "--hair", "none", "--wrinkles"],
}
# What is compared: its column in `compare`, whether as a change or as it is, the format, and whether more is better.
FIGURES = {
    "PSNR of novel views, dB": ("val/psnr", "change", "+.2f", True),
    "PSNR of the face in novel views, dB": ("val/psnr/face", "change", "+.2f", True),
    "PSNR of the outline in novel views, dB": ("val/psnr/silhouette", "change", "+.2f", True),
    "LPIPS of novel views, ratio": ("val/lpips_vgg", "change", ".3f", False),
    "PSNR of other motion, dB": ("test/psnr", "change", "+.2f", True),
    "Gaussians, ratio": ("points", "change", ".2f", False),
    "Time per iteration, ratio": ("time_ratio", "value", ".3f", False),
}


def tables_of(heads: Mapping[str, Summary]) -> list[Table]:
    """A table per figure that there is: a line for each row but the baseline, a column for each head."""
    rows = dict.fromkeys(row for summary in heads.values() for row in summary if row != BASELINE)
    tables = []
    for title, (column, kind, form, more) in FIGURES.items():
        lines: list[Row] = []
        for row in rows:
            found: dict[str, Spread | None] = {
                head: summary.get(row, {}).get(kind, {}).get(column) for head, summary in heads.items()
            }
            known = [figure.middle for figure in found.values() if figure is not None]
            if not known:
                continue
            cells = {head: figure and format(figure.middle, form) for head, figure in found.items()}
            worst = min(known) if more else max(known)
            lines.append(
                {"row": row, **cells, "mean": format(sum(known) / len(known), form), "worst": format(worst, form)}
            )
        if lines:
            tables.append(Table(f"{title}, against the baseline of the same head:", lines))
    return tables


def run(module: str, *words: str | Path) -> None:
    """Raises UserError when it fails; it has said why."""
    status = subprocess.run([sys.executable, "-m", module, *map(str, words)], cwd=ROOT, check=False).returncode
    if status:
        raise UserError(f"python -m {module} {' '.join(map(str, words))} ended with status {status}")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what is for `benchmarks.ablation`."""
    parser = new_parser(__doc__, "out")
    parser.add_argument("--captures", nargs="+", default=[], metavar="NAME=FOLDER", help="heads of one's own")
    parser.add_argument("--no_procedural", action="store_true", help="only --captures")
    parser.add_argument("--rows", default="baseline,ultra,balanced,quality")
    parser.add_argument("--iterations", type=int, default=3000, help="length of every run")
    options, extra = parser.parse_known_args(list(argv))
    options.out = options.out.absolute()
    if BASELINE not in options.rows.split(","):
        raise UserError(f"--rows {options.rows} lacks {BASELINE}: nothing could be compared")
    own = dict(entry.partition("=")[::2] for entry in options.captures)
    if not all(own.values()) or set(own) & set(HEADS):
        raise UserError(f"--captures {' '.join(options.captures)}: give NAME=FOLDER, no name being one of {[*HEADS]}")
    procedural = {} if options.no_procedural else {name: options.out / "heads" / name for name in HEADS}
    options.heads = {**procedural, **{name: Path(folder).absolute() for name, folder in own.items()}}
    if not options.heads:
        raise UserError("--no_procedural needs --captures")
    return options, [word for word in extra if word != "--"]


def main() -> None:
    options, extra = parse(sys.argv[1:])
    judge, summaries = Judge(), dict[str, Summary]()
    for name, capture in options.heads.items():
        if name in HEADS:
            run("synthetic", capture, *HEADS[name])
        out = options.out / name
        run(
            *("benchmarks.ablation", "-s", capture, "--out", out, "--rows", options.rows),
            *("--iterations", str(options.iterations), "--timings", "0", *extra),
        )
        summaries[name] = compare(collect(out, judge), collect_timings(out))
    tables = tables_of(summaries)
    write_tables(options.out / "results.json", tables, command=typed_command(options))
    print(format_tables(tables))


if __name__ == "__main__":
    run_script(main)
