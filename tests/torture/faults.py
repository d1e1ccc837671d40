r"""Breaks a training at a chosen moment: kills the process, or makes the disk full from there on.

As a program it is `train.py` with such an accident ahead:

    python tests/torture/faults.py '{"kind": "kill", "folder": "/OUT", "where": "write", "step": 70, "number": 3}' \
        -s DATA -m /OUT ...
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from training.reporter import Reporter
from utils import tensor_files


class Faults:
    """Counts what the process does to files in `folder`, from training step `step` on; strikes at the `number`-th.

    kind: "kill" (SIGKILL to itself), "full" (this and all later operations fail with ENOSPC), "count" (only counts).
    where: "operation": making, flushing, renaming a file or adding to the curves;
           "write": a piece of a checkpoint on its way to the disk, of which half arrives;
           "loop": anywhere, `number` milliseconds after `step`.
    """

    def __init__(self, kind: str, folder: str | Path, where: str = "operation", step: int = 0, number: int = 0) -> None:
        self.kind, self.folder, self.where, self.step, self.number = kind, str(folder), where, step, number
        self.armed = step == 0
        self.counted = 0

    def install(self, patch: Callable[[Any, str, Any], None] = setattr) -> Faults:
        """Puts itself between the program and the operating system; `patch` is `setattr` or monkeypatch's."""
        for name in ("open", "replace", "fsync", "pwrite", "mkdir"):
            patch(os, name, self._watched(getattr(os, name), name))
        plain_write, plain_step = tensor_files._Stream.write, Reporter.step

        def write(stream: Any, data: Any) -> int:
            if self._hit("write"):
                plain_write(stream, bytes(data)[: len(data) // 2])
                stream.flush()
                stream.problem = self._strike()
                raise stream.problem
            return plain_write(stream, data)

        def step(reporter: Reporter, iteration: int, *more: Any, **named: Any) -> None:
            if iteration >= self.step and not self.armed:
                self.armed = True
                if self.where == "loop":
                    threading.Thread(
                        target=lambda: (time.sleep(1e-3 * self.number), self._strike()), daemon=True
                    ).start()
            plain_step(reporter, iteration, *more, **named)

        patch(tensor_files._Stream, "write", write)
        patch(Reporter, "step", step)
        return self

    def _watched(self, plain: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            reading = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR)
            path = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.path.abspath(args[0])
            if not reading and path.startswith(self.folder) and self._hit("operation"):
                raise self._strike()
            return plain(*args, **named)

        return call

    def _hit(self, where: str) -> bool:
        if not self.armed or where != self.where:
            return False
        self.counted += 1
        return (
            self.counted == self.number
            if self.kind == "kill"
            else (self.kind == "full" and self.counted >= self.number)
        )

    def _strike(self) -> OSError:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    import train
    from utils.errors import run_script

    Faults(**json.loads(sys.argv.pop(1))).install()
    run_script(train.main)
