"""The losses: L1 and SSIM of the picture, and the regularizers of the avatar.

All of them stay on the device of their arguments: nothing here makes the host
wait for a GPU, so an iteration can be queued without stalling.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import fused, kernels

WINDOW_RADIUS = int(kernels.CONSTANTS["kWindowRadius"])  # pixels
WINDOW_SIGMA = kernels.CONSTANTS["kWindowSigma"]  # pixels
C1 = kernels.CONSTANTS["kSsimK1"] ** 2
C2 = kernels.CONSTANTS["kSsimK2"] ** 2


def photometric(
    image: Tensor,  # [C, H, W]  0..1 (not clamped)
    ground_truth: Tensor,  # [C, H, W]
    weights: Tensor | None = None,  # [1, H, W]  >= 0
) -> tuple[Tensor, Tensor]:
    """Mean absolute difference and mean SSIM, two scalars.

    With weights both means over the pixels become weighted ones: sum(w |d|) /
    sum(w) and sum(w S) / sum(w), then the mean over the channels. Weights that
    are all zero give (0, 1), a perfect score without gradient. Differentiable
    with respect to `image` only; `ground_truth` and `weights` are data.

    Half precision is raised to float32 first: the variances of SSIM are
    differences of nearly equal numbers.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if image.ndim != 3 or image.shape != ground_truth.shape or image.numel() == 0:
        raise ValueError(f"expected two images [C, H, W], got {tuple(image.shape)} and {tuple(ground_truth.shape)}")
    if weights is not None and weights.shape != (1, *image.shape[1:]):
        raise ValueError(f"expected weights [1, {image.shape[1]}, {image.shape[2]}], got {tuple(weights.shape)}")
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, ground_truth = image.to(dtype), ground_truth.detach().to(dtype)
    weights = None if weights is None else weights.detach().to(dtype)
    if kernels.usable(image):
        return _Photometric.apply(image, ground_truth, weights)
    if gpu := fused.kernels("losses", _fault, image):
        return gpu.Photometric.apply(image, ground_truth, weights)
    return _photometric_torch(image, ground_truth, weights)


def ssim_map(
    image: Tensor,  # [C, H, W]  0..1
    ground_truth: Tensor,  # [C, H, W]
) -> Tensor:  # [C, H, W]
    """Structural similarity of every pixel (Wang et al. 2004), in the dtype of the images.

    11 x 11 Gaussian window, sigma 1.5, zeros outside the image. Written with
    the sum p and the difference m of the images, whose blurs P, M and variances
    vp, vm give

        ((P^2 - M^2)/2 + C1) ((vp - vm)/2 + C2) / ((P^2 + M^2)/2 + C1) / ((vp + vm)/2 + C2)

    This is the usual formula with one blur less, and it keeps in float32 what
    the covariance E[xy] - E[x]E[y] loses where the images are alike.
    """
    plus, minus = image + ground_truth, image - ground_truth
    blurred = _blur(torch.cat([plus, minus, plus * plus, minus * minus]))
    mean_plus, mean_minus, square_plus, square_minus = blurred.chunk(4)
    p2, m2 = mean_plus * mean_plus, mean_minus * mean_minus
    # Never negative but by rounding, which for colors far above 1 could exceed C2 and flip the sign.
    variance_plus, variance_minus = (square_plus - p2).clamp_min(0), (square_minus - m2).clamp_min(0)
    luminance = ((p2 - m2) / 2 + C1) / ((p2 + m2) / 2 + C1)
    structure = ((variance_plus - variance_minus) / 2 + C2) / ((variance_plus + variance_minus) / 2 + C2)
    return luminance * structure


def _photometric_torch(image: Tensor, ground_truth: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """`photometric` in PyTorch: any device, and float64 for the tests."""
    with torch.autocast(image.device.type, enabled=False):
        difference, similarity = (image - ground_truth).abs(), ssim_map(image, ground_truth)
        if weights is None:
            return difference.mean(), similarity.mean()
        total = weights.sum()
        scale = 1 / (image.shape[0] * total.clamp_min(torch.finfo(total.dtype).tiny))
        l1, ssim = (weights * difference).sum() * scale, (weights * similarity).sum() * scale
        return l1, torch.where(total > 0, ssim, torch.ones_like(ssim))


@functools.cache
@torch.inference_mode(False)  # a cached tensor born in inference mode would be useless to training
def _window(dtype: torch.dtype, device: torch.device) -> Tensor:
    position = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=torch.float64)
    value = torch.exp(-0.5 * (position / WINDOW_SIGMA) ** 2)
    return (value / value.sum()).to(device, dtype)


def _blur(maps: Tensor) -> Tensor:
    """The Gaussian window over [N, H, W], zeros outside.

    One group per map: PyTorch's own depthwise kernels then do the work in full
    float32, whereas cuDNN would by default round the inputs to TF32 and with
    it the variances to noise.
    """
    count = maps.shape[0]
    taps = _window(maps.dtype, maps.device)
    across = taps.view(1, 1, -1, 1).expand(count, 1, -1, 1)
    along = taps.view(1, 1, 1, -1).expand(count, 1, 1, -1)
    batch = F.conv2d(maps[None], along, padding=(0, WINDOW_RADIUS), groups=count)
    return F.conv2d(batch, across, padding=(WINDOW_RADIUS, 0), groups=count)[0]


class _Photometric(torch.autograd.Function):
    """`photometric` by csrc/ssim.cpp: float32 on the CPU."""

    @staticmethod
    def forward(ctx, image: Tensor, ground_truth: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        image, ground_truth = image.contiguous(), ground_truth.contiguous()
        weights = None if weights is None else weights.contiguous()
        channels, height, width = image.shape
        gradient = torch.empty_like(image) if ctx.needs_input_grad[0] else None
        sums = torch.empty(3, dtype=torch.float64)
        kernels.run("ssim_forward", image, ground_truth, weights, channels, height, width, sums, gradient)
        absolute, similarity, total = sums.tolist()
        # "not (<= 0)" and not "> 0": a NaN among the weights must not look like a perfect score.
        used = not total <= 0.0
        ctx.scale = 1.0 / (channels * total) if used else 0.0
        ctx.save_for_backward(image, ground_truth, weights, gradient)
        return (image.new_tensor(absolute * ctx.scale), image.new_tensor(similarity * ctx.scale if used else 1.0))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_l1: Tensor, grad_ssim: Tensor) -> tuple[Tensor, None, None]:
        image, ground_truth, weights, gradient = ctx.saved_tensors
        out = torch.empty_like(image)
        scales = (ctx.scale * grad_l1.item(), ctx.scale * grad_ssim.item())
        kernels.run("ssim_backward", image, ground_truth, weights, gradient, *image.shape, *scales, out)
        return out, None, None


def xyz_regularizer(
    xyz: Tensor,  # [N, 3]  triangle units, or metres (--metric_xyz)
    visible: Tensor,  # [N]     bool
    threshold: float,  # in the unit of xyz
) -> Tensor:
    """mean over the visible of relu(|mu| - threshold): keeps Gaussians near their triangle.

    |mu| is the Euclidean norm of a Gaussian's position. 0 when none is visible.
    """
    return _row_penalty(xyz, visible, threshold, norm_first=True)


def scale_regularizer(
    scales: Tensor,  # [N, 3]  triangle units, or metres (--metric_scale); activated, one standard deviation
    visible: Tensor,  # [N]     bool
    threshold: float,  # in the unit of scales
) -> Tensor:
    """mean over the visible of |relu(s - threshold)|: keeps Gaussians about as small as their triangle.

    relu acts per axis, the norm is taken over the three. 0 when none is visible.
    """
    return _row_penalty(scales, visible, threshold, norm_first=False)


def local_regularizers(
    xyz: Tensor,  # [N, 3]  triangle units
    log_scales: Tensor,  # [N, 3]  logarithms of triangle units
    visible: Tensor,  # [N]     bool
    threshold_xyz: float,  # triangle units
    threshold_scale: float,  # triangle units
) -> tuple[Tensor, Tensor]:
    """`xyz_regularizer` of the positions and `scale_regularizer` of the scales, in one pass."""
    for rows in (xyz, log_scales):
        _check_rows(rows, visible)
    if kernels.usable(xyz, log_scales):
        return _LocalRegularizers.apply(xyz, log_scales, visible, threshold_xyz, threshold_scale)
    if gpu := fused.kernels("losses", _fault, xyz, log_scales):
        return gpu.LocalRegularizers.apply(xyz, log_scales, visible, threshold_xyz, threshold_scale)
    return _local_torch(xyz, log_scales, visible, threshold_xyz, threshold_scale)


def _local_torch(
    xyz: Tensor, log_scales: Tensor, visible: Tensor, threshold_xyz: float, threshold_scale: float
) -> tuple[Tensor, Tensor]:
    """`local_regularizers` in PyTorch."""
    return (xyz_regularizer(xyz, visible, threshold_xyz), scale_regularizer(log_scales.exp(), visible, threshold_scale))


def dynamic_offset(
    offset: Tensor,  # [V, 3]  metres, of one timestep
) -> Tensor:
    """mean over the vertices of |offset|: keeps per-timestep vertex offsets small."""
    return torch.linalg.vector_norm(offset, dim=-1).mean()


def dynamic_offset_std(
    offsets: Tensor,  # [T, V, 3]  metres, of all timesteps
) -> Tensor:
    """mean over the vertices of sqrt(mean over t of |offset_t - mean offset|^2).

    The standard deviation over time of a vertex, its three axes together: what
    does not move costs nothing. Passes over all timesteps in every call.
    """
    centered = offsets - offsets.mean(dim=0, keepdim=True)
    return torch.linalg.vector_norm(centered, dim=(0, 2)).mean() / offsets.shape[0] ** 0.5


def laplacian(
    offset: Tensor,  # [V, 3]  metres
    operator: Tensor,  # [V, V]  sparse, of `uniform_laplacian`
) -> Tensor:
    """mean over the vertices of |L offset|^2, square metres: keeps vertex offsets smooth over the mesh."""
    return torch.sparse.mm(operator, offset).square().sum(dim=-1).mean()


def uniform_laplacian(
    faces: Tensor,  # [F, 3]  int64 vertex indices
    vertex_count: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # [V, V]  sparse COO, on the device of `faces`
    """The operator (L x)_i = x_i - mean of the neighbors of i; zero for a vertex without any."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = torch.unique(torch.cat([edges, edges.flip(1)]), dim=0)
    degree = torch.bincount(edges[:, 0], minlength=vertex_count)
    used = torch.nonzero(degree)[:, 0]
    indices = torch.cat([edges, torch.stack([used, used], dim=1)]).T
    values = torch.cat([-1 / degree[edges[:, 0]].to(dtype), torch.ones(len(used), dtype=dtype, device=faces.device)])
    return torch.sparse_coo_tensor(indices, values, (vertex_count, vertex_count), check_invariants=True).coalesce()


def _row_penalty(rows: Tensor, visible: Tensor, threshold: float, norm_first: bool) -> Tensor:
    """The mean of a norm penalty over the visible rows; csrc/regularizers.cpp is its twin."""
    _check_rows(rows, visible)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if kernels.usable(rows):
        return _RowPenalty.apply(rows, visible, threshold, norm_first)
    # vector_norm has gradient 0 at 0. A sum over `where`, not an indexing by the
    # mask: the latter would make the host wait for the number of visible rows.
    if norm_first:
        penalty = (torch.linalg.vector_norm(rows, dim=-1) - threshold).clamp_min(0)
    else:
        penalty = torch.linalg.vector_norm((rows - threshold).clamp_min(0), dim=-1)
    return torch.where(visible, penalty, torch.zeros_like(penalty)).sum() / visible.sum().clamp_min(1)


def _check_rows(rows: Tensor, visible: Tensor) -> None:
    """The kernels trust the sizes."""
    if rows.ndim != 2 or rows.shape[1] != 3 or visible.shape != rows.shape[:1] or visible.dtype != torch.bool:
        raise ValueError(
            f"expected [N, 3] and a bool [N], got {tuple(rows.shape)} and {visible.dtype} {tuple(visible.shape)}"
        )


class _RowPenalty(torch.autograd.Function):
    """`_row_penalty` by csrc/regularizers.cpp: float32 on the CPU."""

    @staticmethod
    def forward(ctx, rows: Tensor, visible: Tensor, threshold: float, norm_first: bool) -> Tensor:
        rows, visible = rows.contiguous(), visible.contiguous()
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        sums = torch.empty(2, dtype=torch.float64)
        kernels.run("regularizer_rows", rows, visible, len(rows), threshold, norm_first, sums, gradient)
        total, count = sums.tolist()
        ctx.scale = 1.0 / max(count, 1.0)
        ctx.save_for_backward(gradient)
        return rows.new_tensor(total * ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (ctx.scale * grad.item()), None, None, None


class _LocalRegularizers(torch.autograd.Function):
    """`local_regularizers` by csrc/regularizers.cpp."""

    @staticmethod
    def forward(
        ctx, xyz: Tensor, log_scales: Tensor, visible: Tensor, threshold_xyz: float, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        xyz, log_scales, visible = xyz.contiguous(), log_scales.contiguous(), visible.contiguous()
        slopes = [
            torch.empty_like(rows) if needed else None for rows, needed in zip((xyz, log_scales), ctx.needs_input_grad)
        ]
        sums = torch.empty(3, dtype=torch.float64)
        thresholds = (threshold_xyz, threshold_scale)
        kernels.run("regularizer_local", xyz, log_scales, visible, len(xyz), *thresholds, sums, *slopes)
        xyz_sum, scale_sum, count = sums.tolist()
        ctx.scale = 1.0 / max(count, 1.0)
        ctx.save_for_backward(*slopes)
        return xyz.new_tensor(xyz_sum * ctx.scale), xyz.new_tensor(scale_sum * ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slopes = (
            None if slope is None else slope * (ctx.scale * grad.item())
            for slope, grad in zip(ctx.saved_tensors, grads)
        )
        return (*slopes, None, None, None)


def _fault(gpu: Any, device: torch.device) -> str | None:
    """What is wrong with the Triton kernels, by pictures with and without weights and gradient, and a few Gaussians."""
    random = torch.Generator().manual_seed(0)
    image, truth = (torch.rand(3, 19, 23, generator=random, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(1, 19, 23, generator=random, dtype=torch.float64)
    leaf = image.clone().requires_grad_()
    for seen, shown in ((image, None), (leaf, None), (leaf, weights)):
        inputs = {"image": seen, "ground truth": truth, "weights": shown}
        if found := fused.difference(gpu.Photometric.apply, _photometric_torch, inputs, device):
            return found
    xyz, scales = (torch.randn(300, 3, generator=random, dtype=torch.float64).requires_grad_() for _ in range(2))
    visible = torch.rand(300, generator=random) < 0.7
    rows = {"xyz": xyz, "scales": scales, "visible": visible, "xyz's threshold": 1.0, "scales' threshold": 0.6}
    return fused.difference(gpu.LocalRegularizers.apply, _local_torch, rows, device)
