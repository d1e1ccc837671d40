"""Weights for the photometric loss: more where people look first, the eyes, mouth and nose.

The regions are the head model's own masks (sets of vertices), seen by the
camera of each view. What a view sees of them is kept as a coarse grid of bit
masks, not of weights: the weights may then be changed at any moment, and the
map of an iteration is a table look-up, a blur and an enlargement.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ops import losses
from ops.region_map import soft_map
from ops.types import Camera
from ops.visibility import grid_size, see
from utils.errors import UserError

# Region -> the masks that make it up: FLAME's names, then those other head models use for the inside of the mouth.
REGION_MASKS = {
    "eyes": ("left_eyeball", "right_eyeball", "left_eye_region", "right_eye_region", "eye_region"),
    "mouth": ("lips", "teeth", "mouth", "mouth_interior", "inner_mouth", "tongue", "gums"),
    "nose": ("nose",),
    "face": ("face",),
}
MAX_REGIONS = 8  # bits of a cell

# Cells along the longer side of the image. A view's grid then has about 3 kB: 45 MB for 15,000 views
# of 802 x 550 (plus half a kilobyte each for the tensor), where full maps would take 26 GB. A cell is
# a third of an eye wide in a portrait; the soft edge is about two cells.
CELLS = 64

# The heuristic map without a mesh: (region, center x, y, radius x, y) in fractions of the image's width and
# height, for a face that fills the frame as portraits do.
_PORTRAIT = (
    ("face", 0.5, 0.52, 0.30, 0.36),
    ("nose", 0.5, 0.53, 0.07, 0.11),
    ("mouth", 0.5, 0.69, 0.13, 0.07),
    ("eyes", 0.37, 0.42, 0.10, 0.06),
    ("eyes", 0.63, 0.42, 0.10, 0.06),
)


class RegionAdaptiveLoss(nn.Module):
    """Weight maps per view, and the loss weighted with them.

    `weight_eyes`, `weight_mouth`, `weight_nose` and `weight_face` may be
    assigned at any time and hold from the next map on. Where regions overlap
    the largest weight wins; where none is seen the weight is 1. Every map is
    scaled to mean 1, so that the balance with other losses does not move.
    """

    faces: Tensor  # [F, 3], empty without a mesh
    _bits: Tensor  # [F] uint8, one bit for each region

    def __init__(
        self,
        weight_eyes: float = 2.0,
        weight_mouth: float = 2.0,
        weight_nose: float = 1.5,
        weight_face: float = 1.2,
        *,
        faces: Tensor | None = None,  # [F, 3]  int64, counter-clockwise from outside
        masks: Mapping[str, Tensor] | None = None,  # name -> vertex ids, of the head model
    ) -> None:
        """Without `faces` there is no mesh and `weights` gives the heuristic map.

        `note` then or later holds one line on regions that no mask describes, else "".

        Raises:
            UserError: a weight is negative or not finite, or a mask names vertices that no triangle can have.
        """
        super().__init__()
        self._weights: dict[str, float] = {}
        self._tables: dict[torch.device, Tensor] = {}  # [256] weight of every combination of regions
        self._grids: dict[int, Tensor] = {}  # view -> [rows, columns] uint8, bits of the regions seen
        self.weight_eyes, self.weight_mouth = weight_eyes, weight_mouth
        self.weight_nose, self.weight_face = weight_nose, weight_face
        self.note = ""
        self.missing: list[str] = []  # regions that no mask describes
        self.has_mesh = faces is not None
        faces = torch.empty(0, 3, dtype=torch.int64) if faces is None else faces
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("_bits", torch.zeros_like(faces[:, 0], dtype=torch.uint8), persistent=False)
        if not self.has_mesh:
            return
        masks = masks or {}
        for region, names in REGION_MASKS.items():
            ids = [masks[name] for name in names if name in masks and len(masks[name])]
            if not ids or not self._mark(region, torch.cat([part.to(faces.device) for part in ids])):
                self.missing.append(region)
        if self.missing:
            self.note = (
                f"The head model has no masks for {', '.join(self.missing)}: "
                "the region-adaptive loss leaves them at the weight of what is around them"
            )

    weight_eyes = property(lambda self: self._weights["eyes"], lambda self, value: self._set("eyes", value))
    weight_mouth = property(lambda self: self._weights["mouth"], lambda self, value: self._set("mouth", value))
    weight_nose = property(lambda self: self._weights["nose"], lambda self, value: self._set("nose", value))
    weight_face = property(lambda self: self._weights["face"], lambda self, value: self._set("face", value))

    def add_region(self, name: str, vertex_ids: Tensor, weight: float) -> None:
        """One more region: the triangles with two corners or more among `vertex_ids`.

        Raises:
            UserError: no mesh, a name that is taken, a bad weight, more than eight regions, vertices that
                the mesh does not have, or too few to make a triangle.
        """
        if not self.has_mesh:
            raise UserError(f"region '{name}' needs a mesh: give RegionAdaptiveLoss the head model's faces")
        if name in self._weights:
            raise UserError(f"there is a region '{name}' already; choose another name")
        if len(self._weights) == MAX_REGIONS:
            raise UserError(f"region '{name}' is one too many: there can be {MAX_REGIONS}, four of them custom")
        self._set(name, weight)
        try:
            if not self._mark(name, torch.as_tensor(vertex_ids).to(self.faces.device)):
                raise UserError(f"region '{name}' contains no triangle of the mesh; give it more vertex ids")
        except UserError:
            del self._weights[name]
            raise
        self._tables.clear()
        self._grids.clear()

    def triangle_weights(self) -> Tensor:
        """[F] the weight of each triangle of the mesh, not scaled."""
        return self._table(self._bits.device)[self._bits.long()]

    @torch.no_grad()
    def weights(self, view_index: int | None, camera: Camera, vertices: Tensor | None = None) -> Tensor:
        """The map [1, H, W] of a view at the size of `camera`, float32, mean 1.

        What a view sees is found at its first visit and kept under `view_index`: later the same view may
        come at another size, and the mesh may have moved by what fine-tuning moves it. Without an index
        nothing is kept.

        Args:
            camera: the view; its pose and crop must be those of the first visit.
            vertices: [V, 3] world space, metres; only read at the first visit.
        """
        if not self.has_mesh:
            return self.create_simple_weight_map(camera.height, camera.width, camera.world_to_camera.device)
        grid = None if view_index is None else self._grids.get(view_index)
        if grid is None:
            if vertices is None:
                raise ValueError("a view that was not visited before needs the vertices of the mesh")
            grid = self._regions_seen(camera, vertices)
            if view_index is not None:
                self._grids[view_index] = grid
        return soft_map(grid, self._table(grid.device), camera.height, camera.width)

    def knows(self, view_index: int) -> bool:
        """Whether `weights` needs no vertices for this view."""
        return not self.has_mesh or view_index in self._grids

    def create_simple_weight_map(self, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """A heuristic map [1, H, W] without a mesh: ellipses where a portrait has its face, mean 1."""
        if height < 1 or width < 1:
            raise ValueError(f"expected a size of at least one pixel, got {height} x {width}")
        y = ((torch.arange(height, device=device) + 0.5) / height)[:, None]
        x = ((torch.arange(width, device=device) + 0.5) / width)[None, :]
        result = torch.ones(height, width, device=device)
        for region, cx, cy, rx, ry in _PORTRAIT:
            distance = (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2).sqrt()
            inside = torch.sigmoid((1 - distance) * 8)
            # As the largest weight wins, so does the innermost region, even with a weight below what is around it.
            weight = self._weights[region]
            blended = 1 + inside * (weight - 1)
            result = torch.maximum(result, blended) if weight >= 1 else torch.lerp(result, blended, inside)
        return (result / result.mean().clamp_min(1e-12))[None]

    def forward(
        self,
        image: Tensor,  # [C, H, W]  0..1
        ground_truth: Tensor,  # [C, H, W]
        weights_map: Tensor | None,  # [1, H, W]  of `weights` or `create_simple_weight_map`; None weights evenly
    ) -> tuple[Tensor, Tensor]:
        """(sum of w|d| / sum of w, sum of w (1 - SSIM) / sum of w): the two terms to be minimised."""
        l1, ssim = losses.photometric(image, ground_truth, weights_map)
        return l1, 1 - ssim

    # ---- state: what the views see, so that a resumed run goes on with the same maps ----------

    def get_extra_state(self) -> dict[str, Any]:
        """The grids of the views visited, packed: tensors and plain numbers only.

        They are state because they belong to the mesh at the first visit, which fine-tuning then moves.
        The weights are options, not state: a resumed run may change them.
        """
        content = b"".join(grid.cpu().numpy().tobytes() for grid in self._grids.values())
        shapes = [[view, *grid.shape] for view, grid in self._grids.items()]
        packed = torch.frombuffer(bytearray(zlib.compress(content, 1)), dtype=torch.uint8)
        return {
            "regions": self._fingerprint(),
            "packed": packed,
            "views": torch.tensor(shapes, dtype=torch.int64).reshape(-1, 3),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError or ValueError for a state that does not fit; one of other regions is passed over."""
        views, packed = state["views"], state["packed"]
        if (
            views.ndim != 2
            or views.shape[1] != 3
            or views.dtype != torch.int64
            or packed.dtype != torch.uint8
            or (len(views) and not 1 <= int(views[:, 1:].min()) <= int(views[:, 1:].max()) <= CELLS)
        ):
            raise ValueError("the grids of the region-adaptive loss are damaged")
        expected = int(views[:, 1:].prod(dim=1).sum())
        try:  # asked for no more than is expected, so that damaged data cannot fill the memory
            content = zlib.decompressobj().decompress(packed.cpu().contiguous().numpy().tobytes(), expected + 1)
        except zlib.error as error:
            raise ValueError(f"the grids of the region-adaptive loss are damaged: {error}") from error
        if len(content) != expected:
            raise ValueError(f"the grids of the region-adaptive loss hold {len(content)} cells, expected {expected}")
        self._grids.clear()
        if not self.has_mesh or state["regions"] != self._fingerprint():
            return  # new regions are looked for at the next visits
        cells, start = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8), 0
        for view, rows, columns in views.tolist():
            grid = cells[start : start + rows * columns].clone().view(rows, columns)
            self._grids[view] = grid.to(self.faces.device)
            start += rows * columns

    # ---- inside -------------------------------------------------------------------------------

    def _set(self, region: str, weight: float) -> None:
        try:
            value = float(weight)
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"the weight of region '{region}' must be a number of at least 0, got {weight}")
        self._weights[region] = value
        self._tables.clear()

    def _mark(self, region: str, ids: Tensor) -> bool:
        """Sets the region's bit on its triangles; False when it has none."""
        count = int(self.faces.max()) + 1 if len(self.faces) else 0
        if ids.dtype.is_floating_point or (ids.numel() and int(ids.min()) < 0):
            raise UserError(f"region '{region}' must be a list of vertex numbers of the head model")
        inside = torch.zeros(
            max(count, int(ids.max()) + 1 if ids.numel() else 0), dtype=torch.int64, device=self.faces.device
        )
        inside[ids.long()] = 1
        member = inside[self.faces].sum(dim=1) >= 2  # the border runs between the vertices inside and those outside
        self._bits |= member.to(torch.uint8) << list(self._weights).index(region)
        return bool(member.any())

    def _regions_seen(self, camera: Camera, vertices: Tensor) -> Tensor:
        """[rows, columns] uint8: which regions are seen in each cell."""
        rows, columns = grid_size(camera.width, camera.height, CELLS)
        seen = see(camera, vertices.detach(), self.faces, rows, columns)
        bits = self._bits * seen.visible
        # The triangle at the center of the cell ...
        first = seen.first.flatten()
        grid = torch.where(first >= 0, bits.index_select(0, first.clamp_min(0)), 0)  # ten times as fast as bits[...]
        # ... and those whose centroid falls into it, so that what is smaller than a cell is not lost.
        cell = torch.where(seen.visible, seen.center_cell.clamp_min(0), 0)
        for bit in range(len(self._weights)):
            flag = 1 << bit
            member = torch.zeros(rows * columns, dtype=torch.int32, device=grid.device)
            member.index_add_(0, cell, ((bits & flag) > 0).int())
            grid = grid | ((member > 0).to(torch.uint8) * flag)
        return grid.view(rows, columns)

    def _table(self, device: torch.device) -> Tensor:
        table = self._tables.get(device)
        if table is None:
            values = list(self._weights.values())
            combined = [
                max((w for bit, w in enumerate(values) if index >> bit & 1), default=1.0)
                for index in range(1 << MAX_REGIONS)
            ]
            table = self._tables[device] = torch.tensor(combined).to(device)
        return table

    def _fingerprint(self) -> int:
        """Tells one set of regions from another."""
        bits = self._bits.cpu().numpy().tobytes()
        return zlib.crc32(bits, zlib.crc32("\0".join(self._weights).encode()))


class NoRegionWeights:
    """Region weights switched off: the loss weights every pixel alike."""

    note = ""

    def knows(self, view_index: int) -> bool:
        """There is nothing to know."""
        return True

    def weights(self, view_index: int | None, camera: Camera, vertices: Tensor | None = None) -> None:
        """None, which `ops.losses.photometric` takes for even weights."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Passes over whatever a run with region weights has saved."""
