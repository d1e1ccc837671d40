"""TensorBoard's event files, written so that curves and checkpoints never contradict each other.

PyTorch's `SummaryWriter` writes from a thread of its own: a full disk surfaces there, kills the training at
some later line or not at all, and nothing ever reaches the disk for certain. Here the record is the caller's.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from utils.errors import UserError, one_line
from utils.files import cannot_write, flush_folder


class EventFile:
    """One file of curves and pictures.

    A record that cannot be written, because the disk is full, is said once and kept in memory until there is
    room again; training goes on. Only `sync`, which stands before every checkpoint, insists.
    """

    def __init__(self, folder: str | Path, begin: int) -> None:
        """Starts a file in which whatever earlier ones hold from step `begin` on does not count any more.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(folder)
        self._waiting = bytearray()  # of the file, from byte `_end` on
        self._end, self._begin = 0, begin
        self._announced = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"events.out.tfevents.{_stamp(folder)}.{socket.gethostname()}.{os.getpid()}"
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            flush_folder(folder)
        except OSError as error:
            raise UserError(cannot_write(folder, error)) from error
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=begin, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """`pixels`: [H, W, 3] uint8."""
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG")
        height, width, _ = pixels.shape
        content = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=content)])))

    def options(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Shows `values` as text and as the hparams of a run that is judged by the scalars `metrics`."""
        from torch.utils.tensorboard.summary import hparams, text

        # Names of files may be no UTF-8.
        plain = {name: v if isinstance(v, bool | int | float) else one_line(v) for name, v in values.items()}
        rows = "".join(f"| {name} | `{value}` |\n" for name, value in plain.items())
        # The last of the three says that the session has ended, which is for the end to say.
        parts = hparams(plain, dict.fromkeys(metrics, 0.0))[:2]
        for summary in (text("options", f"| option | value |\n|---|---|\n{rows}"), *parts):
            self._add(Event(step=self._begin, summary=summary))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._waiting += record.getvalue()
        try:
            self._write()
        except OSError as error:
            if not self._announced:
                self._announced = True
                with contextlib.suppress(OSError):  # it may be the disk of the log, too
                    print(
                        f"warning: {cannot_write(self.path, error)}; until then the curves wait in memory",
                        file=sys.stderr,
                    )

    def _write(self) -> None:
        """Writes what waits. Half a record, left by an attempt that failed, is written over by the next."""
        while self._waiting:
            written = os.pwrite(self._file, self._waiting, self._end)
            self._end += written
            del self._waiting[:written]
        self._announced = False

    def sync(self) -> None:
        """Brings everything to the disk, so that it is there whatever happens next.

        Raises:
            UserError: that is not possible.
        """
        try:
            self._write()
            os.fsync(self._file)
        except OSError as error:
            raise UserError(cannot_write(self.path, error)) from error

    def close(self) -> None:
        """`sync`, and the end of the file; a second call does nothing."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1


class NoEventFile:
    """Of a process that leaves the writing to another."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Nothing, as the rest."""

    def image(self, name: str, pixels: np.ndarray, step: int) -> None: ...

    def options(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def _stamp(folder: Path) -> str:
    """The time in the file's name: TensorBoard reads files in the order of names, and clocks go wrong.

    A run resumed in the same second, or on a machine whose clock is behind, would otherwise be read before the
    one that it continues, and the steps that it replaces would all be shown.
    """
    found = (re.match(r"events\.out\.tfevents\.([0-9]{10})\.", path.name) for path in folder.iterdir())
    return f"{max(int(time.time()), *(int(match[1]) + 1 for match in found if match), 0):010d}"
