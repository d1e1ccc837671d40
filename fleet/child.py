"""Runs a program of this repository as the child of a worker, and ends with it.

    python -m fleet.child train.py -s DATA -m OUT ...

Whoever starts it holds the other end of its standard input. When that is closed, because the worker or its machine is
gone, the child is told to stop: a training saves, and does not hold the folder against its successor.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def stop_with_the_parent() -> None:
    """Waits for the end of standard input, which nobody writes to."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=stop_with_the_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
