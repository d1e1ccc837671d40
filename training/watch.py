"""Whether the other processes of a training still live, and whether this one still moves."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from utils.errors import UserError, one_line

BEAT = 1.0  # seconds between two signs of life
SILENCE = 20.0  # seconds without one: torchrun then needs up to 30 more until it has killed what hangs
AFTER_A_BREAK = 4.0  # the same once a connection broke
STILL = 40.0  # seconds in which a process has to render its views of a step,
SLOWEST = 20.0  # or so many times what the slowest step took;
FIRST_STEPS, COMPILING = 2, 900.0  # the first steps have more, in which kernels may have to be compiled


class Lost(UserError):
    """Another process is gone."""


class Watch(threading.Thread):
    """Tells the other processes that this one lives, and notices when one of them does not any more.

    A process that dies breaks its connections, and gloo says so; one that stands still, or whose machine is gone, does
    not, and NCCL waits for a dead one for ever. So each writes a sign of life into the store of torchrun, which
    outlives them all, and looks for those of the others. That is a thread's: it goes on when the main thread hangs,
    and ends the process then.

    Time is counted in rounds of this thread: a machine that sleeps, or all processes stopped at once, miss nothing.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, advice: Callable[[], str]) -> None:
        """`advice` tells how to go on after a process is gone."""
        super().__init__(daemon=True, name="watch")
        self.store, self.rank, self.size, self.advice = store, rank, size, advice
        self.over = threading.Event()
        self.seen: dict[int, tuple[bytes, int]] = {}  # rank -> its last sign of life, and the round when that was new
        self.rounds = 0
        self.main = threading.main_thread()
        self._began: int | None = None  # round in which the main thread began to render its share of a step, if it does
        self._steps = self._slowest = 0  # how many were rendered, and rounds of the slowest of them
        self._beat("0")

    def _beat(self, sign: str) -> None:
        self.store.set(f"beat {self.rank}", sign)

    # ---- of this process ----------------------------------------------------

    def begins(self) -> None:
        """The main thread renders its share of a step."""
        self._began = self.rounds

    def waits(self) -> None:
        """It has, and waits for the others from here on."""
        if self._began is not None:
            self._steps += 1
            if self._steps > FIRST_STEPS:
                self._slowest = max(self._slowest, self.rounds - self._began)
            self._began = None

    def _hangs(self) -> bool:
        began = self._began
        limit = COMPILING if self._steps < FIRST_STEPS else max(STILL, SLOWEST * BEAT * self._slowest)
        return began is not None and (self.rounds - began) * BEAT > limit

    def _place(self) -> str:
        """The line at which the main thread stands."""
        frame = sys._current_frames().get(self.main.ident or 0)
        return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}" if frame else "an unknown place"

    # ---- of all -------------------------------------------------------------

    def run(self) -> None:
        while not self.over.wait(BEAT):
            self.rounds += 1
            hangs = self._hangs()
            try:
                self._beat(str(self.rounds))
                silent = self._silent(SILENCE)
                if hangs and not self.over.is_set():
                    self.store.set("failed", str(self.rank))
            except RuntimeError:  # torchrun ends, and will end us
                return
            if (silent or hangs) and not self.over.is_set():
                if self.tell():
                    still = f"process {self.rank} of {self.size} stands still ({self._place()}); {self.advice()}"
                    print(f"error: {still if hangs else self._sentence(silent)}", file=sys.stderr, flush=True)
                os._exit(2)  # the main thread waits without end

    def _silent(self, limit: float) -> list[int]:
        """The processes that gave no sign of life for `limit` seconds and have not said that they end."""
        found = []
        for rank in set(range(self.size)) - {self.rank}:
            key = f"beat {rank}"
            sign = self.store.get(key) if self.store.check([key]) else b""
            if rank not in self.seen or self.seen[rank][0] != sign:
                self.seen[rank] = sign, self.rounds
            elif (self.rounds - self.seen[rank][1]) * BEAT > limit and sign != b"end":
                found.append(rank)
        return found

    def explain_break(self, error: RuntimeError) -> NoReturn:
        """Ends this process after a broken connection; one of all says which process is gone.

        Raises:
            UserError: the sentence.
            SystemExit: another process says it.
        """
        deadline = time.monotonic() + 2 * AFTER_A_BREAK
        silent: list[int] = []
        with contextlib.suppress(RuntimeError):
            while not silent and time.monotonic() < deadline and not self.store.check(["failed"]):
                time.sleep(BEAT / 4)
                silent = self._silent(AFTER_A_BREAK)
            if self.store.check(["failed"]) or not self.tell():
                self.over.set()
                raise SystemExit(2)
        raise Lost(self._sentence(silent) if silent else f"{self.advice()} ({one_line(error)[:200]})")

    def _sentence(self, silent: list[int]) -> str:
        names = ", ".join(map(str, silent))
        return f"process {names} of {self.size} was killed, or does not answer any more; {self.advice()}"

    def tell(self) -> bool:
        """Whether this process is the one that says what happened: the first that asks."""
        try:
            return self.store.add("told", 1) == 1
        except RuntimeError:
            return True

    def end(self, *, failed: bool = False) -> None:
        """No sign of life follows, and nobody is to miss it."""
        self.over.set()
        self.join(5 * BEAT)  # a thread that talks to the store while Python ends would abort it
        with contextlib.suppress(RuntimeError):
            if failed:
                self.store.set("failed", str(self.rank))
            self._beat("end")
