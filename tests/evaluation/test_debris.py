"""Specks in the background's color: counted against planted ones, and kept away by the silhouette's term."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_head import motion_of, toy_head

from evaluation.debris import cameras_around, speck_share
from ops.sh import from_colors
from scene.flame import Flame, FlameParameters
from scene.gaussian_model import GaussianModel
from training.objective import alpha_terms

WHITE, SKIN = torch.ones(3), torch.tensor([0.6, 0.4, 0.3])


@pytest.fixture
def avatar() -> GaussianModel:
    """Equal Gaussians, one on each triangle, all of one color."""
    head = toy_head(vertices=200, faces=300)
    model = GaussianModel.from_mesh(
        Flame(head),
        FlameParameters(motion_of(head), None, head),
        sh_degree=0,
        generator=torch.Generator().manual_seed(0),
        device="cpu",
    )
    with torch.no_grad():
        model.features[:, 0] = from_colors(SKIN)
    return model


def test_an_avatar_of_one_color_has_no_specks(avatar: GaussianModel) -> None:
    assert speck_share(avatar, WHITE) == 0.0


@pytest.mark.parametrize("planted, counts", [(WHITE, True), (torch.zeros(3), False), (SKIN + 0.1, False)])
def test_what_is_far_towards_the_background_counts(avatar: GaussianModel, planted: torch.Tensor, counts: bool) -> None:
    rows = [7, 130]
    with torch.no_grad():
        avatar.features[rows, 0] = from_colors(planted)
        gaussians, _ = avatar(0)
    areas = gaussians.opacities * gaussians.scales[:, 0] ** 2  # round ones
    wanted = float(areas[rows].sum() / areas.sum()) if counts else 0.0
    assert speck_share(avatar, WHITE) == pytest.approx(wanted, rel=1e-5)


def test_eyes_are_white_by_nature_and_a_static_scene_has_no_neighbors(avatar: GaussianModel) -> None:
    with torch.no_grad():
        avatar.features[7, 0] = from_colors(WHITE)
    assert avatar.flame is not None
    avatar.flame.masks["left_eyeball"] = avatar.flame.faces[7]
    assert speck_share(avatar, WHITE) == 0.0
    assert speck_share(GaussianModel.from_points(np.eye(3), np.eye(3), sh_degree=0, device="cpu"), WHITE) is None


def test_cameras_see_the_head_whole_and_upright_from_all_sides() -> None:
    ball = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    head = ball * torch.tensor([0.12, 0.17, 0.11]) + torch.tensor([0.02, -0.03, 0.01])
    cameras = cameras_around(head)
    assert len(cameras) == 10
    for camera in cameras:
        points = head @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
        x, y = (points[:, :2] / points[:, 2:] * camera.fx + camera.cx).unbind(1)
        assert (points[:, 2] > 0.2).all() and 0 < min(x.min(), y.min()) and max(x.max(), y.max()) < camera.width
        rotation = camera.world_to_camera[:3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
        assert torch.linalg.det(rotation) > 0 and rotation[1, 1] < 0  # the picture's y points down
    front = cameras[0].center - head.mean(dim=0)
    assert front[2] > 0.9 * front.norm()


def test_the_term_of_the_silhouette_is_the_mean_difference() -> None:
    alpha = torch.rand(1, 5, 7, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(1, 5, 7, dtype=torch.float64)
    term = alpha_terms(0.3, alpha, truth)["alpha"]
    assert term.item() == pytest.approx(0.3 * np.abs((alpha - truth).detach().numpy()).mean())
    assert torch.autograd.gradcheck(lambda a: alpha_terms(0.3, a, truth)["alpha"], alpha)
    assert alpha_terms(0.3, alpha, None)["alpha"].item() == 0.0 and alpha_terms(0.0, alpha, truth) == {}
