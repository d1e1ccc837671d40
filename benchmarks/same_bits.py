"""Does a change leave every result as it was, to the bit? And the speed?

    python -m benchmarks.same_bits OLD NEW -s CAPTURE [--iterations 600] [--speed ROUNDS] [--only NAME ...]

OLD and NEW are folders of two checkouts, or revisions of this repository. Trains each configuration with
each checkout's own `train.py`, and compares byte by byte what it leaves: the avatar's files and the metrics.
Exit status 1 where anything differs. With --speed it compares iterations a second instead: both train in
turns of 25 iterations (`timing.py`), as many times as said.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, new_parser
from benchmarks.static_scene import static_flags, static_scene
from benchmarks.timing import SLICE, ratio, slice_count, time_in_turns
from utils.errors import UserError, run_script

AVATAR = ["--bind_to_mesh", "--scale_schedule", "--densify_grad_threshold", "0.001", "--preset"]
PRESETS = ("baseline", "ultra", "balanced", "quality")
STATIC = "static"
ALWAYS = ["--eval", "--white_background", "--seed", "0"]
SIDES = ("old", "new")


@contextlib.contextmanager
def checkout(name: str, place: Path) -> Iterator[Path]:
    """The folder of a checkout: `name` itself, or a temporary work tree at `place` of the revision `name`.

    Raises:
        UserError: it is neither.
    """
    if Path(name, "train.py").is_file():
        yield Path(name).resolve()
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    made = subprocess.run([*git, "add", "--detach", str(place), name], capture_output=True, text=True, check=False)
    if made.returncode:
        raise UserError(f"{name} is neither a checkout nor a revision: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def flags_of(name: str, capture: Path, scene: Path) -> list[str]:
    """The train.py flags of a configuration."""
    if name != STATIC:
        return ["-s", str(capture), *AVATAR, name]
    return ["-s", str(scene), *static_flags(600)]


def train(code: Path, output: Path, flags: list[str], iterations: int) -> dict[str, Any]:
    """Runs a checkout's train.py; returns its results.json.

    Raises:
        UserError: it failed; with what it wrote.
    """
    command = [sys.executable, str(code / "train.py"), *flags, "-m", str(output), "--iterations", str(iterations)]
    run = subprocess.run([*command, *ALWAYS, "--quiet"], cwd=code, capture_output=True, text=True, check=False)
    if run.returncode:
        raise UserError(f"{code / 'train.py'} {' '.join(flags)} ended with status {run.returncode}:\n{run.stderr}")
    return json.loads((output / "results.json").read_text(encoding="utf-8"))


def contents(path: Path) -> dict[str, bytes | str]:
    """What a result file holds by name; of archives, whose bytes hold the time of day, the arrays in them."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {f"{key} {arrays[key].dtype}{arrays[key].shape}": arrays[key].tobytes() for key in arrays}
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
        weights = content.pop("weights")
        return {"settings": repr(content), **{key: value.numpy().tobytes() for key, value in weights.items()}}
    return {"": path.read_bytes()}


def differences(old: Path, new: Path) -> list[str]:
    """What is not the same in two output folders: files of the avatar by name, and metrics."""
    found = []
    metrics = [json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"] for folder in (old, new)]
    if metrics[0] != metrics[1]:
        found.append(f"metrics: {metrics[0]} became {metrics[1]}")
    files = sorted(path.relative_to(old) for path in (old / "point_cloud").rglob("*") if path.is_file())
    if files != sorted(path.relative_to(new) for path in (new / "point_cloud").rglob("*") if path.is_file()):
        return [*found, "the names of the files"]
    for file in files:
        before, after = contents(old / file), contents(new / file)
        found += [f"{file} {key}".strip() for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    return found


def compare(folders: tuple[Path, Path], names: list[str], capture: Path, work: Path, iterations: int) -> bool:
    """Trains every configuration with both; prints a line for each; tells whether all are the same."""
    same = True
    print(f"{'':<10} {'Gaussians':>9} {'PSNR':>7}  result")
    for name in names:
        flags = flags_of(name, capture, work / STATIC)
        outputs = [work / f"{name}_{side}" for side in SIDES]
        results = [train(code, output, flags, iterations) for code, output in zip(folders, outputs)]
        found = differences(*outputs)
        same = same and not found
        psnr = next(iter(results[1]["metrics"].values()))["psnr"]
        print(f"{name:<10} {results[1]['points']:>9,} {psnr:>7.3f}  {'differs:' if found else 'same'}")
        for line in found:
            print(f"           {line}")
        sys.stdout.flush()
    return same


def race(folders: tuple[Path, Path], names: list[str], capture: Path, work: Path, iterations: int, rounds: int) -> None:
    """Prints the iterations a second of both, and the new ones' ratio to the old: the median of the rounds'."""
    slices = slice_count(iterations)
    print(f"{'':<10} {'old it/s':>9} {'new it/s':>9} {'ratio':>7}")
    for name in names:
        flags = [*flags_of(name, capture, work / STATIC), *ALWAYS, "--iterations", str(iterations)]
        speeds = []
        for _ in range(rounds):
            seconds = time_in_turns(dict.fromkeys(SIDES, flags), slices, checkouts=dict(zip(SIDES, folders)))
            old, new = (SLICE / statistics.median(seconds[side]) for side in SIDES)
            speeds.append((old, new, ratio(seconds["old"], seconds["new"])))
        old, new, faster = (statistics.median(values) for values in zip(*speeds))
        print(f"{name:<10} {old:>9.1f} {new:>9.1f} {faster:>7.3f}", flush=True)


def main() -> None:
    parser = new_parser(__doc__, "source_path")
    parser.add_argument("old", metavar="OLD", help="a checkout's folder, or a revision")
    parser.add_argument("new", metavar="NEW", help="likewise")
    parser.add_argument("--iterations", type=int, default=600, help="length of every run")
    parser.add_argument("--speed", type=int, default=0, metavar="ROUNDS", help="compare the speed, so many times")
    parser.add_argument("--only", nargs="+", default=[*PRESETS, STATIC], choices=[*PRESETS, STATIC])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-bits-") as temporary, contextlib.ExitStack() as stack:
        work, capture = Path(temporary), options.source_path.resolve()
        sides = zip(SIDES, (options.old, options.new))
        old, new = (stack.enter_context(checkout(name, work / f"code_{side}")) for side, name in sides)
        static_scene(capture, work / STATIC)
        if options.speed:
            race((old, new), options.only, capture, work, options.iterations, options.speed)
        elif not compare((old, new), options.only, capture, work, options.iterations):
            sys.exit(1)


if __name__ == "__main__":
    run_script(main)
