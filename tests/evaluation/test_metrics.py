"""Metrics against closed forms, the SSIM of pytorch-msssim and the FLIP package called by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from arguments import METRICS
from evaluation import metrics
from evaluation.flip import PIXELS_PER_DEGREE
from utils.errors import UserError


def pair(height: int = 24, width: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    target = torch.rand(3, height, width, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def test_psnr_of_known_errors():
    gray = torch.full((3, 5, 7), 0.5)
    assert metrics.psnr(gray + 0.1, gray) == pytest.approx(20.0, abs=1e-4)
    assert metrics.psnr(gray, gray) == 100.0
    one_channel = gray.clone()
    one_channel[0] += 0.3  # the mean of the three channels' PSNRs would be something else
    assert metrics.psnr(one_channel, gray) == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-4)


def test_l1_of_known_errors():
    gray = torch.full((3, 5, 7), 0.5)
    one_channel = gray.clone()
    one_channel[2] -= 0.3
    assert metrics.l1(one_channel, gray) == pytest.approx(0.1, abs=1e-7)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.l1, metrics.flip])
def test_clamped_to_the_range_of_a_picture(metric):
    image, target = pair()
    target[:, :8] = 1.0
    image[:, :8] = 1.0
    wild = image.clone()
    wild[:, :8] = 3.0
    assert metric(wild, target) == metric(image, target)
    assert metric(image.double().requires_grad_(True), target) == pytest.approx(metric(image, target), rel=1e-5)


def test_ssim_is_over_the_full_image():
    pytorch_msssim = pytest.importorskip("pytorch_msssim")
    image, target = pair()
    # Their windows lie inside; zeros around the image make that ours.
    padded = [torch.nn.functional.pad(tensor, (5, 5, 5, 5)).double()[None] for tensor in (image, target)]
    expected = pytorch_msssim.ssim(*padded, data_range=1.0, win_size=11, win_sigma=1.5).item()
    assert metrics.ssim(image, target) == pytest.approx(expected, abs=1e-5)
    assert metrics.ssim(image, image) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("size", [(24, 37), (90, 64), (1, 1), (3, 50)])
def test_flip_is_that_of_its_authors(size):
    flip_evaluator = pytest.importorskip("flip_evaluator")
    image, target = pair(*size)
    image[1:] = target[1:]  # red differs, so a mistaken channel order shows
    for one, other in [(image, target), (target, image), (target.flip(0), target), (target.flip(2) * 0.1, target)]:
        arrays = [np.ascontiguousarray(tensor.permute(1, 2, 0).numpy()) for tensor in (other, one)]
        _, expected, settings = flip_evaluator.evaluate(*arrays, "LDR", applyMagma=False)
        assert metrics.flip(one, other) == pytest.approx(expected, abs=1e-4)
        assert metrics.flip(one.double(), other.double()) == pytest.approx(expected, abs=1e-4)
    assert settings["ppd"] == pytest.approx(PIXELS_PER_DEGREE, abs=1e-4)
    assert metrics.flip(target, target) == pytest.approx(0, abs=1e-5)
    assert 0.0 < metrics.flip(image[:, :1, :1], target[:, :1, :1]) < 1.0


def test_flip_of_the_colors_farthest_apart():
    green, blue = (torch.eye(3)[row][:, None, None].expand(3, 30, 20) for row in (1, 2))
    assert metrics.flip(green, blue) == pytest.approx(1.0, abs=1e-6)


def test_a_broken_picture_reads_nan():
    image, target = pair()
    image[0, 3, 3] = float("nan")
    assert all(math.isnan(metric(image, target)) for metric in (metrics.psnr, metrics.ssim, metrics.l1, metrics.flip))


@pytest.mark.parametrize(
    "image, target",
    [((3, 4, 5), (3, 5, 4)), ((1, 4, 5), (1, 4, 5)), ((2, 3, 4, 5), (2, 3, 4, 5)), ((3, 0, 5), (3, 0, 5))],
)
def test_shapes_that_do_not_fit(image, target):
    for metric in (metrics.psnr, metrics.ssim, metrics.l1, metrics.flip):
        with pytest.raises(ValueError, match="expected"):
            metric(torch.zeros(image), torch.zeros(target))


def test_suite_averages_over_the_images():
    suite = metrics.Suite(["psnr", "l1"])
    gray = torch.full((3, 5, 7), 0.5)
    first, second = suite.add(gray + 0.1, gray), suite.add(gray + 0.01, gray)
    assert first == {"psnr": pytest.approx(20, abs=1e-3), "l1": pytest.approx(0.1, abs=1e-6)}
    assert second == {"psnr": pytest.approx(40, abs=1e-3), "l1": pytest.approx(0.01, abs=1e-6)}
    assert suite.mean() == {"psnr": pytest.approx(30, abs=1e-3), "l1": pytest.approx(0.055, abs=1e-6)}


def test_suite_without_images_or_weights():
    suite = metrics.Suite()
    assert suite.mean() == dict.fromkeys(METRICS)
    result = suite.add(*pair())
    assert [name for name, value in result.items() if value is None] == ["lpips_vgg", "lpips_alex"]
    assert suite.mean() == result
    assert len(suite.notes) == 1 and "python -m utils.lpips_weights" in suite.notes[0]
    json.dumps(suite.mean(), allow_nan=False)


def test_again_measures_the_same_anew():
    suite = metrics.Suite(["psnr", "psnr"])
    first = suite.add(*pair())
    fresh = suite.again()
    assert fresh.mean() == {"psnr": None} and suite.mean() == first
    assert fresh.add(*pair()) == first


def test_suite_refuses_an_unknown_name():
    with pytest.raises(UserError, match="sharpness.*psnr"):
        metrics.Suite(["psnr", "sharpness"])


def test_table():
    rows = {"val": {"psnr": 29.8712, "ssim": 0.9264, "lpips_vgg": None}, "self-reenactment": {"psnr": 6.0, "ssim": 1.0}}
    assert metrics.format_table(rows) == "\n".join(
        [
            "                   psnr    ssim  lpips_vgg",
            "val               29.87  0.9264        n/a",
            "self-reenactment   6.00  1.0000        n/a",
        ]
    )
    assert metrics.format_table({}) == ""
    assert metrics.format_table({"val": {}}) == "\nval"
