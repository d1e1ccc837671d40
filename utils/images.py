"""Pictures out: tensors to PNG files, error heat maps, strips of panels."""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from utils.errors import UserError
from utils.files import atomic_path

# Measured on 550x802 renderings: level 1 takes a quarter of the time of Pillow's
# default (6) for files about a sixth larger.
PNG_LEVEL = 1

# Ten anchors of the "magma" colour map (S. van der Walt and N. Smith, CC0):
# black to cream, lightness rising evenly, readable in grey and by the colour-blind.
MAGMA = (
    (0.0, 0.0, 0.016),
    (0.094, 0.059, 0.239),
    (0.267, 0.059, 0.463),
    (0.447, 0.122, 0.506),
    (0.620, 0.184, 0.498),
    (0.804, 0.251, 0.443),
    (0.945, 0.376, 0.365),
    (0.992, 0.588, 0.408),
    (0.996, 0.792, 0.553),
    (0.988, 0.992, 0.749),
)


def to_bytes(image: Tensor) -> np.ndarray:
    """An image as bytes, rounded to the nearest level.

    Args:
        image: [3, H, W] float, 0..1 (clamped), on any device; or [4, H, W], with alpha.

    Returns:
        [H, W, 3] uint8; or [H, W, 4].
    """
    levels = image.detach().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def css_color(text: str) -> Tensor:
    """[3] 0..1: a color as CSS writes it, such as white or #20c040; UserError for anything else."""
    try:
        color = ImageColor.getrgb(text)
    except ValueError as error:
        raise UserError(f"'{text}' is no color: give one as white, black or '#20c040'") from error
    return torch.tensor(color[:3], dtype=torch.float32) / 255.0


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Writes [H, W, 3] uint8 `pixels`, or [H, W, 4] with alpha, as a PNG, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=PNG_LEVEL)


def heat_map(values: Tensor, top: float) -> Tensor:
    """Colours `values` from black (0) to cream (`top` and above).

    Args:
        values: [H, W] float.
        top: the value shown brightest, in the unit of `values`.

    Returns:
        [3, H, W] float32 0..1 on the device of `values`.
    """
    anchors = torch.tensor(MAGMA, dtype=torch.float32, device=values.device)
    position = (values.float() / top).clamp(0.0, 1.0) * (len(MAGMA) - 1)
    below = position.floor().long().clamp(max=len(MAGMA) - 2)
    fraction = (position - below)[..., None]
    return torch.lerp(anchors[below], anchors[below + 1], fraction).permute(2, 0, 1)


def error_map(image: Tensor, ground_truth: Tensor, top: float = 0.2) -> Tensor:
    """Where `image` [3, H, W] differs from `ground_truth`: the absolute difference, averaged over the channels.

    The scale is fixed (`top` of the full range is brightest), so that maps of
    different moments and views compare.
    """
    return heat_map((image - ground_truth).abs().mean(dim=0), top)


def side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    """Puts [H, W, 3] uint8 panels in a row, top-aligned; lower ones get white below."""
    height = max(panel.shape[0] for panel in panels)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0)), constant_values=255) for p in panels]
    return np.concatenate(padded, axis=1)


def remove_numbered_pngs(folder: Path) -> None:
    """Clears what an earlier rendering of more views would leave among the new ones."""
    for path in folder.glob("*.png"):
        if re.fullmatch(r"[0-9]{5,}\.png", path.name):
            path.unlink()


class PngWriter:
    """Writes PNGs in a few threads, so that rendering need not wait for zlib and the disk.

    Use as a context manager; leaving it waits for the last file. The first
    error of a thread is raised by the next `write` or on leaving. At most
    `backlog` images wait in memory.
    """

    def __init__(self, threads: int = 2, backlog: int = 16) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="png")
        self._slots = threading.BoundedSemaphore(backlog)
        self._error: BaseException | None = None

    def write(self, path: str | Path, pixels: np.ndarray) -> None:
        """Queues [H, W, 3 or 4] uint8 `pixels`; the caller must not change them afterwards."""
        self._raise_error()
        self._slots.acquire()
        self._pool.submit(write_png, path, pixels).add_done_callback(self._done)

    def _done(self, job: Future) -> None:
        if not job.cancelled() and self._error is None:
            self._error = job.exception()
        self._slots.release()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> PngWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._raise_error()
