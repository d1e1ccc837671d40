"""What the three data set readers share: the types, the resolution rule, safe paths, JSON."""

from __future__ import annotations

import json
import os
import reprlib
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gaussian_renderer import LARGEST_PICTURE
from ops.types import Camera
from scene.images.decode import IMAGE_FORMATS
from utils.errors import UserError, one_line
from utils.memory import available_memory
from utils.untrusted import names_file, open_regular, read_regular

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".PNG", ".JPG", ".JPEG")
DEFAULT_MAX_WIDTH = 1600  # pixels; wider images are reduced to this unless -r says otherwise
MIN_SIDE = 32  # pixels; -r makes no smaller images
MAX_PIXELS = 178_956_970  # per image, Pillow's own limit against decompression bombs
MAX_JSON_BYTES = 256 << 20  # 15,000 frames take about 30 MB
# What the values of a JSON file take in memory, by the characters that begin or divide them. A file of frames comes to
# nine times its own size; three bytes make an object of sixty, seven one of four hundred.
JSON_COSTS = {b"{": 250, b"[": 60, b",": 60, b":": 100}
MAX_JSON_MEMORY = 512 << 20, 12  # bytes, and more for each byte of the file
LARGEST_POSITION = 1e15  # scene units; its square still fits float32


@dataclass(frozen=True)
class View:
    """One image of the capture and the camera that took it."""

    camera: Camera  # at training size, on the CPU
    image_path: Path
    mask_path: Path | None = None  # 8-bit alpha beside an RGB image
    timestep_index: int = 0  # as in the files; `camera.timestep` is the row
    camera_index: int = -1  # as in the files, -1 where they have none
    source_size: tuple[int, int] | None = None  # (width, height) the file must have; None = any

    def job(self) -> dict[str, Any]:
        """What `scene.images.decode` needs to check the files."""
        mask = self.mask_path and str(self.mask_path)
        return {"image": str(self.image_path), "mask": mask, "source_size": self.source_size}


@dataclass
class Dataset:
    """A capture, split, with the motion and the start points that belong to it."""

    train: list[View]
    val: list[View]
    test: list[View]
    _: KW_ONLY
    extent: float  # metres (scene units), see `scene_extent`
    background: tuple[float, float, float]  # RGB 0..1, what the images are composited over
    timesteps: list[int] = field(default_factory=list)  # file id of each row of `flame`, ascending
    # float32: shape (n,), expr (T, n), rotation/neck_pose/jaw_pose/translation (T, 3), eyes_pose (T, 6),
    # static_offset (V, 3) and, only where the capture has it, dynamic_offset (T, V, 3). Radians, metres.
    flame: dict[str, np.ndarray] | None = None
    flame_file: Path | None = None  # where shape and static_offset are from, for messages
    points: np.ndarray | None = None  # [P, 3] float32, start of an unbound scene
    colors: np.ndarray | None = None  # [P, 3] float32, RGB 0..1


def short(value: object) -> str:
    """`repr(value)` cut to a length that fits a one-line message."""
    return reprlib.repr(value)


def printable(text: str) -> str:
    """`text` with what is no UTF-8, such as a byte of a file's name, written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def training_size(width: int, height: int, resolution: float) -> tuple[int, int]:
    """The size at which an image of `width` x `height` pixels is trained (option `-r`).

    1, 2, 4 and 8 divide both sides; -1 keeps the size up to 1600 pixels of
    width; any other number of at least 1 is the width in pixels.

    Raises:
        UserError: `resolution` is none of these, makes a side smaller than 32 pixels, or a picture too large to render.
    """
    if resolution in (1, 2, 4, 8):
        size = max(1, round(width / resolution)), max(1, round(height / resolution))
    elif resolution != -1 and not 1 <= resolution <= 65536:
        raise UserError(
            f"--resolution {resolution:g} means nothing: give 1, 2, 4 or 8 to divide the size, "
            "-1 to keep it, or the width in pixels"
        )
    else:
        new_width = min(width, DEFAULT_MAX_WIDTH) if resolution == -1 else round(resolution)
        size = new_width, (max(1, round(height * new_width / width)) if new_width != width else height)
    if size[0] * size[1] > LARGEST_PICTURE:
        raise UserError(
            f"--resolution {resolution:g} makes {size[0]}x{size[1]} of images of {width}x{height} pixels, more than "
            f"the {LARGEST_PICTURE:,} pixels (8192x8192) that are rendered: give a smaller width"
        )
    return _not_too_small(size, (width, height), resolution)


def _not_too_small(size: tuple[int, int], source: tuple[int, int], resolution: float) -> tuple[int, int]:
    """`size`, if there is something to learn from in it, or if the images are no larger."""
    if min(size) >= MIN_SIDE or min(size) >= min(source) or resolution == -1:
        return size
    raise UserError(
        f"--resolution {resolution:g} would train {source[0]}x{source[1]} images at {size[0]}x{size[1]} pixels, and "
        f"a side below {MIN_SIDE} is too small: 1, 2, 4 and 8 divide the size, -1 keeps it, any other number is the "
        "width in pixels"
    )


def training_splits(splits: dict[str, list[View]], eval_split: bool) -> dict[str, list[View]]:
    """`splits` as they are or, where nothing is held out, with all views in "train"."""
    return splits if eval_split else {"train": splits["train"] + splits["val"] + splits["test"], "val": [], "test": []}


def scene_extent(views: Sequence[View]) -> float:
    """1.1 x the largest distance of a camera from the mean of all, in scene units.

    It scales the learning rate of the positions, so it must not be zero: where
    all cameras coincide (a capture by one fixed camera) it is 1, about what a
    hemisphere of cameras one metre away has.
    """
    if not views:
        return 1.0
    matrices = np.stack([view.camera.world_to_camera.numpy() for view in views]).astype(np.float64)
    centers = -np.einsum("nij,ni->nj", matrices[:, :3, :3], matrices[:, :3, 3])
    radius = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
    return 1.1 * radius if radius > 1e-6 else 1.0


def read_json(path: Path, kind: type = dict) -> Any:
    """The object, or with `kind` the list, in a JSON file.

    Raises:
        UserError: unreadable, too large, not JSON (with line and column), nested
            too deeply, or something else than that.
    """
    try:
        content = read_regular(path, MAX_JSON_BYTES)
        if content is None:
            raise UserError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not a data set's JSON file")
        needed = sum(cost * content.count(character) for character, cost in JSON_COSTS.items())
        if needed > MAX_JSON_MEMORY[0] + MAX_JSON_MEMORY[1] * len(content):
            raise UserError(f"{path} would take {needed / 1e9:.1f} GB of memory: not a data set's JSON file")
        if needed > 64 << 20 and needed > available_memory() // 2:
            raise UserError(f"{path} would take {needed / 1e9:.1f} GB of memory, more than half of what is free")
        value = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: JSON syntax error: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be a data set's JSON file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or an integer of thousands of digits
        raise UserError(f"{path} is not a readable JSON file: {str(error)[:200]}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} must hold a JSON {'object' if kind is dict else 'list'}, not {short(value)}")
    return value


def read_numbers(value: Any, where: str, *shape: int) -> np.ndarray:
    """Finite numbers of this shape from JSON, as float64; UserError naming `where` otherwise."""
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        numbers = np.empty(0)
    if (
        isinstance(value, (str, bool, type(None)))
        or numbers.shape != shape
        or not (np.abs(numbers) < LARGEST_POSITION).all()
    ):
        wanted = f"{'x'.join(map(str, shape))} finite numbers" if shape else "a finite number"
        raise UserError(f"{where} must be {wanted} below {LARGEST_POSITION:g}, not {short(value)}")
    return numbers


def locate(text: object, folder: Path, source: Path, where: str) -> Path:
    """The absolute path that `text`, relative to `folder`, names.

    Merged captures point into sibling folders (`../OTHER/images/...`), so
    everything below the parent of `source` may be named, and nothing outside it:
    a downloaded data set has no business elsewhere. `folder` and `source` are
    absolute and free of symbolic links.

    The rule is about the text, after `..` is resolved in it. Symbolic links on
    the way are followed, wherever they lead: people link captures to other disks,
    and a link is something that stands on this machine, not something that a file
    says. What is behind it is opened only if it is a regular file, and read only
    as what it is taken for, so that all a planted link can do is to fail.

    Raises:
        UserError: not a usable string, or outside; `where` names file and field.
    """
    if not isinstance(text, str) or not text or not names_file(text):
        raise UserError(f"{where} must be a file path, not {short(text)}")
    path = os.path.normpath(os.path.join(folder, text))
    top = str(source.parent)
    if os.path.commonpath([path, top]) != top:
        raise UserError(f"{where} points outside of {top}: {short(text)}; keep the files beside the data set")
    return Path(path)


def existing_image(path: Path) -> Path | None:
    """`path`, or with an image extension added or exchanged the first file that exists; None when none does."""
    stems = [str(path)]
    if path.suffix in IMAGE_EXTENSIONS:
        stems.append(str(path.with_suffix("")))  # re-encoded images under the names of the originals
    for candidate in [str(path), *(stem + extension for stem in stems for extension in IMAGE_EXTENSIONS)]:
        if os.path.isfile(candidate):
            return Path(candidate)
    return None


def find_image(path: Path, where: str) -> Path:
    """As `existing_image`.

    Raises:
        UserError: there is none; `where` names the file and field that asked.
    """
    found = existing_image(path)
    if found is None:
        raise UserError(f"the image {path} does not exist ({where})")
    return found


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of an image file, without decoding it.

    Raises:
        UserError: not an image that Pillow reads, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd headers and images near its size limit
            with open_regular(path) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
                size = image.size
    except Exception as error:  # Pillow's plugins raise whatever a broken header provokes
        raise UserError(f"cannot read the image {path}: {one_line(error)[:200] or type(error).__name__}") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"the image {path} is larger than {MAX_PIXELS:,} pixels: {size[0]}x{size[1]}")
    return size
