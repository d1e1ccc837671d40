"""What tests/run.sh runs: ruff, mypy and pytest; with arguments only pytest, with them."""

from __future__ import annotations

import os
import shutil
import sys

from utils.environment import call, ensure
from utils.errors import run_script

MOST_WORKERS = 8  # each holds PyTorch and trains small avatars


def main() -> None:
    files, arguments = ["requirements.txt", "tests/requirements.txt"], sys.argv[1:]
    # The GPU's kernels are tested in Triton's interpreter; where there is a GPU, PyTorch brought its own Triton along.
    if sys.platform == "linux" and not shutil.which("nvidia-smi"):
        files.append("tests/requirements-triton.txt")
    python = ensure(*files)
    checks = [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]]
    commands = [["pytest", *arguments]]
    if not arguments:
        # Most tests keep one core busy; a file is one worker's, since its tests share what takes long to make.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        workers = str(min(os.cpu_count() or 1, MOST_WORKERS))
        commands = [*checks, ["pytest", "-n", workers, "--dist", "loadfile"]]
    for command in commands:
        if status := call(python, "-m", *command):
            sys.exit(status)


if __name__ == "__main__":
    run_script(main)
