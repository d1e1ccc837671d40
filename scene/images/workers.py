"""How many images may be decoded at once: a file of kilobytes can hold a picture of gigabytes."""

from __future__ import annotations

from collections.abc import Sequence

from scene.dataset.common import View
from utils.errors import UserError
from utils.memory import available_memory

SHARE = 0.5  # of the free memory
# What the worst of the paths in `scene.images.decode`, deep grey or an image with its mask, holds at a time.
BYTES_PER_PIXEL = 32


def affordable(views: Sequence[View], count: int) -> int:
    """At most `count` workers, and not more than can hold the largest picture of `views` each.

    Raises:
        UserError: not even one can.
    """
    sizes = [view.source_size or (view.camera.width, view.camera.height) for view in views]
    largest = max(range(len(sizes)), key=lambda index: sizes[index][0] * sizes[index][1], default=None)
    if largest is None:
        return count
    width, height = sizes[largest]
    needed, room = BYTES_PER_PIXEL * width * height, SHARE * available_memory()
    if needed > room:
        raise UserError(
            f"the image {views[largest].image_path} of {width}x{height} pixels takes {needed / 1e9:.1f} GB to decode, "
            f"more than half of the memory that is free: make the images smaller, or free some memory"
        )
    return max(1, min(count, int(room // needed)))
