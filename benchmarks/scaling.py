"""How the time of the native rasterizer grows with Gaussians and pixels, and shrinks with threads.

    python -m benchmarks.scaling [--repeats 15] [--plot FILE.png]

The scene is `screen` of benchmarks/raster.py: 20,000 Gaussians over 512x512. One series changes only the
number of Gaussians, so the overlap grows with it; the other changes only the resolution, so the Gaussians
cover as many more pixels. The medians are fitted as time = a * size^exponent, least squares in the
logarithms; printed is the exponent of the larger half, where fixed costs no longer show. Takes under a
minute on two cores.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import Row, Table, interleaved, new_parser, publish, pyplot
from benchmarks.raster import SCENES, Passes, SceneKind
from gaussian_renderer.backends import native
from utils.errors import run_script
from utils.files import atomic_path

BASE = SCENES["screen"]
COUNTS = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
SIDES = [128, 192, 256, 384, 512, 768, 1024]  # pixels
PASSES = ("forward", "forward + backward")
Series = dict[str, list[float]]  # milliseconds of each size, by pass


def works_of(kind: SceneKind) -> dict[str, Callable[[], float]]:
    passes = Passes(native.rasterize, kind, torch.device("cpu"))
    return dict(zip(PASSES, (passes.forward, passes.both)))


def measure(kinds: list[SceneKind], repeats: int) -> Series:
    """Each round visits every size once, which spreads a busy machine over all of them."""
    works = {f"{name} {index}": work for index, kind in enumerate(kinds) for name, work in works_of(kind).items()}
    times = interleaved(works, repeats, warm_up=1)  # the first round grows the buffers
    return {name: [statistics.median(times[f"{name} {index}"]) for index in range(len(kinds))] for name in PASSES}


def exponent(sizes: list[int], milliseconds: list[float]) -> float:
    """Of milliseconds = a * size^exponent, over the larger half."""
    half = len(sizes) // 2
    logarithms = ([math.log(value) for value in values[half:]] for values in (sizes, milliseconds))
    return statistics.linear_regression(*logarithms).slope


def rows_of(sizes: list[int], names: list[str], series: Series) -> list[Row]:
    return [
        {
            "ms": name,
            **{size: float(f"{ms:.3g}") for size, ms in zip(names, values)},
            "exponent": f"{exponent(sizes, values):.2f}",
        }
        for name, values in series.items()
    ]


def measure_threads(repeats: int) -> list[Row]:
    """The base scene with one thread and with two, in turns."""

    def with_threads(threads: int, work: Callable[[], float]) -> float:
        torch.set_num_threads(threads)
        work()  # OpenMP makes its threads anew when their number changes
        return work()

    before = torch.get_num_threads()
    row: Row = {}
    try:
        for name, work in works_of(BASE).items():
            turns = {str(threads): (lambda threads=threads: with_threads(threads, work)) for threads in (1, 2)}
            one, two = interleaved(turns, repeats).values()
            row[name] = round(statistics.median(a / b for a, b in zip(one, two)), 2)
    finally:
        torch.set_num_threads(before)
    return [row]


def draw(path: Path, panels: list[tuple[str, str, list[int], Series]]) -> None:
    """(title, label, sizes, series) each, on logarithmic axes."""
    figure, axes = pyplot().subplots(1, len(panels), figsize=(13, 4.6), layout="constrained")
    for axis, (title, label, sizes, series) in zip(axes, panels):
        for name, values in series.items():
            axis.loglog(sizes, values, "o-", label=f"{name}: exponent {exponent(sizes, values):.2f}")
        axis.set(title=title, xlabel=label, ylabel="ms")
        axis.grid(alpha=0.3)
        axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def main() -> None:
    parser = new_parser(__doc__, "repeats", "json")
    parser.add_argument("--largest", type=int, default=COUNTS[-1], help="leave out larger numbers of Gaussians")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them, as a PNG")
    options = parser.parse_args()
    if options.plot:
        pyplot()  # a missing library is told now
    counts = [count for count in COUNTS if count <= max(options.largest, COUNTS[1])]
    by_count = measure([BASE._replace(number=count) for count in counts], options.repeats)
    grown = [(side, side / BASE.width) for side in SIDES]
    low, high = BASE.sigma
    kinds = [BASE._replace(width=side, height=side, sigma=(low * by, high * by)) for side, by in grown]
    by_pixels, pixels = measure(kinds, options.repeats), [side**2 for side in SIDES]
    size, number = f"{BASE.width}×{BASE.height}", f"{BASE.number:,} Gaussians"
    tables = [
        Table(f"By the number of Gaussians, at {size}:", rows_of(counts, [f"{count:,}" for count in counts], by_count)),
        Table(f"By the pixels, with {number}:", rows_of(pixels, [f"{side}²" for side in SIDES], by_pixels)),
    ]
    if (os.cpu_count() or 1) > 1:
        tables.append(Table("Speed of two threads over that of one:", measure_threads(2 * options.repeats)))
    publish(options, tables)
    if options.plot:
        draw(options.plot, [(size, "Gaussians", counts, by_count), (number, "pixels", pixels, by_pixels)])


if __name__ == "__main__":
    run_script(main)
