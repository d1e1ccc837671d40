"""The list of a capture's cameras, as 3DGS viewers read it, and a view that has no size yet."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ops.types import Camera
from scene.dataset.common import read_json, read_numbers, short
from utils.errors import UserError
from utils.files import write_json

Array = np.ndarray

CAMERAS_NAME = "cameras.json"


@dataclass(frozen=True)
class Viewpoint:
    """Where a camera stands and how it looks, for pictures of any size: the height of the picture is what it keeps."""

    position: Array  # [3] the optical center in world space, metres
    rotation: Array  # [3, 3] camera-to-world, OpenCV axes (x right, y down, z forward)
    fov: float  # vertical, radians
    shift: tuple[float, float] = (0.0, 0.0)  # of the principal point from the middle, right and down, picture heights
    stretch: float = 1.0  # fx / fy
    camera_id: str = ""  # of the capture's camera that it is: its colors are those of the pictures

    def camera(self, width: int, height: int) -> Camera:
        """The camera for pictures of `width` x `height` pixels; a wider picture shows more at its sides."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.rotation.T
        matrix[:3, 3] = -self.rotation.T @ self.position
        focal = 0.5 * height / math.tan(0.5 * self.fov)
        cx, cy = 0.5 * width + self.shift[0] * height, 0.5 * height + self.shift[1] * height
        return Camera(
            torch.from_numpy(matrix.astype(np.float32)),
            *(focal * self.stretch, focal, cx, cy, width, height),
            camera_id=self.camera_id,
        )

    @classmethod
    def of(cls, camera: Camera) -> Viewpoint:
        """The viewpoint of a camera, without its size."""
        matrix = camera.world_to_camera.double().cpu().numpy()
        rotation = matrix[:3, :3].T
        shift = (camera.cx / camera.height - 0.5 * camera.width / camera.height, camera.cy / camera.height - 0.5)
        fov = 2 * math.atan(0.5 * camera.height / camera.fy)
        return cls(-rotation @ matrix[:3, 3], rotation, fov, shift, camera.fx / camera.fy, camera.camera_id)

    def turned(self, center: Array, up: Array, yaw: float, pitch: float = 0.0) -> Viewpoint:
        """The view from elsewhere on the sphere around `center` [3], by `yaw` around the axis `up` [3], then upwards.

        Radians; a positive yaw moves the camera to its right. Whose colors it has is no longer said.
        """
        right = Rotation.from_rotvec(yaw * up).apply(self.rotation[:, 0])
        turn = (Rotation.from_rotvec(-pitch * right) * Rotation.from_rotvec(yaw * up)).as_matrix()
        position = center + turn @ (self.position - center)
        return Viewpoint(position, turn @ self.rotation, self.fov, self.shift, self.stretch)


def write_cameras_json(path: Path, cameras: Sequence[Camera]) -> None:
    """Writes the list of views in the layout that 3DGS viewers read.

    Each entry: `id`, `img_name`, `width`, `height`, `position` [3] (the optical
    centre), `rotation` [3][3] (camera-to-world, OpenCV axes), `fy`, `fx`; and,
    which is ours, `cx`, `cy` and `camera_id`, the capture's name of the camera.
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
                "cx": camera.cx,
                "cy": camera.cy,
                "camera_id": camera.camera_id,
            }
        )
    write_json(path, entries)


def read_cameras_json(path: Path) -> dict[str, Camera]:
    """The cameras of a file of `write_cameras_json`, or of another trainer, each once, by name.

    A camera is named as the capture names it; where the file does not say, by the number behind the last underscore of
    `img_name`, else by that name. A file without principal points means the middle of the picture.

    Raises:
        UserError: missing or damaged; names entry and field.
    """
    cameras: dict[str, Camera] = {}
    for index, entry in enumerate(read_json(path, list)):
        where = f"{path}, entry {index}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} must be a JSON object, not {short(entry)}")
        picture = entry.get("img_name")
        name = entry.get("camera_id") or _camera_of(picture)
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has neither a 'camera_id' nor an 'img_name'")
        if name not in cameras:
            cameras[name] = _read_camera(entry, where, name)
    return cameras


def _camera_of(picture: Any) -> Any:
    """The camera's number in the name of a picture such as 00012_08, or the name itself."""
    numbered = re.fullmatch(r"[0-9]+_([0-9]+)", picture) if isinstance(picture, str) else None
    return numbered[1] if numbered else picture


def _read_camera(entry: dict[str, Any], where: str, name: str) -> Camera:
    width, height = (int(read_numbers(entry.get(key), f"{where}, '{key}'")) for key in ("width", "height"))
    fx, fy = (float(read_numbers(entry.get(key), f"{where}, '{key}'")) for key in ("fx", "fy"))
    if not (0 < width <= 1 << 20 and 0 < height <= 1 << 20 and fx > 0 and fy > 0):
        raise UserError(f"{where}: 'width', 'height', 'fx' and 'fy' must be positive numbers of pixels")
    cx, cy = (
        0.5 * side if entry.get(key) is None else float(read_numbers(entry[key], f"{where}, '{key}'"))
        for key, side in (("cx", width), ("cy", height))
    )
    rotation = check_rotation(read_numbers(entry.get("rotation"), f"{where}, 'rotation'", 3, 3), f"{where}, 'rotation'")
    position = read_numbers(entry.get("position"), f"{where}, 'position'", 3)
    view = Viewpoint(position, rotation, 2 * math.atan(0.5 * height / fy), camera_id=name)
    camera = view.camera(width, height)
    return Camera(camera.world_to_camera, fx, fy, cx, cy, width, height, camera_id=name, name=name)


def check_rotation(matrix: Array, where: str) -> Array:
    """`matrix` [3, 3], made exactly a rotation; UserError naming `where` if it is not almost one."""
    if np.abs(matrix.T @ matrix - np.eye(3)).max() > 1e-2 or np.linalg.det(matrix) < 0:
        raise UserError(f"{where} is not a rotation (orthogonal, not mirrored)")
    return Rotation.from_matrix(matrix).as_matrix()
