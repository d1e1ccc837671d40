"""Line and bar plots with Pillow alone; drawn at twice the size and reduced, which smooths the lines."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from utils.files import atomic_path

WIDTH, HEIGHT, SMOOTH = 900, 520, 2
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 40, 55  # margins of the axes; the names of the lines stand on the right
GRID, BLACK = (220, 220, 220), (0, 0, 0)
Color = tuple[int, int, int]


def colors(names: Sequence[str]) -> dict[str, Color]:
    """Black for the first, which is what the others are compared with, and hues far apart for those."""
    others = {
        name: tuple(
            round(255 * part) for part in colorsys.hsv_to_rgb(i / max(1, len(names) - 1), 0.85, (0.85, 0.6)[i % 2])
        )
        for i, name in enumerate(names[1:])
    }
    return {**{name: BLACK for name in names[:1]}, **others}


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about `wanted` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= wanted)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class Canvas:
    """Axes with a grid, a title, and a legend on the right."""

    def __init__(self, title: str, x_label: str, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.image = Image.new("RGB", (WIDTH * SMOOTH, HEIGHT * SMOOTH), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(13 * SMOOTH)
        self.x_range, self.y_range = x_range, y_range
        for value in ticks(*y_range):
            self.draw.line([self.at(x_range[0], value), self.at(x_range[1], value)], GRID, SMOOTH)
            self.text(LEFT - 8, self.at(0, value)[1] / SMOOTH, f"{value:g}", "rm")
        self.text((LEFT + WIDTH - RIGHT) / 2, 12, title, "ma")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 24, x_label, "ma")

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        return (
            (LEFT + across * (WIDTH - LEFT - RIGHT)) * SMOOTH,
            (HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)) * SMOOTH,
        )

    def text(self, x: float, y: float, text: str, anchor: str, color: Color = BLACK) -> None:
        self.draw.text((x * SMOOTH, y * SMOOTH), text, color, self.font, anchor)

    def legend(self, names: Mapping[str, Color]) -> None:
        for row, (name, color) in enumerate(names.items()):
            y = TOP + 8 + 19 * row
            self.draw.line(
                [((WIDTH - RIGHT + 14) * SMOOTH, y * SMOOTH), ((WIDTH - RIGHT + 34) * SMOOTH, y * SMOOTH)],
                color,
                4 * SMOOTH,
            )
            self.text(WIDTH - RIGHT + 42, y, name, "lm")

    def save(self, path: Path) -> None:
        box = [self.at(self.x_range[0], self.y_range[1]), self.at(self.x_range[1], self.y_range[0])]
        self.draw.rectangle(box, outline=BLACK, width=SMOOTH)
        with atomic_path(path) as temporary:
            self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(temporary)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def lines(path: Path, title: str, x_label: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """One line of (x, y) points per name; nothing is written when there is no point at all."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return
    x_range = (0.0, max(x for x, _ in points) * 1.02 or 1.0)
    canvas, named = Canvas(title, x_label, x_range, _padded([y for _, y in points])), colors(list(curves))
    for value in ticks(*x_range):
        x = canvas.at(value, 0)[0] / SMOOTH
        canvas.draw.line([canvas.at(value, canvas.y_range[0]), canvas.at(value, canvas.y_range[1])], GRID, SMOOTH)
        canvas.text(x, HEIGHT - BOTTOM + 6, f"{value:g}", "ma")
    for name, curve in curves.items():
        canvas.draw.line([canvas.at(x, y) for x, y in curve], named[name], 2 * SMOOTH)
    canvas.legend(named)
    canvas.save(path)


def bars(
    path: Path,
    title: str,
    groups: Sequence[str],
    values: Mapping[str, Mapping[str, float]],
    palette: Mapping[str, Color],
) -> None:
    """For each group a bar per name, from zero up or down; nothing is written when there are no values."""
    every = [value for of_name in values.values() for value in of_name.values()]
    if not every:
        return
    canvas = Canvas(title, "", (0.0, float(len(groups))), _padded([0.0, *every]))
    width = 0.84 / len(values)
    for place, group in enumerate(groups):
        canvas.text(canvas.at(place + 0.5, 0)[0] / SMOOTH, HEIGHT - BOTTOM + 6, group, "ma")
        for number, (name, of_name) in enumerate(values.items()):
            if group in of_name:
                left = place + 0.08 + number * width
                (x0, y0), (x1, y1) = canvas.at(left, 0.0), canvas.at(left + 0.9 * width, of_name[group])
                canvas.draw.rectangle([x0, min(y0, y1), x1, max(y0, y1)], palette[name])
    canvas.draw.line([canvas.at(0, 0), canvas.at(len(groups), 0)], BLACK, SMOOTH)
    canvas.legend({name: palette[name] for name in values})
    canvas.save(path)
