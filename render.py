"""Renders a trained avatar (or static scene) and measures the pictures.

    python render.py -m OUT [--skip_train] [--skip_val] [--skip_test] [--select_camera_id N] [--render_mesh]
    python render.py -m OUT -t TARGET          follow the cameras and the motion of another capture
    python render.py -m OUT --export_world 0   only write an ordinary splat file of one moment
    python render.py -m OUT --refine_flame 40 --refine_cameras 6 9
                                               also with test poses fitted to these cameras

Writes <OUT>/<split>/ours_<iteration>/: renders/, gt/ and renders_mesh/ with a
PNG per view, each also as an mp4, comparison.png and metrics.json. Refined
poses go to the split test_refined, with flame_param_refined.npz beside its
metrics; the avatar's own parameters stay as they are. A training may go on in
OUT meanwhile: it writes elsewhere, and what it saves appears whole.
"""

from __future__ import annotations

# isort: off
import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
# isort: on

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from arguments import Options, RenderOptions, parse_render, read_cfg_args
from evaluation.evaluate import Evaluated, calibrated, evaluate, evenly_spaced, mean_metrics
from evaluation.metrics import Suite, format_table
from evaluation.pose_refinement import SplitViews, parameter_units, refinable_views, refine_poses, summary
from evaluation.results import json_ready
from gaussian_renderer import choose_device_and_rasterizer, render
from gaussian_renderer.mesh_overlay import draw_mesh
from innovations.color_calibration import FILE_NAME as COLOR_NAME
from innovations.color_calibration import ColorCalibration
from ops.types import Camera
from scene.dataset import Dataset, View, load_dataset
from scene.flame.head_model import find_head_model, load_head_model
from scene.flame.model import Flame, FlameParameters
from scene.gaussian_model import FLAME_NAME, PLY_NAME, GaussianModel
from scene.images.cache import ImageCache
from scene.ply import export_world
from utils.errors import UserError, run_script
from utils.files import only_writer, refuse_escaping_links, write_json
from utils.images import PngWriter, error_map, side_by_side, to_bytes, write_png
from utils.video import video_writer

COMPARED_VIEWS = 4
REFINED_NAME = "flame_param_refined.npz"


def render_avatar(options: RenderOptions) -> dict[str, dict[str, float | None]]:
    """Everything `render.py` does; returns the mean metrics of each split (none with -t)."""
    model = Path(options.model_path)
    trained = read_cfg_args(model)
    refuse_escaping_links(model)
    if options.refine_flame:
        check_refinable(options, trained)
    iteration = choose_iteration(model, options.iteration)
    saved = model / "point_cloud" / f"iteration_{iteration}"
    device, backend, rasterize = choose_device_and_rasterizer(options.device, options.rasterizer, options.threads)
    target = Path(options.target_path) if options.target_path else None
    say = (lambda text: None) if options.quiet else tqdm.write

    # The avatar carries its own motion: exporting a moment of it needs no capture.
    dataset = None if options.export_world is not None and target is None else load_capture(options, trained)
    avatar = load_avatar(options, trained, saved, dataset, device)
    if options.export_world is not None:
        path = saved / f"world_{f'{target.name}_' if target else ''}{options.export_world:05d}.ply"
        export(avatar, options.export_world, path)
        say(f"{path}: {len(avatar):,} Gaussians in world space")
        return {}
    if options.render_mesh and avatar.flame is None:
        raise UserError(f"--render_mesh: {saved / PLY_NAME} is not bound to a head mesh")
    rows = rows_of(avatar.flame_parameters, dataset.timesteps, saved / FLAME_NAME)
    parts = refinement_views(dataset, options.refine_cameras) if options.refine_flame else None

    draw = partial(
        render,
        background=torch.tensor(dataset.background, device=device),
        rasterize=rasterize,
        sh_degree=avatar.active_sh_degree,
        convert_SHs_python=trained.pipeline.convert_SHs_python,
    )
    uncalibrated = None
    if trained.innovations.use_color_calibration and not options.no_color_calibration:
        uncalibrated, draw = (
            draw,
            calibrated(
                draw,
                ColorCalibration.load(
                    saved / COLOR_NAME, background=torch.tensor(dataset.background, device=device), device=device
                ),
            ),
        )
    say(f"{saved / PLY_NAME}: {len(avatar):,} Gaussians, rasterizer {backend} on {device}")

    splits = {
        "train": (dataset.train, options.skip_train),
        "val": (dataset.val, options.skip_val),
        "test": (dataset.test, options.skip_test),
    }
    measured, folders, notes = {}, [], []
    for split, (views, skipped) in splits.items():
        if skipped or not views:
            continue
        name = f"{split}_{target.name}" if target else split
        folder = model / name / f"ours_{iteration}"
        cameras = [dataclasses.replace(view.camera, timestep=rows[view.camera.timestep]).to(device) for view in views]
        photographs = None
        if target is None:
            images = ImageCache(views, dataset.background, folder=model / "cache", progress=not options.quiet)
            photographs = partial(images.image, device=device)
        suite = Suite(device=device)
        render_views = partial(
            render_split,
            avatar=avatar,
            views=views,
            cameras=cameras,
            photographs=photographs,
            draw=draw,
            uncalibrated=uncalibrated,
            suite=suite,
            mesh=options.render_mesh,
            quiet=options.quiet,
        )
        with only_writer(folder):
            means, figures = render_views(name, folder, indices=range(len(views)))
        if target is None:
            measured[split] = means
        folders.append(folder)
        if split == "test" and parts is not None:
            folders.append(model / "test_refined" / folder.name)
            as_tracked = mean_metrics((figures[i] for i in parts.measured), suite.names)
            report = refine(
                avatar,
                cameras,
                photographs,
                draw,
                parts,
                options.refine_flame,
                folders[-1] / REFINED_NAME,
                quiet=options.quiet,
            )
            report["cameras_looked_at"], report["cameras_measured"] = (
                sorted({views[i].camera_index for i in part}) for part in parts
            )
            with only_writer(folders[-1]):
                means, figures = render_views(
                    "test_refined",
                    folders[-1],
                    measured=parts.measured,
                    indices=sorted([*parts.measured, *parts.looked_at]),
                    more={"as_tracked": as_tracked, "refinement": report},
                )
            looked_at = mean_metrics((figures[i] for i in parts.looked_at), suite.names)
            measured.update(test_as_tracked=as_tracked, test_refined=means, test_looked_at=looked_at)
            say(
                f"test_refined: the FLAME parameters of {report['timesteps']} timesteps, fitted in "
                f"{options.refine_flame} steps each to camera {numbers(report['cameras_looked_at'])}; the rows "
                f"test_as_tracked and test_refined are measured on camera {numbers(report['cameras_measured'])} only"
            )
        notes += [note for note in suite.notes if note not in notes]

    if not folders:
        say("Nothing to render: every split is skipped or empty.")
    if target and folders:
        say(f"No metrics: nobody photographed this person moving as in {target}.")
    if measured:
        say("\n" + format_table(measured))
    for note in notes:
        say(note)
    for folder in folders:
        say(f"{folder}: renders.mp4, renders/*.png" + ("" if target else ", comparison.png, metrics.json"))
    return measured


# ---- what to render -----------------------------------------------------------


def choose_iteration(model: Path, wanted: int) -> int:
    """The saved iteration that was asked for, or the newest; UserError when there is no such one."""
    found = sorted(
        int(folder.name.removeprefix("iteration_"))
        for folder in (model / "point_cloud").glob("iteration_*")
        if re.fullmatch(r"iteration_[0-9]+", folder.name) and (folder / PLY_NAME).is_file()
    )
    if not found:
        raise UserError(f"{model / 'point_cloud'} holds no iteration_<N>/{PLY_NAME}: nothing was saved there yet")
    if wanted == -1:
        return found[-1]
    if wanted not in found:
        raise UserError(f"--iteration {wanted} was not saved in {model}; there are {', '.join(map(str, found))}")
    return wanted


def load_capture(options: RenderOptions, trained: Options) -> Dataset:
    """The capture that the avatar was trained on, or with -t the one that moves it."""
    source = Path(options.source_path or trained.model.source_path)
    if not source.is_dir():
        raise UserError(
            f"the capture {source}, which cfg_args of {options.model_path} names, is not there: say where it is with -s"
        )
    if options.target_path and not trained.model.bind_to_mesh:
        raise UserError(f"-t: the avatar in {options.model_path} is not bound to a head mesh, so nothing can move it")
    target = options.target_path or trained.model.target_path
    return load_dataset(
        source,
        bind_to_mesh=trained.model.bind_to_mesh,
        eval_split=trained.model.eval,
        white_background=trained.model.white_background,
        target=Path(target) if target else None,
        images=trained.model.images,
        resolution=trained.model.resolution,
        select_camera_id=options.select_camera_id,
        skip_bad_frames=trained.model.skip_bad_frames,
        seed=trained.run.seed,
    )


def load_avatar(
    options: RenderOptions, trained: Options, saved: Path, dataset: Dataset | None, device: torch.device
) -> GaussianModel:
    """The saved avatar: with the motion it was trained on, or with -t that of `dataset`."""
    if not trained.model.bind_to_mesh:
        return GaussianModel.load(saved, device=device)
    source = options.source_path or trained.model.source_path
    head = load_head_model(
        find_head_model(options.head_model or trained.model.head_model, source, avatar=options.model_path)
    )
    motion = FlameParameters.load(saved / FLAME_NAME, head, device=device, trainable=False)
    if options.target_path:
        # The person stays: identity and offset are the avatar's. The target's
        # per-timestep offsets belong to the target's face and are left out.
        arrays = {name: value for name, value in dataset.flame.items() if name != "dynamic_offset"}
        arrays["shape"], arrays["static_offset"] = motion.shape.cpu().numpy(), motion.static_offset.cpu().numpy()
        motion = FlameParameters(
            arrays, dataset.timesteps, head, device=device, trainable=False, source=options.target_path
        )
    return GaussianModel.load(saved, flame=Flame(head, device=device), flame_parameters=motion, device=device)


def rows_of(motion: FlameParameters | None, timesteps: Sequence[int], path: Path) -> list[int]:
    """Which row of the avatar's motion each timestep of the capture is.

    Raises:
        UserError: the avatar knows another set of timesteps.
    """
    if motion is None:
        return [0] * max(1, len(timesteps))  # a static scene
    row = {timestep: index for index, timestep in enumerate(motion.timesteps)}
    if all(timestep in row for timestep in timesteps):
        return [row[timestep] for timestep in timesteps]
    # Files of other trainers carry no numbers: then all rows in order, if they are as many.
    if len(motion) == len(timesteps) and motion.timesteps == list(range(len(motion))):
        return list(range(len(motion)))
    absent = next(timestep for timestep in timesteps if timestep not in row)
    raise UserError(f"{path} has no timestep {absent}, which the capture has: it was trained on another capture")


# ---- pose refinement ------------------------------------------------------------


def check_refinable(options: RenderOptions, trained: Options) -> None:
    """Refuses --refine_flame where there is nothing to fit or nothing to fit to."""
    if options.export_world is not None:
        raise UserError("--refine_flame does not go with --export_world, which writes the poses as they were tracked")
    if options.target_path:
        raise UserError("--refine_flame does not go with -t: nobody photographed this person moving like that")
    if options.skip_test:
        raise UserError("--refine_flame refines the test split: leave out --skip_test")
    if not trained.model.bind_to_mesh:
        raise UserError(
            f"--refine_flame: the avatar in {options.model_path} is not bound to a head mesh, so it has no pose"
        )


def refinement_views(dataset: Dataset, allowed: Sequence[int]) -> SplitViews:
    """Which test views --refine_cameras allows to fit, and which are left to measure."""
    if not dataset.test:
        raise UserError("--refine_flame: there is no test split to refine (was the avatar trained without --eval?)")
    return refinable_views(dataset.test, dataset.train, allowed)


def refine(
    avatar: GaussianModel,
    cameras: Sequence[Camera],
    photograph: Callable[[int], torch.Tensor],
    draw: Callable[..., Any],
    parts: SplitViews,
    steps: int,
    path: Path,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Refines the avatar's FLAME parameters in memory and writes them to `path`; returns what it did."""
    motion = avatar.flame_parameters
    motion.trainable = True
    count = len({cameras[index].timestep for index in parts.looked_at})
    with tqdm(total=count, desc="Refining test poses", unit="timestep", disable=quiet) as bar:
        fits = refine_poses(
            avatar,
            motion.row,
            cameras,
            photograph,
            draw,
            parameter_units(motion.columns, motion.device),
            indices=parts.looked_at,
            steps=steps,
            on_timestep=lambda _: bar.update(),
        )
    motion.clear_gradients()
    motion.save(path)
    return {"steps": steps, **summary(fits)}


def numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def export(avatar: GaussianModel, timestep: int, path: Path) -> None:
    """Writes the avatar at one timestep (as numbered in the capture) as a world-space PLY."""
    row = 0
    if avatar.flame_parameters is not None:
        known = avatar.flame_parameters.timesteps
        if timestep not in known:
            raise UserError(
                f"--export_world {timestep}: there are the timesteps {min(known)} to {max(known)}, {len(known)} in all"
            )
        row = known.index(timestep)
    with torch.no_grad():
        export_world(path, avatar(row)[0])


# ---- one split ----------------------------------------------------------------


def render_split(
    name: str,
    folder: Path,
    avatar: GaussianModel,
    views: Sequence[View],
    cameras: Sequence[Camera],  # of the views, with the row of the avatar's motion
    photographs: Callable[[int], torch.Tensor] | None,
    draw: Callable[..., Any],
    uncalibrated: Callable[..., Any] | None,  # the same without colour calibration, to be measured too
    suite: Suite,
    *,
    indices: Sequence[int],  # which of the views
    measured: Sequence[int] | None = None,  # which of these the mean is over; None = all
    more: dict[str, Any] | None = None,  # what else metrics.json is to hold
    mesh: bool,
    quiet: bool,
) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    """Renders, writes and measures views of one split; returns the mean metrics, and those of each view.

    A PNG is numbered by its view's place in the split. The videos play one
    camera after the other, each through time.
    """
    measured = indices if measured is None else measured
    order = sorted(indices, key=lambda i: (cameras[i].camera_id, views[i].timestep_index))
    compared = {order[position] for position in evenly_spaced(len(order), COMPARED_VIEWS)}
    kinds = ["renders", *(["gt"] if photographs else []), *(["renders_mesh"] if mesh else [])]
    for kind in kinds:
        remove_numbered_pngs(folder / kind)

    records: dict[int, dict[str, Any]] = {}
    figures: dict[int, dict[str, float | None]] = {}
    columns: list[np.ndarray] = []  # of comparison.png, each a photograph, its rendering and the error
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(order), desc=f"Rendering {name}", unit="view", disable=quiet))
        pngs = stack.enter_context(PngWriter())
        first = cameras[order[0]]
        videos = {
            kind: stack.enter_context(video_writer(folder / f"{kind}.mp4", first.width, first.height)) for kind in kinds
        }

        def keep(view: Evaluated) -> None:
            pictures = {"renders": view.image, "gt": view.target}
            if mesh:
                pictures["renders_mesh"] = draw_mesh(view.image, view.vertices, avatar.flame.faces, view.camera)
            file = f"{view.index:05d}.png"
            for kind in kinds:
                pixels = to_bytes(pictures[kind])
                pngs.write(folder / kind / file, pixels)
                videos[kind].add(pixels)
            if view.target is not None and view.index in compared:
                panels = (view.target, view.image, error_map(view.image, view.target))
                columns.append(np.concatenate([to_bytes(panel) for panel in panels]))
            figures[view.index] = view.metrics
            records[view.index] = {
                "file": file,
                "camera": view.camera.camera_id,
                "image": view.camera.name,
                "timestep": views[view.index].timestep_index,
                **({} if view.index in measured else {"looked_at": True}),
                **view.metrics,
            }
            bar.update()

        evaluate(avatar, cameras, photographs, draw, suite, indices=order, on_image=keep)
    if photographs is None:
        return {}, {}
    means = mean_metrics((figures[i] for i in measured), suite.names)
    more = dict(more or {})
    if uncalibrated is not None:
        more["without_color_calibration"] = evaluate(
            avatar, cameras, photographs, uncalibrated, Suite(suite.names, avatar.device), indices=measured
        )
    write_png(folder / "comparison.png", side_by_side(columns))
    write_json(
        folder / "metrics.json",
        json_ready({"split": name, "mean": means, **more, "views": [records[i] for i in sorted(records)]}),
    )
    return means, figures


def remove_numbered_pngs(folder: Path) -> None:
    """Clears what an earlier rendering of more views would leave among the new ones."""
    for path in folder.glob("*.png"):
        if re.fullmatch(r"[0-9]{5,}\.png", path.name):
            path.unlink()


def main() -> None:
    render_avatar(parse_render(sys.argv[1:]))


if __name__ == "__main__":
    run_script(main)
