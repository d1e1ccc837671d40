"""The options of `view.py`."""

from __future__ import annotations

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
    motion: str | None = option(None, f"what it plays instead of its own motion: {SOURCES}")
    motion_scale: float = motion_scale_choice()
    smooth: float = smooth_choice()
    relative: bool = relative_choice()
    rest_frames: tuple[int, ...] = rest_frames_choice()
    mapping: str | None = option(
        None,
        "what the columns of a .csv do to this head (an .npz, described in doc/motion.md); default: the one beside "
        "the head model",
        path=True,
    )
    head_model: str | None = head_model_place()
    no_color_calibration: bool = without_calibration()
    port: int = viewer_port(8080)
    ip: str | None = viewer_ip()
    viewer_token: str | None = viewer_token()
    rasterizer: str = rasterizer_choice()
    device: str = device_choice()
    threads: int = threads_choice()
    quiet: bool = quiet_choice()

    def conflict(self) -> str | None:
        """What is wrong between the values, as a sentence; None when they fit together."""
        if self.motion is not None and self.target_path:
            return "--motion and -t both say what it plays: give one"
        return motion_conflict(self, "mapping")
