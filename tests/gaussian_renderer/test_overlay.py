"""The mesh overlay against shapes whose picture is known in closed form."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import trimesh

from gaussian_renderer.mesh_overlay import draw_mesh, visible_faces
from ops.types import Camera
from utils.errors import UserError


def turned_camera(width: int, height: int) -> Camera:
    """Off-centre principal point, unequal focal lengths, an arbitrary pose."""
    rotation = trimesh.transformations.rotation_matrix(0.7, [1.0, 2.0, -0.5])
    rotation[:3, 3] = (0.1, -0.2, 0.9)
    pose = torch.tensor(rotation, dtype=torch.float32)
    return Camera(pose, fx=1.3 * width, fy=1.5 * width, cx=0.43 * width, cy=0.55 * height, width=width, height=height)


def to_world(points: np.ndarray, camera: Camera) -> torch.Tensor:
    """Camera-space points [P, 3] in world space."""
    inverse = np.linalg.inv(camera.world_to_camera.double().numpy())
    return torch.from_numpy(points @ inverse[:3, :3].T + inverse[:3, 3]).float()


def pixel_centers(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] x/z and y/z of the pixel centres."""
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    return np.meshgrid(x, y)


def test_a_triangle_covers_exactly_the_pixels_inside_its_edges() -> None:
    camera = turned_camera(61, 47)
    corners = np.array([[5.3, 4.1], [55.2, 11.7], [23.9, 42.6]])  # pixels
    depths = np.array([0.7, 1.9, 1.1])
    points = np.stack(
        [(corners[:, 0] - camera.cx) / camera.fx * depths, (corners[:, 1] - camera.cy) / camera.fy * depths, depths],
        axis=1,
    )
    face, facing = visible_faces(to_world(points, camera), torch.tensor([[0, 1, 2]]), camera)

    x, y = np.meshgrid(np.arange(61) + 0.5, np.arange(47) + 0.5)
    sides = [
        (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in zip(corners, np.roll(corners, -1, axis=0))
    ]
    inside = (np.stack(sides) > 0).all(axis=0)
    assert np.abs(np.stack(sides)).min() > 1e-3  # no pixel centre lies on an edge
    assert np.array_equal(face >= 0, inside) and 500 < inside.sum() < 2000

    normal = np.cross(points[1] - points[0], points[2] - points[0])
    normal /= np.linalg.norm(normal)
    rx, ry = pixel_centers(camera)
    rays = np.stack([rx, ry, np.ones_like(rx)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    assert np.allclose(facing, np.where(inside, np.abs(rays @ normal), 0.0), atol=1e-5)


def test_a_sphere_covers_the_cone_that_touches_it() -> None:
    camera = turned_camera(120, 90)
    center, radius = np.array([0.05, -0.03, 1.2]), 0.25
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    face, facing = visible_faces(to_world(ball.vertices + center, camera), torch.tensor(ball.faces), camera)
    rx, ry = pixel_centers(camera)
    rays = np.stack([rx, ry, np.ones_like(rx)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    along = rays @ center
    distance = np.sqrt(center @ center - along**2)  # of each ray from the centre
    hit = face >= 0
    # The mesh is inscribed, so it falls short of the sphere, by less than 0.2 % of the radius.
    assert hit[distance < 0.998 * radius].all() and not hit[distance > radius].any()
    expected = np.sqrt(np.maximum(1 - (distance / radius) ** 2, 0))
    inner = distance < 0.9 * radius
    assert inner.sum() > 1000 and np.abs(facing - expected)[inner].max() < 0.05  # flat facets against a round ball


def test_the_nearest_triangle_wins_and_none_behind_the_camera_shows() -> None:
    camera = turned_camera(20, 20)
    sheet = np.array([[-9.0, -9.0], [9.0, -9.0], [0.0, 18.0]])
    layers = [np.concatenate([sheet * z, np.full((3, 1), z)], axis=1) for z in (2.0, 0.5, -0.3)]
    face, _ = visible_faces(to_world(np.concatenate(layers), camera), torch.arange(9).reshape(3, 3), camera)
    assert (face == 1).all()


def test_drawing_blends_the_hit_pixels_only() -> None:
    camera = turned_camera(40, 30)
    small = np.array([[-0.1, -0.1, 1.0], [0.12, -0.08, 1.0], [0.0, 0.13, 1.0]])
    vertices, faces = to_world(small, camera), torch.tensor([[0, 1, 2]])
    image = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(1))
    before = image.clone()
    drawn = draw_mesh(image, vertices, faces, camera, opacity=1.0)
    hit = torch.from_numpy(visible_faces(vertices, faces, camera)[0] >= 0)
    assert torch.equal(image, before) and drawn.shape == image.shape
    assert torch.equal(drawn[:, ~hit], image[:, ~hit]) and 20 < int(hit.sum()) < 600
    half = draw_mesh(image, vertices, faces, camera, opacity=0.5)
    assert torch.allclose(half[:, hit], (image[:, hit] + drawn[:, hit]) / 2, atol=1e-6)


def test_without_embreex_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    with pytest.raises(UserError, match="pip install embreex"):
        visible_faces(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), turned_camera(4, 4))
