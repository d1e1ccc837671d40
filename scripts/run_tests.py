"""What tests/run.sh runs: ruff, mypy and pytest; with arguments only pytest, with them."""

from __future__ import annotations

import sys

from utils.environment import call, ensure
from utils.errors import run_script


def main() -> None:
    python, arguments = ensure("requirements.txt", "tests/requirements.txt"), sys.argv[1:]
    checks = [] if arguments else [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]]
    for command in (*checks, ["pytest", *arguments]):
        if status := call(python, "-m", *command):
            sys.exit(status)


if __name__ == "__main__":
    run_script(main)
