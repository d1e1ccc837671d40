"""The options of `render.py`."""

from __future__ import annotations

from dataclasses import dataclass

from arguments.fields import option
from arguments.options import (
    METRICS,
    camera_choice,
    device_choice,
    metrics_choice,
    quiet_choice,
    rasterizer_choice,
    refine_steps,
    refined_cameras,
    refinement_conflict,
    threads_choice,
)


@dataclass(frozen=True)
class RenderOptions:
    """Everything `render.py` needs besides the avatar's `cfg_args`."""

    model_path: str = option("", "folder of the avatar", short="-m", path=True)
    iteration: int = option(-1, "saved iteration to render; -1: the newest", unit="iterations", at_least=-1)
    skip_train: bool = option(False, "leave out the train split")
    skip_val: bool = option(False, "leave out the val split (held-out cameras)")
    skip_test: bool = option(False, "leave out the test split (held-out sequences)")
    select_camera_id: int = camera_choice()
    source_path: str | None = option(
        None, "folder of the capture, if it is not where it was during training", short="-s", path=True
    )
    target_path: str | None = option(None, "capture whose cameras and motion the avatar follows", short="-t", path=True)
    head_model: str | None = option(
        None, "FLAME-format head model, if it is not where it was during training", path=True
    )
    metrics: tuple[str, ...] = metrics_choice(
        help="what the pictures are measured by; the lpips_ ones take nearly all of the time"
    )
    no_metrics: bool = option(False, "only draw: no photograph is looked at, and nothing measured")
    render_mesh: bool = option(False, "also draw the head mesh over the pictures")
    no_color_calibration: bool = option(False, "the colours without the calibration that was trained with them")
    refine_flame: int = refine_steps(
        "fit the FLAME parameters of frames that were not trained on to the views of --refine_cameras, in so many "
        "steps; 0: as tracked"
    )
    refine_cameras: tuple[int, ...] = refined_cameras("refine_flame")
    export_world: int | None = option(
        None,
        "write an ordinary world-space 3DGS PLY of this timestep, which any splat viewer opens",
        unit="timestep",
        at_least=0,
    )
    rasterizer: str = rasterizer_choice()
    device: str = device_choice()
    threads: int = threads_choice()
    quiet: bool = quiet_choice()

    def conflict(self) -> str | None:
        """What is wrong between the values, as a sentence; None when they fit together."""
        if self.no_metrics and self.refine_flame:
            return "--no_metrics does not go with --refine_flame, which looks at photographs and measures"
        if self.no_metrics and self.metrics != METRICS:
            return "--no_metrics does not go with --metrics"
        return refinement_conflict("refine_flame", self.refine_flame, self.refine_cameras)
