"""Reader of COLMAP reconstructions, binary and text, of undistorted images.

The layout of the files is documented at https://colmap.github.io/format.html.
COLMAP's poses are world-to-camera with OpenCV axes already, and its pixel
centres lie at +0.5 as ours do.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from ops.types import Camera
from scene.dataset.common import (
    LARGEST_POSITION,
    MAX_PIXELS,
    Dataset,
    View,
    find_image,
    image_size,
    locate,
    printable,
    scene_extent,
    short,
    training_size,
)
from scene.dataset.transforms import MAX_FOCAL
from utils.errors import UserError
from utils.untrusted import open_regular

# By their numbers in the binary files; of these only the first two have no distortion.
MODELS = (
    "SIMPLE_PINHOLE PINHOLE SIMPLE_RADIAL RADIAL OPENCV OPENCV_FISHEYE FULL_OPENCV FOV SIMPLE_RADIAL_FISHEYE "
    "RADIAL_FISHEYE THIN_PRISM_FISHEYE"
).split()
# COLMAP's largest scenes stay far below; a sparse file of a terabyte takes no room on a stranger's disk.
MAX_RECORDS = 20_000_000
LONGEST_LINE = 64 << 20  # bytes; the 2-D points of one image
TEST_EVERY = 8  # under --eval every 8th image, sorted by name, is held out


class Intrinsics(NamedTuple):
    """A COLMAP camera: size and intrinsics in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


class Pose(NamedTuple):
    """A COLMAP image: its name and world-to-camera pose."""

    name: str
    camera: int
    quaternion: tuple[float, ...]  # wxyz
    translation: tuple[float, ...]


def model_folder(source: Path) -> Path | None:
    """The folder of the reconstruction below `source`, `sparse/0` or `sparse`, if there is one."""
    for folder in (source / "sparse" / "0", source / "sparse"):
        if any((folder / f"cameras.{kind}").exists() for kind in ("bin", "txt")):
            return folder
    return None


def read_colmap(
    source: Path, *, eval_split: bool, background: tuple[float, float, float], images: str, resolution: float
) -> Dataset:
    """The reconstruction in `source` (absolute) with its pictures in the folder `images`.

    The pictures may be smaller than COLMAP's (`-i images_4`): the intrinsics
    follow as long as the proportions agree.

    Raises:
        UserError: anything in the files that is not as it must be.
    """
    folder = model_folder(source)
    if folder is None:
        raise UserError(f"{source / 'sparse' / '0'} has no cameras.bin or cameras.txt")
    cameras = read_cameras(_model_file(folder, "cameras"))
    poses_file = _model_file(folder, "images")
    poses = sorted(read_images(poses_file), key=lambda pose: pose.name)
    if not poses:
        raise UserError(f"{poses_file} has no images")
    image_folder = (source / images).resolve()  # the user's own choice, anywhere
    if not image_folder.is_dir():
        raise UserError(f"the image folder {image_folder} does not exist: name it with --images")
    views = [_view(pose, cameras, poses_file, image_folder, resolution) for pose in poses]
    train, test = views, []
    if eval_split:
        test = views[::TEST_EVERY]
        train = [view for index, view in enumerate(views) if index % TEST_EVERY]
        if not train:
            raise UserError(f"{poses_file} has one image, which --eval holds out: nothing is left to train on")
    points, colors = read_points(_model_file(folder, "points3D"))
    return Dataset(train, [], test, extent=scene_extent(train), background=background, points=points, colors=colors)


def _model_file(folder: Path, name: str) -> Path:
    for kind in ("bin", "txt"):
        if (folder / f"{name}.{kind}").exists():
            return folder / f"{name}.{kind}"
    raise UserError(f"{folder} has no {name}.bin or {name}.txt")


def _view(pose: Pose, cameras: dict[int, Intrinsics], poses_file: Path, image_folder: Path, resolution: float) -> View:
    where = f"image {short(pose.name)} of {poses_file}"
    if pose.camera not in cameras:
        raise UserError(f"{where} names the camera {pose.camera}, which the reconstruction does not have")
    known = cameras[pose.camera]
    path = find_image(locate(pose.name, image_folder, image_folder, where), where)
    width, height = image_size(path)
    # Reduced copies are rounded to whole pixels, so the proportions may differ by one.
    if abs(width * known.height / known.width - height) > 1.5:
        raise UserError(
            f"{path} is {width}x{height} pixels, but COLMAP's camera has {known.width}x{known.height}: "
            "use the images that the reconstruction was made from"
        )
    intrinsics = (known.fx, known.fy, known.cx, known.cy, known.width, known.height)
    camera = Camera(_matrix(pose, where), *intrinsics, camera_id=str(pose.camera), name=printable(path.stem))
    camera = camera.resized(*training_size(width, height, resolution))
    return View(camera, path, camera_index=pose.camera, source_size=(width, height))


def _matrix(pose: Pose, where: str) -> torch.Tensor:
    """[4, 4] float32 world-to-camera."""
    quaternion = np.array(pose.quaternion, dtype=np.float64)
    translation = np.array(pose.translation, dtype=np.float64)
    norm = math.hypot(*quaternion)
    if not (1e-6 < norm < LARGEST_POSITION and (np.abs(translation) < LARGEST_POSITION).all()):
        raise UserError(f"{where} has no valid pose")
    w, x, y, z = quaternion / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return torch.from_numpy(matrix.astype(np.float32))


class _Reader:
    """Reads packed little-endian values; never past the end, so no header can make it allocate."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size

    def take(self, layout: str) -> tuple:
        try:
            return struct.unpack("<" + layout, self.file.read(struct.calcsize("<" + layout)))
        except struct.error as error:
            raise self.cut() from error

    def count(self, smallest: int) -> int:
        """A count of records that take at least `smallest` bytes each, checked against what is left."""
        number = self.take("Q")[0]
        if number * smallest > self.size - self.file.tell():
            raise self.cut()
        if number > MAX_RECORDS:
            raise UserError(f"{self.path} announces {number} records, more than the {MAX_RECORDS:,} that are read")
        return number

    def skip(self, size: int) -> None:
        """Steps over `size` bytes that `count` found to be there."""
        self.file.seek(size, os.SEEK_CUR)

    def text(self) -> str:
        """A zero-terminated UTF-8 string; no file name is longer than 4096 bytes."""
        start = self.file.tell()
        text, end, _ = self.file.read(4097).partition(b"\0")
        if not end:
            raise self.cut()
        self.file.seek(start + len(text) + 1)
        return text.decode("utf-8", errors="surrogateescape")

    def cut(self) -> UserError:
        return UserError(f"{self.path} is cut short or damaged: it announces more than its {self.size} bytes hold")


@contextlib.contextmanager
def _open_binary(path: Path) -> Iterator[_Reader]:
    try:
        with open_regular(path) as file:
            yield _Reader(path, file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of a text file, without comments; empty lines stay, they mean something in images.txt."""
    try:
        with open_regular(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE or number > 2 * MAX_RECORDS:
                    raise UserError(
                        f"{path} has a line longer than {LONGEST_LINE >> 20} MiB or more than "
                        f"{2 * MAX_RECORDS:,} lines: it is no file of COLMAP"
                    )
                if not line.startswith(b"#"):
                    yield number, line.decode("utf-8", errors="surrogateescape").strip()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _bad_line(path: Path, number: int, line: str) -> UserError:
    return UserError(f"{path}, line {number} is not as COLMAP writes it: {short(line)}")


def _intrinsics(path: Path, model: str, width: int, height: int, params: tuple[float, ...]) -> Intrinsics:
    fx, fy, cx, cy = params if model == "PINHOLE" else (params[0], *params)
    if not (
        0 < width * height <= MAX_PIXELS
        and width > 0
        and 0 < fx <= MAX_FOCAL
        and 0 < fy <= MAX_FOCAL
        and abs(cx) <= MAX_FOCAL
        and abs(cy) <= MAX_FOCAL
    ):
        raise UserError(
            f"{path} has a camera without valid size and intrinsics: {short(width)}x{short(height)}, {params}"
        )
    return Intrinsics(width, height, fx, fy, cx, cy)


def _require_pinhole(path: Path, model: str) -> None:
    if model not in MODELS[:2]:
        raise UserError(
            f"{path} has a camera of the model {model[:40]}, which bends lines: undistort the images with "
            "`colmap image_undistorter` and use the folder that it writes"
        )


def _id(word: str) -> int:
    """A camera's number, 32 bits as in the binary files; `ValueError` otherwise."""
    number = int(word)
    if not -(2**31) <= number < 2**32:
        raise ValueError("number of a camera")
    return number


def read_cameras(path: Path) -> dict[int, Intrinsics]:
    """The cameras of `cameras.bin` or `cameras.txt` by their id.

    Raises:
        UserError: damaged, or a camera with lens distortion.
    """
    cameras = {}
    if path.suffix == ".bin":
        with _open_binary(path) as reader:
            for _ in range(reader.count(24)):
                camera, model_id, width, height = reader.take("iiQQ")
                model = MODELS[model_id] if 0 <= model_id < len(MODELS) else f"number {model_id}"
                _require_pinhole(path, model)
                cameras[camera] = _intrinsics(path, model, width, height, reader.take("3d" if model_id == 0 else "4d"))
        return cameras
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        if len(words) > 1:
            _require_pinhole(path, words[1])
        try:
            params = tuple(float(word) for word in words[4:])
            if len(params) != (3 if words[1] == "SIMPLE_PINHOLE" else 4):
                raise ValueError("number of parameters")
            cameras[_id(words[0])] = _intrinsics(path, words[1], int(words[2]), int(words[3]), params)
        except (ValueError, IndexError) as error:
            raise _bad_line(path, number, line) from error
    return cameras


def read_images(path: Path) -> list[Pose]:
    """The registered images of `images.bin` or `images.txt`, in the order of the file.

    Raises:
        UserError: damaged.
    """
    poses = []
    if path.suffix == ".bin":
        with _open_binary(path) as reader:
            for _ in range(reader.count(73)):
                values = reader.take("i7di")
                poses.append(Pose(reader.text(), values[8], values[1:5], values[5:8]))
                reader.skip(24 * reader.count(24))  # its 2-D points: x, y, id
        return poses
    lines = _lines(path)
    for number, line in lines:
        if not line:
            continue
        words = line.split(maxsplit=9)
        try:
            values = tuple(float(word) for word in words[1:8])
            poses.append(Pose(words[9], _id(words[8]), values[:4], values[4:]))
        except (ValueError, IndexError) as error:
            raise _bad_line(path, number, line) from error
        next(lines, None)  # the line of its 2-D points, which may be empty
    return poses


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """[P, 3] positions and [P, 3] RGB 0..1 of `points3D.bin` or `points3D.txt`, float32.

    Raises:
        UserError: damaged, or without a point.
    """
    positions, colors = array.array("d"), array.array("d")  # lists of tuples would take six times the memory
    if path.suffix == ".bin":
        with _open_binary(path) as reader:
            for _ in range(reader.count(51)):
                values = reader.take("Q3d3Bd")
                positions.extend(values[1:4])
                colors.extend(values[4:7])
                reader.skip(8 * reader.count(8))  # its track: image, 2-D point
    else:
        for number, line in _lines(path):
            words = line.split(maxsplit=7)
            if not words:
                continue
            try:
                numbers = [float(word) for word in words[1:7]]
                if len(numbers) != 6:
                    raise ValueError("number of columns")
            except ValueError as error:
                raise _bad_line(path, number, line) from error
            positions.extend(numbers[:3])
            colors.extend(numbers[3:])
    points, shades = (np.frombuffer(values, np.float64).reshape(-1, 3) for values in (positions, colors))
    if not len(points) or not (np.abs(points) < LARGEST_POSITION).all():
        raise UserError(
            f"{path} must hold at least one point, and only finite positions below {LARGEST_POSITION:g}: "
            "without points there is nothing to start from"
        )
    return points.astype(np.float32), np.clip(np.nan_to_num(shades) / 255.0, 0.0, 1.0).astype(np.float32)
