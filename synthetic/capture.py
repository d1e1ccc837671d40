"""Writes a rigged multi-view capture of the procedural head in the on-disk format of real ones."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from synthetic.blendshapes import blendshape_mapping
from synthetic.hair import HAIR_STYLES
from synthetic.model import Head, build_head, hair_offset
from synthetic.modes import EXPRESSION_NAMES
from synthetic.motion import make_motion, make_views, tracked
from synthetic.render import Assets, View, make_assets, render_frame
from utils.blendshapes import MAPPING_NAME, MODES_NAME
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import atomic_path, remove_leftovers, write_json
from utils.npz import write_npz
from utils.progress import progress_bar

MARKER = "synthetic.json"  # names the settings of a folder that this module writes
VERSION = 1  # of what the same settings produce


def make_capture(
    out: str | Path,
    *,
    size: tuple[int, int] = (256, 352),
    cameras: int = 12,
    timesteps: int = 30,
    seed: int = 0,
    samples: int = 4,
    tracking_noise: float = 1.0,
    wrinkles: bool = False,
    hair: str = "short",
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes a complete capture to the folder `out`; a run that was stopped is completed by the next.

    Args:
        size: width, height in pixels.
        cameras: number of views; the frontal one is the split "val", the others "train".
        timesteps: the last sixth (at least one) is the split "test", seen by up to three cameras.
        seed: of the person, the motion, the paint and the noise.
        samples: rays per pixel.
        tracking_noise: scale of the noise of `flame_param/` against `true_flame_param/`; 0 = the truth.
        wrinkles: whether skin folds, darkens and reddens with the expression.
        hair: one of `HAIR_STYLES`.
        workers: processes; default one per available core.

    Returns:
        `out` as a path.

    Raises:
        UserError: impossible settings, or `out` holds something else.
    """
    out = Path(out)
    settings = _checked(
        {
            "version": VERSION,
            "size": list(size),
            "cameras": cameras,
            "timesteps": timesteps,
            "seed": seed,
            "samples": samples,
            "tracking_noise": tracking_noise,
            # Named only if chosen: folders of a version without these flags are completed too.
            **({"wrinkles": True} if wrinkles else {}),
            **({"hair": hair} if hair != "short" else {}),
        }
    )
    _claim(out, settings)
    remove_leftovers(out)
    head = build_head(seed)
    offset = np.zeros_like(head.mesh.vertices) if hair == "none" else hair_offset(head)
    held_out = max(1, timesteps // 6)
    motion = make_motion(timesteps, held_out, seed, offset)
    views, frontal = make_views(cameras, size)
    splits = _splits(cameras, timesteps, held_out, frontal)

    _write_pickle(out / "head_model.pkl", head.model)
    _write_pickle(out / "masks.pkl", head.masks)
    write_npz(out / MAPPING_NAME, blendshape_mapping())
    write_json(out / MODES_NAME, {"expression": EXPRESSION_NAMES})
    canonical = {name: np.zeros_like(value) for name, value in motion[0].items()}
    # As VHAP does: the mouth of the canonical pose is open.
    canonical["jaw_pose"][0, 0] = 0.3
    canonical.update(shape=motion[0]["shape"], static_offset=motion[0]["static_offset"])
    write_npz(out / "canonical_flame_param.npz", canonical)
    for t, truth in enumerate(motion):
        write_npz(out / "true_flame_param" / f"{t:05d}.npz", truth)
        write_npz(out / "flame_param" / f"{t:05d}.npz", tracked(truth, tracking_noise, seed, t))

    together = [pair for pairs in splits.values() for pair in pairs]
    looks = {"seed": seed, "hair": hair, "wrinkles": wrinkles}
    _render_missing(out, head, motion, views, sorted(set(together)), looks, samples, workers, progress)

    # Last, so that a capture that can be opened is complete.
    for name, pairs in splits.items():
        write_json(out / f"transforms_{name}.json", _transforms(pairs, views))
    write_json(out / "transforms.json", _transforms(together, views))
    return out


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    width, height = settings["size"]
    limits = (
        ("--size W", width, 16, 8192),
        ("--size H", height, 16, 8192),
        ("--cameras", settings["cameras"], 2, 1000),
        ("--timesteps", settings["timesteps"], 2, 100000),
        ("--samples", settings["samples"], 1, 256),
        ("--seed", settings["seed"], 0, 2**31 - 1),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise UserError(f"{name} is {value}; give a whole number from {low} to {high}")
    noise = settings["tracking_noise"]
    if not (math.isfinite(noise) and 0.0 <= noise <= 100.0):
        raise UserError(f"--tracking_noise is {noise}; give a number from 0 to 100")
    hair = settings.get("hair", "short")
    if hair not in HAIR_STYLES:
        raise UserError(f"--hair is {hair}; give one of {', '.join(HAIR_STYLES)}")
    return settings


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Takes the folder `out`, or finds that it is ours with the same settings."""
    marker = out / MARKER
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found != settings:
            raise UserError(
                f"{out} holds a synthetic capture with other settings ({MARKER}); "
                "give another folder or delete that one"
            )
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the synthetic capture")
    if out.is_dir() and any(not entry.name.startswith(".tmp-") for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and is no synthetic capture; give another folder")
    write_json(marker, settings)


def _splits(cameras: int, timesteps: int, held_out: int, frontal: int) -> dict[str, list[tuple[int, int]]]:
    """Split -> (timestep, camera) pairs."""
    seen = range(timesteps - held_out)
    free = sorted({max(frontal - 2, 0), frontal, min(frontal + 2, cameras - 1)})
    return {
        "train": [(t, c) for t in seen for c in range(cameras) if c != frontal],
        "val": [(t, frontal) for t in seen],
        "test": [(t, c) for t in range(timesteps - held_out, timesteps) for c in free],
    }


def _image_path(t: int, camera: int) -> str:
    return f"images/{t:05d}_{camera:02d}.png"


def _mask_path(t: int, camera: int) -> str:
    return f"fg_masks/{t:05d}_{camera:02d}.png"


def _transforms(pairs: list[tuple[int, int]], views: list[View]) -> dict[str, Any]:
    """The content of a transforms file for these (timestep, camera) pairs."""
    frames = []
    for t, camera in pairs:
        view = views[camera]
        frames.append(
            {
                "timestep_index": t,
                "timestep_index_original": t,
                "timestep_id": f"frame_{t:05d}",
                "camera_index": camera,
                "camera_id": f"cam_{camera:02d}",
                "cx": view.cx,
                "cy": view.cy,
                "fl_x": view.fx,
                "fl_y": view.fy,
                "h": view.height,
                "w": view.width,
                "camera_angle_x": 2.0 * math.atan(view.width / (2.0 * view.fx)),
                "camera_angle_y": 2.0 * math.atan(view.height / (2.0 * view.fy)),
                "transform_matrix": view.camera_to_world.tolist(),
                "file_path": _image_path(t, camera),
                "fg_mask_path": _mask_path(t, camera),
                "flame_param_path": f"flame_param/{t:05d}.npz",
            }
        )
    return {
        "frames": frames,
        "timestep_indices": sorted({t for t, _ in pairs}),
        "camera_indices": sorted({c for _, c in pairs}),
    }


def _write_pickle(path: Path, value: Any) -> None:
    with atomic_path(path) as temporary:
        # Protocol 2, as the official files use.
        temporary.write_bytes(pickle.dumps(value, protocol=2))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _render_missing(
    out: Path,
    head: Head,
    motion: list[dict[str, np.ndarray]],
    views: list[View],
    pairs: Iterable[tuple[int, int]],
    looks: dict[str, Any],
    samples: int,
    workers: int | None,
    progress: bool,
) -> None:
    """Renders the images that are not there yet, one task per timestep."""
    missing: dict[int, list[int]] = {}
    for t, camera in pairs:
        if not ((out / _image_path(t, camera)).is_file() and (out / _mask_path(t, camera)).is_file()):
            missing.setdefault(t, []).append(camera)
    if not missing:
        return
    assets = make_assets(head, **looks)
    workers = min(usable_cores() if workers is None else workers, len(missing))
    count = sum(len(c) for c in missing.values())
    with progress_bar(count, "Rendering the procedural head", "image", quiet=not progress) as bar:
        if workers <= 1:
            for t, chosen in missing.items():
                bar.update(_render_timestep(assets, out, t, motion[t], chosen, views, samples))
            return
        # "spawn": forked children of a process that has run OpenMP code (PyTorch) may hang.
        context = multiprocessing.get_context("spawn")
        with _single_threaded_children(), ProcessPoolExecutor(workers, context, _die_with_parent) as pool:
            tasks: list[Future[int]] = [
                pool.submit(_render_timestep, assets, out, t, motion[t], chosen, views, samples)
                for t, chosen in missing.items()
            ]
            try:
                for task in as_completed(tasks):
                    bar.update(task.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _die_with_parent() -> None:
    """Ends this worker when the main process is killed; it would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started inside take one BLAS thread each: they are as many as the cores already."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: "1" for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _render_timestep(
    assets: Assets,
    out: Path,
    t: int,
    parameters: dict[str, np.ndarray],
    chosen: list[int],
    views: list[View],
    samples: int,
) -> int:
    """Writes the pictures of one timestep; returns how many."""
    for camera, (image, mask) in zip(chosen, render_frame(assets, parameters, [views[c] for c in chosen], samples)):
        _write_png(out / _mask_path(t, camera), mask)
        _write_png(out / _image_path(t, camera), image)
    return len(chosen)
