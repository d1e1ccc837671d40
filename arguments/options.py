"""The option groups: one dataclass field per flag, with its default, help line, unit and limits.

A field is the single place where an option is described (see `fields`). `parser` turns it into
a flag of the same name, `fields.validate` checks its limits, `config_file` stores it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from arguments.fields import option
from arguments.innovation_options import MAX_RATE, InnovationOptions
from ops import BACKENDS

# The length of run that the defaults are made for; see `schedule.scale_schedule`.
DEFAULT_ITERATIONS = 600_000

DEVICES = ("auto", "cpu", "cuda", "cuda:N")
# What pictures can be measured by; the names in results.json.
METRICS = ("psnr", "ssim", "l1", "flip", "lpips_vgg", "lpips_alex")

_rate = partial(option, at_most=MAX_RATE)
# What both programs have.
camera_choice = partial(option, -1, "use this camera only; -1: all of them", at_least=-1)
rasterizer_choice = partial(
    option, "auto", "backend that draws; auto: the fastest one installed for the device", choices=BACKENDS
)
device_choice = partial(
    option, "auto", "where to compute; auto: the first GPU that can be used, if there is one", choices=DEVICES
)
threads_choice = partial(option, 0, "CPU threads; 0: PyTorch's choice", at_least=0, at_most=4096)
quiet_choice = partial(option, False, "print no progress")
metrics_choice = partial(option, METRICS, choices=METRICS)
# What every program has that opens an avatar.
capture_place = partial(
    option, None, "folder of the capture, if it is not where it was during training", short="-s", path=True
)
head_model_place = partial(
    option, None, "FLAME-format head model, if it is not where it was during training", path=True
)
without_calibration = partial(option, False, "the colours without the calibration that was trained with them")


def viewer_port(default: int | None) -> Any:
    return option(default, "port of the live viewer, a page in the browser", at_least=1, at_most=65535)


viewer_ip = partial(
    option, None, "address that the viewer listens on; default: 127.0.0.1, which only this machine can reach"
)
viewer_token = partial(
    option, None, "word that a browser has to know: the address is then that with ?token=WORD", secret=True
)


def _listed(deed: str) -> Any:
    return option(
        (), f"{deed} at these iterations instead of every --interval; those beyond the run are ignored", at_least=1
    )


@dataclass(frozen=True)
class ModelOptions:
    """Which data, and what the avatar is made of."""

    source_path: str = option("", "folder of the capture", short="-s", path=True)
    model_path: str = option("", "folder of the avatar: everything is written here", short="-m", path=True)
    target_path: str | None = option(
        None, "capture whose cameras and motion replace those of the source", short="-t", path=True
    )
    images: str = option("images", "name of the image folder inside a COLMAP scene", short="-i")
    resolution: int = option(
        -1,
        "1, 2, 4 or 8 divides the image size; another number is the target width; -1 keeps it, up to a width of 1600",
        short="-r",
        unit="pixels",
        at_least=-1,
    )
    white_background: bool = option(False, "white instead of black behind the subject", short="-w")
    eval: bool = option(False, "hold back the val and test splits instead of training on them too")
    bind_to_mesh: bool = option(False, "bind every Gaussian to a triangle of the tracked head")
    sh_degree: int = option(3, "degree of the view-dependent colour", unit="0 to 3", at_least=0, at_most=3)
    data_device: str = option("auto", "where the decoded images live; auto: on the GPU when they fit", choices=DEVICES)
    disable_flame_static_offset: bool = option(False, "ignore the per-vertex static offset of the tracking")
    not_finetune_flame_params: bool = option(False, "keep the tracked FLAME parameters as they are")
    select_camera_id: int = camera_choice()
    skip_bad_frames: bool = option(
        False,
        "leave out frames of a rigged capture that cannot be used (NaN in the tracking or the camera, a broken "
        "image) instead of stopping; more than half is still an error",
    )
    head_model: str | None = option(
        None,
        "FLAME-format head model; default: <source>/head_model.pkl, else flame_model/assets/flame/flame2023.pkl",
        path=True,
    )

    def conflict(self) -> str | None:
        """What the limits of the fields do not say, as a sentence; None when all is well."""
        return "--resolution must be -1 or positive, not 0" if self.resolution == 0 else None


@dataclass(frozen=True)
class OptimizationOptions:
    """Learning rates, densification and losses."""

    iterations: int = option(DEFAULT_ITERATIONS, "length of the run", unit="iterations", at_least=1)
    position_lr_init: float = _rate(0.005, "first learning rate of the positions, times the scene extent", above=0)
    position_lr_final: float = _rate(0.00005, "last learning rate of the positions, times the scene extent", above=0)
    position_lr_delay_mult: float = option(
        0.01,
        "accepted for existing scripts, without effect: it scales a warm-up that lasts 0 iterations",
        at_least=0,
        at_most=1,
    )
    position_lr_max_steps: int = option(
        600_000, "when the positions reach their last learning rate", unit="iterations", at_least=1
    )
    feature_lr: float = _rate(
        0.0025, "learning rate of the base colour; the other colour coefficients take a 20th", at_least=0
    )
    opacity_lr: float = _rate(0.05, "learning rate of the opacity", unit="logit", at_least=0)
    scaling_lr: float = _rate(0.017, "learning rate of the size", unit="log", at_least=0)
    rotation_lr: float = _rate(0.001, "learning rate of the rotation quaternion", at_least=0)
    percent_dense: float = option(
        0.01, "size that separates cloning (below) from splitting (above)", unit="share of the scene extent", at_least=0
    )
    densification_interval: int = option(2_000, "time between densifications", unit="iterations", at_least=1)
    opacity_reset_interval: int = option(60_000, "time between opacity resets", unit="iterations", at_least=1)
    densify_from_iter: int = option(10_000, "densification starts after this", unit="iterations", at_least=0)
    densify_until_iter: int = option(600_000, "densification ends before this", unit="iterations", at_least=0)
    densify_grad_threshold: float = option(
        0.0002, "mean gradient of the projected centre above which a Gaussian is densified", unit="NDC", above=0
    )
    sh_increase_interval: int = option(
        1_000, "time between steps of the colour degree, from 0 to --sh_degree", unit="iterations", at_least=1
    )
    flame_expr_lr: float = _rate(1e-3, "learning rate of the expression coefficients", at_least=0)
    flame_trans_lr: float = _rate(1e-6, "learning rate of the head translation", unit="metres", at_least=0)
    flame_pose_lr: float = _rate(1e-5, "learning rate of the head, neck, jaw and eye poses", unit="radians", at_least=0)
    lambda_dssim: float = option(0.2, "weight of 1 - SSIM; L1 takes the rest", unit="0 to 1", at_least=0, at_most=1)
    lambda_xyz: float = option(1e-2, "weight of the penalty on leaving the triangle", at_least=0)
    threshold_xyz: float = option(
        1.0, "free distance from the triangle's centre", unit="triangle scales, or metres with --metric_xyz", at_least=0
    )
    metric_xyz: bool = option(False, "measure --threshold_xyz in metres")
    lambda_scale: float = option(1.0, "weight of the penalty on large Gaussians", at_least=0)
    threshold_scale: float = option(0.6, "free size", unit="triangle scales, or metres with --metric_scale", at_least=0)
    metric_scale: bool = option(False, "measure --threshold_scale in metres")
    lambda_dynamic_offset: float = option(
        0.0,
        "weight of the size of the per-timestep vertex offsets; any of the three weights above 0 trains these offsets",
        at_least=0,
    )
    lambda_laplacian: float = option(0.0, "weight of the roughness of the per-timestep vertex offsets", at_least=0)
    lambda_dynamic_offset_std: float = option(
        0.0, "weight of the spread over time of the per-timestep vertex offsets", at_least=0
    )
    dynamic_offset_lr: float = _rate(
        1e-5, "learning rate of the per-timestep vertex offsets, where they are trained", unit="metres", at_least=0
    )


@dataclass(frozen=True)
class PipelineOptions:
    """How a picture is made."""

    convert_SHs_python: bool = option(False, "evaluate the view-dependent colour in PyTorch, not in the kernels")
    compute_cov3D_python: bool = option(
        False, "accepted for existing scripts, without effect: the kernels compute the same covariances themselves"
    )
    debug: bool = option(False, "stop at the first NaN or infinite value (slower)")
    rasterizer: str = rasterizer_choice()


@dataclass(frozen=True)
class RunOptions:
    """Where and how the run proceeds."""

    port: int | None = viewer_port(None)
    ip: str | None = viewer_ip()
    viewer_token: str | None = viewer_token()
    viewer_share: float = option(
        0.2, "share of the time that the viewer may take while somebody looks", unit="0 to 1", above=0, at_most=0.9
    )
    debug_from: int = option(-1, "turn --debug on from this iteration; -1: never", unit="iterations", at_least=-1)
    detect_anomaly: bool = option(False, "let autograd name the operation behind a NaN gradient (slow)")
    metrics: tuple[str, ...] = metrics_choice(
        help="what the pictures are measured by at the end, and on the way as far as it is quick (psnr, ssim, l1); "
        "the lpips_ ones take nearly all of the time"
    )
    interval: int = option(
        60_000,
        "time between evaluations (one more comes at 1 % of the run), saved avatars and checkpoints; the last "
        "iteration always gets all three",
        unit="iterations",
        at_least=1,
    )
    test_iterations: tuple[int, ...] = _listed("evaluate")
    save_iterations: tuple[int, ...] = _listed("save the avatar")
    checkpoint_iterations: tuple[int, ...] = _listed("write a checkpoint")
    checkpoint_every_minutes: float = option(
        10.0,
        "also write a checkpoint when so much time has passed since the last one; 0: not",
        unit="minutes",
        at_least=0,
    )
    keep_checkpoints: int = option(
        3, "keep so many checkpoints, the newest, and those of --checkpoint_iterations; 0: all", at_least=0
    )
    start_checkpoint: str | None = option(
        None, "continue from this checkpoint; auto: the newest complete one in --model_path, if any", path=True
    )
    overwrite: bool = option(False, "start over where --model_path holds a run, which is removed")
    quiet: bool = quiet_choice()
    seed: int = option(0, "seed of every random choice", at_least=0, at_most=2**32 - 1)
    device: str = device_choice()
    threads: int = threads_choice()
    scale_schedule: bool = option(
        False,
        f"scale every iteration-valued default by iterations / {DEFAULT_ITERATIONS}, so that a short run is a "
        "small copy of the long one; values typed on the command line are taken as typed",
    )
    ram_share: float = option(
        0.5,
        "share of the free memory that decoded images may fill before they go to a memory-mapped file, and that the "
        "features of --use_vgg_loss may fill",
        unit="0 to 1",
        above=0,
        at_most=1,
    )


@dataclass(frozen=True)
class Options:
    """Everything `train.py` needs. Names are unique across the groups: `cfg_args` is flat."""

    model: ModelOptions = ModelOptions()
    optimization: OptimizationOptions = OptimizationOptions()
    pipeline: PipelineOptions = PipelineOptions()
    run: RunOptions = RunOptions()
    innovations: InnovationOptions = InnovationOptions()


def groups(options: Options) -> Iterator[tuple[str, Any]]:
    """(name in `Options`, group) for each of the groups."""
    for field in dataclasses.fields(options):
        yield field.name, getattr(options, field.name)


def flatten(options: Options) -> dict[str, Any]:
    """All options by name, in the order of the groups."""
    return {
        field.name: getattr(group, field.name) for _, group in groups(options) for field in dataclasses.fields(group)
    }


def public(options: Options) -> Options:
    """The same without secrets: what may be written into files that others get."""
    return Options(
        **{
            name: dataclasses.replace(
                group, **{field.name: field.default for field in dataclasses.fields(group) if field.metadata["secret"]}
            )
            for name, group in groups(options)
        }
    )
