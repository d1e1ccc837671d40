"""Builds what the efficient innovations came to replace: costly, off by default, and still typed by users."""

from __future__ import annotations

from typing import NamedTuple

import torch

from arguments import Options
from innovations.adaptive_densification import NO_ADAPTIVE_DENSIFICATION, AdaptiveDensification, NoAdaptiveDensification
from innovations.perceptual_loss import NO_PERCEPTUAL_LOSS, NoPerceptualLoss, PerceptualLoss
from innovations.temporal_consistency import (
    NO_TEMPORAL_CONSISTENCY,
    NoTemporalConsistency,
    TemporalConsistency,
    neighbors,
)
from scene.dataset import Dataset
from scene.gaussian_model import GaussianModel
from utils.errors import UserError


class Former(NamedTuple):
    """What the efficient innovations came to replace."""

    perceptual: PerceptualLoss | NoPerceptualLoss
    adaptive: AdaptiveDensification | NoAdaptiveDensification
    temporal: TemporalConsistency | NoTemporalConsistency


def build_former(options: Options, dataset: Dataset, avatar: GaussianModel) -> Former:
    """The VGG loss, adaptive densification and temporal consistency.

    Raises:
        UserError: one that is on lacks something, or can have no effect.
    """
    extra, flame, parameters = options.innovations, avatar.flame, avatar.flame_parameters
    perceptual: PerceptualLoss | NoPerceptualLoss = NO_PERCEPTUAL_LOSS
    adaptive: AdaptiveDensification | NoAdaptiveDensification = NO_ADAPTIVE_DENSIFICATION
    temporal: TemporalConsistency | NoTemporalConsistency = NO_TEMPORAL_CONSISTENCY
    for name in ("adaptive_densification", "temporal_consistency"):
        if getattr(extra, f"use_{name}") and flame is None:
            raise UserError(f"--use_{name} is for avatars on a head mesh: add --bind_to_mesh, or --no_{name}")
    if extra.use_temporal_consistency and parameters is not None:
        if not parameters.trainable:
            raise UserError(
                "--use_temporal_consistency has nothing to hold together where FLAME parameters are not fine-tuned: "
                "leave out --not_finetune_flame_params, or add --no_temporal_consistency"
            )
        places: dict[int, set[str]] = {}
        for view in dataset.train:
            places.setdefault(view.camera.timestep, set()).add(str(view.image_path.parent))
        beside = neighbors(parameters.timesteps, places)
        if not any(row is not None for pair in beside.values() for row in pair):
            raise UserError(
                "--use_temporal_consistency: no two training timesteps follow each other in this capture, so there is "
                "nothing to hold together; add --no_temporal_consistency"
            )
        temporal = TemporalConsistency(
            extra.lambda_temporal, parameters.row, parameters.values, parameters.columns, beside
        )
    if extra.use_adaptive_densification and flame is not None:
        adaptive = AdaptiveDensification(
            extra.adaptive_densify_ratio, lambda: torch.as_tensor(avatar.binding), flame.faces, flame.masks
        )
        if adaptive.note and not options.run.quiet:
            print(adaptive.note)
    if extra.use_vgg_loss:
        scales = extra.resolution_schedule if extra.use_progressive_resolution else (1.0,)
        cameras = [view.camera.scaled(min(scales)) for view in dataset.train]
        smallest = min(min(camera.width, camera.height) for camera in cameras)
        perceptual = PerceptualLoss.published(extra.lambda_perceptual, options.run.ram_share, avatar.device, smallest)
    return Former(perceptual, adaptive, temporal)
