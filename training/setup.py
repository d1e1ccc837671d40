"""Builds the parts of a run from its options. What is switched off is built too, as a part that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from arguments import (
    SHORT_RUN,
    InnovationOptions,
    ModelOptions,
    OptimizationOptions,
    Options,
    flatten,
    milestones,
    notes,
    write_cfg_args,
)
from evaluation.evaluate import evenly_spaced
from evaluation.pose_refinement import SplitViews, refinable_views
from gaussian_renderer import Rasterizer, render
from innovations.adaptive_densification import NO_ADAPTIVE_DENSIFICATION, AdaptiveDensification, NoAdaptiveDensification
from innovations.progressive_resolution import ProgressiveResolution
from innovations.short_run import RateFactors, rate_factors
from innovations.smart_densification import SmartDensification
from innovations.warm_start import WarmStart
from ops.types import RenderOut
from scene.cameras import write_cameras_json
from scene.dataset import Dataset, dataset_of
from scene.flame import Flame, FlameParameters, find_head_model, load_head_model
from scene.gaussian_model import GaussianModel
from training import checkpoint
from training.density_control import DensityControl, DensitySchedule, Policy, fixed_threshold, while_memory_lasts
from training.optimizers import ONE_VIEW, GaussianOptimizer, RowAdam, ViewRates, view_rates
from training.ranks import ALONE, Alone
from training.reporter import Reporter
from utils.errors import UserError
from utils.files import only_writer

SHOWN_DENSIFICATIONS = 20  # lines in a run, however often it densifies


def load_capture(options: Options) -> Dataset:
    """The capture to train on; UserError when it cannot be read, or no training view is left of it."""
    model = options.model
    dataset = dataset_of(
        options, vertices=lambda: load_head_model(find_head_model(model.head_model, Path(model.source_path))).n_vertices
    )
    if not dataset.train:
        raise UserError(
            f"no training view is left in {model.source_path}: "
            f"--select_camera_id {model.select_camera_id} may name a held-out camera"
        )
    return dataset


def refinable(dataset: Dataset, extra: InnovationOptions) -> SplitViews | None:
    """Which test views --refine_test_poses may look at, and which it is measured on; None when it is off."""
    if not extra.refine_test_poses:
        return None
    if dataset.flame is None or not dataset.test:
        raise UserError("--refine_test_poses needs a tracked head and a test split: add --bind_to_mesh and --eval")
    return refinable_views(dataset.test, dataset.train, extra.refine_cameras)


def build_avatar(
    options: ModelOptions, dataset: Dataset, resume: checkpoint.State | None, *, seed: int, device: torch.device
) -> GaussianModel:
    """The avatar as the checkpoint left it, or a fresh one on the head mesh or the start points."""
    flame = flame_parameters = None
    if dataset.flame is not None:
        head = load_head_model(find_head_model(options.head_model, Path(options.source_path)))
        flame = Flame(head, device=device)
        arrays = dict(dataset.flame)
        if options.disable_flame_static_offset:
            arrays.pop("static_offset", None)
        flame_parameters = FlameParameters(
            arrays,
            dataset.timesteps,
            head,
            device=device,
            trainable=not options.not_finetune_flame_params,
            source=dataset.flame_file or "FLAME parameters",
        )
    if resume:
        if flame_parameters is not None:
            if "flame" not in resume:
                raise UserError("the checkpoint has no FLAME parameters ('flame'): it was not written by this trainer")
            with checkpoint.fitting("flame"):
                flame_parameters.load_state_dict(resume["flame"])
        with checkpoint.fitting("avatar"):
            return GaussianModel.from_state(
                resume["avatar"], flame=flame, flame_parameters=flame_parameters, device=device
            )
    if flame is not None and flame_parameters is not None:
        generator = torch.Generator().manual_seed(seed)
        return GaussianModel.from_mesh(
            flame, flame_parameters, sh_degree=options.sh_degree, generator=generator, device=device
        )
    assert dataset.points is not None and dataset.colors is not None  # a static scene has some
    return GaussianModel.from_points(dataset.points, dataset.colors, sh_degree=options.sh_degree, device=device)


def claim_output(
    stack: ExitStack,
    output: Path,
    options: Options,
    dataset: Dataset,
    present: list[Path],
    resume: checkpoint.State | None,
    ranks: Alone = ALONE,
) -> None:
    """Keeps other runs out of `output` until `stack` ends, and writes there what the run is: the first process does.

    Raises:
        UserError: another run holds it, or has saved something since `present` was found there, or it is the capture's;
            or the processes do not see the same.
    """
    _refuse_inside_capture(output, options.model, dataset)
    # What they resume from: whoever sees no checkpoint of the others has another folder. Read, before it is written.
    ranks.meet(**{"iterations done": resume["step"] if resume else 0, "training views": len(dataset.train)})
    if ranks.first:
        stack.enter_context(only_writer(output))
        if checkpoint.saved_in(output) != present:
            raise UserError(f"another run has just saved checkpoints in {output}: start again, to go on from those")
        if options.run.overwrite:
            checkpoint.remove_run(output)
        write_cfg_args(output, options)
        cameras = [view.camera for view in dataset.train + dataset.val + dataset.test]
        write_cameras_json(output / "cameras.json", cameras)
    ranks.meet()
    ranks.meet(**{"the cameras.json of process 0": (output / "cameras.json").exists()})


def build_reporter(
    options: Options, output: Path, resume: checkpoint.State | None, measured: list[str], ranks: Alone = ALONE
) -> Reporter:
    """What shows the run; `measured` are the splits that evaluations measure."""
    reporter = Reporter(
        output if ranks.first else None,
        options.optimization.iterations,
        start=resume["step"] if resume else 0,
        quiet=options.run.quiet,
        views=ranks.size * options.innovations.batch_views,
    )
    reporter.options(flatten(options), measured)
    reporter.next_evaluation = milestones(options).test.after
    for note in notes(options):  # the terminal has them already
        reporter.say(note, shown=False)
    return reporter


def announce(
    options: Options,
    reporter: Reporter,
    resume: checkpoint.State | None,
    dataset: Dataset,
    avatar: GaussianModel,
    place: str,  # where it computes
    ranks: Alone = ALONE,
) -> None:
    """Says what the run is about to do."""
    rule, several = options.innovations.lr_views_rule, ranks.size * options.innovations.batch_views > 1
    if resume:
        reporter.say(f"Resumed at iteration {resume['step']} with {len(avatar):,} Gaussians")
    together = f", {ranks.size} processes" if ranks.size > 1 else ""
    if rule != InnovationOptions().lr_views_rule and not several:
        reporter.say(
            "note: --lr_views_rule has no effect on one view per step; several are --batch_views, or processes"
        )
    reporter.say(f"{len(dataset.train)} training views, {len(avatar):,} Gaussians, {place}{together}")


def gauges(optimizer: GaussianOptimizer, progressive: ProgressiveResolution, step: int) -> dict[str, float]:
    """What changes on schedule, as curves."""
    rates = {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
    return {**rates, "resolution/scale": progressive.scale(step)}


def _refuse_inside_capture(output: Path, model: ModelOptions, dataset: Dataset) -> None:
    """Results among the input would be taken for input, or replace it."""
    place = output.resolve()
    captures = {Path(name).resolve() for name in (model.source_path, model.target_path) if name}
    views = dataset.train + dataset.val + dataset.test
    folders = {path.parent for view in views for path in (view.image_path, view.mask_path) if path is not None}
    if dataset.flame_file is not None:
        folders.add(dataset.flame_file.parent)
    folders = {folder.resolve() for folder in folders}
    taken = [folder for folder in captures if place == folder]
    taken += [
        folder
        for folder in folders
        if folder in (place, *place.parents) and not any(folder in (capture, *capture.parents) for capture in captures)
    ]
    if taken:
        raise UserError(
            f"--model_path {output} is in the capture, whose files are in {taken[0]}: choose a folder of its own, "
            f"such as {Path(model.source_path) / 'output'}"
        )


def build_draw(options: Options, background: Tensor, rasterize: Rasterizer) -> Callable[..., RenderOut]:
    """(Gaussians, camera, sh_degree=...) -> what training renders."""
    extra = options.innovations
    return partial(
        render,
        background=background,
        rasterize=rasterize,
        convert_SHs_python=options.pipeline.convert_SHs_python,
        absolute=extra.use_smart_densification and extra.densify_absolute,
    )


# ---- what moves and grows the avatar ------------------------------------------


def build_optimizers(
    options: Options, avatar: GaussianModel, warm: WarmStart, extent: float, ranks: Alone = ALONE
) -> tuple[GaussianOptimizer, dict[str, RowAdam]]:
    """What moves the Gaussians, and the FLAME rows, at rates that fit the views of a step; see the two below."""
    optim, extra = options.optimization, options.innovations
    views = view_rates(extra.lr_views_rule, ranks.size * extra.batch_views)
    return (
        build_optimizer(optim, extra, avatar, warm, extent, views),
        build_flame_optimizer(optim, avatar.flame_parameters, warm, views),
    )


def build_optimizer(
    optim: OptimizationOptions,
    extra: InnovationOptions,
    avatar: GaussianModel,
    warm: WarmStart,
    extent: float,
    views: ViewRates = ONE_VIEW,
) -> GaussianOptimizer:
    """Adam over the Gaussians; `extent` of the scene in meters."""
    factors = rate_factors(optim.iterations, SHORT_RUN) if extra.use_short_run_rates else RateFactors()
    return GaussianOptimizer(
        avatar,
        extent=extent,
        feature_lr=optim.feature_lr * warm.feature_factor * factors.feature,
        cooldown=extra.lr_cooldown,
        iterations=optim.iterations,
        position_lr_init=optim.position_lr_init * factors.position,
        position_lr_final=optim.position_lr_final * factors.last_position,
        position_lr_max_steps=optim.position_lr_max_steps,
        opacity_lr=optim.opacity_lr * factors.opacity,
        scaling_lr=optim.scaling_lr * factors.scaling,
        rotation_lr=optim.rotation_lr * factors.rotation,
        modes_lr=extra.expression_appearance_lr,
        modes_from=extra.expression_appearance_from * optim.iterations,
        views=views,
    )


def build_flame_optimizer(
    optim: OptimizationOptions, parameters: FlameParameters | None, warm: WarmStart, views: ViewRates = ONE_VIEW
) -> dict[str, RowAdam]:
    """Adam over the FLAME rows by its name in the checkpoint; empty for a static scene."""
    if parameters is None:
        return {}
    return {
        "flame_optimizer": RowAdam(
            parameters,
            expr_lr=optim.flame_expr_lr * warm.flame_expr_factor,
            translation_lr=optim.flame_trans_lr * warm.flame_trans_factor,
            pose_lr=optim.flame_pose_lr * warm.flame_pose_factor,
            dynamic_lr=optim.dynamic_offset_lr,
            views=views,
        )
    }


def build_density(
    options: Options,
    avatar: GaussianModel,
    optimizer: GaussianOptimizer,
    warm: WarmStart,
    extent: float,
    reporter: Reporter,
    adaptive: AdaptiveDensification | NoAdaptiveDensification = NO_ADAPTIVE_DENSIFICATION,
    ranks: Alone = ALONE,
) -> DensityControl:
    """When and where Gaussians are added and removed; the reporter is told when there is no memory for more."""
    optim = options.optimization
    policy = adaptive.policy(build_policy(optim, options.innovations))
    schedule = DensitySchedule(
        densify_from_iter=optim.densify_from_iter,
        densify_until_iter=optim.densify_until_iter,
        densification_interval=optim.densification_interval,
        opacity_reset_interval=optim.opacity_reset_interval,
        percent_dense=optim.percent_dense,
        white_background=options.model.white_background,
        resets=not warm.skip_resets,
        prune_opacity=warm.prune_opacity,
    )
    return DensityControl(
        avatar,
        optimizer,
        schedule,
        while_memory_lasts(policy, avatar.device, reporter.warn, ranks.least),
        extent=extent,
        generator=torch.Generator().manual_seed(options.run.seed + 1),
    )


def shown_densifications(optim: OptimizationOptions) -> set[int]:
    """The iterations whose densification is told on the terminal: some, evenly spread, with the first and the last."""
    end, interval = min(optim.densify_until_iter, optim.iterations + 1), optim.densification_interval
    steps = [step for step in range(interval, end, interval) if step > optim.densify_from_iter]
    return {steps[index] for index in evenly_spaced(len(steps), SHOWN_DENSIFICATIONS)}


def build_policy(optim: OptimizationOptions, extra: InnovationOptions) -> Policy:
    """Which Gaussians are worth more of them."""
    if not extra.use_smart_densification:
        return fixed_threshold(optim.densify_grad_threshold)
    return SmartDensification(
        gradient_threshold=optim.densify_grad_threshold,
        until_iter=min(optim.densify_until_iter, optim.iterations),
        interval=optim.densification_interval,
        percentile_clone=extra.densify_percentile_clone,
        percentile_split=extra.densify_percentile_split,
        max_gaussians=extra.max_gaussians,
        floor_share=extra.densify_floor,
        absolute=extra.densify_absolute,
        split_radius=extra.densify_split_radius,
    )
