"""How the time of the native rasterizer grows with Gaussians and pixels, and shrinks with threads.

    python benchmarks/scaling.py [--rounds 15] [--json FILE] [--plot FILE.png]

The scene is `screen` of benchmarks/raster.py: 20,000 Gaussians over 512x512. One
series changes only the number of Gaussians, so the overlap grows with it; the
other changes only the resolution, so the Gaussians cover as many more pixels.
Each round visits every point once, which spreads a busy machine over all of
them; the medians of the rounds are fitted as time = a * size^exponent, least
squares in the logarithms. The fit of the larger half, where fixed costs no longer
show, is printed too. Takes under a minute on two cores.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image, ImageDraw, ImageFont
from raster import SCENES, SceneKind, make_scene

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from gaussian_renderer.backends import native
from ops.types import Camera, Gaussians
from utils.errors import run_script
from utils.files import atomic_path, write_json

BASE = SCENES["screen"]
COUNTS = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
SIDES = [128, 192, 256, 384, 512, 768, 1024]  # pixels
PASSES = ("forward", "forward+backward")


class Point(NamedTuple):
    """A scene and what renders it."""

    gaussians: Gaussians
    camera: Camera
    cotangents: tuple[torch.Tensor, torch.Tensor]


class Series(NamedTuple):
    """Times over sizes, and their fits."""

    sizes: list[int]
    milliseconds: dict[str, list[float]]  # by pass
    fits: dict[str, tuple[float, float]]  # by pass: exponent, milliseconds at size 1
    upper: dict[str, float]  # by pass: exponent of the larger half


def make_point(kind: SceneKind) -> Point:
    gaussians, camera = make_scene(kind, torch.device("cpu"))
    return Point(gaussians, camera, (torch.randn(3, kind.height, kind.width), torch.randn(1, kind.height, kind.width)))


def clock(point: Point) -> tuple[float, float]:
    """Milliseconds of the forward alone (nothing kept) and of forward + backward."""
    background = torch.ones(3)
    start = time.perf_counter()
    with torch.no_grad():
        native.rasterize(point.gaussians, point.camera, background, sh_degree=3)
    middle = time.perf_counter()
    out = native.rasterize(point.gaussians, point.camera, background, sh_degree=3)
    torch.autograd.backward([out.image, out.alpha], list(point.cotangents))
    end = time.perf_counter()
    for field in point.gaussians:
        field.grad = None
    return (middle - start) * 1e3, (end - middle) * 1e3


def fit(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """(exponent, factor) of values = factor * sizes^exponent, least squares in the logarithms."""
    exponent, offset = statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values])
    return exponent, math.exp(offset)


def measure(sizes: list[int], kinds: list[SceneKind], rounds: int) -> Series:
    points = [make_point(kind) for kind in kinds]
    times: list[list[tuple[float, float]]] = [[] for _ in points]
    for round_ in range(rounds + 1):
        for point, of_point in zip(points, times):
            of_point.append(clock(point))
            if round_ == 0:
                of_point.clear()  # the first round grows the buffers
    milliseconds = {
        name: [statistics.median(t[i] for t in of_point) for of_point in times] for i, name in enumerate(PASSES)
    }
    half = len(sizes) // 2
    return Series(
        sizes,
        milliseconds,
        {name: fit(sizes, values) for name, values in milliseconds.items()},
        {name: fit(sizes[half:], values[half:])[0] for name, values in milliseconds.items()},
    )


def measure_threads(rounds: int) -> dict[str, dict[int, float]]:
    """Median milliseconds of the base scene by pass and number of threads, one and two in turn."""
    point, before = make_point(BASE), torch.get_num_threads()
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    try:
        for _ in range(rounds):
            for threads, of_threads in times.items():
                torch.set_num_threads(threads)
                clock(point)  # OpenMP makes its threads anew when their number changes
                of_threads.append(clock(point))
    finally:
        torch.set_num_threads(before)
    return {
        name: {threads: statistics.median(t[i] for t in of_threads) for threads, of_threads in times.items()}
        for i, name in enumerate(PASSES)
    }


def show(title: str, series: Series) -> None:
    print(f"\n{title}\n  {'size':>9}" + "".join(f"{name + ' ms':>22}" for name in PASSES))
    for i, size in enumerate(series.sizes):
        print(f"  {size:>9}" + "".join(f"{series.milliseconds[name][i]:>22.2f}" for name in PASSES))
    print(f"  {'exponent':>9}" + "".join(f"{series.fits[name][0]:>22.3f}" for name in PASSES))
    print(f"  {'upper':>9}" + "".join(f"{series.upper[name]:>22.3f}" for name in PASSES))


# The plot, drawn at twice its size and reduced: Pillow does not smooth its lines.
WIDTH, HEIGHT, SMOOTH = 640, 460, 2
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 55  # margins of the axes
COLORS = {"forward": (31, 119, 180), "forward+backward": (214, 39, 40)}


def short(value: float) -> str:
    """1000 -> 1k; with no digits that say nothing."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:g}"


def draw_panel(series: Series, title: str, label: str, ticks: dict[int, str]) -> Image.Image:
    """Points, fitted lines and axes of one series, both axes logarithmic."""
    image = Image.new("RGB", (WIDTH * SMOOTH, HEIGHT * SMOOTH), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(13 * SMOOTH)
    values = [value for of_pass in series.milliseconds.values() for value in of_pass]
    low, high = math.log10(min(values)) - 0.15, math.log10(max(values)) + 0.15
    first, last = math.log10(series.sizes[0]) - 0.1, math.log10(series.sizes[-1]) + 0.1

    def at(size: float, milliseconds: float) -> tuple[float, float]:
        x = LEFT + (math.log10(size) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (math.log10(milliseconds) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return x * SMOOTH, y * SMOOTH

    grid, black = (220, 220, 220), (0, 0, 0)
    for size, text in ticks.items():
        canvas.line([at(size, 10**low), at(size, 10**high)], grid, SMOOTH)
        canvas.text((at(size, 1)[0], (HEIGHT - BOTTOM + 6) * SMOOTH), text, black, font, "ma")
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            tick = digit * 10.0**decade
            if low <= math.log10(tick) <= high:
                canvas.line([at(10**first, tick), at(10**last, tick)], grid, SMOOTH)
                canvas.text(((LEFT - 8) * SMOOTH, at(1, tick)[1]), f"{tick:g} ms", black, font, "rm")
    canvas.rectangle([at(10**first, 10**high), at(10**last, 10**low)], outline=black, width=SMOOTH)
    canvas.text((WIDTH * SMOOTH / 2, 12 * SMOOTH), title, black, font, "ma")
    canvas.text((WIDTH * SMOOTH / 2, (HEIGHT - 24) * SMOOTH), label, black, font, "ma")
    for row, name in enumerate(PASSES):
        exponent, factor = series.fits[name]
        canvas.line(
            [at(size, factor * size**exponent) for size in (series.sizes[0], series.sizes[-1])], COLORS[name], SMOOTH
        )
        for size, value in zip(series.sizes, series.milliseconds[name]):
            x, y = at(size, value)
            canvas.ellipse([x - 4 * SMOOTH, y - 4 * SMOOTH, x + 4 * SMOOTH, y + 4 * SMOOTH], COLORS[name])
        corner = ((LEFT + 12) * SMOOTH, (TOP + 10 + 18 * row) * SMOOTH)
        canvas.text(corner, f"{name}: exponent {exponent:.2f}", COLORS[name], font)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def draw(path: Path, counts: Series, pixels: Series) -> None:
    panels = [
        draw_panel(
            counts, f"{BASE.width}x{BASE.height} pixels", "Gaussians", {10**k: short(10**k) for k in range(3, 7)}
        ),
        draw_panel(
            pixels,
            f"{short(BASE.count)} Gaussians",
            "pixels",
            {side**2: f"{side}x{side}" for side in (128, 256, 512, 1024)},
        ),
    ]
    image = Image.new("RGB", (WIDTH * len(panels), HEIGHT))
    for i, panel in enumerate(panels):
        image.paste(panel, (i * WIDTH, 0))
    with atomic_path(path) as temporary:
        image.save(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measurements per point")
    parser.add_argument("--largest", type=int, default=COUNTS[-1], help="leave out larger numbers of Gaussians")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them, as a PNG")
    options = parser.parse_args()

    rounds = max(1, options.rounds)
    print(f"native rasterizer, {torch.get_num_threads()} threads, median of {rounds} rounds")
    counts = [count for count in COUNTS if count <= max(options.largest, COUNTS[1])]
    by_count = measure(counts, [BASE._replace(count=count) for count in counts], rounds)
    show(f"Gaussians, at {BASE.width}x{BASE.height}", by_count)
    kinds = [
        BASE._replace(width=side, height=side, sigma=tuple(s * side / BASE.width for s in BASE.sigma)) for side in SIDES
    ]
    by_pixels = measure([side**2 for side in SIDES], kinds, rounds)
    show(f"pixels, with {BASE.count} Gaussians", by_pixels)

    report = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "gaussians": by_count._asdict(),
        "pixels": by_pixels._asdict(),
    }
    if (os.cpu_count() or 1) > 1:
        report["by threads"] = by_threads = measure_threads(2 * rounds)
        print("\nthreads")
        for name, of_pass in by_threads.items():
            print(
                f"  {name}: {of_pass[1]:.2f} ms with one, {of_pass[2]:.2f} ms with two, "
                f"{of_pass[1] / of_pass[2]:.2f} times as fast"
            )
    if options.json:
        write_json(options.json, report)
    if options.plot:
        draw(options.plot, by_count, by_pixels)


if __name__ == "__main__":
    run_script(main)
