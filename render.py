"""Renders a trained avatar (or static scene) and measures the pictures, or makes a clip of any motion.

    python render.py -m OUT [--skip_train] [--skip_val] [--skip_test] [--select_camera_id N] [--render_mesh]
    python render.py -m OUT -t TARGET          follow the cameras and the motion of another capture
    python render.py -m OUT --export_world 0   only write an ordinary splat file of one moment
    python render.py -m OUT --refine_flame 40 --refine_cameras 6 9
                                               also with test poses fitted to these cameras
    python render.py -m OUT --motion sweep --camera orbit [-o clip.mp4] [--contact_sheet POSES VIEWS]
                                               a clip or a sheet of it; needs no capture

Writes <OUT>/<split>/ours_<iteration>/: renders/, gt/ and renders_mesh/ with a
PNG per view, each also as an mp4, comparison.png and metrics.json. Refined
poses go to the split test_refined, with flame_param_refined.npz beside its
metrics; the avatar's own parameters stay as they are. A training may go on in
OUT meanwhile: it writes elsewhere, and what it saves appears whole.
"""

from __future__ import annotations

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)

# isort: split
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from arguments import ExportOptions, Options, RenderOptions, parse_render
from evaluation.evaluate import calibrated, mean_metrics
from evaluation.metrics import Suite, format_table
from evaluation.pictures import Means, SplitRenderer
from evaluation.pose_refinement import SplitViews, refinable_views, refine_motion, summary
from exporters import ply
from exporters.moment import WORLD
from scene import Avatar
from scene.avatar import find_saved, open_avatar, options_of
from scene.clip import Painter, chosen_stills, contact_sheet, write_clip
from scene.dataset import Dataset, View, dataset_of
from scene.images.cache import ImageCache
from scene.motion import Motion, chosen_motion
from scene.motion.key_frames import KeyFrames
from scene.motion.rows import FPS
from scene.motion.sources import NEUTRAL
from scene.view_path import FRONT, ViewPath, load_view_path
from utils.errors import UserError, run_script
from utils.files import only_writer, refuse_escaping_links
from utils.images import css_color, write_png
from utils.memory import Keep
from utils.progress import progress_bar

REFINED_NAME = "flame_param_refined.npz"


def render_avatar(options: RenderOptions) -> dict[str, Means]:
    """Everything `render.py` does; returns the mean metrics of each split (none with -t)."""
    output = Path(options.model_path)
    iteration, saved = find_saved(output, options.iteration)
    trained, note = options_of(output, saved)
    refuse_escaping_links(output)
    if note:
        print(f"note: {note}", file=sys.stderr)
    if options.clip:
        render_clip(options)
        return {}
    if options.refine_flame:
        check_refinable(options, trained)
    motion_of = Path(options.target_path) if options.target_path else None
    say: Callable[[str], Any] = (lambda text: None) if options.quiet else tqdm.write
    # The avatar carries its own motion: exporting a timestep of it needs no capture.
    capture = None if options.export_world is not None and motion_of is None else load_capture(options, trained)
    avatar = open_avatar(options)
    if capture is not None and motion_of is not None:
        avatar.follow(capture, motion_of)
    if capture is None or options.export_world is not None:
        for line in export(avatar, options.export_world or 0, motion_of):
            say(line)
        return {}
    if options.render_mesh and avatar.model.flame is None:
        raise UserError(f"--render_mesh: {avatar.path} is not bound to a head mesh")
    rows = avatar.rows(capture.timesteps)
    parts = refinement_views(capture, options.refine_cameras) if options.refine_flame else None
    say(f"{avatar.path}: {len(avatar.model):,} Gaussians, rasterizer {avatar.backend} on {avatar.model.device}")

    measured: dict[str, Means] = {}
    photographed = motion_of is None and not options.no_metrics
    suite = Suite(options.metrics if photographed else (), avatar.model.device)
    folders: list[Path] = []
    splits = {
        "train": (capture.train, options.skip_train),
        "val": (capture.val, options.skip_val),
        "test": (capture.test, options.skip_test),
    }
    for split, (views, skipped) in splits.items():
        if skipped or not views:
            continue
        renderer = split_renderer(options, avatar, capture, views, rows, suite if photographed else None)
        name = f"{split}_{motion_of.name}" if motion_of else split
        folders.append(output / name / f"ours_{iteration}")
        with only_writer(folders[-1]):
            means, figures = renderer.render(name, folders[-1], range(len(views)))
        say(f"{name}: {len(views)} views, {renderer.frames_per_second:.1f} a second")
        if photographed:
            measured[split] = means
        if split == "test" and parts is not None:
            folders.append(output / "test_refined" / folders[-1].name)
            rows_measured, text = render_refined(options, avatar, renderer, parts, figures, folders[-1])
            measured.update(rows_measured)
            say(text)

    if not folders:
        say("Nothing to render: every split is skipped or empty.")
    if motion_of and folders:
        say(f"No metrics: nobody photographed this person moving as in {motion_of}.")
    if measured:
        say("\n" + format_table(measured))
    for note in suite.notes:
        say(note)
    for folder in folders:
        say(f"{folder}: renders.mp4, renders/*.png" + ("" if not photographed else ", comparison.png, metrics.json"))
    return measured


def load_capture(options: RenderOptions, trained: Options) -> Dataset:
    """The capture that the avatar was trained on, or with -t the one that moves it."""
    place = options.source_path or trained.model.source_path
    if not place:
        raise UserError(
            f"which capture the avatar in {options.model_path} was trained on is not known: say where it is with -s, "
            "or make a clip without it, as by --motion sweep"
        )
    source = Path(place)
    if not source.is_dir():
        raise UserError(
            f"the capture {source}, which cfg_args of {options.model_path} names, is not there: say where it is with -s"
        )
    if options.target_path and not trained.model.bind_to_mesh:
        raise UserError(f"-t: the avatar in {options.model_path} is not bound to a head mesh, so nothing can move it")
    target = {"target": Path(options.target_path)} if options.target_path else {}
    return dataset_of(trained, source, select_camera_id=options.select_camera_id, **target)


def split_renderer(
    options: RenderOptions,
    avatar: Avatar,
    capture: Dataset,
    views: Sequence[View],
    rows: Sequence[int],  # of the avatar's motion, by timestep of the capture
    suite: Suite | None,  # what measures; None: the photographs are not looked at
) -> SplitRenderer:
    """What renders the `views` of a split of the capture."""
    device = avatar.model.device
    cameras = [dataclasses.replace(view.camera, timestep=rows[view.camera.timestep]).to(device) for view in views]
    ground_truth = None
    if suite is not None:
        folder = Path(options.model_path) / "cache"
        images = ImageCache(views, capture.background, folder=folder, progress=not options.quiet)
        ground_truth = partial(images.image, device=device)
    # What is measured twice, without calibration or with other poses, is compared with the same photographs.
    twice = suite is not None and (avatar.calibrated or options.refine_flame)
    kept = Keep(avatar.options.run.ram_share, device) if twice else None
    return SplitRenderer(
        avatar.model,
        views,
        cameras,
        ground_truth,
        draw=calibrated(avatar.draw, avatar.color),
        uncalibrated=avatar.draw if avatar.calibrated else None,
        suite=(suite or Suite(())).again(kept),
        mesh=options.render_mesh,
        quiet=options.quiet,
    )


def export(avatar: Avatar, timestep: int, motion_of: Path | None) -> Iterator[str]:
    """Writes the avatar at one timestep as a PLY beside its own, in the world of the capture; yields what to say."""
    prefix = f"{motion_of.name}_" if motion_of else ""
    path = avatar.path.parent / f"world_{prefix}{timestep:05d}.ply"
    moment = None if avatar.head is None else timestep
    yield from ply.export(avatar, path, ExportOptions(format="ply", timestep=moment, up=WORLD, scale=1.0))


# ---- clips ----------------------------------------------------------------------


def render_clip(options: RenderOptions) -> None:
    """What --motion and --camera ask for: a clip, a single picture or a contact sheet."""
    background = None if options.background is None else css_color(options.background)
    avatar = open_avatar(options)
    motion, path, fps = motion_and_view(options, avatar)
    for note in motion.notes:
        print(f"note: {note}", file=sys.stderr)
    painter = Painter(avatar, path.size, background, alpha=options.alpha)
    size = "{}x{} pixels".format(*path.size)
    if options.contact_sheet:
        file = clip_file(options, f"{motion.name}_{path.name}_sheet.png")
        if file.suffix.lower() != ".png":
            raise UserError(f"--contact_sheet is a .png: {file} has another ending")
        stills = chosen_stills(motion, options.contact_sheet[0])
        views = path.sides(options.contact_sheet[1], options.orbit_degrees)
        write_png(file, contact_sheet(painter, motion, stills, views))
        done = f"{len(stills)} poses, {len(views)} views, {size} each"
    else:
        count = len(motion) if len(motion) > 1 else path.frames(fps)
        ending = ".png" if count == 1 else ".webm" if options.alpha else ".mp4"
        file = clip_file(options, f"{motion.name}_{path.name}{ending}")
        if file.suffix.lower() == ".png" and count > 1:
            raise UserError(f"{file} can hold one picture, but the clip has {count}: name an .mp4 or a folder")
        started = time.perf_counter()
        with progress_bar(count, "Rendering", "picture", quiet=options.quiet) as bar:
            along = (path.at(index / fps) for index in range(count))
            write_clip(file, painter, motion, along, fps=fps, on_picture=bar.update)
        speed = count / (time.perf_counter() - started)
        done = f"{count} pictures of {size}, {fps:g} a second; rendered and encoded at {speed:.1f} a second"
    if not options.quiet:
        print(f"{file}: {done}; {len(avatar.model):,} Gaussians, rasterizer {avatar.backend} on {avatar.model.device}")


def motion_and_view(options: RenderOptions, avatar: Avatar) -> tuple[Motion, ViewPath, float]:
    """The motion, changed as the options say, the camera, and the pictures a second."""
    camera = options.camera or FRONT
    # Key frames may bring the poses too.
    keys = KeyFrames.load(camera) if camera.lower().endswith(".json") else None
    source = options.motion or (camera if keys is not None and keys.has_poses else NEUTRAL)
    if options.mapping and not source.lower().endswith(".csv"):
        raise UserError(f"--mapping is about a .csv of blendshape weights: --motion {source} is none")
    known = options.fps or (keys.fps if keys is not None else None)
    if avatar.head is None and options.motion is None:
        motion = Motion("scene", np.zeros((1, 0)))
    else:
        motion = chosen_motion(options, avatar, source, fps=known)
    fps = known or motion.fps or FPS
    motion = motion.at_rate(fps)
    path = load_view_path(
        camera,
        avatar,
        motion.rows,
        size=(options.size[0], options.size[1]) if options.size else None,
        degrees=options.orbit_degrees,
        seconds=options.orbit_seconds,
    )
    return motion, path, fps


def clip_file(options: RenderOptions, name: str) -> Path:
    """The file of a clip; under a name of our own it goes into clips/ in the avatar's folder."""
    return Path(options.output) if options.output else Path(options.model_path) / "clips" / name


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


def refinement_views(capture: Dataset, allowed: Sequence[int]) -> SplitViews:
    """Which test views --refine_cameras allows to fit, and which are left to measure."""
    if not capture.test:
        raise UserError("--refine_flame: there is no test split to refine (was the avatar trained without --eval?)")
    return refinable_views(capture.test, capture.train, allowed)


def render_refined(
    options: RenderOptions,
    avatar: Avatar,
    renderer: SplitRenderer,
    parts: SplitViews,
    figures: dict[int, Means],  # of each view, as tracked
    folder: Path,
) -> tuple[dict[str, Means], str]:
    """Fits the avatar's poses in memory, renders with them and writes them beside; rows of the table, and a line."""
    steps, suite = options.refine_flame, renderer.suite
    as_tracked = mean_metrics((figures[i] for i in parts.measured), suite.names)
    count = len({renderer.cameras[index].timestep for index in parts.looked_at})
    assert renderer.ground_truth is not None  # not with -t
    with progress_bar(count, "Refining test poses", "timestep", quiet=options.quiet) as bar:
        fits = refine_motion(
            avatar.model,
            renderer.cameras,
            renderer.ground_truth,
            renderer.draw,
            parts.looked_at,
            steps,
            on_timestep=lambda _: bar.update(),
        )
    avatar.motion().save(folder / REFINED_NAME)
    looked_at, measured = (sorted({renderer.views[i].camera_index for i in part}) for part in parts)
    report = {"steps": steps, **summary(fits), "cameras_looked_at": looked_at, "cameras_measured": measured}
    with only_writer(folder):
        means, figures = renderer.render(
            "test_refined",
            folder,
            sorted([*parts.measured, *parts.looked_at]),
            measured=parts.measured,
            more={"as_tracked": as_tracked, "refinement": report},
        )
    rows = {
        "test_as_tracked": as_tracked,
        "test_refined": means,
        "test_looked_at": mean_metrics((figures[i] for i in parts.looked_at), suite.names),
    }
    return rows, (
        f"test_refined: the FLAME parameters of {report['timesteps']} timesteps, fitted in {steps} steps each to "
        f"camera {', '.join(map(str, looked_at))}; the rows test_as_tracked and test_refined are measured on camera "
        f"{', '.join(map(str, measured))} only"
    )


def main() -> None:
    render_avatar(parse_render(sys.argv[1:]))


if __name__ == "__main__":
    run_script(main)
