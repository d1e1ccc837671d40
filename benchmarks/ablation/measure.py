"""What one finished training is worth: the error by region of the head, and its curves.

The regions of a view partition its pixels. The silhouette, everything within `OUTLINE` pixels of the outline
of the foreground, comes first; what the head model's mesh shows at a pixel decides about the others (eyes,
mouth, nose, rest of the face), and the remainder, scalp, neck and background, is `rest`. The mesh is posed as
the tracker says, not as a run has tuned it, so that all runs are judged by the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from benchmarks.common import mesh_vertices, open_trained
from evaluation import metrics
from evaluation.evaluate import Evaluated, calibrated, evaluate
from gaussian_renderer.mesh_overlay import visible_faces
from scene.dataset import Dataset, View
from scene.flame import FlameParameters, HeadModel
from scene.images.cache import ImageCache
from training.reporter import GROUPS

# By rising precedence on the mesh; "rest" is what none of them claims.
MESH_REGIONS = {
    "face": ("face",),
    "nose": ("nose",),
    "mouth": ("lips", "teeth"),
    "eyes": ("eye_region", "right_eye_region", "left_eye_region", "right_eyeball", "left_eyeball"),
}
REGIONS = ("eyes", "mouth", "nose", "face", "silhouette", "rest")
OUTLINE = 2.0  # pixels on either side of the outline
NEARLY_BACKGROUND = 3  # grey levels; where there is no mask, what differs by more is foreground
SAME_PICTURE = 0.02  # dB between the PSNR measured here and in results.json


# ---- which pixel belongs to which region ------------------------------------------


def face_regions(faces: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """[F] int, the place in `REGIONS` of each triangle [F, 3]: the region that holds at least two of its vertices."""
    result = np.full(len(faces), REGIONS.index("rest"))
    for region, names in MESH_REGIONS.items():
        inside = np.zeros(faces.max() + 1, dtype=bool)
        for name in names:
            inside[masks.get(name, [])] = True
        result[inside[faces].sum(axis=1) >= 2] = REGIONS.index(region)
    return result


def outline(foreground: np.ndarray, width: float = OUTLINE) -> np.ndarray:
    """[H, W] bool, the pixels within `width` of the outline of `foreground` [H, W] bool; the image's edge is none."""
    if foreground.all() or not foreground.any():
        return np.zeros_like(foreground)
    # The distance counts from pixel center to pixel center: to the nearest one on the other side.
    distance = np.where(
        foreground, ndimage.distance_transform_edt(foreground), ndimage.distance_transform_edt(~foreground)
    )
    return distance <= width


def label_pixels(face: np.ndarray, regions: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """[H, W] int, the place in `REGIONS` of each pixel.

    Args:
        face: [H, W] int, the triangle seen, -1 for none.
        regions: [F] int, of `face_regions`.
        foreground: [H, W] bool.
    """
    labels = np.where(face >= 0, regions[face], REGIONS.index("rest"))
    labels[outline(foreground)] = REGIONS.index("silhouette")
    return labels


def foreground_of(view: View, ground_truth: Tensor, background: tuple[float, float, float]) -> np.ndarray:
    """[H, W] bool: the capture's mask, else where the image [3, H, W] is not of the background's color."""
    if view.mask_path is not None:
        with Image.open(view.mask_path) as image:
            size = (view.camera.width, view.camera.height)
            return np.asarray(image.convert("L").resize(size, Image.Resampling.BOX)) >= 128
    distance = (ground_truth.cpu() - torch.tensor(background)[:, None, None]).abs().amax(dim=0)
    return (distance > NEARLY_BACKGROUND / 255).numpy()


class RegionError:
    """Squared errors, summed by region over the views of a split."""

    def __init__(self) -> None:
        self.sums = np.zeros(len(REGIONS))
        self.pixels = np.zeros(len(REGIONS), dtype=np.int64)

    def add(self, image: np.ndarray, ground_truth: np.ndarray, labels: np.ndarray) -> None:
        """One view: [3, H, W] twice, 0..1, and [H, W]."""
        error = np.square(image.astype(np.float64) - ground_truth).mean(axis=0)
        self.sums += np.bincount(labels.ravel(), error.ravel(), minlength=len(REGIONS))
        self.pixels += np.bincount(labels.ravel(), minlength=len(REGIONS))

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Per region: PSNR from the mean over all its pixels (in some views it has hardly any, which would spoil a
        mean of PSNRs), its share of the squared error, and its share of the area."""
        total = max(self.sums.sum(), 1e-30)
        return {
            name: {
                "psnr": -10 * math.log10(max(sum_ / count, metrics.SMALLEST_MSE)) if count else None,
                "error_share": sum_ / total,
                "area_share": count / max(self.pixels.sum(), 1),
            }
            for name, sum_, count in zip(REGIONS, self.sums.tolist(), self.pixels.tolist())
        }


# ---- a run ------------------------------------------------------------------------


class Split(NamedTuple):
    """Images of a split, on the CPU."""

    ground_truth: list[Tensor]  # [3, H, W] 0..1
    labels: list[np.ndarray]  # [H, W], of `label_pixels`


class Judge:
    """Measures runs on one capture, whose images and regions are made once, for the first run."""

    def __init__(self) -> None:
        self._splits: dict[tuple[Any, ...], Split] = {}

    def measure(self, run: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        """{"regions": {split: ...}, "curves": ...} of the finished run in folder `run`, whose results.json is given.

        Raises:
            ValueError: the pictures drawn here are not those that the run has measured.
            UserError: the run or its capture is not there.
        """
        return {"regions": self._regions(run, results), "curves": read_curves(run)}

    def _regions(self, run: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        avatar, dataset = open_trained(run)
        device, summaries = avatar.model.device, {}
        assert avatar.head is not None
        for name, views in (("val", dataset.val), ("test", dataset.test)):
            if not views:
                continue
            key = (name, views[0].image_path, views[0].camera.width, dataset.background)
            if key not in self._splits:
                self._splits[key] = prepare(avatar.head, dataset, views)
            split = self._splits[key]
            errors = RegionError()

            def add(view: Evaluated) -> None:
                index = view.index
                errors.add(view.image.cpu().numpy(), split.ground_truth[index].numpy(), split.labels[index])

            psnr = evaluate(
                avatar.model,
                [view.camera.to(device) for view in views],
                lambda index: split.ground_truth[index].to(device),
                calibrated(avatar.draw, avatar.color),
                metrics.Suite(("psnr",)),
                on_image=add,
            )["psnr"]
            known = results["metrics"][name]["psnr"]
            if psnr is None or abs(psnr - known) > SAME_PICTURE:
                raise ValueError(f"{run}: {name} has {psnr} dB here and {known} dB in results.json: drawn differently")
            summaries[name] = errors.summary()
        return summaries


def prepare(head: HeadModel, dataset: Dataset, views: Sequence[View]) -> Split:
    """Decodes the images and labels their pixels by the head as tracked."""
    assert dataset.flame is not None
    parameters = FlameParameters(dataset.flame, dataset.timesteps, head, trainable=False)
    regions = face_regions(head.faces.numpy(), {name: ids.numpy() for name, ids in head.masks.items()})
    images = ImageCache(views, dataset.background, progress=False)
    ground_truth = [images.image(index, "cpu") for index in range(len(views))]
    labels = []
    meshes = mesh_vertices(head, parameters, [view.camera.timestep for view in views])
    for view, image, vertices in zip(views, ground_truth, meshes):
        seen = visible_faces(vertices, head.faces, view.camera)[0]
        labels.append(label_pixels(seen, regions, foreground_of(view, image, dataset.background)))
    return Split(ground_truth, labels)


def read_curves(run: Path) -> dict[str, list[list[float]]]:
    """[iteration, value] pairs from the TensorBoard files: "points", "seconds" (of training, evaluations left out),
    and "<split>/psnr" of the evaluations on the way, which look at a few views; the last one, at all, is left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    curves: dict[str, list[list[float]]] = {}
    if "points/total" in tags:
        curves["points"] = [[event.step, event.value] for event in events.Scalars("points/total")]
    if "time/iteration_ms" in tags:
        seconds, before, curves["seconds"] = 0.0, 0, []
        for event in events.Scalars("time/iteration_ms"):
            seconds += 1e-3 * event.value * (event.step - before)
            before = event.step
            curves["seconds"].append([event.step, round(seconds, 3)])
    for split in ("val", "test"):
        if (tag := f"{GROUPS[split]}/psnr") in tags:
            curves[f"{split}/psnr"] = [[event.step, event.value] for event in events.Scalars(tag)][:-1]
    return curves
