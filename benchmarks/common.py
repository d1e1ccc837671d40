"""What the benchmarks share: options, taking turns, tables and their JSON, and opening what they trained."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from arguments import parse_train
from evaluation.results import device_name, git_commit
from scene import Avatar, load_avatar
from scene.dataset import Dataset
from scene.flame import Flame, FlameParameters, HeadModel
from train import train
from training.setup import load_capture
from utils.errors import UserError
from utils.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
HEAD = ("--eval", "--bind_to_mesh", "--white_background")  # how a head is trained, in every benchmark
UNDISTURBED = ("--quiet", "--interval", str(2**40))  # nothing is evaluated or saved on the way

Row = dict[str, Any]  # cells by column; all rows of a table need not have all columns
Result = TypeVar("Result")


class Table(NamedTuple):
    title: str  # Markdown, above the table
    rows: Sequence[Row]


# ---- options ----------------------------------------------------------------------


SHORT = {"source_path": ("-s",), "model_path": ("-m",)}
COMMON: dict[str, dict[str, Any]] = {
    "source_path": {"type": Path, "required": True, "help": "folder of the capture"},
    "model_path": {"type": Path, "required": True, "help": "folder of a trained avatar"},
    "out": {"type": Path, "required": True, "metavar": "DIR", "help": "where everything goes"},
    "seeds": {"type": int, "default": 1, "help": "runs of each, with the seeds 0, 1, ..."},
    "repeats": {"type": int, "default": 15, "help": "measurements of each, in turns"},
    "device": {"default": "cpu", "choices": ("cpu", "cuda")},
    "json": {"type": Path, "metavar": "FILE", "help": "also write the tables there"},
    "threads": {"type": int, "default": 0, "help": "on the CPU; 0: PyTorch's choice"},
}


def new_parser(doc: str | None, *wanted: str) -> argparse.ArgumentParser:
    """A parser with those of the common options that are wanted."""
    parser = argparse.ArgumentParser(
        description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in wanted:
        parser.add_argument(*SHORT.get(name, ()), f"--{name}", **COMMON[name])
    return parser


def typed_command(options: argparse.Namespace, argv: Sequence[str] | None = None) -> str:
    """The command as others would type it: without the paths of this machine, and without `--json`."""
    known = {
        getattr(options, name).absolute(): word
        for name, word in (("source_path", "DATA"), ("model_path", "OUT"), ("out", "DIR"))
        if getattr(options, name, None)
    }
    words = list(sys.argv if argv is None else argv)
    module = ".".join(Path(words[0]).absolute().with_suffix("").relative_to(ROOT).parts).removesuffix(".__main__")
    if "--json" in words:
        del words[words.index("--json") : words.index("--json") + 2]
    shown = [
        known.get(Path(word).absolute(), Path(word).name if Path(word).is_absolute() else word) for word in words[1:]
    ]
    return " ".join(["python -m", module, *shown])


# ---- time -------------------------------------------------------------------------


def interleaved(works: Mapping[str, Callable[[], Result]], rounds: int, warm_up: int = 0) -> dict[str, list[Result]]:
    """What each work returns, `rounds` times after `warm_up` more; who begins a round moves on by one.

    In turns, because a shared machine's speed drifts by more than what is to be told apart: all of them meet
    the same, and a ratio is best taken within each round.
    """
    results: dict[str, list[Result]] = {name: [] for name in works}
    order = list(works)
    for number in range(warm_up + max(1, rounds)):
        for name in order:
            result = works[name]()
            if number >= warm_up:
                results[name].append(result)
        order = [*order[1:], order[0]]
    return results


def timed(work: Callable[[], object], device: torch.device | str = "cpu") -> Callable[[], float]:
    """`work` as a function that returns its milliseconds."""
    cuda = torch.device(device).type == "cuda"

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    return clock


# ---- tables -----------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; the numbers of a column have as many decimals as the one that has most."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    decimals = {
        column: max([len(str(row[column]).partition(".")[2]) for row in rows if type(row.get(column)) is float] or [0])
        for column in columns
    }

    def cell(column: str, value: Any) -> str:
        if value is None:
            return "–"
        return value if isinstance(value, str) else format(value, f",.{decimals[column]}f")

    lines = [columns, *([cell(c, row.get(c)) for c in columns] for row in rows)]
    header, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([header, "|" + "---|" * len(columns), *body])


def format_tables(tables: Iterable[Table]) -> str:
    """Titles and tables, as Markdown."""
    return "\n\n".join(part for title, rows in tables for part in (title, markdown(rows)))


def write_tables(path: Path, tables: Sequence[Table], **about: Any) -> None:
    """The JSON that `benchmarks.report` reads: a table's row in a line."""
    text = json.dumps({**about, "tables": [table._asdict() for table in tables]}, indent=1, ensure_ascii=False)
    text = re.sub(r"\{[^{}\[\]]*\}", lambda row: " ".join(row[0].split()), text)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def publish(options: argparse.Namespace, tables: Sequence[Table], device: torch.device | str = "cpu") -> None:
    """Prints what a benchmark found and, with --json, writes it with the command, commit and machine."""
    print("\n" + format_tables(tables))
    if options.json:
        machine = f"{device_name(device)}, PyTorch {torch.__version__}"
        write_tables(options.json, tables, command=typed_command(options), commit=git_commit(), machine=machine)


def pyplot() -> Any:
    """Matplotlib's, drawing into files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("plots need Matplotlib: pip install -r benchmarks/requirements.txt") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# ---- trained avatars --------------------------------------------------------------


def train_head(source: Path, output: Path, flags: Iterable[str]) -> dict[str, Any]:
    """Trains a head, undisturbed; returns what results.json holds."""
    return train(parse_train(["-s", str(source), "-m", str(output), *HEAD, *UNDISTURBED, *flags]))


def open_trained(folder: Path) -> tuple[Avatar, Dataset]:
    """The newest avatar in the output folder of a run of train.py, and the capture it was trained on.

    Raises:
        UserError: nothing was saved there, or the capture is not there.
    """
    avatar = load_avatar(folder)
    return avatar, load_capture(avatar.options)


def mesh_vertices(head: HeadModel, parameters: FlameParameters, rows: Iterable[int]) -> Tensor:
    """[T, V, 3] the mesh at these rows, metres."""
    flame = Flame(head)
    with torch.no_grad():
        return torch.stack([flame.vertices(parameters, row) for row in rows])
