"""Does --color_per_camera find what was done to the colours of the cameras?

    python benchmarks/camera_colors.py -s DATA --out DIR [--strength 0.15] [--iterations 3000] [any train.py flag]

Copies a capture with the photographs of every training camera changed by gains and an offset per
channel (exposure and white balance, drawn at random; their mean over the cameras is no change, since a change
common to all is the subject's own colour). The subject only: the masks cut it out as they do in training. Then it
trains four avatars, on the capture as it is and on the changed one, each plain and with the calibration,
and prints what they reach on the held-out camera, whose photographs nobody touched, and how far the maps
found are from what was done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from arguments import parse_train
from evaluation.results import device_name, git_commit
from innovations.color_calibration import FILE_NAME, ColorCalibration
from train import train
from utils.errors import UserError, run_script
from utils.files import write_json

CALIBRATION = ["--use_color_calibration", "--color_per_camera"]
OFFSET_SHARE = 0.2  # an offset is drawn from so much of the range of the gains


def draw_changes(camera_ids: list[str], strength: float) -> dict[str, np.ndarray]:
    """[3, 2] gain and offset of each channel, uniform within the strength; over the cameras their mean is (1, 0)."""
    random = np.random.default_rng(0)
    drawn = random.uniform(-1.0, 1.0, (len(camera_ids), 3, 2)) * strength * np.array([1.0, OFFSET_SHARE])
    drawn += np.array([1.0, 0.0]) - drawn.mean(axis=0)
    return dict(zip(camera_ids, drawn))


def copy_changed(source: Path, target: Path, strength: float) -> dict[str, np.ndarray]:
    """Writes the changed capture; what is not a training photograph is copied. Returns the changes by camera id."""
    try:
        frames = json.loads((source / "transforms_train.json").read_text())["frames"]
        files = {frame["file_path"]: frame.get("camera_id", str(frame["camera_index"])) for frame in frames}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{source}/transforms_train.json is not that of a rigged capture: {error}") from error
    changes = draw_changes(sorted(set(files.values())), strength)
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    for name, camera_id in files.items():
        with Image.open(source / name) as image:
            pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"), dtype=np.float64) / 255
        gain, offset = changes[camera_id].T
        pixels[..., :3] = (pixels[..., :3] * gain + offset).clip(0, 1)
        Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(target / name)
    return changes


def error_of_maps(found: dict[str, np.ndarray], changes: dict[str, np.ndarray]) -> float:
    """Root mean squared difference of the colours that both make of a grid of colours within [0.1, 0.9]."""
    grid = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 5)] * 3), axis=-1).reshape(-1, 3)
    squares = [
        (grid @ found[name][:, :3].T + found[name][:, 3] - (grid * change[:, 0] + change[:, 1])) ** 2
        for name, change in changes.items()
    ]
    return float(np.sqrt(np.mean(squares)))


def maps_of(model: Path) -> dict[str, np.ndarray]:
    """[3, 4] by camera id: what the avatar's calibration does to the colours of each camera."""
    newest = max((model / "point_cloud").glob("iteration_*"), key=lambda folder: int(folder.name.split("_")[1]))
    cameras = ColorCalibration.load(newest / FILE_NAME).parts["cameras"]
    with torch.no_grad():
        return {name: cameras.matrix(name).double().numpy() for name in cameras.camera_ids}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-s", "--source_path", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the changed capture and the four avatars")
    parser.add_argument("--strength", type=float, default=0.15, help="the gains are within 1 -+ this")
    ours, flags = parser.parse_known_args()
    if "--iterations" not in flags:
        flags += ["--iterations", "3000", "--scale_schedule"]
    changed = ours.out / "capture"
    changes = copy_changed(ours.source_path, changed, ours.strength)
    rows: dict[str, dict[str, Any]] = {}
    for capture, source in (("as it is", ours.source_path), ("changed", changed)):
        for kind, extra in (("plain", []), ("calibrated", CALIBRATION)):
            model = ours.out / f"{source.name if capture == 'changed' else 'original'}_{kind}"
            if model.exists():
                shutil.rmtree(model)
            results = train(
                parse_train(
                    [
                        "-s",
                        str(source),
                        "-m",
                        str(model),
                        "--eval",
                        "--bind_to_mesh",
                        "--white_background",
                        "--quiet",
                        "--interval",
                        str(2**40),
                        *extra,
                        *flags,
                    ]
                )
            )
            row = {
                "points": results["points"],
                **{
                    f"{split}_{name}": results["metrics"][split][name]
                    for split in ("val", "test")
                    for name in ("psnr", "ssim")
                },
            }
            if extra:
                true = changes if capture == "changed" else {name: np.array([[1.0, 0.0]] * 3) for name in changes}
                row["map_error"] = error_of_maps(maps_of(model), true)
            rows[f"{capture}, {kind}"] = row
    nothing = {name: np.eye(3, 4) for name in changes}
    untouched = error_of_maps(nothing, changes)
    write_json(
        ours.out / "results.json",
        {
            "rows": rows,
            "error_without_calibration": untouched,
            "strength": ours.strength,
            "flags": flags,
            "device": device_name(torch.device("cpu")),
            "commit": git_commit(),
        },
    )
    print(
        f"\nCamera gains within 1 -+ {ours.strength:g}, offsets within {OFFSET_SHARE * ours.strength:g}; "
        f"root mean squared change of colour {untouched:.4f}\n"
    )
    print("| capture, training | val PSNR | val SSIM | test PSNR | error of the maps found | Gaussians |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        error = f"{row['map_error']:.4f}" if "map_error" in row else "–"
        print(
            f"| {name} | {row['val_psnr']:.2f} | {row['val_ssim']:.4f} | {row['test_psnr']:.2f} | {error} | "
            f"{row['points']:,} |"
        )


if __name__ == "__main__":
    run_script(main)
