"""Trains a Gaussian head avatar (or a static scene).

    python train.py -s DATA -m OUT --eval --bind_to_mesh --white_background

Read from top to bottom: parse, build, loop. `python train.py --help` lists the
options; `doc/conventions.md` says what the quantities mean.
"""

from __future__ import annotations

# isort: off
import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
# isort: on

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import (
    InnovationOptions,
    ModelOptions,
    OptimizationOptions,
    Options,
    milestones,
    notes,
    parse_train,
    write_cfg_args,
)
from evaluation import metrics
from evaluation.evaluate import Evaluated, calibrated, evaluate, evenly_spaced
from evaluation.pose_refinement import SplitViews, parameter_units, refinable_views, refine_poses
from evaluation.results import measured_iterations, write_results
from gaussian_renderer import choose_device_and_rasterizer, render
from innovations.amp import MixedPrecision
from innovations.color_calibration import FILE_NAME as COLOR_NAME
from innovations.color_calibration import ColorCalibration, NoColorCalibration
from innovations.progressive_resolution import ProgressiveResolution
from innovations.region_adaptive_loss import NoRegionWeights, RegionAdaptiveLoss
from innovations.smart_densification import SmartDensification
from innovations.warm_start import CLASSICAL_START, WarmStart, spread_views, triangle_colors
from ops import losses
from ops.sh import from_colors
from ops.types import Camera, Gaussians, RenderOut
from scene.cameras import write_cameras_json
from scene.dataset import Dataset, load_dataset
from scene.flame.head_model import find_head_model, load_head_model
from scene.flame.model import Flame, FlameParameters, RowAdam
from scene.gaussian_model import PLY_NAME, GaussianModel
from scene.images.cache import ImageCache
from scene.images.scaled import ScaledImages
from training import checkpoint
from training.bad_steps import BadSteps
from training.density_control import DensityControl, DensitySchedule, Policy, fixed_threshold, while_memory_lasts
from training.optimizers import GaussianOptimizer
from training.reporter import Reporter
from training.sampler import ShuffledSampler
from training.stages import Stages
from utils.errors import UserError, one_line, run_script, short_of_memory
from utils.files import only_writer, refuse_ways_out, remove
from utils.interrupt import Alarm, StopSignals

# Evaluation on the way looks at this many views of a split; at the end, at all.
VIEWS_ON_THE_WAY = 10
# ... unless nothing was held out: then so many of the training views stand in.
VIEWS_OF_TRAIN = 50
QUICK_METRICS = ("psnr", "ssim", "l1")
ALL_METRICS = ("psnr", "ssim", "l1", "flip", "lpips_vgg", "lpips_alex")


def train(options: Options, stages: Stages = Stages(False)) -> dict[str, Any]:
    """One whole run; returns what `results.json` holds.

    Args:
        stages: a stop-watch for benchmarks; the default measures nothing.

    Raises:
        UserError: the options, the data or another run in the same folder do not let it, or too little memory.
        SystemExit: SIGINT, SIGTERM or SIGHUP came; everything is saved.
    """
    with explained(options), ExitStack() as held:
        return run_training(options, stages, held)


def run_training(options: Options, stages: Stages, held: ExitStack) -> dict[str, Any]:
    """`train`, to be read from top to bottom."""
    model_options, optim, run, extra = options.model, options.optimization, options.run, options.innovations
    output = Path(model_options.model_path)
    device, backend, rasterize = choose_device_and_rasterizer(run.device, options.pipeline.rasterizer, run.threads)
    torch.autograd.set_detect_anomaly(run.detect_anomaly)

    # ---- build --------------------------------------------------------------
    refuse_ways_out(output)
    found = checkpoint.newest_first(output)
    resume = find_checkpoint(run.start_checkpoint, output)
    if resume:
        check_resumable(resume, options)
        if min(resume["step"], measured_iterations(output / "results.json")) >= optim.iterations:
            raise UserError(
                f"the checkpoint is at iteration {resume['step']} of {optim.iterations}: this run is "
                "complete; raise --iterations to go on"
            )
    dataset = load_dataset(
        Path(model_options.source_path),
        bind_to_mesh=model_options.bind_to_mesh,
        eval_split=model_options.eval,
        white_background=model_options.white_background,
        images=model_options.images,
        target=Path(model_options.target_path) if model_options.target_path else None,
        resolution=model_options.resolution,
        select_camera_id=model_options.select_camera_id,
        skip_bad_frames=model_options.skip_bad_frames,
        seed=run.seed,
    )
    if not dataset.train:
        raise UserError(
            f"no training view is left in {model_options.source_path}: "
            f"--select_camera_id {model_options.select_camera_id} may name a held-out camera"
        )
    refined = held_out(dataset, extra)
    avatar = build_avatar(model_options, dataset, resume, seed=run.seed, device=device)
    held.enter_context(only_writer(output))  # only now: a mistake in the input leaves no trace
    if checkpoint.newest_first(output) != found:
        raise UserError(f"another run has just saved checkpoints in {output}: start again, to go on from those")
    write_cfg_args(output, options)
    write_cameras_json(output / "cameras.json", [view.camera for view in dataset.train + dataset.val + dataset.test])

    background = torch.tensor(dataset.background, device=device)
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    cameras = {name: [view.camera.to(device) for view in views] for name, views in splits.items()}
    cache = ImageCache(
        dataset.train + dataset.val + dataset.test,
        dataset.background,
        device=device if model_options.data_device == "auto" else model_options.data_device,
        ram_share=run.ram_share,
        folder=output / "cache",
        progress=not run.quiet,
    )
    start = {"train": 0, "val": len(dataset.train), "test": len(dataset.train) + len(dataset.val)}
    train_images = ScaledImages(cache, len(dataset.train))

    def photograph(split: str, index: int) -> Tensor:
        return cache.image(start[split] + index, device)

    # Switched off, each of these does nothing: the loop has no question to ask.
    progressive = (
        ProgressiveResolution(extra.resolution_schedule, extra.resolution_milestones)
        if extra.use_progressive_resolution
        else ProgressiveResolution()
    )
    region = build_region(extra, avatar)
    if region.note and not run.quiet:
        print(region.note)
    color, color_terms = build_color(extra, cameras["train"], background, seed=run.seed)
    amp = MixedPrecision(extra.use_amp, device)
    warm = build_warm_start(extra)
    if not resume:
        warm_up(avatar, warm, cameras["train"], partial(photograph, "train"), dataset.background)

    optimizer = GaussianOptimizer(
        avatar,
        extent=dataset.extent,
        feature_lr=optim.feature_lr * warm.feature_factor,
        cooldown=extra.lr_cooldown,
        **pick(
            optim,
            (
                "iterations",
                "position_lr_init",
                "position_lr_final",
                "position_lr_max_steps",
                "opacity_lr",
                "scaling_lr",
                "rotation_lr",
            ),
        ),
    )
    flame_optimizer = None
    offset_terms = None
    if avatar.flame_parameters is not None:
        if optim.lambda_dynamic_offset or optim.lambda_dynamic_offset_std or optim.lambda_laplacian:
            avatar.flame_parameters.train_dynamic_offset()
            offset_terms = OffsetTerms(optim, avatar)
        flame_optimizer = RowAdam(
            avatar.flame_parameters,
            expr_lr=optim.flame_expr_lr * warm.flame_expr_factor,
            translation_lr=optim.flame_trans_lr * warm.flame_trans_factor,
            pose_lr=optim.flame_pose_lr * warm.flame_pose_factor,
            dynamic_lr=optim.dynamic_offset_lr,
        )
    reporter = Reporter(output, optim.iterations, start=resume["step"] if resume else 0, quiet=run.quiet)
    density = DensityControl(
        avatar,
        optimizer,
        DensitySchedule(
            white_background=model_options.white_background,
            resets=not warm.skip_resets,
            prune_opacity=warm.prune_opacity,
            **pick(
                optim,
                (
                    "densify_from_iter",
                    "densify_until_iter",
                    "densification_interval",
                    "opacity_reset_interval",
                    "percent_dense",
                ),
            ),
        ),
        while_memory_lasts(build_policy(optim, extra), device, reporter.warn),
        extent=dataset.extent,
        generator=torch.Generator().manual_seed(run.seed + 1),
    )
    sampler = ShuffledSampler(len(dataset.train), seed=run.seed + 2)
    first = 1
    bad_steps = BadSteps(reporter, partial(checkpoint.latest, output))
    saved = {
        "optimizer": optimizer,
        "density": density,
        "sampler": sampler,
        "reporter": reporter,
        "amp": amp,
        "region": region,
        "color": color,
        "bad_steps": bad_steps,
    }
    optimizers = [optimizer, *([flame_optimizer] if flame_optimizer else []), *color.optimizers]
    if flame_optimizer is not None:
        saved["flame_optimizer"] = flame_optimizer
    if resume:
        first = resume["step"] + 1
        restore(saved, resume)
        reporter.say(f"Resumed at iteration {resume['step']} with {len(avatar):,} Gaussians")
    reporter.say(f"{len(dataset.train)} training views, {len(avatar):,} Gaussians, rasterizer {backend} on {device}")

    draw = partial(
        render,
        background=background,
        rasterize=rasterize,
        convert_SHs_python=options.pipeline.convert_SHs_python,
        absolute=extra.use_smart_densification and extra.densify_absolute,
    )
    finished = calibrated(draw, color)
    due = milestones(options)
    clock = Alarm(60.0 * run.checkpoint_every_minutes)
    debug_from = 0 if options.pipeline.debug else run.debug_from
    measured_splits = [name for name in ("val", "test") if cameras[name]] or ["train"]

    # ---- loop ---------------------------------------------------------------
    stop = held.enter_context(StopSignals())  # only now: before, nothing is lost, and waiting would be for nothing
    for step in range(first, optim.iterations + 1):
        optimizer.set_step(step)
        color.set_step(step)
        avatar.active_sh_degree = min(avatar.sh_degree, step // optim.sh_increase_interval)
        scale = progressive.scale(step)
        if step == first or progressive.switch(step):
            with reporter.pause():
                if progressive.switch(step):
                    reporter.say(progressive.switch(step))
                train_images.image(0, scale, device)  # makes those of this scale
        batch: list[dict[str, Tensor]] = []
        rendered: list[RenderOut] = []
        names: list[str] = []
        for _ in range(extra.batch_views):
            with stages("data"):
                index = sampler.next()
                camera = cameras["train"][index].scaled(scale)
                target = train_images.image(index, scale, device)
            with stages("avatar"):
                gaussians, vertices = avatar(camera.timestep)
            with stages("forward"):
                out = draw(gaussians, camera, sh_degree=avatar.active_sh_degree)
            with stages("loss"):
                with amp.autocast():
                    image = color(out.image, camera.camera_id, out.alpha)
                terms = compute_losses(
                    optim, avatar, gaussians, vertices, out, image, target, region.weights(index, camera, vertices)
                )
                terms.update(color_terms())
                if offset_terms is not None:
                    terms.update(offset_terms(camera.timestep))
                batch.append({"total": sum(terms.values()), **terms})
                rendered.append(out)
                names.append(camera.name)
        with stages("backward"):
            terms = mean_terms(batch)
            amp.backward(terms["total"], [out.means2d for out in rendered], optimizers)
        if 0 <= debug_from <= step:
            check_finite(step, ", ".join(names), avatar, terms)
        with stages("optimizer"):
            for part in optimizers:
                amp.step(part, step)
                part.zero_grad()
        with stages("report"):
            reporter.step(step, terms, points=len(avatar))
            bad_steps.note(step, names, amp.bad)
        # Before the density control: a picture taken right after an opacity
        # reset shows a ghost, and resets and saves fall on the same iterations.
        if due.test(step) and step < optim.iterations:
            with reporter.pause():
                for name in measured_splits:
                    show(
                        reporter,
                        step,
                        name,
                        avatar,
                        cameras[name],
                        partial(photograph, name),
                        finished,
                        metrics.Suite(QUICK_METRICS, device),
                        evenly_spaced(len(cameras[name]), VIEWS_ON_THE_WAY),
                        region,
                    )
        if due.save(step):
            with reporter.pause():
                save(output / "point_cloud" / f"iteration_{step}", avatar, color)
        with stages("density"):
            for out in rendered:
                density.observe(out, scale, views=extra.batch_views, skip=amp.bad)
            grown = density.step(step, gaussians.scales)
        if grown and grown.line:
            reporter.say(grown.line)
            reporter.scalars(step, grown.scalars)
        if due.checkpoint(step) or clock.due() or stop.signal:
            with reporter.pause():
                reporter.flush()
                state = {"step": step, "avatar": avatar.state_dict(), "options": dataclasses.asdict(options)}
                if avatar.flame_parameters is not None:
                    state["flame"] = avatar.flame_parameters.state_dict()
                state.update({name: part.state_dict() for name, part in saved.items()})
                checkpoint.save(output / f"chkpnt{step}.pth", state)
                checkpoint.remove_old(output, run.keep_checkpoints, step)
                clock.restart()
        if stop.signal:
            reporter.close()
            print(
                f"stopped by {stop.signal.name} after iteration {step}; the same command with "
                "--start_checkpoint auto goes on from there",
                file=sys.stderr,
            )
            raise SystemExit(128 + stop.signal)
        stages.end_iteration()

    stop.release()
    # ---- results: measured on the saved avatar, which is what everybody opens ----
    avatar = GaussianModel.load(
        output / "point_cloud" / f"iteration_{optim.iterations}",
        flame=avatar.flame,
        flame_parameters=avatar.flame_parameters,
        device=device,
    )
    measured, told = {}, set()
    for name in measured_splits:
        suite = metrics.Suite(ALL_METRICS, device)
        limit = VIEWS_OF_TRAIN if name == "train" else len(cameras[name])
        measured[name] = show(
            reporter,
            optim.iterations,
            name,
            avatar,
            cameras[name],
            partial(photograph, name),
            finished,
            suite,
            evenly_spaced(len(cameras[name]), limit),
            region,
        )
        told.update(suite.notes)
    if refined is not None:
        measured.update(
            measure_refined(
                avatar,
                refined,
                extra.refine_test_poses,
                cameras["test"],
                partial(photograph, "test"),
                finished,
                partial(metrics.Suite, ALL_METRICS, device),
            )
        )
    left_out = bad_steps.summary()
    if left_out["count"]:
        told.add(f"{left_out['count']} steps were left out because the loss or a gradient was not finite")
    reporter.close()  # first: results.json says that nothing is missing
    results = write_results(
        output / "results.json",
        metrics=measured,
        iterations=optim.iterations,
        points=len(avatar),
        seconds=reporter.seconds,
        iterations_per_second=reporter.iterations_per_second,
        backend=backend,
        device=device,
        steps_left_out=left_out,
    )
    if not run.quiet:
        print(metrics.format_table(measured), *sorted(told), sep="\n")
        print(
            f"{results['iterations_per_second']:.1f} iterations/s (median), {len(avatar):,} Gaussians, "
            f"{results['peak_memory']['host_bytes'] / 1e9:.2f} GB of memory; results in {output / 'results.json'}"
        )
    return results


def pick(options: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The named fields of an option group, as keyword arguments."""
    return {name: getattr(options, name) for name in names}


def find_checkpoint(wanted: str | None, output: Path) -> dict[str, Any] | None:
    """The checkpoint to continue from; refuses to start over what is already there."""
    newest = checkpoint.newest(output) if wanted in (None, "auto") else None
    if wanted is None and newest is not None:
        raise UserError(
            f"{output} already holds a run ({newest.name}); continue it with --start_checkpoint auto, "
            "or choose another --model_path"
        )
    path = newest if wanted == "auto" else wanted
    return checkpoint.load(Path(path)) if path else None


def build_avatar(
    options: ModelOptions, dataset: Dataset, resume: Mapping[str, Any] | None, *, seed: int, device: torch.device
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
            source=dataset.flame_file,
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
    if flame is not None:
        return GaussianModel.from_mesh(
            flame,
            flame_parameters,
            sh_degree=options.sh_degree,
            generator=torch.Generator().manual_seed(seed),
            device=device,
        )
    return GaussianModel.from_points(dataset.points, dataset.colors, sh_degree=options.sh_degree, device=device)


def restore(saved: Mapping[str, Any], resume: Mapping[str, Any]) -> None:
    """Loads the state of every part; UserError when one does not fit or is missing.

    An innovation that the saved run did not have begins here, as the identity.
    """
    for name, part in saved.items():
        with checkpoint.fitting(name):
            if name in ("region", "color", "amp", "bad_steps") and not resume.get(name):
                continue
            part.load_state_dict(resume[name])


def check_resumable(resume: Mapping[str, Any], options: Options) -> None:
    """Refuses to continue a run under options that its saved state contradicts."""
    missing = [name for name in ("step", "avatar", "options") if name not in resume]
    if missing:
        raise UserError(f"the checkpoint has no '{missing[0]}': it was not written by this trainer")
    if type(resume["step"]) is not int or not 0 <= resume["step"] <= 10**9:
        raise UserError("the checkpoint's 'step' is no number of iterations")
    with checkpoint.fitting("options"):
        trained = dict(resume["options"]["model"])
    for name in ("bind_to_mesh", "sh_degree", "white_background", "disable_flame_static_offset"):
        before, now = trained.get(name), getattr(options.model, name)
        if not isinstance(before, (bool, int, type(None))):
            raise UserError(
                f"the checkpoint does not fit this run (options: {name} is of type {type(before).__name__})"
            )
        if before != now:
            raise UserError(
                f"the checkpoint was trained with {name} = {before}, this run has {now}: "
                "continue with the same value, or start a new run in another --model_path"
            )


def build_warm_start(extra: InnovationOptions) -> WarmStart:
    """How the run begins, and the factors on its learning rates."""
    if not extra.use_warm_start:
        return CLASSICAL_START
    return WarmStart(
        colors=extra.warm_colors,
        opacity=extra.warm_opacity,
        scale=extra.warm_scale,
        skip_resets=extra.warm_skip_resets,
        # After a reset all opacities are lower than that.
        prune_opacity=(extra.warm_prune_opacity if extra.warm_skip_resets else CLASSICAL_START.prune_opacity),
        feature_factor=extra.warm_feature_lr_factor,
        flame_expr_factor=extra.warm_expr_lr_factor,
        flame_pose_factor=extra.warm_pose_lr_factor,
        flame_trans_factor=extra.warm_trans_lr_factor,
    )


@torch.no_grad()
def warm_up(
    avatar: GaussianModel,
    warm: WarmStart,
    cameras: list[Camera],
    photograph: Callable[[int], Tensor],
    background: tuple[float, float, float],
) -> None:
    """Gives a fresh avatar the start that `warm` describes."""
    if warm == CLASSICAL_START:
        return
    if avatar.binding is None:
        raise UserError("--use_warm_start is for avatars on a head mesh: add --bind_to_mesh, or --no_warm_start")
    avatar.opacity.fill_(warm.raw_opacity)
    avatar.scaling.fill_(warm.raw_scale)
    if warm.colors:
        flame = avatar.flame
        views = (
            (cameras[index], photograph(index), flame.vertices(avatar.flame_parameters, cameras[index].timestep))
            for index in spread_views(cameras)
        )
        colors, _ = triangle_colors(views, flame.faces, background)
        avatar.features[:, 0] = from_colors(colors)[avatar.binding]


def build_region(extra: InnovationOptions, avatar: GaussianModel) -> RegionAdaptiveLoss | NoRegionWeights:
    """The weights of the picture's regions; without a mesh those of a portrait."""
    if not extra.use_region_adaptive_loss:
        return NoRegionWeights()
    mesh = {} if avatar.flame is None else {"faces": avatar.flame.faces, "masks": avatar.flame.masks}
    return RegionAdaptiveLoss(
        extra.region_weight_eyes, extra.region_weight_mouth, extra.region_weight_nose, extra.region_weight_face, **mesh
    )


def build_color(
    extra: InnovationOptions, cameras: list[Camera], background: Tensor, *, seed: int
) -> tuple[ColorCalibration | NoColorCalibration, Callable[[], dict[str, Tensor]]]:
    """The colour calibration, and the terms that it adds to the loss."""
    if not extra.use_color_calibration:
        return NoColorCalibration(), dict
    color = ColorCalibration(
        [camera.camera_id for camera in cameras],
        hidden_dim=extra.color_net_hidden_dim,
        num_layers=extra.color_net_layers,
        per_camera=extra.color_per_camera,
        rate=extra.color_lr,
        background=background,
        generator=torch.Generator().manual_seed(seed + 3),
        device=background.device,
    )
    if not extra.lambda_color_reg:
        return color, dict
    return color, lambda: {"col_reg": extra.lambda_color_reg * color.regularizer()}


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


def save(folder: Path, avatar: GaussianModel, color: ColorCalibration | NoColorCalibration) -> None:
    """Writes the avatar and, beside it, what its colours go through; what `avatar.save` says of the order holds."""
    remove(folder / PLY_NAME)
    color.save(folder / COLOR_NAME)
    avatar.save(folder)


def mean_terms(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of a step: means over its views."""
    if len(batch) == 1:
        return batch[0]
    return {name: torch.stack([terms[name] for terms in batch]).mean() for name in batch[0]}


def compute_losses(
    optim: OptimizationOptions,
    avatar: GaussianModel,
    gaussians: Gaussians,
    vertices: Tensor | None,
    out: RenderOut,
    image: Tensor,
    target: Tensor,
    weights: Tensor | None,
) -> dict[str, Tensor]:
    """The weighted terms of the loss, whose sum is minimised. `image` is that of `out` in calibrated colours."""
    l1, ssim = losses.photometric(image, target, weights)
    terms = {"l1": (1.0 - optim.lambda_dssim) * l1, "ssim": optim.lambda_dssim * (1.0 - ssim)}
    if avatar.binding is None:
        return terms
    visible = out.radii > 0
    if optim.lambda_xyz and optim.lambda_scale and not (optim.metric_xyz or optim.metric_scale):
        xyz, scale = losses.local_regularizers(
            avatar.xyz, avatar.scaling, visible, optim.threshold_xyz, optim.threshold_scale
        )
        return {**terms, "xyz": optim.lambda_xyz * xyz, "scale": optim.lambda_scale * scale}
    if optim.lambda_xyz:
        xyz = avatar.xyz
        if optim.metric_xyz:
            xyz = xyz * avatar.triangle_scales(vertices)[avatar.binding, None]
        terms["xyz"] = optim.lambda_xyz * losses.xyz_regularizer(xyz, visible, optim.threshold_xyz)
    if optim.lambda_scale:
        scales = gaussians.scales if optim.metric_scale else avatar.scaling.exp()
        terms["scale"] = optim.lambda_scale * losses.scale_regularizer(scales, visible, optim.threshold_scale)
    return terms


class OffsetTerms:
    """The optional losses on the per-timestep vertex offsets, which are trained only when one of them is on."""

    def __init__(self, optim: OptimizationOptions, avatar: GaussianModel) -> None:
        self.optim = optim
        self.parameters = avatar.flame_parameters
        self.laplacian = losses.uniform_laplacian(avatar.flame.faces, avatar.flame.v_template.shape[0])

    def __call__(self, timestep: int) -> dict[str, Tensor]:
        """The weighted terms of the offset that `timestep` was rendered with; gradients reach that one only."""
        optim, offset = self.optim, self.parameters.dynamic_row(timestep)
        terms = {}
        if optim.lambda_dynamic_offset:
            terms["dynamic_offset"] = optim.lambda_dynamic_offset * losses.dynamic_offset(offset)
        if optim.lambda_dynamic_offset_std:
            others = self.parameters.dynamic_offset.detach()
            every = torch.cat([others[:timestep], offset[None], others[timestep + 1 :]])
            terms["dynamic_offset_std"] = optim.lambda_dynamic_offset_std * losses.dynamic_offset_std(every)
        if optim.lambda_laplacian:
            terms["laplacian"] = optim.lambda_laplacian * losses.laplacian(offset, self.laplacian)
        return terms


def show(
    reporter: Reporter,
    step: int,
    split: str,
    avatar: GaussianModel,
    cameras: list[Camera],
    photograph: Callable[[int], Tensor],
    draw: Callable[..., RenderOut],
    suite: metrics.Suite,
    indices: list[int],
    region: RegionAdaptiveLoss | NoRegionWeights,
) -> dict[str, float | None]:
    """Measures views of a split, and hands the curves and a few pictures to TensorBoard."""
    pictured = evenly_spaced(len(cameras), 3)

    def on_image(view: Evaluated) -> None:
        if view.index in pictured:
            # The index too: merged sets use one image name for several views.
            reporter.picture(step, f"{split}/{view.index:05d}_{view.camera.name}", view.image, view.target)

    means = evaluate(
        avatar,
        cameras,
        photograph,
        partial(draw, sh_degree=avatar.active_sh_degree),
        suite,
        indices=sorted({*pictured, *indices}),
        on_image=on_image,
    )
    reporter.evaluation(step, split, means)
    if pictured and isinstance(region, RegionAdaptiveLoss):
        camera = cameras[pictured[0]]
        with torch.no_grad():
            _, vertices = avatar(camera.timestep)
            weights = region.weights(None, camera, vertices)
        reporter.heat_map(step, f"{split}/{pictured[0]:05d}_{camera.name}/region_weights", weights)
    return means


def held_out(dataset: Dataset, extra: InnovationOptions) -> SplitViews | None:
    """Which test views --refine_test_poses may look at, and which it is measured on; None when it is off."""
    if not extra.refine_test_poses:
        return None
    if dataset.flame is None or not dataset.test:
        raise UserError("--refine_test_poses needs a tracked head and a test split: add --bind_to_mesh and --eval")
    return refinable_views(dataset.test, dataset.train, extra.refine_cameras)


def measure_refined(
    avatar: GaussianModel,
    parts: SplitViews,
    steps: int,
    cameras: list[Camera],
    photograph: Callable[[int], Tensor],
    draw: Callable[..., RenderOut],
    suite: Callable[[], Any],
) -> dict[str, dict[str, float | None]]:
    """The test split as tracked and with its poses fitted to the allowed cameras, both over the others' views only."""
    draw = partial(draw, sh_degree=avatar.active_sh_degree)
    motion = avatar.flame_parameters
    tracked = evaluate(avatar, cameras, photograph, draw, suite(), indices=parts.measured)
    motion.trainable = True
    refine_poses(
        avatar,
        motion.row,
        cameras,
        photograph,
        draw,
        parameter_units(motion.columns, motion.device),
        indices=parts.looked_at,
        steps=steps,
    )
    motion.clear_gradients()
    refined = evaluate(avatar, cameras, photograph, draw, suite(), indices=parts.measured)
    return {"test_as_tracked": tracked, "test_refined": refined}


def check_finite(step: int, view: str, avatar: GaussianModel, terms: Mapping[str, Tensor]) -> None:
    """With --debug: stops at the first NaN or infinity, in a loss or a gradient, and says where."""
    values = {f"loss {name}": value for name, value in terms.items() if name != "total"}
    values.update({f"gradient of {name}": p.grad for name, p in avatar.parameters().items() if p.grad is not None})
    if avatar.flame_parameters is not None:
        values.update(
            {f"gradient of FLAME {table}": grad for (table, _), grad in avatar.flame_parameters.gradients().items()}
        )
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise UserError(f"--debug: iteration {step}, view {view}: {name} is not finite")


@contextmanager
def explained(options: Options) -> Iterator[None]:
    """Around a run: what helps where memory ran out, and beside the traceback of a defect what tells the run.

    Raises:
        UserError: in place of the many exceptions that mean too little memory.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        output = Path(options.model.model_path)
        kept = checkpoint.latest(output)
        place = short_of_memory(error)
        if place is None:
            error.add_note(
                f"This is a defect of the program; to report it:\ncommand: {shlex.join(sys.argv)}\noptions: "
                f"{output / 'cfg_args'}\nlast checkpoint: {kept or 'none was written yet'}"
            )
            raise
        fewer = (
            "--max_gaussians (smaller)"
            if options.innovations.use_smart_densification
            else "--densify_grad_threshold (larger)"
        )
        elsewhere = "--data_device cpu" if place == "GPU" else "--ram_share (smaller)"
        raise UserError(
            f"the memory of the {place} ran out with these options ({one_line(error)[:200] or 'no details'}): "
            f"{fewer}, --resolution (smaller) and {elsewhere} take less; "
            + (
                f"{kept} and all before it are kept, go on with --start_checkpoint auto"
                if kept
                else "no checkpoint was written yet"
            )
        ) from error


def main() -> None:
    options = parse_train(sys.argv[1:])
    for note in notes(options):
        print(note)
    train(options)


if __name__ == "__main__":
    run_script(main)
