"""Choosing where to compute."""

from __future__ import annotations

import torch

from utils.errors import UserError, one_line, warn_once

LEAST_FREE = 1 << 30  # bytes of a GPU's memory; with less not even a small capture trains


def pick_device(name: str, threads: int = 0) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; also sets the number of CPU threads where it is not 0.

    "auto" is the first GPU that can be used, with one line that says why others before it are not, else the CPU. A
    GPU with a number becomes the current one.

    Raises:
        UserError: a GPU was asked for that PyTorch does not see, or that cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        if name == "auto":
            return torch.device("cpu")
        raise UserError(f"--device {name}: PyTorch sees no GPU here; use --device cpu, or install a GPU build of it")
    if name == "auto":
        faults = []
        for number in range(torch.cuda.device_count()):
            fault = gpu_fault(number)
            if fault is None:
                return _current(number)
            faults.append(f"cuda:{number} is left unused: {fault}")
            warn_once(faults[-1])
        return torch.device("cpu")
    number, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"--device {name}: PyTorch sees {count} GPU(s) here, cuda:0 to cuda:{count - 1}")
    if fault := gpu_fault(number):
        raise UserError(f"--device {name}: {fault}; use --device cpu, or another GPU")
    return _current(number)


def _current(number: int) -> torch.device:
    """The GPU as the current one, so that nothing lands on another by default."""
    if number == 0:
        return torch.device("cuda")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def gpu_fault(number: int) -> str | None:
    """Why this GPU cannot be used: too old for this PyTorch, taken by others, too little memory; None if it can."""
    card = f"GPU {number}"
    try:
        card = torch.cuda.get_device_name(number)
        free = torch.cuda.mem_get_info(number)[0]
        if free < LEAST_FREE:
            return f"{card} has only {free / 2**20:.0f} MiB of memory free"
        torch.ones(1, device=f"cuda:{number}").add_(1).item()  # a card too old for the wheel fails at its first kernel
    except RuntimeError as error:
        return f"{card} cannot run this PyTorch's kernels ({one_line(str(error).splitlines()[0])[:120]})"
    return None
