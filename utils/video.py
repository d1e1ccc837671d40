"""H.264 videos through the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from PIL import Image

from utils.errors import UserError, one_line
from utils.files import atomic_path


class VideoWriter:
    """Takes frames one by one and pipes them to a running ffmpeg; made by `video_writer`."""

    def __init__(self, process: subprocess.Popen[bytes], log: BinaryIO, path: Path, width: int, height: int) -> None:
        self._process = process
        self._frames = cast(IO[bytes], process.stdin)
        self._path = path
        self._log = log
        self._width = width
        self._height = height

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame, [H, W, 3] uint8; one of another size is fitted into the video's.

        Raises:
            UserError: ffmpeg has stopped.
        """
        if frame.shape[:2] != (self._height, self._width):
            frame = _fitted(frame, self._width, self._height)
        # 4:2:0 video needs even sides: repeat the last row or column rather than lose one.
        frame = np.pad(frame, ((0, self._height % 2), (0, self._width % 2), (0, 0)), mode="edge")
        try:
            self._frames.write(np.ascontiguousarray(frame).data)
        except OSError:
            self.finish()

    def finish(self) -> None:
        """Ends the stream and waits until ffmpeg has written everything.

        Raises:
            UserError: ffmpeg failed; names its first complaint.
        """
        with contextlib.suppress(OSError):  # had ffmpeg died, its exit status says so
            self._frames.close()
        if self._process.wait() != 0:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            reason = one_line(lines[0]) if lines else f"exit status {self._process.returncode}"
            raise UserError(f"ffmpeg could not write the video {self._path}: {reason}")


@contextlib.contextmanager
def video_writer(
    path: str | Path, width: int, height: int, *, fps: float = 25.0, quality: int = 18
) -> Iterator[VideoWriter]:
    """Writes an mp4 (H.264, yuv420p) from the frames given to `add`, atomically and without a shell.

    Frames are streamed: none is kept. At least one is needed.

    Args:
        path: the file.
        width: of the frames, pixels. The video of an odd one is a pixel wider.
        height: of the frames, pixels; likewise.
        fps: frames per second.
        quality: x264's constant rate factor: 0 lossless, 18 visually so, 51 worst.

    Raises:
        UserError: ffmpeg is missing or failed, or the folder cannot be written.
    """
    with atomic_path(path) as temporary, tempfile.TemporaryFile() as log:
        process = _start_ffmpeg(temporary, width + width % 2, height + height % 2, fps, quality, log)
        try:
            writer = VideoWriter(process, log, Path(path), width, height)
            yield writer
            writer.finish()
        finally:
            if process.poll() is None:  # an error of the caller ended the frames
                process.kill()
                process.wait()


def _start_ffmpeg(
    path: Path, width: int, height: int, fps: float, quality: int, log: BinaryIO
) -> subprocess.Popen[bytes]:
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(f"no ffmpeg for videos: pip install imageio-ffmpeg ({error})") from None
    command = [
        program,
        *"-y -loglevel error -f rawvideo -pix_fmt rgb24".split(),
        *("-s", f"{width}x{height}", "-r", str(fps), "-i", "-"),
        # Say which YCbCr it is: left unsaid, players guess by the size and shift the colours.
        *"-vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 -color_primaries bt709".split(),
        *"-color_trc bt709 -color_range tv -codec:v libx264 -preset fast".split(),
        *("-crf", str(quality), "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path.absolute())),
    ]
    try:
        # A session of its own: Ctrl-C reaches us, and we end ffmpeg in order.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )
    except OSError as error:
        raise UserError(f"cannot start {program}: {error.strerror}") from None


def _fitted(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """`frame` scaled to fit into `width` x `height`, centred on black."""
    scale = min(width / frame.shape[1], height / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(
        Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2)
    )
    return np.asarray(canvas)
