"""What is hardly seen takes the color of its neighbors, in what is saved and nowhere else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from raster_scenes import make_scene
from runs import train_on

from gaussian_renderer.backends import reference
from innovations.unseen_colors import SCALE, WELL_SEEN, filled, pixels_seen
from ops.sh import C0
from scene.ply import read_ply
from training import checkpoint


def test_a_gaussian_is_seen_where_its_color_changes_the_picture() -> None:
    scenes = [make_scene(seed, 6, size=(40, 32), opacity=(0.3, 0.95)) for seed in (0, 1)]
    gaussians = scenes[0].gaussians
    cameras = [scene.camera for scene in scenes]
    draw = partial(reference.rasterize, background=torch.zeros(3))
    seen = pixels_seen([(camera, gaussians) for camera in cameras], draw)
    for index in range(6):
        gray = torch.zeros(6, 1, 3)
        brighter = gray.clone()
        brighter[index] = 0.25 / C0
        pixels = 0.0
        for camera in cameras:
            pair = [draw(gaussians._replace(sh=sh), camera.scaled(SCALE), sh_degree=0).image for sh in (gray, brighter)]
            pixels += (pair[1] - pair[0])[0].sum().item() / 0.25 / SCALE**2 / len(cameras)
        assert float(seen[index]) == pytest.approx(pixels, rel=1e-3, abs=1e-3)
    assert seen.max() > 1  # something is there to be seen


def test_the_color_is_an_average_of_its_own_and_of_the_nearest_well_seen() -> None:
    pixels, count = 0.5, 12
    means = torch.zeros(count, 3)
    means[:, 0] = torch.arange(count)
    seen = torch.full((count,), 1e6 * WELL_SEEN * pixels)
    seen[10:] = torch.tensor([0.0, pixels])
    sh = torch.zeros(count, 4, 3)
    sh[:, 0] = torch.tensor([1.0, -1.0, 0.5])
    sh[0, 0] = 7.0  # far from the last two: eight others are nearer
    sh[10:] = 3.0  # specks, also seen from the side
    result = filled(sh, seen, means, pixels)
    torch.testing.assert_close(result[10, 0], sh[5, 0])
    torch.testing.assert_close(result[11, 0], 0.5 * sh[5, 0] + 1.5)
    torch.testing.assert_close(result[10:, 1:], torch.stack([torch.zeros(3, 3), torch.full((3, 3), 1.5)]))
    torch.testing.assert_close(result[3:8, 0], sh[3:8, 0])
    more = torch.cat([2 * sh[:, :1], sh], dim=1)  # what changes with the expression is lent as well
    both = filled(more, seen, means, pixels, shared=2)
    assert torch.equal(both[:, 1:], result) and torch.equal(both[:, 0], 2 * result[:, 0])
    seen[10] = seen[9] = torch.inf  # of the eyes: it neither takes nor gives
    sh[9] = 9.0
    result = filled(sh, seen, means, pixels)
    assert torch.equal(result[9:11], sh[9:11])
    torch.testing.assert_close(result[11, 0], 0.5 * sh[5, 0] + 1.5)
    assert torch.equal(filled(sh, torch.zeros(count), means, pixels), sh)  # nothing is known of anything


def test_only_what_is_saved_has_them(capture: Path, tmp_path: Path) -> None:
    avatars, states = [], []
    for name, more in (("plain", ""), ("filled", "--fill_unseen 0.05")):
        train_on(capture, tmp_path / name, "--iterations 20 --sh_increase_interval 5", more)
        avatars.append(read_ply(tmp_path / name / "point_cloud" / "iteration_20" / "point_cloud.ply"))
        states.append(checkpoint.load(tmp_path / name / "chkpnt20.pth")["avatar"]["fields"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
        same = torch.equal(torch.as_tensor(avatars[0][name]), torch.as_tensor(avatars[1][name]))
        assert same == (name not in ("features_dc", "features_rest"))
