"""Rendering a split into files: PNGs, videos, a comparison, and the metrics of every view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.evaluate import Evaluated, evaluate, evenly_spaced, mean_metrics
from evaluation.metrics import Suite
from evaluation.results import json_ready
from gaussian_renderer.mesh_overlay import draw_mesh
from ops.types import Camera, RenderOut
from scene.dataset import View
from scene.gaussian_model import GaussianModel
from utils.files import write_json
from utils.images import PngWriter, error_map, remove_numbered_pngs, side_by_side, to_bytes, write_png
from utils.progress import progress_bar
from utils.video import video_writer

COMPARED_VIEWS = 4

Means = dict[str, float | None]


@dataclass
class SplitRenderer:
    """Renders, writes and measures views of one split."""

    model: GaussianModel
    views: Sequence[View]
    cameras: Sequence[Camera]  # of the views, with the row of the avatar's motion as timestep
    ground_truth: Callable[[int], torch.Tensor] | None  # None: nobody took photographs
    draw: Callable[..., RenderOut]
    uncalibrated: Callable[..., RenderOut] | None  # the same without color calibration, to be measured too
    suite: Suite
    mesh: bool  # also with the head mesh over the pictures
    quiet: bool

    def render(
        self,
        name: str,
        folder: Path,
        indices: Sequence[int],  # which of the views
        *,
        measured: Sequence[int] | None = None,  # which of these the mean is over; None = all
        more: dict[str, Any] | None = None,  # what else metrics.json is to hold
    ) -> tuple[Means, dict[int, Means]]:
        """Writes the pictures into `folder`; returns the mean metrics, and those of each view.

        A PNG is numbered by its view's place in the split. The videos play one camera after the other, each through
        time.
        """
        measured = indices if measured is None else measured
        figures, columns, records = self._write_views(name, folder, indices, measured)
        if self.ground_truth is None:
            return {}, {}
        means = mean_metrics((figures[i] for i in measured), self.suite.names)
        more = dict(more or {})
        if self.uncalibrated is not None:
            suite = Suite(self.suite.names, self.model.device)
            more["without_color_calibration"] = evaluate(
                self.model, self.cameras, self.ground_truth, self.uncalibrated, suite, indices=measured
            )
        write_png(folder / "comparison.png", side_by_side(columns))
        views = [records[i] for i in sorted(records)]
        write_json(folder / "metrics.json", json_ready({"split": name, "mean": means, **more, "views": views}))
        return means, figures

    def _write_views(
        self, name: str, folder: Path, indices: Sequence[int], measured: Sequence[int]
    ) -> tuple[dict[int, Means], list[np.ndarray], dict[int, dict[str, Any]]]:
        """Figures by view, columns of comparison.png (ground truth, rendering, error), records for metrics.json."""
        order = sorted(indices, key=lambda i: (self.cameras[i].camera_id, self.views[i].timestep_index))
        compared = {order[position] for position in evenly_spaced(len(order), COMPARED_VIEWS)}
        kinds = ["renders", *(["gt"] if self.ground_truth else []), *(["renders_mesh"] if self.mesh else [])]
        for kind in kinds:
            remove_numbered_pngs(folder / kind)
        figures: dict[int, Means] = {}
        columns: list[np.ndarray] = []
        records: dict[int, dict[str, Any]] = {}
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar(len(order), f"Rendering {name}", "view", quiet=self.quiet))
            pngs = stack.enter_context(PngWriter())
            width, height = self.cameras[order[0]].width, self.cameras[order[0]].height
            videos = {kind: stack.enter_context(video_writer(folder / f"{kind}.mp4", width, height)) for kind in kinds}

            def keep(view: Evaluated) -> None:
                pictures = {"renders": view.image}
                if view.ground_truth is not None:
                    pictures["gt"] = view.ground_truth
                if self.mesh and self.model.flame is not None and view.vertices is not None:
                    faces = self.model.flame.faces
                    pictures["renders_mesh"] = draw_mesh(view.image, view.vertices, faces, view.camera)
                file = f"{view.index:05d}.png"
                for kind in kinds:
                    pixels = to_bytes(pictures[kind])
                    pngs.write(folder / kind / file, pixels)
                    videos[kind].add(pixels)
                if view.ground_truth is not None and view.index in compared:
                    panels = (view.ground_truth, view.image, error_map(view.image, view.ground_truth))
                    columns.append(np.concatenate([to_bytes(panel) for panel in panels]))
                figures[view.index] = view.metrics
                records[view.index] = {
                    "file": file,
                    "camera": view.camera.camera_id,
                    "image": view.camera.name,
                    "timestep": self.views[view.index].timestep_index,
                    **({} if view.index in measured else {"looked_at": True}),
                    **view.metrics,
                }
                bar.update()

            evaluate(self.model, self.cameras, self.ground_truth, self.draw, self.suite, indices=order, on_image=keep)
        return figures, columns, records
