"""The VGG loss against its formula written out, finite differences in float64, and its memory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from innovations.perceptual_loss import PerceptualLoss
from ops.lpips import LPIPS, NETWORKS, Layer
from utils.memory import Keep

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@pytest.fixture(scope="module")
def network() -> LPIPS:
    """VGG16 with random weights, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = LPIPS("vgg")
        for convolution in model.convolutions:
            torch.nn.init.kaiming_normal_(convolution.weight)
            torch.nn.init.uniform_(convolution.bias, -0.1, 0.1)
    return model.double()


def pair(height: int = 20, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    image, truth = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    return image, truth


def by_hand(network: LPIPS, image: torch.Tensor, truth: torch.Tensor) -> float:
    """The formula, with torchvision's plan of VGG16 and ImageNet's normalization."""
    mean, deviation = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, DEVIATION))
    a, b = ((picture - mean) / deviation for picture in (image, truth))
    convolutions, total = iter(network.convolutions), 0.0
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        for _ in range(count):
            weight, bias = (part for part in next(convolutions).parameters())
            a, b = (F.conv2d(x[None], weight, bias, padding=1)[0].clamp_min(0) for x in (a, b))
        total += (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)[stage] * (a - b).abs().mean().item()
        if stage < 4:
            a, b = (F.max_pool2d(x, 2) for x in (a, b))
    return total


def test_value_and_gradient(network: LPIPS) -> None:
    image, truth = pair()
    loss = PerceptualLoss(0.05, network, Keep(0.5))
    leaf, target = image.clone().requires_grad_(), truth.clone().requires_grad_()
    term = loss(0, leaf, target)["perceptual"]
    assert term.item() == pytest.approx(0.05 * by_hand(network, image, truth), rel=1e-6)
    term.backward()
    assert target.grad is None and all(weight.grad is None for weight in network.parameters())
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        step = 1e-7 * torch.randn(image.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (loss(0, image + sign * step, truth)["perceptual"].item() for sign in (1, -1))
        assert (leaf.grad * step).sum().item() == pytest.approx((ahead - behind) / 2, rel=1e-4)


def test_truth_is_seen_once_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [Layer(4, 3, 1, 1, (2, 2) if stage else None, tap=True) for stage in range(5)]
    monkeypatch.setitem(NETWORKS, "vgg", tuple(layers))
    network = LPIPS("vgg")
    image, truth = (picture.float() for picture in pair())
    size = sum(feature.nbytes for feature in network.features(truth))
    seen: list[torch.Tensor] = []
    original = network.features

    def watched(picture: torch.Tensor) -> list[torch.Tensor]:
        seen.append(picture)
        return original(picture)

    monkeypatch.setattr(network, "features", watched)
    monkeypatch.setattr("utils.memory.available_memory", lambda device: 5 * size)
    loss = PerceptualLoss(1.0, network, Keep(0.5))  # room for two
    terms = [loss(index, image, truth)["perceptual"].item() for index in (0, 1, 2, 0, 1, 2)]
    assert len(set(terms)) == 1  # kept or made anew: the same bits
    assert len(seen) == 6 + 4 and sum(picture is truth for picture in seen) == 4  # the third was seen twice
    # At another resolution what is kept of the view gives way.
    smaller = truth[:, :16, :16].contiguous()
    for _ in range(2):
        loss(0, image[:, :16, :16].contiguous(), smaller)
    assert sum(picture is smaller for picture in seen) == 1
    assert loss(2, image, truth)["perceptual"].item() == terms[0]


def test_a_broken_picture_gives_no_number(network: LPIPS) -> None:
    image, truth = pair()
    image[0, 2, 2] = math.nan
    assert PerceptualLoss(1.0, network, Keep(0.5))(0, image, truth)["perceptual"].isnan()
