"""Key frames: a camera, a pose, or both, at moments; what lies between them is interpolated.

    {"format": "head avatar key frames", "version": 1,
     "key_frames": [{"seconds": 0.0,
                     "camera": {"position": [0, 0, 1], "quaternion": [0, 1, 0, 0], "fov_degrees": 20},
                     "pose": {"jaw_pose": [0.3, 0, 0]}}, ...]}

A camera's position is in metres and its quaternion (w, x, y, z) takes its axes (x right, y down, z forward) to the
world; the field of view is vertical. A pose names FLAME parameters in radians and metres; those that it leaves out are
at rest.

Camera paths of nerfstudio's viewer are read too: their `camera_path`, a camera for each frame, with OpenGL axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation, RotationSpline

from scene.cameras import Viewpoint
from scene.dataset.common import read_json, read_numbers, short
from scene.dataset.transforms import camera_pose
from scene.flame.parameters import MOTION
from scene.motion.rows import Motion, Still, between, catmull_rom
from utils.errors import UserError
from utils.files import write_json

Array = np.ndarray

FORMAT, VERSION = "head avatar key frames", 1
MOST_FRAMES = 100_000
LONGEST = 24 * 3600.0  # seconds
MOST_COEFFICIENTS = 1000


@dataclass(frozen=True)
class KeyFrame:
    """One moment."""

    seconds: float
    view: Viewpoint | None = None
    pose: dict[str, Array] | None = None  # parameters by name, as in `Avatar.pose`


@dataclass(frozen=True)
class KeyFrames:
    """Moments in ascending order, the first at zero; a camera in all of them or in none, and a pose likewise."""

    frames: tuple[KeyFrame, ...]
    size: tuple[int, int] | None = None  # (width, height) of the pictures that a file asks for
    fps: float | None = None

    @property
    def seconds(self) -> float:
        """How long they last."""
        return self.frames[-1].seconds

    def pictures(self, fps: float) -> int:
        """How many pictures show them, `fps` a second."""
        return int(round(self.seconds * fps, 6)) + 1

    @property
    def has_views(self) -> bool:
        return self.frames[0].view is not None

    @property
    def has_poses(self) -> bool:
        return self.frames[0].pose is not None

    def views(self) -> Callable[[float], Viewpoint]:
        """The camera at a moment in seconds; before the first and behind the last key frame it stays.

        Position, field of view and lens go by Catmull-Rom, the rotation by SciPy's `RotationSpline`. Its colors are
        those of the key frames' camera, if all have the same.
        """
        known = [frame.view for frame in self.frames if frame.view is not None]
        if len(known) == 1:
            return lambda seconds: known[0]
        times = self._times()
        # The logarithm zooms evenly.
        lens = [[*v.position, math.log(math.tan(v.fov / 2)), *v.shift, v.stretch] for v in known]
        points = catmull_rom(times, np.array(lens))
        turns = RotationSpline(times, Rotation.from_matrix(np.stack([v.rotation for v in known])))
        camera_id = known[0].camera_id if len({v.camera_id for v in known}) == 1 else ""

        def view(seconds: float) -> Viewpoint:
            moment = min(max(seconds, 0.0), times[-1])
            x, y, z, zoom, right, down, stretch = points(moment).tolist()
            rotation = turns([moment])[0].as_matrix()
            fov = 2 * math.atan(math.exp(zoom))
            return Viewpoint(np.array([x, y, z]), rotation, fov, (right, down), stretch, camera_id)

        return view

    def motion(self, rest: Array, columns: dict[str, slice], fps: float, name: str = "key_frames") -> Motion:
        """The poses, `fps` rows a second, see `between`; what a key frame does not name is as in `rest` [D].

        Raises:
            UserError: no poses, or more coefficients than the head has.
        """
        if not self.has_poses:
            raise UserError(f"the key frames of {name} have cameras but no poses: give them to --camera")
        rows = np.repeat(rest[None], len(self.frames), axis=0)
        for row, frame in zip(rows, self.frames):
            for key, values in (frame.pose or {}).items():
                part = columns[key]
                if len(values) > part.stop - part.start:
                    raise UserError(
                        f"a key frame of {name} has {len(values)} values of '{key}', more than the head model"
                    )
                row[part.start : part.start + len(values)] = values
        times = self._times()
        count = self.pictures(fps)
        stills = tuple(Still(min(round(time * fps), count - 1), f"{time:g} s") for time in times)
        return Motion(name, between(times, rows, np.arange(count) / fps), fps, stills)

    def _times(self) -> Array:
        return np.array([frame.seconds for frame in self.frames])

    # ---- files --------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes them as JSON."""
        write_json(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """What a file of them holds; the size and rate that were asked for too."""
        entries = []
        for frame in self.frames:
            entry: dict[str, Any] = {"seconds": frame.seconds}
            if frame.view is not None:
                entry["camera"] = view_as_json(frame.view)
            if frame.pose is not None:
                entry["pose"] = {name: np.asarray(values).tolist() for name, values in frame.pose.items()}
            entries.append(entry)
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        if self.size is not None:
            content["size"] = list(self.size)
        if self.fps is not None:
            content["fps"] = self.fps
        return {**content, "key_frames": entries}

    @classmethod
    def load(cls, path: str | Path) -> KeyFrames:
        """Reads a file of `save`, or a camera path of nerfstudio's viewer.

        Raises:
            UserError: unreadable, or something is not as it must be; names key frame and field.
        """
        path = Path(path)
        content = read_json(path)
        if "camera_path" in content:
            return _from_nerfstudio(content, path)
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise UserError(
                f"{path} holds neither key frames (format '{FORMAT}', version {VERSION}) nor a nerfstudio camera path"
            )
        frames = [_read_frame(entry, f"{path}, key frame {i}") for i, entry in enumerate(_entries(content, path))]
        fps = _positive(content["fps"], f"{path}, 'fps'", 1000.0) if "fps" in content else None
        return cls(_in_order(frames, path), _read_size(content.get("size"), f"{path}, 'size'"), fps)


def view_as_json(view: Viewpoint) -> dict[str, Any]:
    """A camera as key frames hold it."""
    quat = Rotation.from_matrix(view.rotation).as_quat(scalar_first=True)
    entry: dict[str, Any] = {
        "position": np.asarray(view.position).tolist(),
        "quaternion": quat.tolist(),
        "fov_degrees": math.degrees(view.fov),
    }
    if any(view.shift):
        entry["shift"] = list(view.shift)
    if view.stretch != 1.0:
        entry["stretch"] = view.stretch
    if view.camera_id:
        entry["camera_id"] = view.camera_id
    return entry


def view_from_json(value: Any, where: str) -> Viewpoint:
    """The inverse of `view_as_json`; UserError naming `where` and the field."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object, not {short(value)}")
    position = read_numbers(value.get("position"), f"{where}, 'position'", 3)
    quat = read_numbers(value.get("quaternion"), f"{where}, 'quaternion'", 4)
    if not 0.9 < np.linalg.norm(quat) < 1.1:
        raise UserError(f"{where}, 'quaternion' must have length 1, not {np.linalg.norm(quat):g}")
    fov = _angle(value.get("fov_degrees"), f"{where}, 'fov_degrees'")
    shift = read_numbers(value.get("shift", (0.0, 0.0)), f"{where}, 'shift'", 2)
    stretch = _positive(value.get("stretch", 1.0), f"{where}, 'stretch'", 1000.0)
    camera_id = value.get("camera_id", "")
    if not isinstance(camera_id, str):
        raise UserError(f"{where}, 'camera_id' must be a name, not {short(camera_id)}")
    rotation = Rotation.from_quat(quat, scalar_first=True).as_matrix()
    return Viewpoint(position, rotation, fov, (float(shift[0]), float(shift[1])), stretch, camera_id)


def _read_frame(entry: Any, where: str) -> KeyFrame:
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be a JSON object, not {short(entry)}")
    seconds = float(read_numbers(entry.get("seconds"), f"{where}, 'seconds'"))
    view = view_from_json(entry["camera"], f"{where}, 'camera'") if "camera" in entry else None
    pose = None
    if "pose" in entry:
        named = entry["pose"]
        if not isinstance(named, dict) or not set(named) <= {"expr", *MOTION}:
            raise UserError(f"{where}, 'pose' must be a JSON object with some of expr, {', '.join(MOTION)}")
        pose = {}
        for name, values in named.items():
            count = MOTION.get(name) or (len(values) if isinstance(values, list) else 0)
            if count > MOST_COEFFICIENTS:
                raise UserError(f"{where}, 'pose': '{name}' has {count} values, more than any head model")
            pose[name] = read_numbers(values, f"{where}, 'pose', '{name}'", count)
    return KeyFrame(seconds, view, pose)


def _in_order(frames: list[KeyFrame], path: Path) -> tuple[KeyFrame, ...]:
    """The frames, if they can be played; else UserError."""
    if frames[0].seconds != 0.0:
        raise UserError(f"{path}: the first key frame must be at 0 seconds, not {frames[0].seconds:g}")
    for index in range(1, len(frames)):
        if not frames[index - 1].seconds < frames[index].seconds <= LONGEST:
            raise UserError(
                f"{path}: key frame {index} must be later than the one before, by at most a day, not at "
                f"{frames[index].seconds:g} seconds"
            )
    for what in ("view", "pose"):
        having = [getattr(frame, what) is not None for frame in frames]
        if any(having) and not all(having):
            name = "camera" if what == "view" else "pose"
            raise UserError(f"{path}: key frame {having.index(False)} has no '{name}', but others have")
    if frames[0].view is None and frames[0].pose is None:
        raise UserError(f"{path}: the key frames have neither 'camera' nor 'pose'")
    return tuple(frames)


def _entries(content: dict[str, Any], path: Path, key: str = "key_frames") -> list[Any]:
    entries = content.get(key)
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_FRAMES:
        raise UserError(f"{path}: '{key}' must be a list of 1 to {MOST_FRAMES:,} entries")
    return entries


def _from_nerfstudio(content: dict[str, Any], path: Path) -> KeyFrames:
    """Its `camera_path`: `camera_to_world` (16 numbers, row by row, OpenGL axes) and the vertical `fov` in degrees."""
    if content.get("camera_type", "perspective") != "perspective":
        raise UserError(f"{path}: 'camera_type' is {short(content['camera_type'])}, only 'perspective' can be rendered")
    entries = _entries(content, path, "camera_path")
    fps = content.get("fps")
    if fps is None and len(entries) > 1:
        fps = (len(entries) - 1) / _positive(content.get("seconds"), f"{path}, 'seconds'", LONGEST)
    rate = 25.0 if fps is None else _positive(fps, f"{path}, 'fps'", 1000.0)
    frames = []
    for index, entry in enumerate(entries):
        where = f"{path}, camera {index}"
        if not isinstance(entry, dict):
            raise UserError(f"{where} must be a JSON object, not {short(entry)}")
        matrix = entry.get("camera_to_world")
        if isinstance(matrix, list) and len(matrix) == 16:
            matrix = [matrix[row : row + 4] for row in (0, 4, 8, 12)]
        pose = camera_pose(matrix, f"{where}, 'camera_to_world'")
        rotation = Rotation.from_matrix(pose[:3, :3]).as_matrix()  # exactly one
        fov = entry.get("fov", content.get("default_fov"))
        frames.append(KeyFrame(index / rate, Viewpoint(pose[:3, 3], rotation, _angle(fov, f"{where}, 'fov'"))))
    size = [content.get("render_width"), content.get("render_height")]
    return KeyFrames(tuple(frames), None if None in size else _read_size(size, f"{path}, 'render_width'"), rate)


def _read_size(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    width, height = read_numbers(value, where, 2)
    if not (1 <= width <= 8192 and 1 <= height <= 8192):
        raise UserError(f"{where} must be a width and a height of 1 to 8192 pixels, not {short(value)}")
    return round(width), round(height)


def _positive(value: Any, where: str, most: float) -> float:
    number = float(read_numbers(value, where))
    if not 1e-3 <= number <= most:
        raise UserError(f"{where} must be a number from 0.001 to {most:g}, not {short(value)}")
    return number


def _angle(value: Any, where: str) -> float:
    """Degrees in a file as radians."""
    number = float(read_numbers(value, where))
    if not 0.01 <= number <= 179.0:
        raise UserError(f"{where} must be a vertical field of view from 0.01 to 179 degrees, not {short(value)}")
    return math.radians(number)
