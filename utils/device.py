"""Choosing where to compute."""

from __future__ import annotations

import torch

from utils.errors import UserError


def pick_device(name: str, threads: int = 0) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; also sets the number of CPU threads where it is not 0.

    Raises:
        UserError: a GPU was asked for and PyTorch sees none.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu, or install a CUDA PyTorch")
    return torch.device(name)
