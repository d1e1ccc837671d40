"""The resolution schedule, the area filter against an exact integration, and the images of each scale."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scene.images.cache
from gaussian_renderer.backends.reference import rasterize
from innovations.progressive_resolution import ProgressiveResolution
from ops import area
from ops.area import area_reduce
from ops.losses import photometric
from ops.types import Camera, Gaussians
from scene.dataset import View
from scene.images.cache import ImageCache
from scene.images.scaled import ScaledImages
from utils.errors import UserError

# ---- schedule -----------------------------------------------------------------


def test_scale_changes_at_the_milestones():
    progressive = ProgressiveResolution((0.5, 0.75, 1.0), (100_000, 300_000))
    assert [progressive.scale(step) for step in (1, 99_999, 100_000, 299_999, 300_000, 600_000)] == [
        0.5,
        0.5,
        0.75,
        0.75,
        1.0,
        1.0,
    ]
    lines = {step: progressive.switch(step) for step in (1, 99_999, 100_000, 100_001, 300_000)}
    assert {step: line for step, line in lines.items() if line} == {
        100_000: "[ITER 100000] Switching to resolution scale 0.75",
        300_000: "[ITER 300000] Switching to resolution scale 1",
    }


def test_off_is_the_full_size():
    off = ProgressiveResolution()
    assert {off.scale(step) for step in (1, 5, 10**6)} == {1.0}
    assert not any(off.switch(step) for step in range(1, 50))


def test_a_single_scale_needs_no_milestone():
    assert ProgressiveResolution((0.5,)).scale(7) == 0.5


# What is typed, and how a short run scales it, is in tests/test_arguments.py.
@pytest.mark.parametrize(
    "scales, milestones, message",
    [
        ((0.5, 1.0), (100, 200), "2 scales and --resolution_milestones 2"),
        ((0.5, 0.75, 1.0), (100,), "3 scales and --resolution_milestones 1"),
        ((0.5, 0.75, 1.0), (300, 100), "must be iterations from 1 on that increase, not 300,100"),
        ((0.5, 0.75, 1.0), (100, 100), "that increase"),
        ((0.5, 1.0), (0,), "from 1 on"),
        ((0.5, 1.5), (10,), "at most 1, not 1.5"),
        ((0.0, 1.0), (10,), "above 0"),
        ((float("nan"), 1.0), (10,), "not nan"),
    ],
)
def test_bad_schedules_are_one_sentence(scales: tuple[float, ...], milestones: tuple[int, ...], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        ProgressiveResolution(scales, milestones)


# ---- area filter --------------------------------------------------------------


def integrated(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., height, width] float64: means over boxes, by differences of the piecewise constant image's integral."""
    for axis, target in ((-2, height), (-1, width)):
        source = image.shape[axis]
        steps = np.moveaxis(image, axis, -1).astype(np.float64)
        integral = np.concatenate([np.zeros((*steps.shape[:-1], 1)), np.cumsum(steps, axis=-1)], axis=-1)
        edges = np.arange(target + 1) * source / target
        flat = integral.reshape(-1, source + 1)
        at_edges = np.stack([np.interp(edges, np.arange(source + 1), row) for row in flat])
        means = np.diff(at_edges, axis=-1).reshape(*steps.shape[:-1], target) * target / source
        image = np.moveaxis(means, -1, axis)
    return image


SIZES = [
    (40, 30, 20, 15),
    (40, 30, 30, 22),
    (41, 27, 31, 20),
    (17, 33, 17, 32),
    (9, 8, 1, 1),
    (5, 5, 5, 5),
    (64, 64, 21, 7),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("native", [True, False])
def test_area_filter_is_the_exact_mean_of_what_a_pixel_covers(size, native: bool, monkeypatch: pytest.MonkeyPatch):
    if not native:
        monkeypatch.setattr(area.kernels, "available", lambda: False)
    source = np.random.default_rng(3).integers(0, 256, (3, *size[:2]), dtype=np.uint8)
    reduced = area_reduce(torch.from_numpy(source), *size[2:])
    assert reduced.shape == (3, *size[2:]) and reduced.dtype == torch.uint8
    error = np.abs(reduced.numpy() - integrated(source, *size[2:]))
    assert error.max() <= 0.5001  # nothing but the rounding to bytes
    white = area_reduce(torch.full((3, *size[:2]), 255, dtype=torch.uint8), *size[2:])
    assert (white == 255).all()


def test_area_filter_refuses_what_it_cannot_do():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for call in (
        lambda: area_reduce(image.float(), 2, 2),
        lambda: area_reduce(image, 5, 2),
        lambda: area_reduce(image, 0, 2),
        lambda: area_reduce(image[0], 2, 2),
    ):
        with pytest.raises(ValueError):
            call()


# ---- images of each scale -----------------------------------------------------


def capture(folder: Path, sizes: list[tuple[int, int]]) -> list[View]:
    """Views of noise images, (width, height) each."""
    views = []
    for index, (width, height) in enumerate(sizes):
        path = folder / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        views.append(
            View(
                Camera(torch.eye(4), 50.0, 50.0, width / 2, height / 2, width, height),
                path,
                source_size=(width, height),
            )
        )
    return views


@pytest.mark.parametrize("mapped", [False, True])
def test_images_fit_the_scaled_cameras(tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch):
    views = capture(tmp_path, [(31, 23), (20, 30), (55, 37), (16, 16)])
    cache = ImageCache(
        views, (1.0, 1.0, 1.0), progress=False, folder=tmp_path / "cache", ram_share=1e-12 if mapped else 0.5
    )
    images = ScaledImages(cache, 3)  # the last is held out
    for scale in (0.5, 0.75, 1.0, 0.3):
        for index, view in enumerate(views[:3]):
            camera = view.camera.scaled(scale)
            image = images.image(index, scale, "cpu")
            assert image.shape == (3, camera.height, camera.width) and image.is_contiguous()
            expected = integrated(cache[index].permute(2, 0, 1).numpy(), camera.height, camera.width) / 255
            assert np.abs(image.numpy() - expected).max() <= 0.5001 / 255
    with pytest.raises(IndexError):
        images.image(3, 0.3, "cpu")
    half = cache.at_scale(0.5, 3)
    assert half.where == cache.where == ("mmap" if mapped else "ram") and len(half) == 3 and len(cache) == 4
    assert half.nbytes == 3 * (16 * 12 + 10 * 15 + 28 * 18)  # Python rounds halves to even
    if mapped:
        # The file is found again, by a resumed run for one.
        monkeypatch.setattr(scene.images.cache, "area_reduce", None)
        again = ImageCache(views, (1.0, 1.0, 1.0), progress=False, folder=tmp_path / "cache", ram_share=1e-12)
        assert torch.equal(again.at_scale(0.5, 3)[2], half[2])


def test_each_scale_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = ImageCache(capture(tmp_path, [(8, 8)] * 5), (0.0, 0.0, 0.0), progress=False)
    reduced = []
    monkeypatch.setattr(
        scene.images.cache, "area_reduce", lambda image, *size: reduced.append(size) or area_reduce(image, *size)
    )
    images = ScaledImages(cache, 5)
    for scale in (0.5, 0.75, 1.0):
        for index in (0, 4, 2, 0):
            images.image(index, scale, "cpu")
    assert sorted(reduced) == [(4, 4)] * 5 + [(6, 6)] * 5
    images.image(0, 0.5, "cpu").zero_()
    assert images.image(0, 0.5, "cpu").any()  # what is handed out is a copy


def test_no_room_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = ImageCache(capture(tmp_path, [(30, 20)] * 3), (0.0, 0.0, 0.0), progress=False)
    monkeypatch.setattr(scene.images.cache, "available_memory", lambda: 100)
    with pytest.raises(UserError, match="3 images take .* not free: train at a smaller --resolution"):
        cache.at_scale(0.5)


def test_a_resumed_run_sees_the_same_images(tmp_path: Path):
    cache = ImageCache(capture(tmp_path, [(30, 20)] * 3), (0.0, 0.0, 0.0), progress=False)
    progressive = ProgressiveResolution((0.4, 0.75, 1.0), (3, 6))
    whole = ScaledImages(cache, 3)
    seen = [whole.image(step % 3, progressive.scale(step), "cpu") for step in range(1, 9)]
    for start in (2, 4, 7):
        resumed = ScaledImages(cache, 3)
        for step in range(start, 9):
            assert torch.equal(resumed.image(step % 3, progressive.scale(step), "cpu"), seen[step - 1])


# ---- densification keeps its meaning --------------------------------------------


def test_gradient_statistic_does_not_depend_on_the_resolution():
    """One wide Gaussian before a smooth target: a mean loss by NDC position is an integral over the image."""
    camera = Camera(torch.eye(4), 96.0, 96.0, 48.0, 32.0, 96, 64)
    gradients = {}
    for scale in (1.0, 0.75, 0.5):
        view = camera.scaled(scale)
        gaussians = Gaussians(
            *(
                value.double().requires_grad_()
                for value in (
                    torch.tensor([[0.05, -0.02, 1.0]]),
                    torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
                    torch.full((1, 3), 0.1),
                    torch.tensor([0.8]),
                    torch.full((1, 1, 3), 0.4),
                )
            )
        )
        x = (torch.arange(view.width).double() + 0.5) / view.width
        y = (torch.arange(view.height).double() + 0.5) / view.height
        target = (0.3 + 0.4 * torch.sin(5 * x)[None, None] * torch.cos(4 * y)[None, :, None]).expand(3, -1, -1)
        out = rasterize(gaussians, view, torch.zeros(3).double(), sh_degree=0)
        (out.image - target).square().mean().backward()
        gradients[scale] = out.means2d.grad.norm().item()
    assert gradients[1.0] > 1e-3
    assert gradients[0.75] == pytest.approx(gradients[1.0], rel=0.02)
    assert gradients[0.5] == pytest.approx(gradients[1.0], rel=0.03)


def test_cameras_and_images_of_a_scale_go_into_the_loss_together(tmp_path: Path):
    views = capture(tmp_path, [(33, 21)])
    images = ScaledImages(ImageCache(views, (0.0, 0.0, 0.0), progress=False), 1)
    for scale in (0.5, 0.75, 1.0):
        camera = views[0].camera.scaled(scale)
        l1, _ = photometric(torch.zeros(3, camera.height, camera.width), images.image(0, scale, "cpu"))
        assert 0.4 < l1 < 0.6  # the mean of noise, at every scale
