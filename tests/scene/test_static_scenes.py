"""Static scenes from files to held-out views: a ball on a chequered disc, ray-cast here in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_datasets
from PIL import Image
from plyfile import PlyData, PlyElement
from scipy.spatial.transform import Rotation
from toy_capture import hit_ellipsoid, look_at, pixel_rays, texture

import train
from arguments import parse_train
from scene.ply import read_ply
from training.density_control import DensityControl, DensityReport

SIZE, FOCAL, SAMPLES = 48, 55.0, 4  # pixels, pixels, rays per pixel along each side
VIEWS = 17  # of which COLMAP's rule holds out numbers 0, 8 and 16
RADII = np.full(3, 0.5)  # the ball
DISC = (-0.5, 0.9)  # height and radius of the disc that it stands on


def poses() -> list[np.ndarray]:
    """OpenGL camera-to-world matrices on a spiral above the scene."""
    angles = 2 * math.pi * 5 / VIEWS * np.arange(VIEWS)
    heights = 0.6 + 1.4 * (0.618 * np.arange(VIEWS) % 1.0)
    return [
        look_at(np.array([2.2 * math.sin(a), h, 2.2 * math.cos(a)]), (0.0, -0.2, 0.0)) for a, h in zip(angles, heights)
    ]


def surface_color(points: np.ndarray, on_ball: np.ndarray) -> np.ndarray:
    """[..., 3] RGB 0..1: a smooth pattern on the ball, quarters of two colours on the disc."""
    quarter = ((points[..., 0] > 0) ^ (points[..., 2] > 0))[..., None]
    return np.where(on_ball[..., None], texture(points / RADII), np.where(quarter, [0.8, 0.7, 0.2], [0.2, 0.3, 0.6]))


def photograph(pose: np.ndarray) -> np.ndarray:
    """[SIZE, SIZE, 4] float64 RGBA 0..1, straight alpha."""
    rays = pixel_rays(pose, (SIZE, SIZE), (FOCAL, FOCAL), (SIZE / 2, SIZE / 2), SAMPLES)
    origin = pose[:3, 3]
    ball = hit_ellipsoid(origin, rays, RADII)
    plane = (DISC[0] - origin[1]) / np.minimum(rays[..., 1], -1e-9)
    across = origin + plane[..., None] * rays
    disc = np.where((rays[..., 1] < 0) & (np.hypot(across[..., 0], across[..., 2]) < DISC[1]), plane, np.inf)
    distance = np.minimum(ball, disc)
    hit = np.isfinite(distance)[..., None]
    points = origin + np.where(hit, distance[..., None], 0) * rays
    rgba = np.concatenate([surface_color(points, ball <= disc), np.ones_like(hit)], axis=-1) * hit
    mean = rgba.reshape(SIZE, SAMPLES, SIZE, SAMPLES, 4).mean(axis=(1, 3))
    return np.concatenate([mean[..., :3] / np.maximum(mean[..., 3:], 1e-9), mean[..., 3:]], axis=-1)


def start_points(count: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[P, 3] positions near the surfaces, as a reconstruction would find them, and [P, 3] RGB bytes."""
    rng = np.random.default_rng(seed)
    ball = rng.normal(size=(count // 2, 3))
    ball *= RADII / np.linalg.norm(ball, axis=1, keepdims=True)
    radius, angle = DISC[1] * np.sqrt(rng.random(count // 2)), 2 * math.pi * rng.random(count // 2)
    disc = np.stack([radius * np.cos(angle), np.full(count // 2, DISC[0]), radius * np.sin(angle)], axis=1)
    colors = surface_color(np.concatenate([ball, disc]), np.arange(count) < count // 2)
    return np.concatenate([ball, disc]) + 0.01 * rng.normal(size=(count, 3)), np.rint(255 * colors).astype(np.uint8)


def write_blender(folder: Path) -> Path:
    """RGBA pictures, every sixth for testing, and a point cloud."""
    frames: dict[str, list] = {"train": [], "test": []}
    for index, pose in enumerate(poses()):
        split = "test" if index % 6 == 3 else "train"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(255 * photograph(pose)).astype(np.uint8)).save(folder / split / f"r_{index}.png")
        frames[split].append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
    for split, entries in frames.items():
        (folder / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": 2 * math.atan(SIZE / 2 / FOCAL), "frames": entries})
        )
    points, colors = start_points()
    rows = np.array(
        [(*p, *c) for p, c in zip(points, colors)],
        dtype=[*((axis, "f4") for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))],
    )
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(folder / "points3d.ply"))
    return folder


def write_colmap(folder: Path, kind: str) -> Path:
    """Opaque pictures on black, one PINHOLE camera; `kind` is bin or txt."""
    images = []
    for index, pose in enumerate(poses()):
        world_to_camera = np.linalg.inv(pose @ np.diag([1.0, -1.0, -1.0, 1.0]))  # OpenGL to OpenCV axes
        x, y, z, w = Rotation.from_matrix(world_to_camera[:3, :3]).as_quat()
        images.append((f"{index:02d}.png", 1, (w, x, y, z), tuple(world_to_camera[:3, 3])))
    points, colors = (array.tolist() for array in start_points())
    camera = f"1 PINHOLE {SIZE} {SIZE} {FOCAL} {FOCAL} {SIZE / 2} {SIZE / 2}"
    toy_datasets.write_colmap(folder, kind, images, list(zip(points, colors)), (camera,))
    for (name, *_), pose in zip(images, poses()):
        rgba = photograph(pose)
        Image.fromarray(np.rint(255 * rgba[..., :3] * rgba[..., 3:]).astype(np.uint8)).save(folder / "images" / name)
    return folder


# A static scene is in metres, where a bound avatar's positions are in triangles:
# its learning rates are Kerbl et al.'s (2023), as is the rest of the schedule, in
# small. With their gradient threshold, for pictures of a thousand pixels a side,
# there would be five Gaussians to each of these few pixels.
FLAGS = (
    "--eval --quiet --device cpu --threads 1 --iterations 800 --position_lr_init 0.00016 --position_lr_final 0.0000016 "
    "--position_lr_max_steps 800 --scaling_lr 0.005 --sh_degree 1 --sh_increase_interval 400 --densify_from_iter 60 "
    "--densification_interval 40 --densify_until_iter 400 --opacity_reset_interval 200 --densify_grad_threshold 0.0008"
).split()


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> dict[int, DensityReport]:
    """What each densification of the test's run did, by iteration."""
    collected: dict[int, DensityReport] = {}
    original = DensityControl.step

    def step(self: DensityControl, iteration: int, *arguments: Any) -> DensityReport | None:
        report = original(self, iteration, *arguments)
        if report is not None:
            collected[iteration] = report
        return report

    monkeypatch.setattr(DensityControl, "step", step)
    return collected


@pytest.mark.parametrize("kind", ["blender", "bin", "txt"])
def test_static_scene(kind: str, tmp_path: Path, reports: dict[int, DensityReport]) -> None:
    folder = write_blender(tmp_path / "scene") if kind == "blender" else write_colmap(tmp_path / "scene", kind)
    flags = [*FLAGS, *(["-w"] if kind == "blender" else [])]
    results = train.train(parse_train([str(word) for word in ("-s", folder, "-m", tmp_path / "model", *flags)]))
    # A probe reached 32.7 dB.
    assert list(results["metrics"]) == ["test"] and results["metrics"]["test"]["psnr"] > 30.0

    # Densification from 80 to 360, and the books balance.
    assert list(reports) == list(range(80, 400, 40))
    assert sum(report.cloned for report in reports.values()) > 0
    assert sum(report.split for report in reports.values()) > 0
    assert sum(report.pruned for report in reports.values()) > 0
    count = 500
    for report in reports.values():
        count += report.cloned + report.split - report.pruned
        assert report.total == count
    assert results["points"] == count

    saved = read_ply(tmp_path / "model" / "point_cloud" / "iteration_800" / "point_cloud.ply")
    assert saved["binding"] is None and saved["xyz"].shape == (count, 3)
    assert not (tmp_path / "model" / "point_cloud" / "iteration_800" / "flame_param.npz").exists()
    # What is opaque lies where the scene is.
    opaque = saved["xyz"][(saved["opacity"] > 0).squeeze(1)]
    assert len(opaque) > 100 and torch.linalg.vector_norm(opaque, dim=1).max() < 1.3


def test_an_unbound_run_resumes_bit_identical(tmp_path: Path) -> None:
    folder = write_colmap(tmp_path / "scene", "bin")
    shorter = (
        "--iterations 30 --interval 16 --densify_from_iter 5 --densification_interval 10 --opacity_reset_interval 12"
    ).split()
    for model, more in (("whole", []), ("rest", ["--start_checkpoint", tmp_path / "whole" / "chkpnt16.pth"])):
        train.train(
            parse_train([str(word) for word in ("-s", folder, "-m", tmp_path / model, *FLAGS, *shorter, *more)])
        )
    first, second = (tmp_path / model / "point_cloud/iteration_30/point_cloud.ply" for model in ("whole", "rest"))
    assert first.read_bytes() == second.read_bytes() and len(read_ply(first)["xyz"]) > 500
