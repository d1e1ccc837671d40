"""The options of `export.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from arguments.fields import option
from arguments.motion_options import (
    SOURCES,
    motion_conflict,
    motion_scale_choice,
    relative_choice,
    rest_frames_choice,
    smooth_choice,
)
from arguments.options import (
    capture_place,
    device_choice,
    head_model_place,
    quiet_choice,
    rasterizer_choice,
    threads_choice,
    without_calibration,
)

FORMATS = ("html", "ply", "spz", "glb", "brush", "lam", "frames", "npz")
SPLATS = ("ply", "spz", "glb")
QUALITY = "high"
UP = ("y", "y-down", "z", "world")
# The options of single formats; all others are of all.
ONLY = {
    **dict.fromkeys(("quality", "title", "embed"), ("html",)),
    "timestep": SPLATS,
    "fps": (*SPLATS, "frames", "npz"),
    "prune": (*SPLATS, "brush", "lam", "frames", "npz"),
    "sh_degree": (*SPLATS, "brush", "frames", "npz"),
    **dict.fromkeys(("up", "scale"), (*SPLATS, "brush", "frames")),
    "motion": tuple(name for name in FORMATS if name != "lam"),
}


@dataclass(frozen=True)
class ExportOptions:
    """Everything `export.py` needs besides the avatar's `cfg_args`."""

    list: bool = option(False, "say what each format keeps and loses, and stop")
    model_path: str = option("", "folder of the avatar", short="-m", path=True)
    format: str | None = option(None, "what to write; --list says more", choices=FORMATS)
    output: str = option("", "the file to write, or with --embed the folder; default: in -m", short="-o", path=True)
    iteration: int = option(-1, "saved iteration to export; -1: the newest", unit="iterations", at_least=-1)
    source_path: str | None = capture_place()
    head_model: str | None = head_model_place()
    quality: str = option(
        QUALITY, "html: how finely numbers are rounded, and how small expressions are kept", choices=("high", "small")
    )
    title: str = option("", "html: its heading; default: the name of the avatar's folder")
    embed: bool = option(False, "html: page, program and data apart, for a page of your own")
    motion: str | None = option(
        None,
        f"html, brush, frames, npz: the motion in it, default: its own; ply, spz, glb: a folder with a file for "
        f"each of its poses: {SOURCES}",
    )
    motion_scale: float = motion_scale_choice()
    smooth: float = smooth_choice()
    relative: bool = relative_choice()
    rest_frames: tuple[int, ...] = rest_frames_choice()
    mapping: str | None = option(
        None,
        "what ARKit's blendshapes do to this head, for blinking (html) and motions that are weights (an .npz, "
        "described in doc/motion.md); default: the one beside the head model",
        path=True,
    )
    fps: float | None = option(
        None,
        "ply, spz, glb, frames, npz: moments for a second of --motion; default: all of its poses",
        at_least=1,
        at_most=1000,
    )
    timestep: int | None = option(
        None, "ply, spz, glb: the moment of its own motion that is written; default: the first", at_least=0
    )
    prune: float = option(
        0.0,
        "all but html: leave out this share of the Gaussians, those that show least from all around",
        at_least=0,
        at_most=0.99,
    )
    sh_degree: int | None = option(
        None,
        "all but html, lam: degree of the view-dependent color; default: that of the avatar",
        unit="0 to 3",
        at_least=0,
        at_most=3,
    )
    up: str | None = option(
        None,
        "all but html, lam, npz: the axis that is up; the face looks at the viewer. world: all as in the capture; "
        "default: y for spz and glb, else y-down",
        choices=UP,
    )
    scale: float | None = option(
        None,
        "all but html, lam, npz: units of the file for one of the capture, mostly a meter; default: of a head 10 for "
        "ply, spz and frames, else 1",
        above=0,
        at_most=1e6,
    )
    no_color_calibration: bool = without_calibration()
    rasterizer: str = rasterizer_choice()
    device: str = device_choice()
    threads: int = threads_choice()
    quiet: bool = quiet_choice()

    def conflict(self) -> str | None:
        """What is wrong between the values, as a sentence; None when they fit together."""
        typed = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        for name, formats in ONLY.items():
            if name in typed and self.format is not None and self.format not in formats:
                return f"--{name} is about --format {', '.join(formats)}: it does nothing for {self.format}"
        if self.motion is not None and self.timestep is not None:
            return "--timestep is a moment of the avatar's own motion: it does not go with --motion"
        return motion_conflict(self, "fps", *(("mapping",) if self.format not in ("html", "lam", "npz") else ()))
