"""Which triangles a camera sees: closed forms, a ray caster, the PyTorch twin, and meshes that are broken."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import trimesh
from meshes import front_camera, joined, patch
from torch import Tensor

from gaussian_renderer.mesh_overlay import visible_faces
from ops import kernels, visibility
from ops.types import Camera
from ops.visibility import Visibility, grid_size, see


def turned_camera(width: int, height: int) -> Camera:
    """Off-centre principal point, unequal focal lengths, an arbitrary pose."""
    rotation = trimesh.transformations.rotation_matrix(0.7, [1.0, 2.0, -0.5])
    rotation[:3, 3] = (0.1, -0.2, 2.5)
    pose = torch.tensor(rotation, dtype=torch.float32)
    return Camera(pose, fx=1.1 * width, fy=1.3 * width, cx=0.43 * width, cy=0.55 * height, width=width, height=height)


def tensors(mesh: trimesh.Trimesh) -> tuple[Tensor, Tensor]:
    return torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(np.asarray(mesh.faces), dtype=torch.int64)


def test_a_sphere_shows_the_cap_before_its_tangent_cone(twin: str) -> None:
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=4))
    camera = front_camera()
    seen = see(camera, vertices + torch.tensor([0.0, 0.0, 3.0]), faces, 48, 64)
    # Seen from distance 3, the cap of the unit sphere with cos > 1/3; the flat triangles blur the rim.
    height = -(vertices[faces].mean(dim=1))[:, 2]
    assert seen.visible[height > 1 / 3 + 0.02].all()
    assert not seen.visible[height < 1 / 3 - 0.02].any()
    center = vertices[faces].mean(dim=1) + torch.tensor([0.0, 0.0, 3.0])
    expected = -(
        torch.nn.functional.normalize(vertices[faces].mean(dim=1), dim=1) * torch.nn.functional.normalize(center, dim=1)
    ).sum(dim=1)
    assert torch.allclose(seen.facing, expected, atol=0.01)
    # The ray through the image's middle meets the sphere at depth 2.
    assert seen.depth[23:25, 31:33].mean().item() == pytest.approx(2.0, abs=0.01)
    assert seen.depth[0, 0].isinf() and seen.first[0, 0] == -1


def test_what_is_before_hides_and_what_is_beside_does_not(twin: str) -> None:
    mesh = joined(patch(2.0, x=0.75, half=0.5), patch(3.0, x=0.0, half=1.0, pieces=16))
    seen = see(front_camera(), *mesh, 48, 64)
    assert seen.visible[:128].all()
    center = mesh[0][mesh[1][128:]].mean(dim=1)
    # The near patch spans x/z in [0.125, 0.625] and y/z in [-0.25, 0.25]: at depth 3 x > 0.375, |y| < 0.75.
    hidden = (center[:, 0] > 0.375) & (center[:, 1].abs() < 0.75)
    assert 50 < hidden.sum() < 400
    assert torch.equal(seen.visible[128:], ~hidden)


def test_crossing_sheets_show_each_its_nearer_half(twin: str) -> None:
    flat, faces = patch(2.0, half=0.5, pieces=20)
    tilted = flat.clone()
    tilted[:, 2] += 0.4 * tilted[:, 0]  # behind where x > 0, before where x < 0
    seen = see(front_camera(), *joined((flat, faces), (tilted, faces)), 48, 64)
    x = flat[faces].mean(dim=1)[:, 0]
    away = x.abs() > 0.02
    count = len(faces)
    assert torch.equal(seen.visible[:count][away], (x > 0)[away])
    # Its edge at x = -0.5 reaches beyond the flat sheet in the picture; inside of it each ray has one answer.
    inner = away & (x.abs() < 0.4)
    assert torch.equal(seen.visible[count:][inner], (x < 0)[inner])


def test_a_sheet_seen_from_behind_is_hidden_and_hides(twin: str) -> None:
    vertices, faces = patch(2.0)
    seen = see(front_camera(), *joined((vertices, faces.flip(1)), patch(3.0)), 48, 64)
    assert not seen.visible.any()
    assert (seen.facing[:128] < 0).all() and (seen.facing[128:] > 0).all()


def test_small_triangles_neither_vanish_nor_tear_holes(twin: str) -> None:
    near, far = patch(2.0, half=1.0, pieces=20), patch(2.2, half=1.0, pieces=20)
    seen = see(front_camera(), *joined(near, far), 3, 4)  # more than a hundred of triangles per cell
    assert seen.visible[:800].all() and not seen.visible[800:].any()


def test_coinciding_surfaces_are_both_seen(twin: str) -> None:
    seen = see(front_camera(), *joined(patch(2.0), patch(2.0)), 48, 64)
    assert seen.visible.all()


@pytest.mark.parametrize("size", [(96, 70), (31, 64)])
def test_agrees_with_a_ray_caster(twin: str, size: tuple[int, int]) -> None:
    pytest.importorskip("embreex")
    # A blob with folds: parts hide others, many triangles lie at grazing angles.
    mesh = trimesh.creation.icosphere(subdivisions=4)
    p = mesh.vertices
    mesh.vertices = p * (1 + 0.35 * np.sin(5 * p[:, :1]) * np.cos(4 * p[:, 1:2] + 1) + 0.1 * np.sin(9 * p[:, 2:]))
    vertices, faces = tensors(mesh)
    camera = turned_camera(*size)
    rows, columns = grid_size(camera.width, camera.height, 64)
    seen = see(camera, vertices, faces, rows, columns)
    face, _ = visible_faces(vertices, faces, camera.resized(columns, rows))
    assert (seen.first.numpy() == face).mean() >= 0.995

    # Every centroid: a ray of its own, by trimesh.
    origin = camera.center.double().numpy()
    centers = mesh.triangles_center
    pose = camera.world_to_camera.double().numpy()
    local = centers @ pose[:3, :3].T + pose[:3, 3]
    u, v = camera.fx * local[:, 0] / local[:, 2] + camera.cx, camera.fy * local[:, 1] / local[:, 2] + camera.cy
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    hit = mesh.ray.intersects_first(np.repeat(origin[None], len(centers), axis=0), centers - origin)
    expected = (hit == np.arange(len(centers))) & inside & ((mesh.face_normals * (origin - centers)).sum(axis=1) > 0)
    assert 0.15 < expected.mean() < 0.6
    large = np.zeros(len(faces), dtype=bool)  # seen at a cell's centre, though its centroid may be hidden
    large[face[face >= 0]] = True
    agree = seen.visible.numpy() == expected
    assert agree[~large].mean() >= 0.995
    assert seen.visible.numpy()[expected].mean() >= 0.995


def test_does_not_depend_on_the_size_in_pixels(twin: str) -> None:
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=3))
    camera = turned_camera(90, 60)
    one, two = (see(c, vertices, faces, 20, 30) for c in (camera, camera.scaled(0.5)))
    assert (one.visible == two.visible).float().mean() > 0.999
    assert torch.equal(one.first, two.first)


def broken_meshes() -> dict[str, tuple[Tensor, Tensor]]:
    vertices, faces = patch(2.0)
    nan, inf, behind, flat = vertices.clone(), vertices.clone(), vertices.clone(), vertices.clone()
    nan[40] = torch.nan
    inf[40, 0] = torch.inf
    behind[:30, 2] = -1.0
    flat[:] = vertices[40]
    return {
        "nan": (nan, faces),
        "inf": (inf, faces),
        "behind": (behind, faces),
        "all one point": (flat, faces),
        "far": (vertices * torch.tensor([1e30, 1e30, 1.0]), faces),
        "at the camera": (vertices * torch.tensor([1, 1, 0.0]), faces),
        "none": (vertices, faces[:0]),
    }


@pytest.mark.parametrize("kind", broken_meshes())
def test_broken_meshes_are_survived(twin: str, kind: str) -> None:
    vertices, faces = broken_meshes()[kind]
    seen = see(front_camera(), vertices, faces, 12, 16)
    sound = vertices.isfinite().all(dim=1)[faces].all(dim=1)
    assert not seen.visible[~sound].any()
    assert seen.facing.isfinite().all() and not seen.depth.isnan().any()
    if kind in ("nan", "inf"):
        assert seen.visible[sound].all() and 0 < (~sound).sum() < 10


@pytest.mark.skipif(not kernels.available(), reason="no compiler")
def test_native_equals_its_twin_whatever_the_threads() -> None:
    vertices, faces = tensors(trimesh.creation.torus(0.9, 0.4, major_sections=64, minor_sections=32))
    camera = turned_camera(80, 64)

    def run(threads: int) -> Visibility:
        torch.set_num_threads(threads)
        return see(camera, vertices, faces, 32, 40)

    one, many = run(1), run(3)
    assert all(torch.equal(a, b) for a, b in zip(one, many))
    intrinsics = (camera.fx / 2, camera.fy / 2, camera.cx / 2, camera.cy / 2)
    other = visibility._see_torch(camera.world_to_camera, intrinsics, vertices, faces, 32, 40)
    assert (one.visible == other.visible).float().mean() >= 0.999
    assert (one.first == other.first).float().mean() >= 0.999
    assert torch.allclose(one.facing, other.facing, atol=1e-5)


def test_bad_arguments() -> None:
    vertices, faces = patch(2.0)
    with pytest.raises(ValueError, match="V, 3"):
        see(front_camera(), vertices[:, :2], faces, 4, 4)
    with pytest.raises(ValueError, match="int64"):
        see(front_camera(), vertices, faces.int(), 4, 4)
    with pytest.raises(ValueError, match="at least one cell"):
        see(front_camera(), vertices, faces, 0, 4)
    if kernels.available():
        with pytest.raises(ValueError, match="beyond"):
            see(front_camera(), vertices, faces + 10_000, 4, 4)


@pytest.mark.cuda
def test_cuda_equals_the_cpu() -> None:
    vertices, faces = tensors(trimesh.creation.icosphere(subdivisions=3))
    camera = turned_camera(80, 64)
    here = see(camera, vertices, faces, 32, 40)
    camera = dataclasses.replace(camera, world_to_camera=camera.world_to_camera.cuda())
    there = see(camera, vertices.cuda(), faces.cuda(), 32, 40)
    assert (here.visible == there.visible.cpu()).float().mean() >= 0.999
