"""Triton: L1 and SSIM of a picture, and the two regularizers of a bound avatar, forward and backward.

The formulas are those of ops/csrc/ssim.cpp and ops/csrc/regularizers.cpp. The window of SSIM is separable: maps are
blurred along the rows by one kernel and down the columns by the next, which reads them from the cache. Sums are written
by every program and added up by one, in one order: the same inputs give the same bits, and the host never waits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ops.kernels import CONSTANTS
from ops.triton_kernels.launch import launch, total
from ops.triton_kernels.vectors import dot, load_vector, scaled, store_vector

RADIUS = tl.constexpr(int(CONSTANTS["kWindowRadius"]))
C1 = tl.constexpr(CONSTANTS["kSsimK1"] ** 2)
C2 = tl.constexpr(CONSTANTS["kSsimK2"] ** 2)
BLOCK = 256  # pixels or rows of a program
SUMS = 1024  # numbers that are added up at a time


def _window() -> tuple[float, ...]:
    taps = [math.exp(-0.5 * (k / CONSTANTS["kWindowSigma"]) ** 2) for k in range(-RADIUS.value, RADIUS.value + 1)]
    return tuple(tap / sum(taps) for tap in taps)


TAPS = tl.constexpr(_window())

# ---- the picture ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["count", "width"])
def blur_products(
    image,  # [C, H, W]
    ground_truth,  # [C, H, W]
    count,  # C H W
    width,
    maps,  # [4, C, H, W] out: image + ground truth, image - ground truth and their squares, blurred along the rows
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pixel < count
    x = pixel % width
    plus, minus = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    plus2, minus2 = plus, plus
    for k in tl.static_range(2 * RADIUS + 1):
        inside = live & (x + (k - RADIUS) >= 0) & (x + (k - RADIUS) < width)
        a = tl.load(image + pixel + (k - RADIUS), inside, 0.0)
        b = tl.load(ground_truth + pixel + (k - RADIUS), inside, 0.0)
        p, m = a + b, a - b
        plus += TAPS[k] * p
        minus += TAPS[k] * m
        plus2 += TAPS[k] * (p * p)
        minus2 += TAPS[k] * (m * m)
    tl.store(maps + pixel, plus, live)
    tl.store(maps + count + pixel, minus, live)
    tl.store(maps + 2 * count + pixel, plus2, live)
    tl.store(maps + 3 * count + pixel, minus2, live)


@triton.jit
def blur_down(field, pixel, y, live, width, height):
    """A map blurred down the columns."""
    out = tl.zeros_like(pixel).to(tl.float32)
    for k in tl.static_range(2 * RADIUS + 1):
        inside = live & (y + (k - RADIUS) >= 0) & (y + (k - RADIUS) < height)
        out += TAPS[k] * tl.load(field + pixel + (k - RADIUS) * width, inside, 0.0)
    return out


@triton.jit(do_not_specialize=["count", "width", "height"])
def compare(
    image,  # [C, H, W]
    ground_truth,  # [C, H, W]
    weights,  # [H, W]
    maps,  # [4, C, H, W] of `blur_products`
    count,  # C H W
    width,
    height,
    parts,  # [3, programs] out: sums of w |d|, of w SSIM, and of w once
    slopes,  # [3, C, H, W] out: derivatives of w SSIM by the blurred map of the image, and twice those by its squares
    WEIGHTED: tl.constexpr,
    KEEP: tl.constexpr,  # whether the derivatives are wanted
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    pixel = program * BLOCK + tl.arange(0, BLOCK)
    live = pixel < count
    y = pixel // width % height
    plus, minus = blur_down(maps, pixel, y, live, width, height), blur_down(maps + count, pixel, y, live, width, height)
    plus2 = blur_down(maps + 2 * count, pixel, y, live, width, height)
    minus2 = blur_down(maps + 3 * count, pixel, y, live, width, height)
    weight = tl.where(live, 1.0, 0.0)
    if WEIGHTED:
        weight = tl.load(weights + pixel % (width * height), live, 0.0)

    pp, mm = plus * plus, minus * minus
    # Never negative but by rounding, which for colors far above 1 could exceed C2 and flip b2; a NaN stays one.
    vp, vm = plus2 - pp, minus2 - mm
    vp, vm = tl.where(vp < 0.0, 0.0, vp), tl.where(vm < 0.0, 0.0, vm)
    a1, b1 = 0.5 * (pp - mm) + C1, 0.5 * (pp + mm) + C1
    a2, b2 = 0.5 * (vp - vm) + C2, 0.5 * (vp + vm) + C2
    inverse = 1.0 / (b1 * b2)
    over_b1, over_b2 = b2 * inverse, b1 * inverse
    r1, r2 = a1 * over_b1, a2 * over_b2
    apart = tl.abs(tl.load(image + pixel, live, 0.0) - tl.load(ground_truth + pixel, live, 0.0))
    tl.store(parts + program, tl.sum(weight * apart, 0))
    tl.store(parts + programs + program, tl.sum(weight * (r1 * r2), 0))
    tl.store(parts + 2 * programs + program, tl.sum(tl.where(pixel < width * height, weight, 0.0), 0))
    if KEEP:
        # d/dA1 + d/dB1 = r2 (1 - r1) / B1 and 1 - r1 = M^2 / B1, without cancellation; likewise the others.
        first, second = r2 * over_b1, r1 * over_b2
        plus1, plus2 = first * mm * over_b1, second * vm * over_b2
        minus1, minus2 = first * (1.0 + r1), second * (1.0 + r2)
        tl.store(slopes + pixel, weight * (plus * (plus1 - plus2) + minus * (minus2 - minus1)), live)
        tl.store(slopes + count + pixel, weight * plus2, live)
        tl.store(slopes + 2 * count + pixel, -weight * minus2, live)


@triton.jit(do_not_specialize=["channels", "programs"])
def finish_comparison(
    parts,  # [3, programs]
    channels,
    programs,
    l1,  # [] out
    ssim,  # [] out
    scale,  # [] out: of the sums
    BLOCK: tl.constexpr,
):
    weight = total(parts + 2 * programs, programs, BLOCK)
    # "not (<= 0)" and not "> 0": a NaN among the weights must not look like a perfect score.
    unused = weight <= 0.0
    factor = tl.where(unused, 0.0, 1.0 / (channels * tl.where(unused, 1.0, weight)))
    tl.store(l1, factor * total(parts, programs, BLOCK))
    tl.store(ssim, tl.where(unused, 1.0, factor * total(parts + programs, programs, BLOCK)))
    tl.store(scale, factor)


@triton.jit(do_not_specialize=["count", "width"])
def blur_slopes(
    slopes,  # [3, C, H, W]
    count,  # 3 C H W
    width,
    blurred,  # [3, C, H, W] out, along the rows
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pixel < count
    x = pixel % width
    out = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(2 * RADIUS + 1):
        inside = live & (x + (k - RADIUS) >= 0) & (x + (k - RADIUS) < width)
        out += TAPS[k] * tl.load(slopes + pixel + (k - RADIUS), inside, 0.0)
    tl.store(blurred + pixel, out, live)


@triton.jit(do_not_specialize=["count", "width", "height"])
def pull_back_comparison(
    image,  # [C, H, W]
    ground_truth,  # [C, H, W]
    weights,  # [H, W]
    blurred,  # [3, C, H, W] of `blur_slopes`
    scale,  # []
    grad_l1,  # []
    grad_ssim,  # []
    count,  # C H W
    width,
    height,
    grad,  # [C, H, W] out
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pixel < count
    y = pixel // width % height
    a, b = tl.load(image + pixel, live, 0.0), tl.load(ground_truth + pixel, live, 0.0)
    by_mean = blur_down(blurred, pixel, y, live, width, height)
    by_plus = blur_down(blurred + count, pixel, y, live, width, height)
    by_minus = blur_down(blurred + 2 * count, pixel, y, live, width, height)
    sign = tl.where(a > b, 1.0, tl.where(a < b, -1.0, 0.0))
    if WEIGHTED:
        sign *= tl.load(weights + pixel % (width * height), live, 0.0)
    to_l1, to_ssim = tl.load(scale) * tl.load(grad_l1), tl.load(scale) * tl.load(grad_ssim)
    tl.store(grad + pixel, to_l1 * sign + to_ssim * (by_mean + (a + b) * by_plus + (a - b) * by_minus), live)


class Photometric(torch.autograd.Function):
    """`ops.losses.photometric` of float32."""

    @staticmethod
    def forward(ctx, image: Tensor, ground_truth: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        image, ground_truth = image.contiguous(), ground_truth.contiguous()
        channels, height, width = image.shape
        count, keep = image.numel(), ctx.needs_input_grad[0]
        programs = triton.cdiv(count, BLOCK)
        maps, parts = image.new_empty(4, count), image.new_empty(3, programs)
        slopes = image.new_empty(3, count) if keep else maps
        l1, ssim, scale = (image.new_empty(()) for _ in range(3))
        field = image if weights is None else weights.contiguous()
        options = {"WEIGHTED": weights is not None, "BLOCK": BLOCK}
        launch(blur_products, programs, image, ground_truth, count, width, maps, BLOCK=BLOCK)
        images = (image, ground_truth, field)
        launch(compare, programs, *images, maps, count, width, height, parts, slopes, KEEP=keep, **options)
        launch(finish_comparison, 1, parts, channels, programs, l1, ssim, scale, BLOCK=SUMS)
        ctx.save_for_backward(*images, slopes, scale)
        ctx.options = options
        return l1, ssim

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_l1: Tensor, grad_ssim: Tensor) -> tuple[Tensor, None, None]:
        image, ground_truth, field, slopes, scale = ctx.saved_tensors
        _, height, width = image.shape
        count = image.numel()
        blurred, grad = torch.empty_like(slopes), torch.empty_like(image)
        launch(blur_slopes, triton.cdiv(3 * count, BLOCK), slopes, 3 * count, width, blurred, BLOCK=BLOCK)
        launch(
            pull_back_comparison,
            triton.cdiv(count, BLOCK),
            *(image, ground_truth, field, blurred, scale, grad_l1, grad_ssim, count, width, height, grad),
            **ctx.options,
        )
        return grad, None, None


# ---- the regularizers -----------------------------------------------------------------------------


@triton.jit
def penalties(xyz, log_scales, threshold_xyz, threshold_scale):
    """relu(|xyz| - threshold) and |relu(exp(log scales) - threshold)|, each with its derivatives."""
    norm = tl.sqrt(dot(xyz, xyz))
    excess = norm - threshold_xyz
    beyond = ~(excess <= 0.0)  # a NaN goes on and shows in the loss
    slope_xyz = scaled(xyz, tl.where(beyond & (norm > 0.0), 1.0 / tl.where(norm > 0.0, norm, 1.0), 0.0))

    size = tl.exp(log_scales[0]), tl.exp(log_scales[1]), tl.exp(log_scales[2])
    x = tl.where(size[0] <= threshold_scale, 0.0, size[0] - threshold_scale)
    y = tl.where(size[1] <= threshold_scale, 0.0, size[1] - threshold_scale)
    z = tl.where(size[2] <= threshold_scale, 0.0, size[2] - threshold_scale)
    length = tl.sqrt(dot((x, y, z), (x, y, z)))
    inverse = tl.where(length == 0.0, 0.0, 1.0 / tl.where(length == 0.0, 1.0, length))
    slope_scale = x * inverse * size[0], y * inverse * size[1], z * inverse * size[2]
    return (tl.where(beyond, excess, 0.0), slope_xyz), (length, slope_scale)


@triton.jit(do_not_specialize=["count"])
def regularize(
    xyz,  # [N, 3]
    log_scales,  # [N, 3]
    visible,  # [N] uint8
    count,  # N
    threshold_xyz,
    threshold_scale,
    parts,  # [3, programs] out: sums of both penalties, and the number of the visible
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    shown = tl.load(visible + rows, rows < count, 0) != 0
    place, size = penalties(
        load_vector(xyz, rows, shown), load_vector(log_scales, rows, shown), threshold_xyz, threshold_scale
    )
    tl.store(parts + program, tl.sum(tl.where(shown, place[0], 0.0), 0))
    tl.store(parts + programs + program, tl.sum(tl.where(shown, size[0], 0.0), 0))
    tl.store(parts + 2 * programs + program, tl.sum(shown.to(tl.float32), 0))


@triton.jit(do_not_specialize=["programs"])
def finish_regularizers(
    parts,  # [3, programs]
    programs,
    mean_xyz,  # [] out
    mean_scale,  # [] out
    scale,  # [] out: of the sums
    BLOCK: tl.constexpr,
):
    factor = 1.0 / tl.maximum(total(parts + 2 * programs, programs, BLOCK), 1.0)
    tl.store(mean_xyz, factor * total(parts, programs, BLOCK))
    tl.store(mean_scale, factor * total(parts + programs, programs, BLOCK))
    tl.store(scale, factor)


@triton.jit(do_not_specialize=["count"])
def pull_back_regularizers(
    xyz,  # [N, 3]
    log_scales,  # [N, 3]
    visible,  # [N] uint8
    scale,  # []
    grad_xyz,  # []
    grad_scale,  # []
    count,  # N
    threshold_xyz,
    threshold_scale,
    to_xyz,  # [N, 3] out
    to_scales,  # [N, 3] out
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < count
    shown = tl.load(visible + rows, live, 0) != 0
    place, size = penalties(
        load_vector(xyz, rows, shown), load_vector(log_scales, rows, shown), threshold_xyz, threshold_scale
    )
    by_xyz = tl.where(shown, tl.load(scale) * tl.load(grad_xyz), 0.0)
    by_scale = tl.where(shown, tl.load(scale) * tl.load(grad_scale), 0.0)
    store_vector(to_xyz, rows, live, scaled(place[1], by_xyz))
    store_vector(to_scales, rows, live, scaled(size[1], by_scale))


class LocalRegularizers(torch.autograd.Function):
    """`ops.losses.local_regularizers` of float32."""

    @staticmethod
    def forward(
        ctx, xyz: Tensor, log_scales: Tensor, visible: Tensor, threshold_xyz: float, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        rows = (xyz.contiguous(), log_scales.contiguous(), visible.contiguous().view(torch.uint8))
        ctx.thresholds = (threshold_xyz, threshold_scale)
        programs = triton.cdiv(len(xyz), BLOCK)
        parts = xyz.new_empty(3, programs)
        mean_xyz, mean_scale, scale = (xyz.new_empty(()) for _ in range(3))
        launch(regularize, programs, *rows, len(xyz), *ctx.thresholds, parts, BLOCK=BLOCK)
        launch(finish_regularizers, 1, parts, programs, mean_xyz, mean_scale, scale, BLOCK=SUMS)
        ctx.save_for_backward(*rows, scale)
        return mean_xyz, mean_scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_xyz: Tensor, grad_scale: Tensor) -> tuple[Tensor | None, ...]:
        xyz, log_scales, *more = ctx.saved_tensors
        out = torch.empty_like(xyz), torch.empty_like(log_scales)
        launch(
            pull_back_regularizers,
            triton.cdiv(len(xyz), BLOCK),
            *(xyz, log_scales, *more, grad_xyz, grad_scale, len(xyz), *ctx.thresholds, *out),
            BLOCK=BLOCK,
        )
        return (*out, None, None, None)
