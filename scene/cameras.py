"""The list of a capture's cameras, as 3DGS viewers read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ops.types import Camera
from utils.files import write_json


def write_cameras_json(path: Path, cameras: Sequence[Camera]) -> None:
    """Writes the list of views in the layout that 3DGS viewers read.

    Each entry: `id`, `img_name`, `width`, `height`, `position` [3] (the optical
    centre), `rotation` [3][3] (camera-to-world, OpenCV axes), `fy`, `fx`.
    """
    entries = []
    for index, camera in enumerate(cameras):
        rotation = camera.world_to_camera[:3, :3].T
        entries.append(
            {
                "id": index,
                "img_name": camera.name,
                "width": camera.width,
                "height": camera.height,
                "position": camera.center.tolist(),
                "rotation": rotation.tolist(),
                "fy": camera.fy,
                "fx": camera.fx,
            }
        )
    write_json(path, entries)
