"""The options of the innovations, whose objects stand in `innovations/`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from arguments.fields import option
from arguments.presets import PRESETS

# Of learning rates: far beyond any that trains, and small enough that no number of steps leaves the range of float32.
MAX_RATE = 1e6

LR_VIEWS_RULES = ("none", "sqrt", "linear")  # what they are: `training.optimizers.view_rates`

# From so many iterations on a run is not short: `--use_short_run_rates` changes nothing.
SHORT_RUN = 20_000

# Parts of what a switch turns on.
_density_part = partial(option, part_of="use_smart_densification")
_resolution_part = partial(option, part_of="use_progressive_resolution")
_color_part = partial(option, part_of="use_color_calibration")
_warm_part = partial(option, part_of="use_warm_start")
_expression_part = partial(option, part_of="use_expression_appearance")


def _region(default: float, what: str) -> Any:
    about = f"weight of {what}, where the rest of the picture has 1"
    return option(default, about, at_least=0, part_of="use_region_adaptive_loss")


def _factor(default: float, flag: str) -> Any:
    return _warm_part(default, f"its factor on {flag}; 1 leaves it", at_least=0)


def refine_steps(help: str) -> Any:
    return option(0, help, unit="steps", at_least=0)


def refined_cameras(steps: str) -> Any:
    return option((), f"camera_index of the cameras that --{steps} may look at; the others are measured", at_least=0)


def refinement_conflict(name: str, steps: int, cameras: tuple[int, ...]) -> str | None:
    """What is missing for a refinement: the fit and the measurement must not see the same pictures."""
    if steps and not cameras:
        return f"--{name} needs --refine_cameras: the cameras that it may look at (the others are measured)"
    if cameras and not steps:
        return f"--refine_cameras needs --{name}: the number of steps to refine"
    return None


@dataclass(frozen=True)
class InnovationOptions:
    """What buys quality or time cheaply. All off by default; each --use_X (and other switch here) has a --no_X."""

    preset: str | None = option(
        None,
        "a set of the flags below; those typed beside it win, and --no_X switches a part of it off",
        choices=tuple(PRESETS),
    )

    use_region_adaptive_loss: bool = option(False, "weight the loss by regions of the face", switch=True)
    region_weight_eyes: float = _region(2.0, "the eyes")
    region_weight_mouth: float = _region(2.0, "the mouth")
    region_weight_nose: float = _region(1.5, "the nose")
    region_weight_face: float = _region(1.2, "the rest of the face")

    use_smart_densification: bool = option(
        False, "densify by percentiles of the gradient statistic, under a budget", switch=True
    )
    densify_percentile_clone: float = _density_part(
        75.0, "small Gaussians above this percentile are cloned", unit="percent", at_least=0, at_most=100
    )
    densify_percentile_split: float = _density_part(
        90.0,
        "large Gaussians above this percentile are split; not below --densify_percentile_clone",
        unit="percent",
        at_least=0,
        at_most=100,
    )
    densify_floor: float = _density_part(
        1.0,
        "no percentile counts below this share of --densify_grad_threshold, so that a converged avatar stops growing",
        at_least=0,
    )
    densify_absolute: bool = _density_part(
        True,
        "judge a Gaussian by the sum of the absolute gradients of its pixels, in which opposite pulls do not "
        "cancel; on unless switched off",
        switch=True,
    )
    densify_split_radius: float = _density_part(
        4.0,
        "Gaussians with a larger radius on screen are split, not cloned",
        unit="pixels, three standard deviations",
        at_least=0,
    )
    max_gaussians: int = _density_part(
        150_000, "the budget, approached over the whole schedule; 0: none", unit="Gaussians", at_least=0
    )

    use_progressive_resolution: bool = option(False, "begin with smaller images", switch=True)
    resolution_schedule: tuple[float, ...] = _resolution_part(
        (0.5, 0.75, 1.0),
        "the scales of the images, one after the other",
        unit="comma-separated shares of the size",
        above=0,
        at_most=1,
        commas=True,
    )
    resolution_milestones: tuple[int, ...] = _resolution_part(
        (100_000, 300_000),
        "when the next scale begins: one fewer than there are scales",
        unit="comma-separated iterations",
        at_least=1,
        commas=True,
    )

    use_color_calibration: bool = option(
        False, "learn a small network that maps rendered to photographed colours", switch=True
    )
    color_net_hidden_dim: int = _color_part(16, "channels of its hidden layers", at_least=1, at_most=256)
    color_net_layers: int = _color_part(3, "number of its layers", at_least=1, at_most=16)
    lambda_color_drift: float = _color_part(
        10.0,
        "weight of the mean squared change that it makes to the colours that occur, which the avatar can take over; "
        "0: both may drift apart",
        at_least=0,
    )
    lambda_color_reg: float = _color_part(0.0, "weight of the squared size of its weights", at_least=0)
    color_per_camera: bool = _color_part(
        False, "also learn the exposure and white balance of each training camera", switch=True
    )
    color_lr: float = _color_part(1e-3, "learning rate of the colour calibration", at_least=0, at_most=MAX_RATE)

    use_expression_appearance: bool = option(
        False, "the colours follow the expression: lines of a smile, blushing, shadows of an open mouth", switch=True
    )
    expression_appearance_modes: int = _expression_part(
        10, "in how many ways each Gaussian's colour does; a short sequence teaches only a few", at_least=1, at_most=64
    )
    expression_appearance_lr: float = _expression_part(1e-3, "learning rate of that", at_least=0, at_most=MAX_RATE)
    expression_appearance_from: float = _expression_part(
        0.08, "share of the run before it begins", unit="0 to 1", at_least=0, at_most=1
    )

    use_amp: bool = option(False, "mixed precision where it is safe", switch=True)

    use_warm_start: bool = option(
        False,
        "begin near the result, with colours from the images, and with FLAME rates that fit tracker noise",
        switch=True,
    )
    warm_colors: bool = _warm_part(
        True, "its colours: those of the training images, instead of near-black; on unless switched off", switch=True
    )
    warm_opacity: float = _warm_part(
        0.5, "its opacity; 0.1 is that of an ordinary start", unit="0 to 1", above=0, at_most=0.99
    )
    warm_scale: float = _warm_part(
        0.5, "its size of a Gaussian; 1 is that of an ordinary start", unit="triangle scales", above=0
    )
    warm_gaussians: int = _warm_part(
        0,
        "its number of Gaussians, spread over the head by what the training images show there; 0: one per triangle",
        unit="Gaussians",
        at_least=0,
    )
    warm_skip_resets: bool = _warm_part(
        True,
        "no opacity resets: a start without floating fog has nothing to reset; on unless switched off",
        switch=True,
    )
    warm_prune_opacity: float = _warm_part(
        0.05,
        "where opacities are not reset, Gaussians fainter than this are removed at every densification; 0.005 as "
        "in an ordinary run",
        unit="0 to 1",
        at_least=0,
        at_most=0.99,
    )
    warm_feature_lr_factor: float = _factor(2.0, "--feature_lr")
    warm_expr_lr_factor: float = _factor(3.0, "--flame_expr_lr")
    warm_trans_lr_factor: float = _factor(10.0, "--flame_trans_lr")
    warm_pose_lr_factor: float = _factor(10.0, "--flame_pose_lr")

    use_short_run_rates: bool = option(
        False,
        f"larger learning rates of the Gaussians in a run of less than {SHORT_RUN:,} iterations, the shorter the more",
        switch=True,
    )

    lambda_alpha: float = option(
        0.0, "weight of the error of the silhouette, where masks or alpha are known: no debris over it", at_least=0
    )

    fill_unseen: float = option(
        0.0,
        "what is saved: Gaussians that show in about so few pixels of a training view, or fewer, get the color of "
        "others beside them; 0: they keep their own",
        unit="pixels",
        at_least=0,
    )

    lr_cooldown: float = option(
        0.0,
        "at the end of the run the learning rates of colour, opacity, size and rotation fall to a tenth over this "
        "share of it; 0: they stay",
        unit="0 to 1",
        at_least=0,
        at_most=1,
    )

    use_vgg_loss: bool = option(
        False, "also compare what the VGG16 of the LPIPS weights sees of picture and photograph; very slow", switch=True
    )
    lambda_perceptual: float = option(0.05, "weight of that", at_least=0, part_of="use_vgg_loss")
    use_adaptive_densification: bool = option(
        False, "densify eyes, mouth and nose at a lower gradient than the rest", switch=True
    )
    adaptive_densify_ratio: float = option(
        1.5,
        "what their threshold is divided by; that of the rest of the face by its root",
        at_least=1,
        part_of="use_adaptive_densification",
    )
    use_temporal_consistency: bool = option(
        False, "hold the fine-tuned FLAME parameters of neighboring timesteps together", switch=True
    )
    lambda_temporal: float = option(0.01, "weight of that", at_least=0, part_of="use_temporal_consistency")

    batch_views: int = option(
        1, "views per step of each process, whose gradients are averaged", unit="views", at_least=1, at_most=4096
    )
    lr_views_rule: str = option(
        "sqrt",
        "what several views per step, of all processes together, do to the learning rates of Gaussians and FLAME: "
        "none; sqrt: times the root of their number, and Adam forgets as much by view as with one; linear: times it",
        choices=LR_VIEWS_RULES,
    )
    refine_test_poses: int = refine_steps(
        "at the end, also measure the test split with FLAME parameters fitted to the views of --refine_cameras in so "
        "many steps; 0: as tracked only"
    )
    refine_cameras: tuple[int, ...] = refined_cameras("refine_test_poses")

    def conflict(self) -> str | None:
        """What is wrong between the values, as a sentence; None when they fit together."""
        clone, split = self.densify_percentile_clone, self.densify_percentile_split
        if clone > split:
            return (
                f"--densify_percentile_clone {clone:g} is above --densify_percentile_split {split:g}: it must not "
                "be larger"
            )
        scales, milestones = self.resolution_schedule, self.resolution_milestones
        if not scales:
            return "--resolution_schedule must hold at least one scale"
        typed = ",".join(map(str, milestones))
        if len(milestones) != len(scales) - 1:
            return (
                f"--resolution_schedule {','.join(f'{scale:g}' for scale in scales)} needs {len(scales) - 1} "
                f"--resolution_milestones, one per switch, not {typed or 'none'}"
            )
        if any(after <= before for before, after in zip(milestones, milestones[1:])):
            return f"--resolution_milestones must increase from one to the next, not {typed}"
        return refinement_conflict("refine_test_poses", self.refine_test_poses, self.refine_cameras)
