"""The dense start: as many Gaussians as wanted, where the pictures have detail, each at its own point."""

from __future__ import annotations

import torch
from meshes import front_camera, joined, patch

from innovations.dense_start import detail, place
from innovations.warm_start import triangle_colors


def test_detail_is_where_the_picture_changes_and_grows_with_the_area() -> None:
    vertices, faces = patch(2.0, half=1.0, pieces=10)
    camera = front_camera()
    left = (torch.arange(camera.width) + 0.5 < camera.cx).float()
    found = detail([(camera, left.expand(3, camera.height, -1), vertices)], faces)
    x = vertices[faces].mean(dim=1)[:, 0]
    # The step of a central difference reaches over two of the 3.2 pixels that a triangle is wide.
    assert found[x.abs() < 0.1].max() > 20 * found[x.abs() > 0.2].max() > 0
    flat = detail([(camera, torch.ones(3, camera.height, camera.width), vertices)], faces)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.02 * 0.5 * 3.2**2))
    assert not detail([(camera, left.expand(3, camera.height, -1), vertices)], faces.flip(1)).any()  # from behind


def test_every_triangle_has_one_and_the_rest_follows_the_detail() -> None:
    wanted = torch.rand(500, generator=torch.Generator().manual_seed(0)) ** 4
    placed = place(wanted, 3000)
    number = torch.bincount(placed.binding, minlength=500)
    assert number.sum() == 3000 and number.min() == 1
    assert ((number - 1) - wanted / wanted.sum() * 2500).abs().max() <= 1
    assert (placed.binding.diff() >= 0).all()
    torch.testing.assert_close(torch.zeros(500).index_add(0, placed.binding, placed.share), torch.ones(500))
    assert (placed.weights >= 0).all()
    torch.testing.assert_close(placed.weights.sum(dim=1), torch.ones(3000))
    assert torch.equal(place(wanted, 400).binding, torch.arange(500))
    assert len(place(torch.zeros(500), 3000).binding) == 500  # nothing says where more of them would be useful


def test_those_of_a_triangle_keep_their_distance() -> None:
    for count in (2, 5, 20, 100):
        placed = place(torch.ones(1), count)
        points = placed.weights[:, 1:]  # in a triangle of area 1/2
        distance = (points[:, None] - points).norm(dim=-1) + torch.eye(count)
        assert distance.min() > 0.3 * (0.5 / count) ** 0.5
        # Evenly: as many near each corner as there is area.
        for corner in range(3):
            near = (placed.weights[:, corner] > 0.5).float().mean()
            assert count < 20 or abs(near - 0.25) < 0.06


def test_each_has_the_color_of_its_own_point() -> None:
    """Two triangles, each of them half red and half blue."""
    vertices, faces = patch(2.0, half=1.0, pieces=1)
    behind, hidden = patch(3.0, half=0.4, pieces=1)
    vertices, faces = joined((vertices, faces), (behind, hidden))
    camera = front_camera()
    red, blue = torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.9])
    left = torch.arange(camera.width) + 0.5 < camera.cx
    image = torch.where(left, red[:, None, None], blue[:, None, None]).expand(3, camera.height, -1)
    placed = place(torch.tensor([1.0, 1.0, 0.0, 0.0]), 60)
    colors, seen = triangle_colors([(camera, image, vertices)], faces, None, (placed.binding, placed.weights))
    assert seen.tolist() == [True] * 58 + [False] * 2
    x = torch.einsum("nc,ncd->nd", placed.weights, vertices[faces[placed.binding]])[:58, 0]
    clear = x.abs() > 1 / 16  # a pixel
    expected = torch.where((x < 0)[:, None], red, blue)
    torch.testing.assert_close(colors[:58][clear], expected[clear])
    assert 20 < (x[clear] < 0).sum() < 38 and clear.sum() > 50
