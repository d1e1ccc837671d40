"""The options of `export.py`."""

from __future__ import annotations

from dataclasses import dataclass

from arguments.fields import option
from arguments.options import device_choice, quiet_choice, rasterizer_choice, threads_choice

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
    source_path: str | None = option(
        None, "folder of the capture, if it is not where it was during training", short="-s", path=True
    )
    head_model: str | None = option(
        None, "FLAME-format head model, if it is not where it was during training", path=True
    )
    quality: str = option(
        QUALITY, "html: how finely numbers are rounded, and how small expressions are kept", choices=("high", "small")
    )
    title: str = option("", "html: its heading; default: the name of the avatar's folder")
    embed: bool = option(False, "html: page, program and data apart, for a page of your own")
    expr_names: str | None = option(
        None,
        "html: JSON list with the names of the expression coefficients; default: expr_names.json beside the capture",
        path=True,
    )
    no_color_calibration: bool = option(False, "the colors without the calibration that was trained with them")
    rasterizer: str = rasterizer_choice()
    device: str = device_choice()
    threads: int = threads_choice()
    quiet: bool = quiet_choice()
