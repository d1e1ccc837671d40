"""All that is done for one subject, by whichever process it falls to; the state stands in its folder.

This module imports no PyTorch: the work is done by children (`fleet.child`), and who waits for them takes no memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError, one_line
from utils.files import append_line, write_json
from utils.untrusted import read_regular

ROOT = Path(__file__).resolve().parent.parent
STATE, NOTE, LOG = "state.json", "subject.json", "output.log"  # in a subject's folder
MARK = ".train_many.json"  # in OUT: who sees it sees the folder of the others
APPEARS_IN = 60.0  # seconds that a file of one machine may take until another sees it (NFS)
UPDATE_EVERY = 1.0  # seconds between two states written
BUSY = "another run is writing into"  # said by a training whose predecessor still saves
BUSY_FOR = 90.0  # seconds that one may take
TO_SAVE = 120.0  # seconds that a child gets to save when it is told to stop

_PROGRESS = re.compile(r"Training: (\d+)/(\d+) it, ([\d.]+) it/s, (\S+) left(?:, ([\d.]+)k Gaussians)?")
_QUALITY = re.compile(r"\[\d+\] (val|test|train): psnr ([\d.]+)")
_START = re.compile(r"\d+ training views, ([\d,]+) Gaussians")
State = dict[str, Any]


class Work(NamedTuple):
    """One subject's programs with their arguments; they are run in this order, and each only once."""

    name: str
    folder: str  # of its avatar
    iterations: int
    train: tuple[str, ...]  # empty: the avatar is there, or stays untrained
    then: tuple[tuple[str, ...], ...] = ()
    retries: int = 0  # after a crash of a program
    mark: str = ""  # content of MARK


class Stopped(Exception):
    """The run is told to end; everything is saved."""


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none that can be read."""
    try:
        return json.loads(read_regular(path, 16 << 20) or b"null")
    except (OSError, ValueError, RecursionError):
        return None


def state_of(folder: Path) -> State:
    """What is known of the subject in `folder`."""
    found = read_json(folder / STATE)
    return found if isinstance(found, dict) else {}


def is_trained(folder: Path, iterations: int) -> bool:
    results = read_json(folder / "results.json")
    return isinstance(results, dict) and results.get("iterations") == iterations


def sees_not(out: str, mark: str) -> str:
    """The sentence for a machine that does not see the folder `out` of the one that wrote `mark`; empty if it does."""
    if (read_json(Path(out, MARK)) or {}).get("mark") == mark:
        return ""
    return f"the machine {socket.gethostname()} does not see {out}: give an output folder that all machines share"


def do(work: Work, stop: threading.Event | None = None) -> State:
    """Does what is left to do of `work`; the state it ended in, which also stands in the subject's folder.

    It does not raise for what is wrong with one subject: that is its state.

    Raises:
        Stopped: `stop` was set.
        KeyboardInterrupt: Ray cancels the work; what was trained is saved.
    """
    folder, stop = Path(work.folder), stop or threading.Event()
    deadline = time.monotonic() + APPEARS_IN
    while blind := sees_not(str(folder.parent), work.mark):
        if time.monotonic() > deadline:
            return {"name": work.name, "state": "failed", "reason": blind}
        if stop.wait(1.0):
            raise Stopped
    return _Doer(work, folder, stop).run()


class _Doer:
    def __init__(self, work: Work, folder: Path, stop: threading.Event) -> None:
        self.work, self.folder, self.stop = work, folder, stop
        before = state_of(folder)
        self.state: State = {
            "name": work.name,
            "state": "starts",
            "step": before.get("step", 0),
            "iterations": work.iterations,
            "attempts": before.get("attempts", 0),
            "done": before.get("done", []),
            "node": socket.gethostname(),
            "points": before.get("points"),
            "psnr": before.get("psnr"),
        }
        self.written = 0.0

    def run(self) -> State:
        programs = [("trains", self.work.train)] if self.work.train else []
        programs += [(Path(words[0]).stem + "s", words) for words in self.work.then if list(words) not in self._done()]
        try:
            for name, words in programs:
                reason = self._until_done(name, words)
                if reason:
                    return self._set(state="failed", reason=reason)
                if words is not self.work.train:
                    self._set(done=[*self._done(), list(words)])
                else:
                    self._keep_preview()
        except (Stopped, KeyboardInterrupt):
            self._set(state="stopped")
            raise
        except UserError as error:  # of a full disk, or a folder that cannot be written
            return {**self.state, "state": "failed", "reason": one_line(error)}
        return self._set(state="done")

    def _done(self) -> list[list[str]]:
        return self.state["done"]

    def _set(self, **changes: Any) -> State:
        self.state.update(changes, time=time.time())
        self.written = time.monotonic()
        write_json(self.folder / STATE, self.state)
        return self.state

    def _until_done(self, name: str, words: Sequence[str]) -> str:
        """Why the program failed; empty if it did not. What crashed is started again, and so is what has to wait."""
        crashes, began = 0, time.monotonic()
        while True:
            self._set(state=name, attempts=self.state["attempts"] + (name == "trains"))
            status, reason = run_program(words, self._hear, self.stop, self.folder / LOG)
            if status == 0:
                return ""
            if BUSY in reason and time.monotonic() - began < BUSY_FOR:
                self._set(attempts=self.state["attempts"] - 1)
                time.sleep(2.0)
            elif status < 0 and crashes < self.work.retries:
                crashes += 1
            else:
                return reason

    def _hear(self, line: str) -> None:
        """Learns from what a training says."""
        if match := _PROGRESS.search(line):
            step, _, rate, left, points = match.groups()
            self.state.update(step=int(step), rate=float(rate), left=left)
            if points:
                self.state["points"] = round(1000 * float(points))
        elif match := _QUALITY.search(line):
            if match[1] == "val" or self.state.get("split") != "val":
                self.state.update(split=match[1], psnr=float(match[2]))
        elif match := _START.search(line):
            self.state["points"] = int(match[1].replace(",", ""))
        else:
            return
        if time.monotonic() - self.written > UPDATE_EVERY:
            self._set()

    def _keep_preview(self) -> None:
        from fleet.preview import keep_preview

        results = read_json(self.folder / "results.json") or {}
        self._set(step=results.get("iterations"), points=results.get("points"))
        with contextlib.suppress(OSError, ValueError):
            keep_preview(self.folder)


def run_program(words: Sequence[str], hear: Callable[[str], None], stop: threading.Event, log: Path) -> tuple[int, str]:
    """Runs a program of this repository as a child that dies with this process: its status and, if not 0, the reason.

    Args:
        words: the program's path, and its arguments.
        hear: gets each line that it says, on either stream.
        stop: once set, the child is told to stop, and saves.
        log: gets its lines, too.

    Raises:
        Stopped: `stop` was set.
    """
    command = [sys.executable, "-m", "fleet.child", str(ROOT / words[0]), *words[1:]]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=20)

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            last.append(line.rstrip())
            append_line(log, line.rstrip())
            with contextlib.suppress(UserError):
                hear(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while child.poll() is None:
            if stop.wait(0.1):
                raise Stopped
    except BaseException:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(TO_SAVE)
        raise
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        assert child.stdin is not None
        child.stdin.close()
    reader.join(5.0)
    return child.returncode, "" if child.returncode == 0 else _reason(child.returncode, list(last))


def _reason(status: int, lines: list[str]) -> str:
    told = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (the memory of the machine may have run out)" if name == "SIGKILL" else "")
    return one_line(told or next((line for line in reversed(lines) if line), f"status {status}"))[:500]
