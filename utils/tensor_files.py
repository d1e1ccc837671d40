"""Saving tensors, with an honest error when the disk is full."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from utils.files import atomic_path


def save_tensors(path: str | Path, content: Any) -> None:
    """`torch.save`, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        # A stream of our own, and not the path: PyTorch's writer would report a
        # full disk as an internal error of its own.
        with _Stream(temporary) as stream:
            try:
                torch.save(content, stream)
            except RuntimeError as error:
                raise (stream.problem or error) from error


class _Stream(io.BufferedWriter):
    """A file for torch.save that remembers the operating system's own reason for a failed write."""

    problem: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            raise
