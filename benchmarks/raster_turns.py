"""The native rasterizer of two checkouts, and the simplest one imaginable, in turns.

    [NATIVE_ARCH=x86-64-v3] python -m benchmarks.raster_turns OLD NEW [--scenes screen avatar] [--repeats 60]

OLD and NEW are folders of checkouts, or revisions of this repository. Each builds its own kernels and draws the
scenes of `raster.py`, forward + backward, in a process of its own; only one works at a time. With them runs
`prototype.cpp` (-O3 -ffast-math, no culling), which starts from Gaussians that are projected, colored and
sorted already. Prints milliseconds, the median of NEW's ratios to each within the rounds, and the ratio of the
least times, which says more where others use the machine.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import ROOT, Row, Table, interleaved, new_parser, publish
from benchmarks.raster import SCENES, Passes, make_scene
from benchmarks.same_bits import checkout
from gaussian_renderer.backends import native, reference
from ops import sh
from utils.errors import UserError, run_script


def write_scene(name: str, path: Path) -> None:
    """What `prototype.cpp` reads: the Gaussians on the image plane, front to back, and the image's gradient."""
    gaussians, camera = make_scene(SCENES[name], torch.device("cpu"))
    with torch.no_grad():
        flat = reference.project(gaussians, torch.zeros(len(gaussians.means), 2), camera)
        colors = sh.colors(gaussians.sh[flat.rows], gaussians.means[flat.rows], torch.zeros(3), 3)
    columns = [flat.means, flat.conics, flat.opacities[:, None], colors, flat.radii[:, None].float()]
    with open(path, "wb") as file:
        file.write(torch.tensor([len(colors), camera.width, camera.height], dtype=torch.int32).numpy().tobytes())
        file.write(torch.cat(columns, dim=1).contiguous().numpy().tobytes())
        file.write(torch.randn(3, camera.height, camera.width).numpy().tobytes())


def build(name: str, place: Path) -> Path:
    """The program of a C++ file beside this one, compiled for the processor that the kernels are built for.

    Raises:
        UserError: no compiler, or it failed.
    """
    arch = os.environ.get("NATIVE_ARCH", "native")
    flags = f"-std=c++17 -O3 -ffast-math -fopenmp -mprefer-vector-width=512 -march={arch}".split()
    source, program = Path(__file__).with_name(f"{name}.cpp"), place / f"{name}.out"
    try:
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(program)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot build {source.name}: {error}") from error
    return program


class Worker:
    """A process that answers every line with the milliseconds of one forward + backward."""

    def __init__(self, command: list[str], code: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(code)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=code, env=environment
        )
        self.answer()  # it is ready

    def answer(self) -> float:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.process.args!r} stopped")
        return float(line)

    def __call__(self) -> float:
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return self.answer()

    def stop(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def work(name: str) -> None:
    """What a checkout's process does, with the modules of that checkout."""
    passes = Passes(native.rasterize, SCENES[name], torch.device("cpu"))
    print(passes.both(), flush=True)
    for _ in sys.stdin:
        print(passes.both(), flush=True)


def race(folders: dict[str, Path], name: str, repeats: int, place: Path) -> list[Row]:
    """A row for each side; `place` is an empty folder."""
    program = build("prototype", place)
    write_scene(name, place / name)
    commands = {side: [sys.executable, "-P", __file__, name] for side in folders}
    commands["prototype"] = [str(program), str(place / name)]
    with contextlib.ExitStack() as stack:
        workers = {}
        for side, command in commands.items():
            workers[side] = Worker(command, folders.get(side, ROOT))
            stack.callback(workers[side].stop)
        times = interleaved(workers, repeats, warm_up=3)
    return [
        {
            "scene": name,
            "side": side,
            "median, ms": round(statistics.median(ms), 1),
            "least, ms": round(min(ms), 1),
            "new over it": round(statistics.median(new / own for new, own in zip(times["new"], ms)), 2),
            "by the least": round(min(times["new"]) / min(ms), 2),
        }
        for side, ms in times.items()
    ]


def main() -> None:
    parser = new_parser(__doc__, "repeats", "json")
    parser.add_argument("old", metavar="OLD", help="a checkout's folder, or a revision")
    parser.add_argument("new", metavar="NEW", help="likewise")
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=["screen", "avatar"])
    parser.set_defaults(repeats=60)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="raster-") as temporary, contextlib.ExitStack() as stack:
        place = Path(temporary)
        named = {"old": options.old, "new": options.new}
        folders = {side: stack.enter_context(checkout(name, place / f"code_{side}")) for side, name in named.items()}
        for name in options.scenes:
            rows += race(folders, name, options.repeats, place)
    arch = os.environ.get("NATIVE_ARCH", "native")
    publish(options, [Table(f"Kernels built for `{arch}`, forward + backward:", rows)])


if __name__ == "__main__":
    if __package__:
        run_script(main)
    else:
        work(sys.argv[1])
