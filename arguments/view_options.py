"""The options of `view.py`."""

from __future__ import annotations

from dataclasses import dataclass

from arguments.fields import option
from arguments.options import (
    device_choice,
    head_model_place,
    quiet_choice,
    rasterizer_choice,
    threads_choice,
    viewer_ip,
    viewer_port,
    viewer_token,
    without_calibration,
)


@dataclass(frozen=True)
class ViewOptions:
    """Everything `view.py` needs besides the avatar's `cfg_args`."""

    model_path: str = option("", "folder of the avatar", short="-m", path=True)
    iteration: int = option(
        -1,
        "saved iteration to look at; -1: the newest, and whatever is saved while you look",
        unit="iterations",
        at_least=-1,
    )
    source_path: str | None = option(
        None,
        "folder of the capture, if it is not where it was during training; without one there are no photographs",
        short="-s",
        path=True,
    )
    target_path: str | None = option(None, "capture whose motion the avatar follows", short="-t", path=True)
    head_model: str | None = head_model_place()
    no_color_calibration: bool = without_calibration()
    port: int = viewer_port(8080)
    ip: str | None = viewer_ip()
    viewer_token: str | None = viewer_token()
    rasterizer: str = rasterizer_choice()
    device: str = device_choice()
    threads: int = threads_choice()
    quiet: bool = quiet_choice()
