"""The PLY of 3D Gaussian splatting, which every splat viewer and editor opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arguments import ExportOptions
from exporters.moment import splats, write_all
from scene import Avatar
from scene.ply import export_world

# Viewers and editors take y as pointing down, and scenes to be some meters large.
UP, SCALE = "y-down", 10.0


def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the PLY `path`, or of a motion the folder `path`; see `write_all`."""
    return write_all(splats(avatar, options, up=UP, scale=SCALE), path, options, export_world)
