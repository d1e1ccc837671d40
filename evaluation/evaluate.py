"""Rendering views and measuring them against the photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.metrics import Suite
from ops.types import Camera, Gaussians, RenderOut


@dataclass(frozen=True)
class Evaluated:
    """One view, rendered and measured; what `on_image` is given."""

    index: int  # in the list of cameras
    camera: Camera
    image: Tensor  # [3, H, W] 0..1
    ground_truth: Tensor | None  # [3, H, W] 0..1; None where nobody took a photograph
    vertices: Tensor | None  # [V, 3] the mesh, world space; None for a static scene
    metrics: dict[str, float | None]  # of this view


@torch.no_grad()
def evaluate(
    avatar: Callable[[int], tuple[Gaussians, Tensor | None]],
    cameras: Sequence[Camera],
    ground_truth: Callable[[int], Tensor] | None,
    render: Callable[[Gaussians, Camera], RenderOut],
    suite: Suite,
    *,
    indices: Iterable[int] | None = None,
    on_image: Callable[[Evaluated], None] | None = None,
) -> dict[str, float | None]:
    """Renders views and returns each metric's mean over them.

    It draws no random numbers, so that a training goes on the same whether it
    was evaluated or not.

    Args:
        avatar: timestep -> Gaussians in world space and the mesh.
        cameras: the views; each on the device of the avatar.
        ground_truth: index -> its photograph, [3, H, W] float 0..1 on that device;
            None renders without measuring (a motion that nobody photographed).
        render: Gaussians and camera -> picture.
        suite: a new `evaluation.metrics.Suite`; unused without ground truth.
        indices: which of the cameras, default all.
        on_image: called with each view, for writing it somewhere.

    Returns:
        Means by metric name; None where a metric could not be had. Empty without ground truth.
    """
    for index in range(len(cameras)) if indices is None else indices:
        camera = cameras[index]
        gaussians, vertices = avatar(camera.timestep)
        image = render(gaussians, camera).image.clamp(0.0, 1.0)
        truth = ground_truth(index) if ground_truth is not None else None
        metrics = suite.add(image, truth, index) if truth is not None else {}
        if on_image is not None:
            on_image(Evaluated(index, camera, image, truth, vertices, metrics))
    return suite.mean() if ground_truth is not None else {}


def calibrated(draw: Callable[..., RenderOut], color: Callable[..., Tensor]) -> Callable[..., RenderOut]:
    """`draw`, with the picture in the colours of the camera's photographs: what is evaluated and shown.

    Args:
        color: (image [3, H, W], camera id, alpha [1, H, W]) -> image [3, H, W].
    """

    def colored(gaussians: Gaussians, camera: Camera, **settings: object) -> RenderOut:
        out = draw(gaussians, camera, **settings)
        return out._replace(image=color(out.image, camera.camera_id, out.alpha))

    return colored


def mean_metrics(views: Iterable[Mapping[str, float | None]], names: Iterable[str]) -> dict[str, float | None]:
    """The means of these metrics over some of the views that `evaluate` reported; None where none has a value."""
    views = list(views)
    values = {name: [value for view in views if (value := view[name]) is not None] for name in names}
    return {name: sum(known) / len(known) if known else None for name, known in values.items()}


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices below `count`, spread over all of them, first and last included.

    >>> evenly_spaced(10, 4)
    [0, 3, 6, 9]
    """
    if wanted >= count:
        return list(range(count))
    if wanted <= 1:
        return list(range(count))[:wanted]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
