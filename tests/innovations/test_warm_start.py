"""The warm start: colours recovered from pictures whose colours are known."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from meshes import front_camera, joined, patch
from torch import Tensor

from innovations.warm_start import CLASSICAL_START, spread_views, triangle_colors
from ops.types import Camera

RED, BLUE = torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.9])


def painted(camera: Camera) -> Tensor:
    """The left half red, the right half blue, as seen by `front_camera`; white beyond |x/z|, |y/z| < 0.5."""
    x = ((torch.arange(camera.width) + 0.5 - camera.cx) / camera.fx)[None, :].expand(camera.height, -1)
    y = ((torch.arange(camera.height) + 0.5 - camera.cy) / camera.fy)[:, None].expand(-1, camera.width)
    image = torch.where((x < 0)[None], RED[:, None, None], BLUE[:, None, None])
    return torch.where(((x.abs() < 0.5) & (y.abs() < 0.5))[None], image, 1.0)


def views(shifts: list[float]) -> list[tuple[Camera, Tensor, Tensor]]:
    """The wall moves sideways, and the camera with it, so that the picture stays."""
    result = []
    for shift in shifts:
        camera = front_camera()
        pose = torch.eye(4)
        pose[0, 3] = -shift
        camera = dataclasses.replace(camera, world_to_camera=pose)
        result.append((camera, painted(camera), patch(2.0, half=1.0, pieces=10)[0] + torch.tensor([shift, 0, 0])))
    return result


def test_the_colors_of_a_two_colored_mesh_are_recovered() -> None:
    vertices, faces = patch(2.0, half=1.0, pieces=10)
    colors, seen = triangle_colors(views([0.0, 0.1, 0.3]), faces, (1.0, 1.0, 1.0))
    x = vertices[faces].mean(dim=1)[:, 0]
    inner = (x.abs() > 0.1) & (vertices[faces].abs().amax(dim=(1, 2)) <= 2.0)
    interior = inner & (vertices[faces][..., :2].abs().amax(dim=(1, 2)) < 0.95)  # no sample touches the rim
    assert seen[interior].all() and interior.sum() > 80
    expected = torch.where((x < 0)[:, None], RED, BLUE)
    assert torch.allclose(colors[interior], expected[interior], atol=1e-5)


def test_a_single_bad_view_counts_little() -> None:
    vertices, faces = patch(2.0, half=1.0, pieces=10)
    good = views([0.0, 0.1, 0.2, 0.3])
    camera, image, moved = views([0.4])[0]
    colors, _ = triangle_colors([*good, (camera, torch.zeros_like(image), moved)], faces, (1.0, 1.0, 1.0))
    x = vertices[faces].mean(dim=1)[:, 0]
    left = (x < -0.2) & (vertices[faces][..., :2].abs().amax(dim=(1, 2)) < 0.95)
    # A plain mean would be off by a fifth: 0.16.
    assert (colors[left] - RED).abs().max() < 0.01


def test_unseen_triangles_get_the_color_of_the_nearest_that_are_seen() -> None:
    front, back = patch(2.0, half=1.0, pieces=10), patch(3.0, half=1.0, pieces=4)
    back = (back[0] + torch.tensor([0.0132, 0.0271, 0.0]), back[1])  # so that no two are equally near
    mesh, faces = joined(front, back)
    camera = front_camera()
    colors, seen = triangle_colors([(camera, painted(camera), mesh)], faces, (1.0, 1.0, 1.0))
    assert seen[:-32].all() and not seen[-32:].any()
    centers = mesh[faces].mean(dim=1)
    for triangle in range(len(faces) - 32, len(faces)):
        nearest = (centers[:-32] - centers[triangle]).norm(dim=1).argsort()[:8]
        torch.testing.assert_close(colors[triangle], colors[nearest].mean(dim=0))
    assert len(colors[-32:].unique(dim=0)) > 1


def test_where_no_triangle_is_seen_all_get_the_mean_of_the_foreground() -> None:
    mesh, faces = patch(2.0, half=1.0, pieces=4)
    camera = front_camera()
    colors, seen = triangle_colors([(camera, painted(camera), mesh)], faces.flip(1), (1.0, 1.0, 1.0))
    assert not seen.any()
    assert torch.allclose(colors, ((RED + BLUE) / 2).expand(32, 3), atol=1e-5)


def test_triangles_that_stand_over_the_background_are_not_white() -> None:
    _, faces = patch(2.0, half=1.0, pieces=10)
    camera = front_camera()
    wide = patch(2.0, half=1.4, pieces=10)[0]
    colors, seen = triangle_colors([(camera, painted(camera), wide)], faces, (1.0, 1.0, 1.0))
    assert 0.3 < seen.float().mean() < 0.9
    assert colors.min(dim=1).values.max() < 0.6


def test_without_any_view_everything_is_gray() -> None:
    _, faces = patch(2.0)
    colors, seen = triangle_colors([], faces, (1.0, 1.0, 1.0))
    assert (colors == 0.5).all() and not seen.any()
    # All background: nothing is known either.
    camera = front_camera()
    colors, seen = triangle_colors([(camera, torch.ones(3, 48, 64), patch(2.0)[0])], faces, (1.0, 1.0, 1.0))
    assert (colors == 0.5).all() and not seen.any()


def test_it_repeats_bit_for_bit() -> None:
    _, faces = patch(2.0, half=1.0, pieces=10)
    runs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        runs.append(triangle_colors(views([0.0, 0.1, 0.2]), faces, (1.0, 1.0, 1.0)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_the_views_chosen_meet_every_camera_and_all_times() -> None:
    shots = [dataclasses.replace(front_camera(), timestep=t, camera_id=f"cam_{c}") for t in range(96) for c in range(8)]
    chosen = spread_views(shots, 48)
    assert len(chosen) == len(set(chosen)) == 48 and chosen == sorted(chosen)
    assert set(Counter(shots[i].camera_id for i in chosen).values()) == {6}
    times = sorted({shots[i].timestep for i in chosen})
    assert len(times) > 40 and max(b - a for a, b in zip(times, times[1:])) <= 6
    assert spread_views(shots[:30]) == list(range(30))
    many = [dataclasses.replace(front_camera(), camera_id=f"cam_{c}") for c in range(100)]
    assert len(spread_views(many, 48)) == 48
    assert spread_views([], 48) == []


def test_the_values_of_the_start() -> None:
    start = dataclasses.replace(CLASSICAL_START, opacity=0.5, scale=0.5)
    assert 1 / (1 + math.exp(-start.raw_opacity)) == pytest.approx(0.5)
    assert math.exp(start.raw_scale) == pytest.approx(0.5)
    assert CLASSICAL_START.raw_scale == 0 and not CLASSICAL_START.colors
    assert 1 / (1 + math.exp(-CLASSICAL_START.raw_opacity)) == pytest.approx(0.1)
