"""What an avatar can be handed on as: a small writer per format, and what each keeps and loses.

A writer gets an opened avatar, a path and the options of `export.py`, writes atomically, and yields the lines to say:
whatever the format cannot hold is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from arguments import ExportOptions
from exporters import brush, frames, glb, html, lam, npz, ply, spz
from scene import Avatar


class Format(NamedTuple):
    """One choice of `--format`."""

    write: Callable[[Avatar, Path, ExportOptions], Iterator[str]]
    path: Callable[[ExportOptions], str]  # what is written if no --output says otherwise, in the avatar's folder
    keeps: str
    loses: str
    opens: str  # with what


def _file_or_folder(options: ExportOptions) -> str:
    """Of a moment a file, of a motion a folder."""
    return f"avatar.{options.format}" if options.motion is None else f"avatar_{options.format}"


FORMATS = {
    "html": Format(
        html.export,
        lambda options: "avatar" if options.embed else "avatar.html",
        keeps="expressions, poses, motion, view-dependent color, color network: all that moves and shows",
        loses="precision (--quality), offsets of single timesteps, colors of single cameras",
        opens="browsers of 2023 and later, offline",
    ),
    "ply": Format(
        ply.export,
        _file_or_folder,
        keeps="one moment, or with --motion a file for each; view-dependent color; all digits",
        loses="the rig; the color network is put into the colors, nearly; colors of single cameras",
        opens="viewers and editors of Gaussian splats: SuperSplat, ...",
    ),
    "spz": Format(
        spz.export,
        _file_or_folder,
        keeps="as ply, in a sixth of the bytes",
        loses="as ply, and precision: 8 bits for most numbers",
        opens="viewers that know the format; SuperSplat's with --up y-down",
    ),
    "glb": Format(
        glb.export,
        _file_or_folder,
        keeps="as ply, in meters, y up: glTF with KHR_gaussian_splatting",
        loses="as ply",
        opens="programs with that extension; others show a cloud of points",
    ),
    "brush": Format(
        brush.export,
        lambda options: "avatar_brush.ply",
        keeps="the motion, on the mesh, in 16 bits; view-dependent color",
        loses="all that is not in the motion: nobody can move it otherwise; colors stay; the color network as ply",
        opens="brush_avatar, the web viewer of CAP4D",
    ),
    "lam": Format(
        lam.export,
        lambda options: "avatar.zip",
        keeps="ARKit's blendshapes, added up: somebody else's program moves the face",
        loses="that Gaussians turn, grow and redden with the face; view dependence, motion, joints but as blendshapes",
        opens="the web renderer of LAM and OpenAvatarChat",
    ),
    "frames": Format(
        frames.export,
        lambda options: "avatar_frames",
        keeps="the motion as numbered files of format ply, and a manifest that describes them",
        loses="as ply",
        opens="programs that play such sequences, and all that open ply",
    ),
    "npz": Format(
        npz.export,
        lambda options: "avatar.npz",
        keeps="Gaussians, mesh, expressions, correctives, joints, blendshapes, motion: the rig, in plain arrays",
        loses="the color network as ply",
        opens="NumPy; doc/export.md says how it is posed",
    ),
}
