"""Tells whether this Python already has what a requirements file lists.

Run by the shell scripts before they create an environment of their own, so it
uses nothing but the standard library.

    python -m utils.environment requirements.txt [more.txt ...]

Exit status 0: everything is there. 1: something is missing (named on stdout).
The pins in the files are the set that the documented figures were made with; an
environment that someone already has counts as good when every package is
present and PyTorch lies in the range the code supports.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MINIMUM_PYTHON = (3, 11)
TORCH_RANGE = ((2, 11), (2, 14))  # first supported, first not supported


def missing(files: list[str]) -> list[str]:
    """What is absent or out of range, one phrase each."""
    problems = []
    if sys.version_info < MINIMUM_PYTHON:
        problems.append(f"Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer (this is {sys.version.split()[0]})")
    for file in files:
        for line in Path(file).read_text().splitlines():
            name = re.match(r"[A-Za-z0-9_.-]+", line)
            if not name:
                continue
            found = _installed(name[0])
            if found is None:
                problems.append(name[0])
            elif name[0] == "torch":
                number = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
                if not TORCH_RANGE[0] <= number < TORCH_RANGE[1]:
                    problems.append(f"torch 2.11 to 2.13 (found {found})")
    return problems


def _installed(name: str) -> str | None:
    """The version of a package; None when it is absent, or was left half-installed, without its metadata."""
    try:
        return version(name)  # None without a file METADATA, other than its annotation says
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    absent = missing(sys.argv[1:])
    if absent:
        print("missing: " + ", ".join(absent))
        sys.exit(1)
