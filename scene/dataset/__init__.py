"""Loading a capture: which of the three formats it is, and the types that come out.

* rigged head capture (`canonical_flame_param.npz` or `flame_param/`), for `--bind_to_mesh`;
* COLMAP reconstruction (`sparse/0`);
* Blender / NeRF-synthetic scene (`transforms_train.json`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from arguments import Options
from scene.dataset.blender import read_blender
from scene.dataset.colmap import model_folder, read_colmap
from scene.dataset.common import Dataset, View, scene_extent, training_size
from scene.dataset.rigged import CANONICAL, is_rigged, read_rigged
from utils.errors import UserError

__all__ = ["Dataset", "View", "dataset_of", "load_dataset", "scene_extent", "training_size"]


def load_dataset(
    source: Path,
    *,
    bind_to_mesh: bool,
    eval_split: bool,
    white_background: bool,
    target: Path | None = None,
    images: str = "images",
    resolution: float = -1,
    select_camera_id: int = -1,
    skip_bad_frames: bool = False,
    seed: int = 0,
    vertices: Callable[[], int] | None = None,
) -> Dataset:
    """Reads the cameras, splits, motion and start points of a capture; decodes no image.

    Args:
        bind_to_mesh: the Gaussians ride on a head model, so `source` must be a rigged capture. Without it
            a rigged capture is refused: the head moves, and a static scene of it would be a blur.
        eval_split: keep `val` and `test` apart; otherwise all is trained on.
        target: a rigged capture whose cameras, splits and motion replace those of `source`, while `shape`
            and `static_offset` stay (cross-identity reenactment).
        images: the picture folder of a COLMAP scene; the other formats name each file.
        resolution: see `training_size`.
        select_camera_id: keep only this `camera_index` of a rigged capture, in every split; the extent
            stays that of all training cameras. -1 keeps all.
        skip_bad_frames: leave out what of a rigged capture cannot be used, up to half of it.
        seed: of the random start points of a Blender scene without a point cloud.
        vertices: gives the number of the head model's, where it is known: dynamic offsets of another number are
            refused before they take any room.

    Raises:
        UserError: anything in the input that is not as it must be, naming the file and the field.
    """
    source = _folder(source, "--source_path")
    background = (1.0, 1.0, 1.0) if white_background else (0.0, 0.0, 0.0)
    if bind_to_mesh:
        _require_rigged(source, "--source_path")
        if target is not None:
            target = _folder(target, "--target_path")
            _require_rigged(target, "--target_path")
        return read_rigged(
            source,
            eval_split=eval_split,
            background=background,
            target=target,
            resolution=resolution,
            select_camera_id=select_camera_id,
            skip_bad_frames=skip_bad_frames,
            vertices=vertices,
        )
    if target is not None:
        raise UserError("--target_path replaces the motion of a rigged avatar: it needs --bind_to_mesh")
    if is_rigged(source):
        raise UserError(f"{source} is a rigged capture, in which the head moves: add --bind_to_mesh")
    if select_camera_id != -1:
        raise UserError("--select_camera_id chooses among the cameras of a rigged capture: it needs --bind_to_mesh")
    if skip_bad_frames:
        raise UserError("--skip_bad_frames leaves out frames of a rigged capture: it needs --bind_to_mesh")
    if model_folder(source) is not None:
        return read_colmap(source, eval_split=eval_split, background=background, images=images, resolution=resolution)
    if (source / "transforms_train.json").exists():
        return read_blender(source, eval_split=eval_split, background=background, resolution=resolution, seed=seed)
    raise UserError(
        f"{source} is no data set that is known here: it has neither {CANONICAL} (rigged capture), "
        "nor sparse/0/cameras.bin or .txt (COLMAP), nor transforms_train.json (Blender)"
    )


def dataset_of(options: Options, source: str | Path | None = None, **changes: Any) -> Dataset:
    """The capture that the options of a training name, read as that training reads it.

    Args:
        source: its folder, if it is elsewhere now.
        changes: arguments of `load_dataset`.

    Raises:
        UserError: as `load_dataset`.
    """
    model = options.model
    arguments: dict[str, Any] = {
        "bind_to_mesh": model.bind_to_mesh,
        "eval_split": model.eval,
        "white_background": model.white_background,
        "target": Path(model.target_path) if model.target_path else None,
        "images": model.images,
        "resolution": model.resolution,
        "select_camera_id": model.select_camera_id,
        "skip_bad_frames": model.skip_bad_frames,
        "seed": options.run.seed,
    }
    return load_dataset(Path(source or model.source_path), **{**arguments, **changes})


def _folder(path: Path, option: str) -> Path:
    """The real path of an existing folder."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{option} {path} is not a folder")
    # Resolved, so that `../` means what the operating system takes it for.
    return path.resolve()


def _require_rigged(folder: Path, option: str) -> None:
    if not is_rigged(folder):
        raise UserError(
            f"{option} {folder} is not a rigged capture: it has no {CANONICAL} "
            "and no flame_param, which --bind_to_mesh needs; leave --bind_to_mesh out for a static scene"
        )
