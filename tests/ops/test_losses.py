"""Losses against a dense NumPy/SciPy reference, pytorch-msssim, float64 twins and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from ops import kernels, losses

SIZES = [(3, 1, 1), (1, 1, 40), (2, 23, 1), (3, 5, 3), (3, 33, 47), (2, 70, 16), (3, 64, 130)]


@pytest.fixture
def needs_native() -> None:
    if not kernels.available():
        pytest.skip("the native library cannot be built here")


@pytest.fixture
def threads():
    """Lets a test change the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pair(*size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image like a rendering and its target: smooth, flat white in one part, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = size
    y, x = torch.meshgrid(torch.arange(height) / 9.0, torch.arange(width) / 7.0, indexing="ij")
    phase = torch.arange(channels).view(-1, 1, 1)
    target = 0.5 + 0.5 * torch.sin(x + phase) * torch.cos(y - phase)
    target[:, : height // 3, width // 2 :] = 1.0
    image = target + 0.1 * torch.randn(size, generator=generator)
    return image, target


def dense_ssim(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The textbook map in float64 with a full 11 x 11 window: [C, H, W]."""
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(plane: np.ndarray) -> np.ndarray:
        return convolve2d(plane, window, mode="same", boundary="fill", fillvalue=0.0)

    result = []
    for x, y in zip(image.astype(np.float64), target.astype(np.float64)):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        result.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.stack(result)


def value_and_gradient(image, target, weights, cotangent=(0.8, -0.2)):
    """(l1, ssim, gradient of cotangent . (l1, ssim)) with respect to the image."""
    leaf = image.clone().requires_grad_(True)
    l1, ssim = losses.photometric(leaf, target, weights)
    (cotangent[0] * l1 + cotangent[1] * ssim).backward()
    return l1.item(), ssim.item(), leaf.grad


@pytest.mark.parametrize("size", SIZES)
def test_ssim_map_is_the_textbook_formula(size):
    image, target = pair(*size)
    ours = losses.ssim_map(image.double(), target.double()).numpy()
    np.testing.assert_allclose(ours, dense_ssim(image.numpy(), target.numpy()), rtol=0, atol=1e-10)


def test_ssim_of_pytorch_msssim_where_the_window_is_inside():
    pytorch_msssim = pytest.importorskip("pytorch_msssim")
    image, target = (tensor.double() for tensor in pair(3, 40, 52))
    theirs = pytorch_msssim.ssim(image[None], target[None], data_range=1.0, win_size=11, win_sigma=1.5)
    # Its window is computed in float32 whatever the images are.
    assert losses.ssim_map(image, target)[:, 5:-5, 5:-5].mean().item() == pytest.approx(theirs.item(), abs=5e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_native_equals_the_float64_twin(needs_native, size, weighted):
    image, target = pair(*size)
    weights = torch.rand(1, *size[1:], generator=torch.Generator().manual_seed(1)) + 0.1 if weighted else None
    l1, ssim, gradient = value_and_gradient(image, target, weights)
    l1_64, ssim_64, gradient_64 = value_and_gradient(
        image.double(), target.double(), None if weights is None else weights.double()
    )
    assert gradient.dtype == torch.float32
    assert l1 == pytest.approx(l1_64, rel=1e-5)
    assert ssim == pytest.approx(ssim_64, abs=2e-6)
    # A variance is a difference of numbers near 1: float32 leaves about 1e-6 of noise on 0.01.
    assert (gradient - gradient_64).abs().max() <= 1e-4 * gradient_64.abs().max()


@pytest.mark.parametrize("cotangent", [(1.0, 0.0), (0.0, 1.0)])
def test_gradient_is_the_slope_of_the_dense_reference(cotangent):
    """Finite differences of the NumPy reference, at the corner, the edge and the middle."""
    image, target = pair(2, 19, 23)
    weights = torch.rand(1, 19, 23, generator=torch.Generator().manual_seed(2))
    gradient = value_and_gradient(image, target, weights, cotangent)[2].numpy()
    x, y, w = image.double().numpy(), target.double().numpy(), weights.double().numpy()

    def value(perturbed: np.ndarray) -> float:
        l1 = (w * np.abs(perturbed - y)).sum() / w.sum() / 2
        ssim = (w * dense_ssim(perturbed, y)).sum() / w.sum() / 2
        return cotangent[0] * l1 + cotangent[1] * ssim

    for place in [(0, 0, 0), (1, 18, 22), (0, 9, 11), (1, 3, 17), (0, 18, 5)]:
        step = np.zeros_like(x)
        step[place] = 1e-6
        slope = (value(x + step) - value(x - step)) / 2e-6
        assert gradient[place] == pytest.approx(slope, rel=1e-3, abs=1e-3 * float(np.abs(gradient).max()))


def test_identical_images():
    image, _ = pair(3, 30, 41)
    l1, ssim, gradient = value_and_gradient(image, image.clone(), None)
    assert l1 == 0.0
    assert ssim == pytest.approx(1.0, abs=1e-6)
    assert gradient.abs().max() < 1e-7


def test_weights_choose_the_pixels():
    image, target = pair(3, 24, 31)
    weights = torch.zeros(1, 24, 31)
    weights[:, 4:12, 7:20] = 2.5
    l1, ssim, gradient = value_and_gradient(image, target, weights)
    inside = (slice(None), slice(4, 12), slice(7, 20))
    assert l1 == pytest.approx((image - target)[inside].abs().mean().item(), rel=1e-5)
    assert ssim == pytest.approx(dense_ssim(image.numpy(), target.numpy())[inside].mean(), abs=1e-5)
    assert gradient[:, 17:].abs().max() == 0.0  # further than the window from any weighted pixel


def test_equal_weights_change_nothing():
    image, target = pair(3, 24, 31)
    plain, weighted = (value_and_gradient(image, target, w) for w in (None, torch.full((1, 24, 31), 3.0)))
    assert plain[:2] == pytest.approx(weighted[:2], rel=1e-5)
    torch.testing.assert_close(plain[2], weighted[2], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_weights_are_no_loss(dtype):
    image, target = (tensor.to(dtype) for tensor in pair(3, 12, 13))
    l1, ssim, gradient = value_and_gradient(image, target, torch.zeros(1, 12, 13, dtype=dtype))
    assert (l1, ssim) == (0.0, 1.0)
    assert gradient.abs().max() == 0.0


def test_target_and_weights_are_data():
    image, target = pair(3, 12, 13)
    target.requires_grad_(True)
    weights = torch.ones(1, 12, 13, requires_grad=True)
    l1, ssim = losses.photometric(image.requires_grad_(True), target, weights)
    (l1 + ssim).backward()
    assert image.grad is not None and target.grad is None and weights.grad is None


def test_bits_repeat_whatever_the_threads(needs_native, threads):
    image, target = pair(3, 97, 65)
    weights = torch.rand(1, 97, 65)
    results = []
    for count in (1, 2, 2, 5):
        threads(count)
        results.append(value_and_gradient(image, target, weights))
    for l1, ssim, gradient in results[1:]:
        assert (l1, ssim) == results[0][:2]
        assert torch.equal(gradient, results[0][2])


def test_images_in_any_memory_order():
    image, target = pair(3, 20, 26)
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(value_and_gradient(strided, target, None)[2], value_and_gradient(image, target, None)[2])


def test_colors_far_out_of_range_stay_finite():
    image, target = pair(3, 40, 40)
    _, ssim, gradient = value_and_gradient(image * 300, target, None)
    assert -1.0 <= ssim <= 1.0 and torch.isfinite(gradient).all()


def test_a_nan_shows():
    image, target = pair(3, 16, 16)
    image[1, 4, 4] = float("nan")
    l1, ssim, _ = value_and_gradient(image, target, None)
    assert np.isnan(l1) and np.isnan(ssim)


def test_half_precision_is_raised():
    image, target = (tensor.bfloat16() for tensor in pair(3, 16, 18))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = image.clone().requires_grad_(True)
        l1, ssim = losses.photometric(leaf, target)
        slow = losses._photometric_torch(image.float(), target.float(), None)
    (l1 - ssim).backward()
    assert l1.dtype == ssim.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16
    assert ssim.item() == pytest.approx(dense_ssim(image.float().numpy(), target.float().numpy()).mean(), abs=1e-5)
    assert slow[1].item() == pytest.approx(ssim.item(), abs=1e-5)


def test_training_after_inference_mode():
    image, target = (tensor.double() for tensor in pair(1, 12, 12))
    losses._window.cache_clear()
    with torch.inference_mode():
        losses.photometric(image, target)
    assert torch.isfinite(value_and_gradient(image, target, None)[2]).all()


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 8, 8), (3, 8, 9), None),
        ((8, 8), (8, 8), None),
        ((3, 0, 4), (3, 0, 4), None),
        ((3, 8, 8), (3, 8, 8), (8, 8)),
    ],
)
def test_shapes_that_do_not_fit(shapes):
    image, target, weights = (None if shape is None else torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="expected"):
        losses.photometric(image, target, weights)


def xyz_reference(rows, visible, threshold):
    return float(np.mean([max(np.linalg.norm(row) - threshold, 0.0) for row in rows[visible]]))


def scale_reference(rows, visible, threshold):
    return float(np.mean([np.linalg.norm(np.maximum(row - threshold, 0.0)) for row in rows[visible]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "term, reference, threshold",
    [(losses.xyz_regularizer, xyz_reference, 1.0), (losses.scale_regularizer, scale_reference, 0.6)],
)
def test_regularizers_value_and_slope(term, reference, threshold, dtype):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(9000, 3, generator=generator, dtype=torch.float64)  # more than one block of the native sum
    visible = torch.rand(9000, generator=generator) > 0.3
    leaf = rows.to(dtype, copy=True).requires_grad_(True)
    value = term(leaf, visible, threshold)
    (2.0 * value).backward()
    assert value.dtype == dtype
    assert value.item() == pytest.approx(reference(rows.numpy(), visible.numpy(), threshold), rel=1e-5)
    assert leaf.grad[~visible].abs().max() == 0.0
    for i in torch.nonzero(visible)[:40, 0].tolist():
        for axis in range(3):
            step = np.zeros(3)
            step[axis] = 1e-6
            row, only = rows[i].numpy(), np.array([True])
            above, below = (reference((row + sign * step)[None], only, threshold) for sign in (1, -1))
            slope = (above - below) / 2e-6
            assert leaf.grad[i, axis].item() * visible.sum().item() == pytest.approx(2.0 * slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("term", [losses.xyz_regularizer, losses.scale_regularizer])
def test_regularizers_at_zero_and_with_nothing_visible(term, threshold, dtype):
    for visible in (torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)):
        rows = torch.zeros(5, 3, dtype=dtype, requires_grad=True)
        value = term(rows, visible, threshold)
        value.backward()
        assert value.item() == 0.0
        assert torch.equal(rows.grad, torch.zeros_like(rows))
    none = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    assert term(none, torch.zeros(0, dtype=torch.bool), threshold).item() == 0.0


@pytest.mark.parametrize("term", [losses.xyz_regularizer, losses.scale_regularizer])
def test_regularizers_show_a_nan_and_refuse_wrong_shapes(term):
    rows = torch.full((4, 3), float("nan"))
    assert torch.isnan(term(rows, torch.ones(4, dtype=torch.bool), 1.0))
    assert term(rows, torch.zeros(4, dtype=torch.bool), 1.0).item() == 0.0
    with pytest.raises(ValueError, match="expected"):
        term(rows, torch.ones(4), 1.0)
    with pytest.raises(ValueError, match="expected"):
        term(rows, torch.ones(5, dtype=torch.bool), 1.0)


@pytest.mark.parametrize("threshold_scale", [0.0, 0.6])
def test_local_regularizers_are_both_terms_at_once(threshold_scale):
    generator = torch.Generator().manual_seed(5)
    xyz = torch.randn(9000, 3, generator=generator, dtype=torch.float64)
    log_scales = torch.randn(9000, 3, generator=generator, dtype=torch.float64)
    log_scales[:100] = np.log(0.6) + torch.linspace(-1e-7, 1e-7, 100, dtype=torch.float64)[:, None]  # at the threshold
    visible = torch.rand(9000, generator=generator) > 0.3
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = [rows.to(dtype, copy=True).requires_grad_(True) for rows in (xyz, log_scales)]
        values = losses.local_regularizers(*leaves, visible, 1.0, threshold_scale)
        (2.0 * values[0] + 3.0 * values[1]).backward()
        results.append([*values, *(leaf.grad for leaf in leaves)])
    exact, fast = results
    assert exact[0].item() == pytest.approx(xyz_reference(xyz.numpy(), visible.numpy(), 1.0), rel=1e-9)
    assert exact[1].item() == pytest.approx(
        scale_reference(log_scales.exp().numpy(), visible.numpy(), threshold_scale), rel=1e-9
    )
    for mine in fast[: len(exact)]:
        assert mine.dtype == torch.float32
    torch.testing.assert_close(torch.stack(fast[:2]).double(), torch.stack(exact[:2]), rtol=1e-5, atol=0)
    apart = torch.arange(9000) >= 100  # at the threshold itself the slope jumps
    for mine, wanted in zip(fast[2:], exact[2:]):
        torch.testing.assert_close(mine[apart].double(), wanted[apart], rtol=1e-4, atol=1e-9)
    nan = torch.full((4, 3), float("nan"))
    assert all(torch.isnan(value) for value in losses.local_regularizers(nan, nan, torch.ones(4) > 0, 1.0, 0.6))
    with pytest.raises(ValueError, match="expected"):
        losses.local_regularizers(nan, nan, torch.ones(5) > 0, 1.0, 0.6)


def test_dynamic_offsets():
    offset = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    losses.dynamic_offset(offset).backward()
    assert losses.dynamic_offset(offset).item() == 2.5
    torch.testing.assert_close(offset.grad, torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 0.0]]))

    offsets = np.random.default_rng(4).normal(size=(6, 5, 3))
    offsets[:, 2] = 0.7  # a vertex that does not move
    expected = np.sqrt(offsets.var(axis=0).sum(axis=-1)).mean()
    leaf = torch.tensor(offsets, requires_grad=True)
    value = losses.dynamic_offset_std(leaf)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(leaf.grad).all() and leaf.grad[:, 2].abs().max() == 0.0


def test_laplacian_of_a_strip_by_hand():
    # 0-1-2 and 1-3-2 share the edge 1-2; vertex 4 belongs to no face.
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    operator = losses.uniform_laplacian(faces, 5, torch.float64)
    third = 1.0 / 3.0
    torch.testing.assert_close(
        operator.to_dense(),
        torch.tensor(
            [
                [1.0, -0.5, -0.5, 0.0, 0.0],
                [-third, 1.0, -third, -third, 0.0],
                [-third, -third, 1.0, -third, 0.0],
                [0.0, -0.5, -0.5, 1.0, 0.0],
                [0.0, 0.0, 0.0, 0.0, 0.0],
            ],
            dtype=torch.float64,
        ),
    )
    assert losses.laplacian(torch.full((5, 3), 0.25, dtype=torch.float64), operator).item() == pytest.approx(0.0)
    offset = torch.zeros(5, 3, dtype=torch.float64)
    offset[0, 1] = 6.0
    leaf = offset.requires_grad_(True)
    value = losses.laplacian(leaf, operator)
    value.backward()
    assert value.item() == pytest.approx((36.0 + 4.0 + 4.0) / 5)
    torch.testing.assert_close(leaf.grad, 2 / 5 * operator.to_dense().T @ operator.to_dense() @ offset.detach())


@pytest.mark.cuda
def test_cuda_is_full_precision_and_never_waits():
    image, target = pair(3, 120, 90)
    weights = torch.rand(1, 120, 90) + 0.1
    l1_64, ssim_64, gradient_64 = value_and_gradient(image.double(), target.double(), weights.double())
    leaf, target, weights = image.cuda().requires_grad_(True), target.cuda(), weights.cuda()
    rows = torch.randn(500, 3, device="cuda", requires_grad=True)
    visible = torch.rand(500, device="cuda") > 0.5

    def run():
        l1, ssim = losses.photometric(leaf, target, weights)
        extra = losses.xyz_regularizer(rows, visible, 1.0) + losses.scale_regularizer(rows, visible, 0.6)
        leaf.grad = None
        (0.8 * l1 - 0.2 * ssim + 0.0 * extra).backward()
        return l1, ssim

    run()  # the window is copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda"):
            l1, ssim = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert l1.item() == pytest.approx(l1_64, rel=1e-5) and ssim.item() == pytest.approx(ssim_64, abs=2e-6)
    assert (leaf.grad.cpu() - gradient_64).abs().max() <= 1e-4 * gradient_64.abs().max()
