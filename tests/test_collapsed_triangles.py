"""Triangles without area: in the rig, in what is seen, in colors and losses, and under a whole training."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from meshes import front_camera, patch
from runs import train_on
from torch import Tensor

from gaussian_renderer.backends.native import rasterize as native_rasterize
from gaussian_renderer.backends.reference import rasterize as reference_rasterize
from innovations.region_adaptive_loss import RegionAdaptiveLoss
from innovations.warm_start import triangle_colors
from ops import losses, rig
from ops.types import Gaussians
from ops.visibility import see
from training import checkpoint


def test_the_rig_of_any_triangle(twin: str) -> None:
    """Corners from far below a micrometre to a thousand kilometres apart, in all kinds of collapse."""
    generator = torch.Generator().manual_seed(0)
    count = 4000
    size = 10.0 ** torch.empty(count, 1, 1).uniform_(-20, 6, generator=generator)
    corners = size * torch.randn(count, 3, 3, generator=generator)
    kind = torch.arange(count) % 6
    corners[kind == 1, 1] = corners[kind == 1, 0]
    corners[kind == 2, 2] = corners[kind == 2, 0]
    corners[kind == 3, 2] = corners[kind == 3, 1]
    corners[kind == 4, 2] = 3 * corners[kind == 4, 1] - 2 * corners[kind == 4, 0]
    corners[kind == 5] = corners[kind == 5][:, :1]
    vertices = corners.reshape(-1, 3).requires_grad_()
    faces = torch.arange(3 * count).view(count, 3)
    raw = [torch.randn(count, width, generator=generator).requires_grad_() for width in (3, 4, 3, 1)]
    out = rig.bind(vertices, faces, *raw, torch.arange(count))
    assert all(value.isfinite().all() for value in out)
    torch.testing.assert_close(out[1].norm(dim=1), torch.ones(count))
    flat = (kind > 0) & (kind != 4)  # a line is one only up to rounding; the others have no orientation at all
    torch.testing.assert_close(out[1][flat], torch.nn.functional.normalize(raw[1][flat], dim=1))
    torch.autograd.backward(out, [torch.randn(value.shape, generator=generator) for value in out])
    assert all(value.grad.isfinite().all() for value in (vertices, *raw))


def collapsed() -> tuple[Tensor, Tensor, Tensor]:
    """A wall before `front_camera`; its faces, and the same with a point, lines and repeated corners among them."""
    vertices, faces = patch(2.0, half=1.0, pieces=6)
    middle = len(vertices) // 2
    vertices = torch.cat([vertices, vertices[middle : middle + 1], vertices[middle : middle + 1]])
    a, b, last = middle, middle + 1, len(vertices) - 1
    flat = torch.tensor(
        [[a, a, a], [a, a, b], [a, b, b], [b, a, b], [a, last, last - 1], [a, last, b], [middle - 1, a, b]]
    )
    return vertices, faces, torch.cat([faces, flat])


def test_collapsed_triangles_are_not_seen_and_hide_nothing(twin: str) -> None:
    vertices, good, all_faces = collapsed()
    want, got = (see(front_camera(), vertices, faces, 24, 32) for faces in (good, all_faces))
    assert torch.equal(got.visible[: len(good)], want.visible) and not got.visible[len(good) :].any()
    assert torch.equal(got.facing[: len(good)], want.facing) and got.facing.isfinite().all()
    assert torch.equal(got.first, want.first) and torch.equal(got.depth, want.depth)


def test_colors_and_region_maps_of_collapsed_triangles(twin: str) -> None:
    vertices, good, all_faces = collapsed()
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    colors, seen = triangle_colors([(front_camera(), image, vertices)], all_faces, (1.0, 1.0, 1.0))
    assert colors.isfinite().all() and not seen[len(good) :].any()
    alone, _ = triangle_colors([(front_camera(), image, vertices)], good, (1.0, 1.0, 1.0))
    assert torch.equal(colors[: len(good)], alone)
    maps = [
        RegionAdaptiveLoss(faces=faces, masks={"nose": torch.arange(20, 30)}).weights(0, front_camera(), vertices)
        for faces in (good, all_faces)
    ]
    assert maps[1].isfinite().all() and torch.equal(*maps)


def test_the_regularizers_of_collapsed_triangles(twin: str) -> None:
    """In metres, where the size of the triangle is differentiated too."""
    vertices, _, faces = collapsed()
    vertices = vertices.clone().requires_grad_()
    xyz = torch.full((len(faces), 3), 2.0, requires_grad=True)
    meters = xyz * rig.triangle_frames(vertices, faces).scale[:, None]
    visible = torch.ones(len(faces), dtype=torch.bool)
    total = losses.xyz_regularizer(meters, visible, 0.0) + losses.scale_regularizer(meters, visible, 0.0)
    total.backward()
    assert total.isfinite() and xyz.grad.isfinite().all() and vertices.grad.isfinite().all()
    assert xyz.grad.any()


def test_gaussians_without_size_are_drawn_as_nothing_worse(twin: str) -> None:
    """What hangs on a point has size zero: its gradients are finite, and so is the picture."""
    draw = native_rasterize if twin == "native" else reference_rasterize
    raw = [torch.zeros(4, 3), torch.zeros(4, 4), torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 1, 3)]
    raw[0][:, 2], raw[1][:, 0], raw[3][:] = 2.0, 1.0, 0.5
    raw[2][1:] = torch.tensor([[1e-30, 0.0, 0.1], [0.1, 0.1, 0.0], [0.1, 0.1, 0.1]])
    leaves = [value.requires_grad_() for value in raw]
    out = draw(Gaussians(*leaves), front_camera(), torch.zeros(3), sh_degree=0)
    out.image.square().sum().backward()
    assert out.image.isfinite().all() and all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize(
    "more",
    [
        "--preset balanced --resolution_milestones 5,10",
        "--metric_xyz --metric_scale --lambda_laplacian 1 --white_background",
    ],
)
def test_training_on_a_head_with_collapsed_triangles(capture: Path, tmp_path: Path, more: str) -> None:
    """Repeated corners in the faces, and vertices that coincide: nothing is left out, and everything stays finite."""
    model = pickle.loads((capture / "head_model.pkl").read_bytes())
    model["f"] = np.array(model["f"])
    model["f"][5], model["f"][6], model["f"][7] = [3, 3, 9], [4, 4, 4], [8, 2, 8]
    model["v_template"][20:23] = model["v_template"][20]
    model["shapedirs"][20:23] = model["shapedirs"][20]
    head = tmp_path / "head_model.pkl"
    head.write_bytes(pickle.dumps(model))
    schedule = "--iterations 20 --densify_from_iter 5 --densification_interval 10"
    results = train_on(capture, tmp_path / "model", schedule, "--head_model", head, more)
    assert results["steps_left_out"]["count"] == 0
    state = checkpoint.load(tmp_path / "model/chkpnt20.pth")
    assert all(value.isfinite().all() for value in (*state["avatar"]["fields"].values(), state["flame"]["values"]))
