"""Videos through the ffmpeg that imageio-ffmpeg brings, and clips as the name of the file asks: .mp4, .webm, PNGs."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from PIL import Image

from utils.errors import UserError, one_line
from utils.files import atomic_path, only_writer
from utils.images import PngWriter, remove_numbered_pngs, write_png

WAITING = 8  # frames that may wait for ffmpeg


class VideoWriter:
    """Takes frames one by one; a thread pipes them to a running ffmpeg. Made by `video_writer`."""

    def __init__(self, process: subprocess.Popen[bytes], log: BinaryIO, path: Path, width: int, height: int) -> None:
        self._process = process
        self._frames = cast(IO[bytes], process.stdin)
        self._path = path
        self._log = log
        self._width = width
        self._height = height
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(WAITING)
        self._broken = False  # ffmpeg takes no more
        self._thread = threading.Thread(target=self._pipe, name="video", daemon=True)
        self._thread.start()

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame, [H, W, 3 or 4] uint8, not to be changed afterwards; one of another size is fitted into it.

        Raises:
            UserError: ffmpeg has stopped.
        """
        if self._broken:
            self.finish()
        self._queue.put(frame)

    def finish(self) -> None:
        """Ends the stream and waits until ffmpeg has written everything.

        Raises:
            UserError: ffmpeg failed; names its first complaint.
        """
        self.end_stream()
        if self._process.wait() != 0:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            reason = one_line(lines[0]) if lines else f"exit status {self._process.returncode}"
            raise UserError(f"ffmpeg could not write the video {self._path}: {reason}")

    def end_stream(self) -> None:
        """No more frames come; returns when the thread has piped those that wait, or ffmpeg is gone."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _pipe(self) -> None:
        while (frame := self._queue.get()) is not None:
            if self._broken:
                continue
            try:
                self._frames.write(np.ascontiguousarray(self._padded(frame)).data)
            except OSError:  # its exit status says why
                self._broken = True
        with contextlib.suppress(OSError):
            self._frames.close()

    def _padded(self, frame: np.ndarray) -> np.ndarray:
        if frame.shape[:2] != (self._height, self._width):
            frame = _fitted(frame, self._width, self._height)
        # 4:2:0 video needs even sides: repeat the last row or column rather than lose one.
        return np.pad(frame, ((0, self._height % 2), (0, self._width % 2), (0, 0)), mode="edge")


@contextlib.contextmanager
def video_writer(
    path: str | Path, width: int, height: int, *, fps: float = 25.0, quality: int = 18, alpha: bool = False
) -> Iterator[VideoWriter]:
    """Writes an mp4 (H.264), or a .webm (VP9), from the frames given to `add`, atomically and without a shell.

    Frames are streamed, beside the caller: few are kept. At least one is needed.

    Args:
        path: the file.
        width: of the frames, pixels. The video of an odd one is a pixel wider.
        height: of the frames, pixels; likewise.
        fps: frames per second.
        quality: the constant rate factor: for H.264, 0 is lossless, 18 visually so, 51 the worst.
        alpha: frames have four channels, the color not multiplied by the last; only a .webm can hold them.

    Raises:
        UserError: ffmpeg is missing or failed, or the folder cannot be written.
    """
    with atomic_path(path) as temporary, tempfile.TemporaryFile() as log:
        pixels = "rgba" if alpha else "rgb24"
        process = _start_ffmpeg(temporary, pixels, width + width % 2, height + height % 2, fps, quality, log)
        writer = VideoWriter(process, log, Path(path), width, height)
        try:
            yield writer
            writer.finish()
        finally:
            if process.poll() is None:  # an error of the caller ended the frames
                process.kill()
                process.wait()
            writer.end_stream()


@contextlib.contextmanager
def clip_writer(
    path: str | Path, width: int, height: int, *, fps: float, alpha: bool = False
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives what takes frames [H, W, 3 or 4] uint8 one by one and encodes them beside the caller.

    Args:
        path: a file .mp4 or .webm; .png, for a single frame; without such an ending, a folder of numbered PNGs.
        alpha: frames have four channels; not in an .mp4.

    Raises:
        UserError: an ending that means nothing, alpha in an .mp4, or it cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".mp4", ".webm", ".png", ""):
        raise UserError(f"a clip is an .mp4, a .webm, or a folder of PNGs, a picture a .png: {path} has another ending")
    if alpha and kind == ".mp4":
        raise UserError(f"an .mp4 such as {path} holds no alpha channel: name a .webm, or a folder for PNGs")
    if kind == ".png":
        yield lambda frame: write_png(path, frame)
    elif kind == "":
        if not (path / ".lock").exists() and any(path.glob("[0-9]*.png")):
            raise UserError(
                f"{path} holds pictures that are not of a clip, which would be replaced: name another folder"
            )
        with only_writer(path), PngWriter() as pngs:
            remove_numbered_pngs(path)
            count = 0

            def add(frame: np.ndarray) -> None:
                nonlocal count
                pngs.write(path / f"{count:05d}.png", frame)
                count += 1

            yield add
    else:
        with video_writer(path, width, height, fps=fps, alpha=alpha) as video:
            yield video.add


# Say which YCbCr it is: left unsaid, players guess by the size and shift the colours.
_COLORS = (
    "-vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 -color_primaries bt709 -color_trc bt709 "
    "-color_range tv"
)
_CODECS = {
    ".mp4": "-codec:v libx264 -preset fast -movflags +faststart",
    # Constant quality; as fast as a frame is rendered on a CPU.
    ".webm": "-codec:v libvpx-vp9 -b:v 0 -deadline good -cpu-used 5 -row-mt 1",
}


def _start_ffmpeg(
    path: Path, pixels: str, width: int, height: int, fps: float, quality: int, log: BinaryIO
) -> subprocess.Popen[bytes]:
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise UserError(f"no ffmpeg for videos: pip install imageio-ffmpeg ({error})") from None
    stored = "yuva420p" if pixels == "rgba" else "yuv420p"
    command = [
        program,
        *f"-y -loglevel error -f rawvideo -pix_fmt {pixels} -s {width}x{height} -r {fps} -i -".split(),
        *f"{_COLORS} {_CODECS.get(path.suffix.lower(), _CODECS['.mp4'])} -crf {quality} -pix_fmt {stored}".split(),
        str(path.absolute()),
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
    canvas = Image.new("RGBA" if frame.shape[2] == 4 else "RGB", (width, height))
    canvas.paste(
        Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2)
    )
    return np.asarray(canvas)
