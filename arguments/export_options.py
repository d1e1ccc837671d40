"""The options of `export.py`."""

from __future__ import annotations

from dataclasses import dataclass

from arguments.fields import option
from arguments.options import (
    capture_place,
    device_choice,
    head_model_place,
    quiet_choice,
    rasterizer_choice,
    threads_choice,
    without_calibration,
)

FORMATS = ("html",)
QUALITY = "high"


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
        "html: the motion it plays, as render.py's: neutral, sweep, FLAME files, blendshape weights or key frames; "
        "default: the one that it was trained on",
    )
    mapping: str | None = option(
        None,
        "html: what ARKit's blendshapes do to this head, for blinking and weights (an .npz, described in "
        "doc/motion.md); default: the one beside the head model",
        path=True,
    )
    no_color_calibration: bool = without_calibration()
    rasterizer: str = rasterizer_choice()
    device: str = device_choice()
    threads: int = threads_choice()
    quiet: bool = quiet_choice()
