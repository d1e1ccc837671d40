"""How far something has come: a bar on a terminal, in a log file a plain line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY = 30.0  # seconds, in a log file


class Lossy:
    """A stream whose lines may get lost: a log on a full disk or a closed terminal is no reason to end a training."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __eq__(self, other: object) -> bool:
        # tqdm asks whether a line goes where a bar is, and if so takes the bar away for a moment.
        return self._stream == getattr(other, "_stream", other)

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Lines:
    """Takes what a bar takes, and writes whole lines."""

    def __init__(self, total: int, what: str, unit: str, initial: int) -> None:
        self.total, self.what, self.unit, self.n = total, what, unit, initial
        self.note = ""
        self._initial = initial
        self._start = self._written = time.monotonic()

    def update(self, count: int = 1) -> None:
        self.n += count
        now = time.monotonic()
        if count and (now - self._written >= LINE_EVERY or self.n == self.total):
            self._written = now
            rate = (self.n - self._initial) / max(now - self._start, 1e-9)
            left = tqdm.format_interval((self.total - self.n) / rate)
            done = f"{self.what}: {self.n}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {left} left"
            Lossy(sys.stderr).write(f"{done}{self.note and f', {self.note}'}\n")

    def set_postfix_str(self, note: str, refresh: bool = True) -> None:
        self.note = note

    def close(self) -> None:
        pass

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def progress_bar(
    total: int, what: str, unit: str, *, quiet: bool = False, initial: int = 0, **settings: Any
) -> tqdm | Lines:
    """A context in which `update()` says that one more of `total` is done.

    Args:
        what: is being done.
        quiet: nothing is shown.
        initial: done already.
        settings: of the bar.
    """
    if quiet or sys.stderr.isatty():
        stream = Lossy(sys.stderr)
        settings = {"desc": what, "dynamic_ncols": True, "mininterval": 0.3, **settings}
        return tqdm(total=total, unit=unit, initial=initial, file=stream, disable=quiet, **settings)
    return Lines(total, what, unit, initial)
