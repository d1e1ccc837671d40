"""Builds the innovations that a run has switched on; what is off is an object or a function that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy

import torch
from torch import Tensor
from torch.nn import Parameter

from arguments import InnovationOptions
from innovations.color_calibration import ColorCalibration, NoColorCalibration
from innovations.dense_start import detail, place
from innovations.expression_appearance import ExpressionCode
from innovations.progressive_resolution import ProgressiveResolution
from innovations.region_adaptive_loss import NoRegionWeights, RegionAdaptiveLoss
from innovations.unseen_colors import VIEWS, filled, hidden_parts, pixels_seen
from innovations.warm_start import CLASSICAL_START, WarmStart, spread_views, triangle_colors
from ops.sh import from_colors
from ops.types import Camera, RenderOut
from scene.dataset import Dataset
from scene.gaussian_model import GaussianModel
from training.objective import Terms
from training.views import Views
from utils.errors import UserError


def build_progressive(extra: InnovationOptions) -> ProgressiveResolution:
    """The scale of the images over time; without the flag always 1."""
    if not extra.use_progressive_resolution:
        return ProgressiveResolution()
    return ProgressiveResolution(extra.resolution_schedule, extra.resolution_milestones)


def build_region(
    extra: InnovationOptions, avatar: GaussianModel, *, quiet: bool
) -> RegionAdaptiveLoss | NoRegionWeights:
    """The weights of the picture's regions; without a mesh those of a portrait. Says what no mask describes."""
    if not extra.use_region_adaptive_loss:
        return NoRegionWeights()
    weights = (extra.region_weight_eyes, extra.region_weight_mouth, extra.region_weight_nose, extra.region_weight_face)
    if avatar.flame is None:
        return RegionAdaptiveLoss(*weights)
    region = RegionAdaptiveLoss(*weights, faces=avatar.flame.faces, masks=avatar.flame.masks)
    if region.note and not quiet:
        print(region.note)
    return region


def build_color(
    extra: InnovationOptions, views: Views, *, seed: int
) -> tuple[ColorCalibration | NoColorCalibration, Callable[[Tensor], Terms]]:
    """The color calibration, and the terms that it adds to the loss of a rendering [3, H, W]."""
    if not extra.use_color_calibration:
        return NoColorCalibration(), lambda image: {}
    color = ColorCalibration(
        [camera.camera_id for camera in views.cameras["train"]],
        hidden_dim=extra.color_net_hidden_dim,
        num_layers=extra.color_net_layers,
        per_camera=extra.color_per_camera,
        rate=extra.color_lr,
        background=views.background,
        generator=torch.Generator().manual_seed(seed + 3),
        device=views.background.device,
    )

    def terms(image: Tensor) -> Terms:
        found = {}
        if extra.lambda_color_drift:
            found["col_drift"] = extra.lambda_color_drift * color.drift(image)
        if extra.lambda_color_reg:
            found["col_reg"] = torch.as_tensor(extra.lambda_color_reg * color.regularizer())
        return found

    return color, terms


def build_warm_start(extra: InnovationOptions) -> WarmStart:
    """How the run begins, and the factors on its learning rates."""
    if not extra.use_warm_start:
        return CLASSICAL_START
    return WarmStart(
        colors=extra.warm_colors,
        opacity=extra.warm_opacity,
        scale=extra.warm_scale,
        skip_resets=extra.warm_skip_resets,
        # After a reset all opacities are lower than that.
        prune_opacity=extra.warm_prune_opacity if extra.warm_skip_resets else CLASSICAL_START.prune_opacity,
        feature_factor=extra.warm_feature_lr_factor,
        flame_expr_factor=extra.warm_expr_lr_factor,
        flame_pose_factor=extra.warm_pose_lr_factor,
        flame_trans_factor=extra.warm_trans_lr_factor,
        gaussians=extra.warm_gaussians,
    )


@torch.no_grad()
def warm_up(avatar: GaussianModel, warm: WarmStart, views: Views) -> None:
    """Gives a fresh avatar the start that `warm` describes."""
    if warm == CLASSICAL_START:
        return
    flame, parameters = avatar.flame, avatar.flame_parameters
    if flame is None or parameters is None:
        raise UserError("--use_warm_start is for avatars on a head mesh: add --bind_to_mesh, or --no_warm_start")
    cameras, image = views.cameras["train"], views.ground_truth["train"]
    chosen = spread_views(cameras)

    def shown() -> Iterator[tuple[Camera, Tensor, Tensor]]:
        for index in chosen:
            yield cameras[index], image(index), flame.vertices(parameters, cameras[index].timestep)

    points = None
    if warm.gaussians > len(avatar):
        placed = place(detail(shown(), flame.faces), warm.gaussians)
        points = placed.binding, placed.weights
        corners = flame.vertices(parameters, cameras[chosen[0]].timestep)
        avatar.spread(placed.binding, placed.weights, corners)
    avatar.opacity.fill_(warm.raw_opacity)
    avatar.scaling.fill_(warm.raw_scale)
    if points:
        avatar.scaling.add_(0.5 * placed.share.log()[:, None])
    if warm.colors:
        colors, _ = triangle_colors(shown(), flame.faces, views.background.tolist(), points)
        avatar.features[:, 0] = from_colors(colors if points else colors[avatar.binding])


def build_appearance(extra: InnovationOptions, avatar: GaussianModel, dataset: Dataset) -> None:
    """Gives the avatar the modes by which its colors follow the expression; off, it loses those that it has.

    Raises:
        UserError: a static scene, or the expression is the same in all training views.
    """
    parameters = avatar.flame_parameters
    if not extra.use_expression_appearance:
        avatar.modes = avatar.expression = None
    elif parameters is None:
        raise UserError(
            "--use_expression_appearance is for avatars on a head mesh: add --bind_to_mesh, or "
            "--no_expression_appearance"
        )
    elif avatar.modes is None:
        rows = sorted({view.camera.timestep for view in dataset.train})
        count = extra.expression_appearance_modes
        avatar.expression = ExpressionCode.of(parameters.values[rows], parameters.columns, count)
        avatar.modes = Parameter(torch.zeros(len(avatar), len(avatar.expression.low), 3, device=avatar.device))


def build_finish(
    extra: InnovationOptions, avatar: GaussianModel, views: Views, draw: Callable[..., RenderOut]
) -> Callable[[], GaussianModel]:
    """What gives what is saved of the avatar: itself, or with --fill_unseen a copy with other colors."""

    @torch.no_grad()
    def finished() -> GaussianModel:
        cameras = views.cameras["train"]
        chosen = [cameras[index] for index in spread_views(cameras, VIEWS)]
        seen = pixels_seen(((camera, avatar(camera.timestep)[0]) for camera in chosen), draw)
        if avatar.flame is not None and avatar.binding is not None:
            flame = avatar.flame
            seen[hidden_parts(flame.masks, flame.faces[avatar.binding], len(flame.v_template))] = torch.inf
        copied, features, means = copy(avatar), avatar.features, avatar(0)[0].means
        # Modes of the base color are lent as that is.
        changes = features[:, :0] if avatar.modes is None else avatar.modes
        count = changes.shape[1]
        colors = torch.cat([changes, features], dim=1)
        colors = filled(colors, seen, means, extra.fill_unseen, shared=count + 1)
        copied.features = Parameter(colors[:, count:].contiguous())
        if avatar.modes is not None:
            copied.modes = Parameter(colors[:, :count].contiguous())
        return copied

    return finished if extra.fill_unseen else lambda: avatar
