"""Does --color_per_camera find what was done to the colors of the cameras?

    python -m benchmarks.camera_colors -s DATA --out DIR [--strength 0.15] [--iterations 3000] [any train.py flag]

Copies a capture with the images of every training camera changed by gains and an offset per channel
(exposure and white balance, drawn at random; their mean over the cameras is no change, since a change
common to all is the subject's own color). The subject only: the masks cut it out as they do in training.
Then it trains four avatars, on the capture as it is and on the changed one, each plain and with the
calibration: what they reach on the held-out camera, whose images nobody touched, and how far the maps
found are from what was done, as the root mean square over a grid of colors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Row, Table, new_parser, publish, train_head
from innovations.color_calibration import CameraAffine, ColorCalibration
from scene import load_avatar
from utils.errors import UserError, run_script

CALIBRATION = ["--use_color_calibration", "--color_per_camera"]
OFFSET_SHARE = 0.2  # an offset is drawn from so much of the range of the gains


def draw_changes(camera_ids: list[str], strength: float) -> dict[str, np.ndarray]:
    """[3, 2] gain and offset of each channel, uniform within the strength; over the cameras their mean is (1, 0)."""
    random = np.random.default_rng(0)
    drawn = random.uniform(-1.0, 1.0, (len(camera_ids), 3, 2)) * strength * np.array([1.0, OFFSET_SHARE])
    drawn += np.array([1.0, 0.0]) - drawn.mean(axis=0)
    return dict(zip(camera_ids, drawn))


def copy_changed(source: Path, copy: Path, strength: float) -> dict[str, np.ndarray]:
    """Writes the changed capture; what is not a training image is copied. Returns the changes by camera id."""
    try:
        frames = json.loads((source / "transforms_train.json").read_text())["frames"]
        files = {frame["file_path"]: frame.get("camera_id", str(frame["camera_index"])) for frame in frames}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{source}/transforms_train.json is not that of a rigged capture: {error}") from error
    changes = draw_changes(sorted(set(files.values())), strength)
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(source, copy)
    for name, camera_id in files.items():
        with Image.open(source / name) as image:
            pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"), dtype=np.float64) / 255
        gain, offset = changes[camera_id].T
        pixels[..., :3] = (pixels[..., :3] * gain + offset).clip(0, 1)
        Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(copy / name)
    return changes


def error_of_maps(found: dict[str, np.ndarray], changes: dict[str, np.ndarray]) -> float:
    """Root mean squared difference of the colors that both make of a grid of colors within [0.1, 0.9]."""
    grid = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 5)] * 3), axis=-1).reshape(-1, 3)
    squares = [
        (grid @ found[name][:, :3].T + found[name][:, 3] - (grid * change[:, 0] + change[:, 1])) ** 2
        for name, change in changes.items()
    ]
    return float(np.sqrt(np.mean(squares)))


def maps_of(model: Path) -> dict[str, np.ndarray]:
    """[3, 4] by camera id: what the avatar's calibration does to the colors of each camera."""
    color = load_avatar(model).color
    assert isinstance(color, ColorCalibration)
    cameras = cast(CameraAffine, color.parts["cameras"])
    with torch.no_grad():
        return {name: cameras.matrix(name).double().numpy() for name in cameras.camera_ids}


def main() -> None:
    parser = new_parser(__doc__, "source_path", "out", "json")
    parser.add_argument("--strength", type=float, default=0.15, help="the gains are within 1 -+ this")
    options, flags = parser.parse_known_args()
    if "--iterations" not in flags:
        flags += ["--iterations", "3000", "--scale_schedule"]
    changes = copy_changed(options.source_path, options.out / "capture", options.strength)
    no_changes = {name: np.array([[1.0, 0.0]] * 3) for name in changes}
    rows: list[Row] = []
    for capture, source, done in (
        ("as it is", options.source_path, no_changes),
        ("changed", options.out / "capture", changes),
    ):
        for kind, extra in (("plain", []), ("calibrated", CALIBRATION)):
            model = options.out / f"{capture} {kind}".replace(" ", "_")
            if model.exists():
                shutil.rmtree(model)
            results = train_head(source, model, [*extra, *flags])
            row: Row = {"capture": capture, "training": kind}
            for split in ("val", "test"):
                row[f"{split} PSNR"] = round(results["metrics"][split]["psnr"], 2)
            row["val SSIM"] = round(results["metrics"]["val"]["ssim"], 4)
            row["error of the maps found"] = round(error_of_maps(maps_of(model), done), 4) if extra else None
            rows.append(row)
    untouched = error_of_maps({name: np.eye(3, 4) for name in changes}, changes)
    title = (
        f"Gains within 1 ± {options.strength:g}, offsets within {OFFSET_SHARE * options.strength:g}: uncorrected, an "
        f"error of {untouched:.4f}."
    )
    publish(options, [Table(title, rows)])


if __name__ == "__main__":
    run_script(main)
