"""Line and bar plots of an ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import pyplot
from utils.files import atomic_path


def colors(names: Sequence[str]) -> dict[str, Any]:
    """Black for the first, which is what the others are compared with, and hues far apart for those."""
    hues = pyplot().get_cmap("gist_rainbow")
    return {name: hues((number - 1) / len(names)) if number else "black" for number, name in enumerate(names)}


def _save(path: Path, figure: Any, axis: Any) -> None:
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    pyplot().close(figure)


def lines(path: Path, title: str, x_label: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """One line of (x, y) points per name; nothing is written when there is no point at all."""
    if not any(curves.values()):
        return
    figure, axis = pyplot().subplots(figsize=(9, 5.2), layout="constrained")
    palette = colors(list(curves))
    for name, curve in curves.items():
        # Where there are few points they are shown: a single one makes no line.
        axis.plot(*zip(*curve), color=palette[name], label=name, marker="o" if len(curve) < 10 else "")
    axis.set(title=title, xlabel=x_label)
    _save(path, figure, axis)


def bars(path: Path, title: str, values: Mapping[str, Mapping[str, float]], palette: Mapping[str, Any]) -> None:
    """`values` by name and group: for each group a bar per name; nothing is written when there are no values."""
    groups = list(dict.fromkeys(group for of_name in values.values() for group in of_name))
    if not groups:
        return
    figure, axis = pyplot().subplots(figsize=(9, 5.2), layout="constrained")
    width = 0.84 / len(values)
    for number, (name, of_name) in enumerate(values.items()):
        places = [groups.index(group) + 0.08 + (number + 0.5) * width for group in of_name]
        axis.bar(places, list(of_name.values()), 0.9 * width, color=palette[name], label=name)
    axis.set(title=title, xticks=[place + 0.5 for place in range(len(groups))], xticklabels=groups)
    axis.axhline(0, color="black", linewidth=1)
    _save(path, figure, axis)
