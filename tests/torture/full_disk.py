"""Fills the disk under a training at every moment at which it touches a file, and resumes it with room again.

    python tests/torture/full_disk.py [--every 1] [--skip_real] [--keep FOLDER]

Two ways. Pretended: from the k-th operation on, for every k (with --every N every N-th), the operating system
answers "no space left on device". Real: the output folder is a small file system of its own (needs the right
to mount one), with room for more and more bytes. Each time the run must end with one sentence and status 2,
whatever has a name must be readable, and the run resumed with room must end bit-identical to an undisturbed one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest
from torture.faults import Faults
from torture.kill_and_resume import check_readable, command, compare, start
from toy_capture import TIMESTEPS, write_capture

import train
from arguments import parse_train
from utils.errors import UserError

STEPS = 60


def words(capture: Path, model: Path, steps: int = STEPS) -> list[str]:
    """A training whose operations on files are always the same ones: no checkpoints by the clock."""
    return command(capture, model, steps, "--checkpoint_every_minutes 0 --keep_checkpoints 2")


def full_from(number: int, where: str, run: Callable[[Path], Any], model: Path, patch: pytest.MonkeyPatch) -> str:
    """The sentence with which a `run` in the folder `model` ends when its disk is full from operation `number` on."""
    Faults("full", model, where, number=number).install(patch.setattr)
    try:
        run(model)
    except UserError as error:
        return str(error)
    raise AssertionError(f"the run did not notice that the disk is full from {where} {number} on")


def pretended(capture: Path, folder: Path, whole: Path, every: int) -> dict[str, int]:
    def run(model: Path) -> None:
        train.train(parse_train(words(capture, model)))

    tried = {}
    for where in ("operation", "write"):
        with pytest.MonkeyPatch.context() as patch:
            counter = Faults("count", folder / f"count_{where}", where).install(patch.setattr)
            run(folder / f"count_{where}")
        numbers = range(1, counter.counted + 1, every if where == "operation" else 20 * every)
        for number in numbers:
            model = folder / f"{where}_{number}"
            with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
                sentence = full_from(number, where, run, model, patch)
            assert "No space left on device" in sentence, sentence
            check_readable(model)
            if not (model / "results.json").exists():  # the very last one to fail is behind it
                run(model)
            compare(whole, model, STEPS)
            subprocess.run(["rm", "-r", str(model)], check=True)
        tried[where] = len(numbers)
        print(f"pretended, {where}: {len(numbers)} moments", flush=True)
    return tried


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mounts a file system of `size` bytes on `folder`."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def real(capture: Path, folder: Path, whole: Path) -> int:
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    tried = 0
    for share in (0.0, 0.003, 0.02, 0.07, 0.15, 0.3, 0.45, 0.6, 0.8):
        disk = folder / "disk"
        with small_disk(disk, 4 * needed):
            model, ballast = disk / "model", disk / "ballast"
            status = os.statvfs(disk)
            with open(ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - round(share * needed))
            process = start(words(capture, model), None, folder)
            told = process.communicate()[1].splitlines()
            assert process.returncode == 2, f"{share}: status {process.returncode}, {told}"
            assert "No space left on device" in told[-1] and not any("Traceback" in line for line in told), told
            check_readable(model)
            ballast.unlink()
            process = start(words(capture, model), None, folder)
            told = process.communicate()[1]
            assert process.returncode == 0, told
            compare(whole, model, STEPS)
            tried += 1
            print(f"real disk with {share * needed / 1e3:.0f} kB of {needed / 1e3:.0f} kB: in order", flush=True)
    return tried


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder / "trial", 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--skip_real", action="store_true")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        os.environ["LPIPS_CACHE"] = str(folder / "no-weights")
        begin = time.monotonic()
        capture, whole = write_capture(folder / "capture", TIMESTEPS, size=(32, 48)), folder / "whole"
        train.train(parse_train(words(capture, whole)))
        tried = {"real disk": 0}
        if not options.skip_real and can_mount(folder):
            tried["real disk"] = real(capture, folder, whole)
        tried |= pretended(capture, folder, whole, options.every)
        print("\nfull disks, all ended in order and resumed bit-identical:")
        for name, count in tried.items():
            print(f"  {name:30}{count}")
        print(f"  {'seconds':30}{time.monotonic() - begin:.0f}")


if __name__ == "__main__":
    main()
