"""What training minimizes: the photometric loss and the regularizers, each with its weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arguments import OptimizationOptions
from innovations.perceptual_loss import NO_PERCEPTUAL_LOSS, NoPerceptualLoss, PerceptualLoss
from innovations.temporal_consistency import NO_TEMPORAL_CONSISTENCY, NoTemporalConsistency, TemporalConsistency
from ops import losses
from ops.types import Gaussians, RenderOut
from scene.flame import FlameParameters
from scene.gaussian_model import GaussianModel

Terms = dict[str, Tensor]  # the weighted terms of the loss by name, and their sum as "total"


class Objective:
    """The loss of one view. It trains the per-timestep vertex offsets where one of their weights is above 0."""

    def __init__(
        self,
        optim: OptimizationOptions,
        avatar: GaussianModel,
        color_terms: Callable[[Tensor], Terms] = lambda image: {},
        lambda_alpha: float = 0.0,
        perceptual: PerceptualLoss | NoPerceptualLoss = NO_PERCEPTUAL_LOSS,
        temporal: TemporalConsistency | NoTemporalConsistency = NO_TEMPORAL_CONSISTENCY,
    ) -> None:
        """`color_terms` gives what the color calibration adds for a picture; `lambda_alpha` weights the silhouette."""
        self.optim, self.avatar, self.color_terms, self.lambda_alpha = optim, avatar, color_terms, lambda_alpha
        self.perceptual, self.temporal = perceptual, temporal
        self.offset_terms: Callable[[int], Terms] = lambda timestep: {}
        weights = (optim.lambda_dynamic_offset, optim.lambda_dynamic_offset_std, optim.lambda_laplacian)
        if avatar.flame is not None and avatar.flame_parameters is not None and any(weights):
            avatar.flame_parameters.train_dynamic_offset()
            laplacian = losses.uniform_laplacian(avatar.flame.faces, avatar.flame.v_template.shape[0])
            self.offset_terms = _OffsetTerms(optim, avatar.flame_parameters, laplacian)

    def __call__(
        self,
        gaussians: Gaussians,
        vertices: Tensor | None,  # [V, 3] metres, of the mesh
        out: RenderOut,
        image: Tensor,  # [3, H, W] the picture of `out` in calibrated colors
        ground_truth: Tensor,  # [3, H, W]
        alpha: Tensor | None,  # [1, H, W] of the ground truth, if it is known
        weights: Tensor | None,  # [1, H, W] of the regions; None weights evenly
        timestep: int,
        index: int,  # of the view
    ) -> Terms:
        """The terms, and their sum as "total"."""
        terms = {
            **image_terms(self.optim, image, ground_truth, weights),
            **local_terms(self.optim, self.avatar, gaussians, vertices, out.radii > 0),
            **alpha_terms(self.lambda_alpha, out.alpha, alpha),
            **self.color_terms(out.image),
            **self.offset_terms(timestep),
            **self.perceptual(index, image, ground_truth),
            **self.temporal(timestep),
        }
        return {"total": torch.as_tensor(sum(terms.values())), **terms}


def image_terms(optim: OptimizationOptions, image: Tensor, ground_truth: Tensor, weights: Tensor | None) -> Terms:
    """L1 and 1 - SSIM."""
    l1, ssim = losses.photometric(image, ground_truth, weights)
    return {"l1": (1.0 - optim.lambda_dssim) * l1, "ssim": optim.lambda_dssim * (1.0 - ssim)}


def alpha_terms(weight: float, alpha: Tensor, ground_truth: Tensor | None) -> Terms:
    """L1 between the alpha [1, H, W] of a rendering and of its ground truth; 0 where that is not known.

    Over one background alone, what has its color costs nothing: without this term white Gaussians gather along the
    outline of a head that is photographed over white. Color and alpha together fix the picture over any background.
    """
    if not weight:
        return {}
    if ground_truth is None:
        return {"alpha": torch.zeros((), device=alpha.device)}
    # The mean of |d| as a product with the signs: autograd's own takes half as long again.
    difference = (alpha - ground_truth).flatten()
    return {"alpha": torch.dot(difference.detach().sign(), difference) * (weight / difference.numel())}


def local_terms(
    optim: OptimizationOptions,
    avatar: GaussianModel,
    gaussians: Gaussians,
    vertices: Tensor | None,  # [V, 3]
    visible: Tensor,  # [N] bool
) -> Terms:
    """What keeps bound Gaussians near their triangle and about as small; nothing in a static scene."""
    if avatar.binding is None or vertices is None:
        return {}
    if optim.lambda_xyz and optim.lambda_scale and not (optim.metric_xyz or optim.metric_scale):
        xyz, scale = losses.local_regularizers(
            avatar.xyz, avatar.scaling, visible, optim.threshold_xyz, optim.threshold_scale
        )
        return {"xyz": optim.lambda_xyz * xyz, "scale": optim.lambda_scale * scale}
    terms = {}
    if optim.lambda_xyz:
        offset: Tensor = avatar.xyz
        if optim.metric_xyz:
            offset = offset * avatar.triangle_scales(vertices)[avatar.binding, None]
        terms["xyz"] = optim.lambda_xyz * losses.xyz_regularizer(offset, visible, optim.threshold_xyz)
    if optim.lambda_scale:
        scales = gaussians.scales if optim.metric_scale else avatar.scaling.exp()
        terms["scale"] = optim.lambda_scale * losses.scale_regularizer(scales, visible, optim.threshold_scale)
    return terms


class _OffsetTerms:
    """The losses on the per-timestep vertex offsets."""

    def __init__(self, optim: OptimizationOptions, parameters: FlameParameters, laplacian: Tensor) -> None:
        self.optim, self.parameters, self.laplacian = optim, parameters, laplacian

    def __call__(self, timestep: int) -> Terms:
        """The terms of the offset that `timestep` was rendered with; gradients reach that one only."""
        optim, offset = self.optim, self.parameters.dynamic_row(timestep)
        terms = {}
        if optim.lambda_dynamic_offset:
            terms["dynamic_offset"] = optim.lambda_dynamic_offset * losses.dynamic_offset(offset)
        if optim.lambda_dynamic_offset_std:
            others: Any = self.parameters.dynamic_offset
            every = torch.cat([others[:timestep], offset[None], others[timestep + 1 :]])
            terms["dynamic_offset_std"] = optim.lambda_dynamic_offset_std * losses.dynamic_offset_std(every)
        if optim.lambda_laplacian:
            terms["laplacian"] = optim.lambda_laplacian * losses.laplacian(offset, self.laplacian)
        return terms


def mean_terms(batch: list[Terms]) -> Terms:
    """The losses of a step, for show: means over its views."""
    if len(batch) == 1:
        return {name: value.detach() for name, value in batch[0].items()}
    return {name: torch.stack([terms[name].detach() for terms in batch]).mean() for name in batch[0]}
