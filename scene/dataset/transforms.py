"""Views from `transforms_*.json`, the format shared by rigged captures and Blender scenes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ops.types import Camera
from scene.dataset.common import (
    MAX_PIXELS,
    View,
    existing_image,
    find_image,
    image_size,
    locate,
    printable,
    read_json,
    read_numbers,
    short,
    training_size,
)
from utils.errors import UserError

MAX_FOCAL = 1e9  # pixels; a camera far beyond any, whose projection still fits float32
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2")


def camera_pose(value: Any, where: str) -> np.ndarray:
    """[4, 4] camera-to-world with OpenCV axes, from one with OpenGL axes in a JSON file; UserError naming `where`."""
    matrix = read_numbers(value, where, 4, 4)
    rotation = matrix[:3, :3]
    rigid = np.abs(rotation.T @ rotation - np.eye(3)).max() < 1e-2 and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise UserError(f"{where} is not a rotation and a translation (camera-to-world, last row 0 0 0 1)")
    # OpenGL cameras look along -z with y up; OpenCV's along +z with y down.
    matrix[:3, 1:3] *= -1.0
    return matrix


class Frame:
    """One entry of `frames`; a field that it lacks is looked up in the whole file."""

    def __init__(self, own: dict[str, Any], shared: dict[str, Any], path: Path, index: int) -> None:
        self.own, self.shared = own, shared
        self.path, self.index = path, index

    def where(self, key: str) -> str:
        """For messages: file, frame and field."""
        return f"{self.path}, frame {self.index}, '{key}'"

    def get(self, key: str) -> Any:
        """The field of the frame, else of the file, else None."""
        value = self.own.get(key)
        return self.shared.get(key) if value is None else value

    def number(self, key: str, value: Any) -> float:
        """`value` as a finite float; `UserError` naming `key` otherwise."""
        try:
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:  # an integer beyond the range of floats
            pass
        raise UserError(f"{self.where(key)} must be a finite number, not {short(value)}")

    def integer(self, key: str, default: int | None = None) -> int:
        """The field as an int, which may be written as 3.0; `UserError` if it is missing without a default."""
        value = self.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self.where(key)} is missing: every frame needs it")
            return default
        number = self.number(key, value)
        if number != int(number) or abs(number) > 1e9:
            raise UserError(f"{self.where(key)} must be a whole number, not {short(value)}")
        return int(number)

    def size(self, image_path: Path) -> tuple[int, int]:
        """(width, height) in pixels from `w` and `h`, else from the image's header."""
        if self.get("w") is None or self.get("h") is None:
            return image_size(image_path)
        width, height = self.integer("w"), self.integer("h")
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise UserError(f"{self.where('w')} and 'h' must be an image size in pixels, not {width}x{height}")
        return width, height

    def intrinsics(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(fx, fy, cx, cy) in pixels.

        What the frame says outranks what the file says for all. Without focal
        lengths, `camera_angle_x` with square pixels; without a principal point,
        the centre.
        """
        for key in DISTORTION_KEYS:
            value = self.get(key)
            if value is not None and self.number(key, value) != 0.0:
                raise UserError(
                    f"{self.where(key)} is a lens distortion, which is not supported: "
                    "undistort the images and write it as 0"
                )
        fx = fy = None
        for fields in (self.own, self.shared):
            if fields.get("fl_x") is not None:
                fx = self.number("fl_x", fields["fl_x"])
                fy = self.number("fl_y", fields["fl_y"]) if fields.get("fl_y") is not None else fx
                break
            if fields.get("camera_angle_x") is not None:
                angle = self.number("camera_angle_x", fields["camera_angle_x"])
                if not 1e-6 < angle < math.pi:
                    raise UserError(
                        f"{self.where('camera_angle_x')} must be an angle between 0.000001 and pi radians, "
                        f"not {angle:g}"
                    )
                fx = fy = 0.5 * width / math.tan(0.5 * angle)
                break
        if fx is None or fy is None:
            raise UserError(f"{self.where('fl_x')} and 'camera_angle_x' are both missing: one of them is needed")
        if not (0.0 < fx <= MAX_FOCAL and 0.0 < fy <= MAX_FOCAL):
            raise UserError(
                f"{self.where('fl_x')} and 'fl_y' must be positive and at most {MAX_FOCAL:g} pixels, "
                f"not {fx:g} and {fy:g}"
            )
        center = [
            self.number(key, self.get(key)) if self.get(key) is not None else 0.5 * side
            for key, side in (("cx", width), ("cy", height))
        ]
        if max(map(abs, center)) > MAX_FOCAL:
            raise UserError(
                f"{self.where('cx')} and 'cy' must be within {MAX_FOCAL:g} pixels, not {center[0]:g} and {center[1]:g}"
            )
        return fx, fy, center[0], center[1]

    def world_to_camera(self) -> torch.Tensor:
        """[4, 4] float32, OpenCV axes, from the OpenGL camera-to-world `transform_matrix`."""
        pose = camera_pose(self.own.get("transform_matrix"), self.where("transform_matrix"))
        return torch.from_numpy(np.linalg.inv(pose).astype(np.float32))

    def view(self, source: Path, resolution: float, timestep_index: int) -> tuple[View, bool]:
        """The frame as a view at training size, and whether it names a mask that is not there."""
        where = self.where("file_path")
        if self.own.get("file_path") is None:
            raise UserError(f"{where} is missing: every frame needs its image")
        image_path = find_image(locate(self.own["file_path"], source, source, where), where)
        mask_path = None
        mask = self.own.get("fg_mask_path")
        if mask is not None:
            mask_path = locate(mask, source, source, self.where("fg_mask_path"))
            mask_path = existing_image(mask_path)
        width, height = self.size(image_path)
        intrinsics = self.intrinsics(width, height)
        camera_index = self.integer("camera_index", -1)
        camera_id = self.own.get("camera_id")
        if not isinstance(camera_id, (str, int, float, type(None))):
            raise UserError(f"{self.where('camera_id')} must be a name, not {short(camera_id)}")
        label = printable(str(camera_index if camera_id is None else camera_id))
        name = printable(image_path.stem)
        camera = Camera(self.world_to_camera(), *intrinsics, width, height, camera_id=label, name=name)
        camera = camera.resized(*training_size(width, height, resolution))
        view = View(camera, image_path, mask_path, timestep_index, camera_index, (width, height))
        return view, mask is not None and mask_path is None


def read_frames(path: Path) -> list[Frame]:
    """The frames of one split file; an empty list where the file does not exist.

    Raises:
        UserError: the file is broken, or `frames` is not a list of objects.
    """
    if not path.exists():
        return []
    shared = read_json(path)
    frames = shared.get("frames")
    if not isinstance(frames, list):
        raise UserError(f"{path} has no list 'frames'")
    for index, own in enumerate(frames):
        if not isinstance(own, dict):
            raise UserError(f"{path}, frame {index} must be a JSON object, not {short(own)}")
    return [Frame(own, shared, path, index) for index, own in enumerate(frames)]
