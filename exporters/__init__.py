"""What an avatar can be handed on as: a small writer per format, and what each keeps and loses.

A writer gets an opened avatar, a path and the options of `export.py`, writes atomically, and yields the lines to say:
whatever the format cannot hold is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from arguments import ExportOptions
from exporters import html
from scene import Avatar


class Format(NamedTuple):
    """One choice of `--format`."""

    write: Callable[[Avatar, Path, ExportOptions], Iterator[str]]
    path: Callable[[ExportOptions], str]  # what is written if no --output says otherwise, in the avatar's folder
    keeps: str
    loses: str
    opens: str  # with what


FORMATS = {
    "html": Format(
        html.export,
        lambda options: "avatar" if options.embed else "avatar.html",
        keeps="expressions, poses, motion, view-dependent color, color network: all that moves and shows",
        loses="precision (--quality), offsets of single timesteps, colors of single cameras",
        opens="browsers of 2023 and later, offline",
    )
}
