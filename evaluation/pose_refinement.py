"""Test-time pose refinement: fits the FLAME parameters of frames that nobody trained on, with the avatar frozen.

Training fine-tunes the parameters of its own frames. Those of a held-out
sequence keep the tracker's noise, which then costs more than what the avatar
itself gets wrong. Here each such frame is fitted by gradient descent through
the rasterizer to photographs of some cameras, and measured on the others: the
views that are measured are never looked at (`split_views`).

Expression, poses and translation move; identity and offsets stay. The steps are
Adam's (Kingma & Ba 2015) in units of a tracker's typical error, so that one
rate serves coefficients, radians and metres alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ops import losses
from ops.types import Camera
from scene.dataset import View
from scene.gaussian_model import GaussianModel
from utils.errors import UserError

# A tracker's typical error, one standard deviation. Only the ratios matter much;
# they are about those of training's learning rates as the warm start sets them.
EXPRESSION_ERROR = 0.03  # per coefficient
POSE_ERROR = 0.005  # radians
TRANSLATION_ERROR = 3e-4  # metres
RATE = 0.4  # units that a parameter may move in the first step
LAST_RATE = 0.04  # ... and in the last one; in between, linear
BETA1, BETA2, EPSILON = 0.8, 0.99, 1e-15  # a short memory, for a run of a few dozen steps
SSIM_WEIGHT = 0.2  # as in training; L1 takes the rest


class SplitViews(NamedTuple):
    """Views of a split by their part in a refinement; the rest of the split has neither."""

    looked_at: list[int]  # what the parameters are fitted to
    measured: list[int]  # the same timesteps, seen by other cameras


class Fit(NamedTuple):
    """How the refinement of one timestep went."""

    before: float  # the photometric loss over the views looked at, as tracked
    after: float  # ... and refined; never larger


G = TypeVar("G")


def split_views(
    timesteps: Sequence[int],  # [n] of each view of the split
    camera_indices: Sequence[int],  # [n] as the capture numbers its cameras
    *,
    trained: Collection[int],  # the timesteps that were trained on: they need no refinement
    allowed: Collection[int],  # the cameras that may be looked at
) -> SplitViews:
    """Which views of a held-out split to fit, and which to measure.

    Raises:
        UserError: none can be fitted, or none would be left to measure.
    """
    known = sorted(set(camera_indices))
    for camera in allowed:
        if camera not in known:
            raise UserError(
                f"--refine_cameras {camera}: the test split has no view of this camera, only of "
                f"{', '.join(map(str, known)) or 'none'}"
            )
    fresh = [i for i, timestep in enumerate(timesteps) if timestep not in trained]
    if not fresh:
        raise UserError("there is no pose to refine: every timestep of the test split was trained on")
    looked_at = [i for i in fresh if camera_indices[i] in allowed]
    fitted = {timesteps[i] for i in looked_at}
    measured = [i for i in fresh if camera_indices[i] not in allowed and timesteps[i] in fitted]
    if not measured:
        raise UserError(
            f"--refine_cameras leaves no view to measure: name fewer of the cameras {', '.join(map(str, known))}"
        )
    return SplitViews(looked_at, measured)


def refinable_views(test: Sequence[View], train: Sequence[View], allowed: Collection[int]) -> SplitViews:
    """`split_views` of the `test` views of a capture that was trained on its `train` views."""
    return split_views(
        [view.timestep_index for view in test],
        [view.camera_index for view in test],
        trained={view.timestep_index for view in train},
        allowed=allowed,
    )


def parameter_units(columns: Mapping[str, slice], device: torch.device | str = "cpu") -> Tensor:
    """[D] the typical tracking error of each value of a row with these `columns`."""
    errors = {"expr": EXPRESSION_ERROR, "translation": TRANSLATION_ERROR}
    units = torch.empty(max(part.stop for part in columns.values()))
    for name, part in columns.items():
        units[part] = errors.get(name, POSE_ERROR)
    return units.to(device)


def refine_poses(
    avatar: Callable[[int], tuple[G, Any]],  # timestep -> Gaussians in world space, and the mesh
    row: Callable[[int], Tensor],  # timestep -> [D] its parameters, an autograd leaf; moved in place
    cameras: Sequence[Camera],  # the views
    ground_truth: Callable[[int], Tensor],  # index of a view -> [3, H, W] 0..1
    render: Callable[[G, Camera], Any],  # Gaussians and camera -> what has an `image` [3, H, W]
    units: Tensor,  # [D] of `parameter_units`
    *,
    indices: Sequence[int],  # the views that may be looked at
    steps: int,
    on_timestep: Callable[[int], None] | None = None,
) -> dict[int, Fit]:
    """Fits the row of every timestep that `indices` name to those views; returns how each went.

    Nothing else changes, and no other photograph is asked for. Gradients reach
    the row alone, so the avatar needs no freezing. A timestep that did not get
    better (or not finite) keeps its tracked parameters. Draws no random numbers.

    Args:
        steps: of descent per timestep, each on one of its views in turn: twice
            the steps on half the views each gains more than all views in every step.
        on_timestep: called after each, for a progress bar.
    """
    views: dict[int, list[int]] = {}
    for index in indices:
        views.setdefault(cameras[index].timestep, []).append(index)
    fits = {}
    for timestep in sorted(views):
        ground_truths = [ground_truth(index) for index in views[timestep]]

        def loss(number: int) -> Tensor:
            gaussians, _ = avatar(timestep)
            image = render(gaussians, cameras[views[timestep][number]]).image
            l1, ssim = losses.photometric(image, ground_truths[number])
            return (1.0 - SSIM_WEIGHT) * l1 + SSIM_WEIGHT * (1.0 - ssim)

        fits[timestep] = _descend(row(timestep), loss, len(ground_truths), units, steps)
        if on_timestep is not None:
            on_timestep(timestep)
    return fits


def refine_motion(
    avatar: GaussianModel,
    cameras: Sequence[Camera],  # the views, with the rows of the avatar's motion as timesteps
    ground_truth: Callable[[int], Tensor],  # index of a view -> [3, H, W] 0..1
    draw: Callable[..., Any],  # Gaussians and camera -> what has an `image` [3, H, W]
    indices: Sequence[int],  # the views that may be looked at
    steps: int,
    on_timestep: Callable[[int], None] | None = None,
) -> dict[int, Fit]:
    """`refine_poses` of an avatar's own motion, in memory."""
    motion = avatar.flame_parameters
    assert motion is not None  # whoever has views to refine has a head
    motion.trainable = True
    units = parameter_units(motion.columns, motion.device)
    fits = refine_poses(
        avatar, motion.row, cameras, ground_truth, draw, units, indices=indices, steps=steps, on_timestep=on_timestep
    )
    motion.clear_gradients()
    return fits


def _descend(row: Tensor, loss: Callable[[int], Tensor], views: int, units: Tensor, steps: int) -> Fit:
    """Adam on one leaf [D], one view's loss per step, with a rate that falls linearly; undone when it did not help."""
    start = row.detach().clone()
    before = _mean(loss, views)
    first, second = torch.zeros_like(units), torch.zeros_like(units)
    for step in range(1, steps + 1):
        (gradient,) = torch.autograd.grad(loss((step - 1) % views), row)
        with torch.no_grad():
            gradient = gradient * units
            first.lerp_(gradient, 1.0 - BETA1)
            second.lerp_(gradient.square(), 1.0 - BETA2)
            rate = RATE + (LAST_RATE - RATE) * (step - 1) / max(1, steps - 1)
            denominator = (second / (1.0 - BETA2**step)).sqrt_().add_(EPSILON)
            row.addcdiv_(first * units, denominator, value=-rate / (1.0 - BETA1**step))
    after = _mean(loss, views)
    if after <= before and bool(row.isfinite().all()):
        return Fit(before, after)
    with torch.no_grad():
        row.copy_(start)
    return Fit(before, before)


@torch.no_grad()
def _mean(loss: Callable[[int], Tensor], views: int) -> float:
    """The mean loss over the views; only here the host waits for a GPU."""
    return torch.stack([loss(number) for number in range(views)]).mean().item()


def summary(fits: Mapping[int, Fit]) -> dict[str, float]:
    """Means over the timesteps, for the report."""
    count = len(fits)
    return {
        "timesteps": count,
        "loss_as_tracked": math.fsum(fit.before for fit in fits.values()) / count,
        "loss_refined": math.fsum(fit.after for fit in fits.values()) / count,
    }
