"""Signals and the clock, asked between two iterations of a long run."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Takes note of SIGINT (Ctrl-C), SIGTERM (kill, a cluster's time limit) and SIGHUP (the terminal is closed).

        with StopSignals() as stop:
            for ...:
                if stop.signal: save, and leave

    The first signal only sets `signal`; a second one ends the program as it would without this class. One that
    the program was told to ignore (nohup) stays ignored. Python delivers signals to the main thread alone:
    entered in another, it sees none.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # there is no SIGHUP on Windows
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def ask(self) -> None:
        """As if SIGINT came, even where the program was told to ignore that."""
        self._note(signal.SIGINT, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.release()

    def release(self) -> None:
        """From here on signals do what they do without this class."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class Alarm:
    """Says when `seconds` have passed since it was made or restarted; never, if they are 0."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def due(self) -> bool:
        return self.seconds > 0 and time.monotonic() - self._start >= self.seconds
