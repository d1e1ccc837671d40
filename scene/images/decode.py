"""Decodes one training image: composite over the background, resize, planar uint8.

Also the program that each worker process of the image cache runs. It imports
only NumPy and Pillow, so that a worker starts in a tenth of a second; with
PyTorch it would take seconds and hundreds of megabytes.

The worker gets on its command line the number of an open file, reads one JSON
request per line from its standard input and answers with one line each: a list
with null for every job that went well, else its error. Pixels go straight into
the file, never through a pipe.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import warnings
from typing import Any

import numpy as np
from PIL import Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's others are little tested; EPS runs a program
ROWS = 64  # composited at a time, so that a large image needs no several of floats beside it
SAMPLES = 4096  # pixels from which the existing background is judged
NEARLY_UNIFORM = 8  # grey levels from the median, leaves room for JPEG noise
UNIFORM_SHARE = 0.95  # of the sampled background must be that close


class DecodeError(Exception):
    """One sentence that names the file and what is wrong with it."""


def check(job: dict[str, Any]) -> None:
    """Opens image and mask without decoding: do they exist, are they images, is the size right?

    Raises:
        DecodeError
    """
    size = tuple(job["source_size"]) if job["source_size"] else None
    with _open(job["image"], size, "the camera file says") as image:
        size = image.size
    if job["mask"]:
        with _open(job["mask"], size, "its image has"):
            pass


def verify(job: dict[str, Any]) -> None:
    """As `check`, and reads the files to their end: a PNG for its checksums, others by decoding them.

    Raises:
        DecodeError
    """
    check(job)
    for path in filter(None, (job["image"], job["mask"])):
        try:
            with _open(path, None, "") as image:
                if image.format == "PNG":
                    image.verify()
                else:
                    image.load()
        except DecodeError:
            raise
        except Exception as error:  # as in `_load`
            raise DecodeError(f"cannot decode the image {path}: {_reason(error)}") from error


def decode(job: dict[str, Any]) -> np.ndarray:
    """[3, height, width] uint8: the image of `job`, over its background, at its training size.

    Keys of `job`: `image`, `mask` (path or None), `source_size` (width, height
    that the file must have, or None), `size` (width, height of the result),
    `background` (RGB 0..1), and where true `alpha`: then a fourth plane holds the
    alpha, 255 everywhere for an image that has none and no mask.

    Raises:
        DecodeError: missing, truncated, no image, or of another size.
    """
    size = tuple(job["source_size"]) if job["source_size"] else None
    with _open(job["image"], size, "the camera file says") as image:
        rgb, alpha = _load(image, job["image"])
    if alpha is None and job["mask"]:
        with _open(job["mask"], (rgb.shape[1], rgb.shape[0]), "its image has") as mask:
            alpha = _load_gray(mask, job["mask"])
        rgb = recomposite(rgb, alpha, job["background"])
    elif alpha is not None:
        rgb = composite(rgb, alpha, job["background"])
    width, height = job["size"]
    planes = [rgb]
    if job.get("alpha"):
        planes.append(np.full(rgb.shape[:2], 255, np.uint8) if alpha is None else alpha)
    if (width, height) != (rgb.shape[1], rgb.shape[0]):
        planes = [resize(plane, width, height) for plane in planes]
    # Stacking them first would take ten times as long.
    result = np.empty((2 + len(planes), height, width), np.uint8)
    result[:3] = planes[0].transpose(2, 0, 1)
    for alpha in planes[1:]:
        result[3] = alpha
    return result


def composite(rgb: np.ndarray, alpha: np.ndarray, background: list[float]) -> np.ndarray:
    """`rgb` [H, W, 3] weighted by `alpha` [H, W] over a colour (RGB 0..1); all uint8."""
    over = 255.0 * np.asarray(background, dtype=np.float32)
    result = np.empty(rgb.shape, np.uint8)
    for top in range(0, len(rgb), ROWS):
        rows = slice(top, top + ROWS)
        weight = alpha[rows, :, None].astype(np.float32) / 255.0
        result[rows] = _to_bytes(rgb[rows] * weight + over * (1.0 - weight))
    return result


def recomposite(rgb: np.ndarray, alpha: np.ndarray, background: list[float]) -> np.ndarray:
    """Exchanges the background of an opaque image [H, W, 3] whose foreground mask is `alpha` [H, W]; uint8.

    Captures come with their background composited already: an edge pixel is
    F a + B (1 - a), so weighting it by `a` again would darken the hair. Where
    the existing background B is uniform, it is exchanged exactly:
    rgb + (B' - B)(1 - a), which changes nothing if B' = B. B is the median of
    the pixels with a = 0. Where it is not uniform (a photograph of a room),
    F is unknown, and rgb a + B' (1 - a) is the best that can be done.
    """
    outside = np.flatnonzero(alpha.reshape(-1) == 0)
    if not len(outside):
        return composite(rgb, alpha, background)
    sample = rgb.reshape(-1, 3)[outside[:: max(1, len(outside) // SAMPLES)]].astype(np.float32)
    old = np.median(sample, axis=0)
    if (np.abs(sample - old).max(axis=1) <= NEARLY_UNIFORM).mean() < UNIFORM_SHARE:
        return composite(rgb, alpha, background)
    change = 255.0 * np.asarray(background, dtype=np.float32) - old
    if np.abs(change).max() < 0.5:
        return rgb
    share = 1.0 - np.arange(256)[:, None] / 255.0
    added = np.rint(change * share).astype(np.int16)  # [256, 3] by alpha: a table is several times faster here
    result = np.empty(rgb.shape, np.uint8)
    for top in range(0, len(rgb), ROWS):
        rows = slice(top, top + ROWS)
        result[rows] = (rgb[rows] + np.take(added, alpha[rows], axis=0)).clip(0, 255)
    return result


def resize(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """[H, W, 3] or [H, W] uint8 to [height, width, 3] or [height, width].

    Whole factors take the mean of the pixels that fall together, which is what
    the renderer's coarser pixel sees. For others, averaging whole pixels would
    shift edges by up to half of one; HAMMING is as sharp and, unlike LANCZOS,
    does not ring at the silhouette.
    """
    image = Image.fromarray(rgb)
    if rgb.shape[1] % width == 0 and rgb.shape[0] % height == 0:
        return np.asarray(image.reduce((rgb.shape[1] // width, rgb.shape[0] // height)))
    return np.asarray(image.resize((width, height), Image.Resampling.HAMMING))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _open(path: str, size: tuple[int, int] | None, according_to: str) -> Image.Image:
    """The image, not yet decoded; its size is checked before anything large is allocated."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for, a device never ends
            raise DecodeError(f"the image {path} is not a file")
        image = Image.open(path, formats=IMAGE_FORMATS)
    except DecodeError:
        raise
    except FileNotFoundError as error:
        raise DecodeError(f"the image {path} does not exist") from error
    except Exception as error:  # Pillow's plugins raise whatever a broken header provokes
        raise DecodeError(f"cannot read the image {path}: {_reason(error)}") from error
    if size is not None and image.size != size:
        image.close()
        raise DecodeError(
            f"the image {path} is {image.size[0]}x{image.size[1]} pixels, but {according_to} {size[0]}x{size[1]}"
        )
    return image


def _load(image: Image.Image, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """[H, W, 3] RGB and, where the image is transparent somewhere, [H, W] alpha; uint8, no premultiplication."""
    try:
        if image.mode.startswith(("I;16", "I", "F")):
            return np.repeat(_deep_gray(image)[..., None], 3, axis=2), None
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            opaque = rgba[..., 3].min() == 255
            return rgba[..., :3], None if opaque else rgba[..., 3]
        return np.asarray(image.convert("RGB")), None
    except Exception as error:  # a broken stream raises OSError, SyntaxError, zlib.error, ValueError ...
        raise DecodeError(f"cannot decode the image {path}: {_reason(error)}") from error


def _load_gray(image: Image.Image, path: str) -> np.ndarray:
    """[H, W] uint8: the mask, from its grey value."""
    try:
        if image.mode.startswith(("I;16", "I", "F")):
            return _deep_gray(image)
        return np.asarray(image.convert("L"))
    except Exception as error:
        raise DecodeError(f"cannot decode the mask {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What an exception says, on one line of bearable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _deep_gray(image: Image.Image) -> np.ndarray:
    """[H, W] uint8 from 16-bit grey, whose high byte Pillow's own conversion would clip instead of keep."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixels of the kind {image.mode} are not supported: save it with 8 or 16 bits")
    return (values.astype(np.int64) >> 8).astype(np.uint8)


def write(file: int, data: np.ndarray, offset: int) -> None:
    """Writes all of `data`; unlike a store into a mapping, a full disk is an error here and not a crash."""
    rest = data.data.cast("B")
    while len(rest):
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _serve(file: int) -> None:
    """Answers requests until the standard input ends, which it also does when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    warnings.simplefilter("ignore")  # of Pillow, about images near its size limit
    for line in sys.stdin:
        request = json.loads(line)
        answers: list[str | None] = []
        for job in request["jobs"]:
            try:
                if request["check"]:
                    check(job)
                else:
                    write(file, decode(job), job["offset"])
                answers.append(None)
            except DecodeError as error:
                answers.append(str(error))
            except OSError as error:
                answers.append(f"cannot keep the decoded image {job['image']}: {error.strerror or error}")
            except MemoryError:
                answers.append(f"not enough memory to decode the image {job['image']}")
        try:
            print(json.dumps(answers), flush=True)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
