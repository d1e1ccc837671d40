"""Evaluation against a direct computation."""

from __future__ import annotations

import pytest
import torch

from evaluation.evaluate import Evaluated, evaluate, evenly_spaced
from evaluation.metrics import Suite
from ops.types import Camera, Gaussians, RenderOut


def scene() -> tuple:
    """An avatar whose picture is flat: 0.1 x its timestep, red beyond 1."""
    weight = torch.nn.Parameter(torch.tensor(0.1))
    cameras = [Camera(torch.eye(4), 1.0, 1.0, 2.0, 2.0, 5, 4, timestep=t) for t in (3, 0, 7)]

    def avatar(timestep: int) -> tuple[Gaussians, torch.Tensor | None]:
        means = weight * torch.full((1, 3), float(timestep))
        return Gaussians(means, torch.zeros(1, 4), means, means[:, 0], means[:, None]), torch.full((2, 3), timestep)

    def render(gaussians: Gaussians, camera: Camera) -> RenderOut:
        image = gaussians.means[0, 0].expand(3, camera.height, camera.width).clone()
        image[0] += 10.0
        return RenderOut(image, image[:1], torch.zeros(1), torch.zeros(1, 2))

    targets = [torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    return avatar, cameras, targets, render


def test_means_are_those_of_a_direct_computation() -> None:
    avatar, cameras, targets, render = scene()
    seen: list[Evaluated] = []
    state = torch.get_rng_state()
    means = evaluate(avatar, cameras, lambda i: targets[i], render, Suite(["psnr", "l1"]), on_image=seen.append)
    assert torch.equal(torch.get_rng_state(), state)

    expected = []
    for target, level in zip(targets, (0.3, 0.0, 0.7)):
        picture = torch.full((3, 4, 5), level)
        picture[0] = 1.0  # clamped: what a PNG can show is what is measured
        expected.append(-10 * torch.log10(torch.mean((picture.double() - target.double()) ** 2)).item())
    assert means["psnr"] == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert list(means) == ["psnr", "l1"]
    assert [e.index for e in seen] == [0, 1, 2] and [int(e.vertices[0, 0]) for e in seen] == [3, 0, 7]
    assert [e.metrics["psnr"] for e in seen] == pytest.approx(expected, rel=1e-6)
    assert not any(e.image.requires_grad for e in seen) and torch.is_grad_enabled()


def test_chosen_views_only() -> None:
    avatar, cameras, targets, render = scene()
    seen: list[Evaluated] = []
    evaluate(avatar, cameras, lambda i: targets[i], render, Suite(["psnr"]), indices=[2, 0], on_image=seen.append)
    assert [e.index for e in seen] == [2, 0] and torch.equal(seen[0].ground_truth, targets[2])


def test_without_ground_truth_nothing_is_measured() -> None:
    avatar, cameras, _, render = scene()
    seen: list[Evaluated] = []
    suite = Suite(["psnr"])
    assert evaluate(avatar, cameras, None, render, suite, on_image=seen.append) == {}
    assert (
        suite.mean() == {"psnr": None}
        and all(e.ground_truth is None and e.metrics == {} for e in seen)
        and len(seen) == 3
    )


@pytest.mark.parametrize("count", [0, 1, 2, 7, 10, 1000])
@pytest.mark.parametrize("wanted", [0, 1, 2, 5, 10, 16])
def test_evenly_spaced(count: int, wanted: int) -> None:
    indices = evenly_spaced(count, wanted)
    assert len(indices) == len(set(indices)) == min(count, wanted) and indices == sorted(indices)
    assert all(0 <= i < count for i in indices)
    if 2 <= wanted <= count:
        assert indices[0] == 0 and indices[-1] == count - 1
        gaps = {b - a for a, b in zip(indices, indices[1:])}
        assert max(gaps) - min(gaps) <= 1
