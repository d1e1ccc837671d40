"""The options of `render.py`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from arguments.fields import option
from arguments.innovation_options import refine_steps, refined_cameras, refinement_conflict
from arguments.motion_options import (
    SOURCES,
    motion_scale_choice,
    relative_choice,
    rest_conflict,
    rest_frames_choice,
    smooth_choice,
)
from arguments.options import (
    METRICS,
    camera_choice,
    capture_place,
    device_choice,
    head_model_place,
    metrics_choice,
    quiet_choice,
    rasterizer_choice,
    threads_choice,
    without_calibration,
)

# What is about clips only, and what does not go with them.
CLIP = (
    "output size fps background alpha motion_scale smooth relative rest_frames mapping orbit_degrees orbit_seconds "
    "contact_sheet"
).split()
CAPTURED = (
    "skip_train skip_val skip_test select_camera_id target_path render_mesh refine_flame refine_cameras export_world "
    "metrics no_metrics"
).split()


@dataclass(frozen=True)
class RenderOptions:
    """Everything `render.py` needs besides the avatar's `cfg_args`."""

    model_path: str = option("", "folder of the avatar", short="-m", path=True)
    iteration: int = option(-1, "saved iteration to render; -1: the newest", unit="iterations", at_least=-1)
    skip_train: bool = option(False, "leave out the train split")
    skip_val: bool = option(False, "leave out the val split (held-out cameras)")
    skip_test: bool = option(False, "leave out the test split (held-out sequences)")
    select_camera_id: int = camera_choice()
    source_path: str | None = capture_place()
    target_path: str | None = option(None, "capture whose cameras and motion the avatar follows", short="-t", path=True)
    head_model: str | None = head_model_place()
    metrics: tuple[str, ...] = metrics_choice(
        help="what the pictures are measured by; the lpips_ ones take nearly all of the time"
    )
    no_metrics: bool = option(False, "only draw: no photograph is looked at, and nothing measured")
    render_mesh: bool = option(False, "also draw the head mesh over the pictures")
    no_color_calibration: bool = without_calibration()
    refine_flame: int = refine_steps(
        "fit the FLAME parameters of frames that were not trained on to the views of --refine_cameras, in so many "
        "steps; 0: as tracked"
    )
    refine_cameras: tuple[int, ...] = refined_cameras("refine_flame")
    export_world: int | None = option(
        None,
        "write an ordinary 3DGS PLY of this timestep, as it stands in the world of the capture; export.py --format ply "
        "turns it upright",
        unit="timestep",
        at_least=0,
    )
    motion: str | None = option(
        None,
        f"a clip without a capture, of this motion: {SOURCES}; default with --camera: the poses of its key frames, "
        "else neutral",
    )
    camera: str | None = option(
        None,
        "its camera: front, orbit, capture:ID (of the avatar's cameras.json), or a .json of key frames, ours or a "
        "camera path of nerfstudio; default with --motion: front",
    )
    output: str | None = option(
        None,
        "its file: .mp4, .webm, or a folder for PNGs; one picture: .png; default: in clips/ in the avatar's folder",
        short="-o",
        path=True,
    )
    size: tuple[int, ...] = option(
        (), "its width and height; default: those of the camera", unit="pixels", at_least=16, at_most=8192
    )
    fps: float | None = option(
        None,
        "its pictures a second; a motion that knows its own rate is interpolated, of others each row is a picture; "
        "default: the rate of the motion or of the key frames, else 25",
        at_least=1,
        at_most=1000,
    )
    background: str | None = option(
        None, "its background: white, black, '#rrggbb' or another colour of CSS; default: as in training"
    )
    alpha: bool = option(False, "an alpha channel instead of a background, in PNGs or a .webm")
    motion_scale: float = motion_scale_choice()
    smooth: float = smooth_choice()
    relative: bool = relative_choice()
    rest_frames: tuple[int, ...] = rest_frames_choice()
    mapping: str | None = option(
        None, "what blendshape weights do to the head model, an .npz, see doc/motion.md", path=True
    )
    orbit_degrees: float = option(
        40.0, "how far --camera orbit goes to each side; 180: all the way round", unit="degrees", above=0, at_most=180
    )
    orbit_seconds: float = option(6.0, "of a round of --camera orbit", unit="seconds", at_least=0.1, at_most=3600)
    contact_sheet: tuple[int, ...] = option(
        (), "one PNG instead of a clip: so many poses of the motion, from so many sides", at_least=1, at_most=1000
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
        return refinement_conflict("refine_flame", self.refine_flame, self.refine_cameras) or self._clip_conflict()

    @property
    def clip(self) -> bool:
        """Whether a clip or a contact sheet is asked for."""
        return self.motion is not None or self.camera is not None

    def _clip_conflict(self) -> str | None:
        typed = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        for name in CAPTURED if self.clip else CLIP:
            if name in typed:
                return (
                    f"--{name} is about the pictures of a capture: it does not go with --motion and --camera"
                    if self.clip
                    else f"--{name} is about a clip: it needs --motion or --camera"
                )
        for name in ("size", "contact_sheet"):
            if len(getattr(self, name)) not in (0, 2):
                return f"--{name} needs two numbers, not {len(getattr(self, name))}"
        if self.alpha and self.background is not None:
            return "--alpha and --background exclude each other: one leaves the background out"
        for name in ("relative", "mapping"):
            if name in typed and "motion" not in typed:
                return f"--{name} needs --motion"
        if conflict := rest_conflict(self):
            return conflict
        if self.contact_sheet and self.fps is not None:
            return "--fps is about a clip: it does nothing for a --contact_sheet"
        turning = self.camera == "orbit"
        if "orbit_degrees" in typed and not (turning or self.contact_sheet):
            return "--orbit_degrees needs --camera orbit, or a --contact_sheet"
        if "orbit_seconds" in typed and (not turning or self.contact_sheet):
            return "--orbit_seconds needs --camera orbit, and a clip"
        return None
