"""How much memory this process can still take, and how much it has held at most."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import torch
from torch import Tensor

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


class Keep:
    """Tensors that are made once and kept while there is room; the first stay, what finds no room is made each time.

    None is given up for another: whoever goes round and round through all would otherwise find none of them.
    """

    def __init__(self, share: float, device: torch.device | str = "cpu") -> None:
        """`share` (0..1) is of the memory that is free on `device` when the first are made."""
        self._share, self._device = share, device
        self._room: int | None = None  # bytes
        self._kept: dict[Hashable, tuple[Hashable, list[Tensor]]] = {}

    def get(self, key: Hashable, make: Callable[[], list[Tensor]], version: Hashable = None) -> list[Tensor]:
        """What was kept under `key`, or what `make` makes; something kept in another `version` goes."""
        if self._room is None:
            self._room = int(self._share * available_memory(self._device))
        if key in self._kept:
            known, tensors = self._kept[key]
            if known == version:
                return tensors
            del self._kept[key]
            self._room += sum(tensor.nbytes for tensor in tensors)
        tensors = make()
        size = sum(tensor.nbytes for tensor in tensors)
        if size <= self._room:
            self._room -= size
            self._kept[key] = version, tensors
        return tensors


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that this process can still take: of the machine, of its container and of `ulimit`, whichever is least.

    For a GPU, what is free there.
    """
    if torch.device(device).type == "cuda":
        # What PyTorch's allocator has in store is as good as free.
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    room = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize]
    free = _entries(PROC / "meminfo").get("MemAvailable")
    room += [free] if free is not None else []
    return max(0, min([*room, *_room_in_containers(), *_room_under_limits()]))


def peak_host_memory() -> int | None:
    """The most bytes of RAM this process has held at a time; None where it cannot be told.

    Files mapped into memory count with what of them was there, although the system may take that back.
    """
    peak = _entries(PROC / "self/status").get("VmHWM")
    if peak is None:
        with contextlib.suppress(ImportError):  # there is no such module on Windows
            import resource

            # Not on Linux: a child starts there with what its parent held when it was made.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


def peak_memory(device: torch.device | str = "cpu") -> dict[str, int | None]:
    """The most memory this process has held: {"host_bytes", "cuda_bytes"} (None where it cannot be told).

    Worker processes are not included; CUDA counts what PyTorch's allocator held in tensors.
    """
    cuda = torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else None
    return {"host_bytes": peak_host_memory(), "cuda_bytes": cuda}


def _room_in_containers() -> Iterator[int]:
    """What the memory limits of this process's control group, and of those around it, leave."""
    with contextlib.suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                top, limit, used = CGROUPS, "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                top, limit, used = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            # A container may show only its own group, at the top, and still name the path outside.
            own = top / path.lstrip("/")
            for folder in (folder for folder in {top, own, *own.parents} if folder == top or top in folder.parents):
                with contextlib.suppress(OSError, ValueError):  # no such limit ("max" is no number)
                    room = int((folder / limit).read_text()) - int((folder / used).read_text())
                    # The page cache counts as used, but is given up on demand.
                    stat = dict(re.findall(r"^(\S+) (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE))
                    yield room + int(stat.get("total_inactive_file") or stat.get("inactive_file", 0))


def _room_under_limits() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    with contextlib.suppress(ImportError):
        import resource

        status = _entries(PROC / "self/status")
        for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            allowed = resource.getrlimit(limit)[0]
            if allowed != resource.RLIM_INFINITY and used in status:
                yield allowed - status[used]


def _entries(path: Path) -> dict[str, int]:
    """The lines `name: number kB` of a file in /proc, in bytes; none where there is no such file."""
    with contextlib.suppress(OSError):
        found = re.findall(r"^(\w+):\s+(\d+) kB$", path.read_text(errors="replace"), re.MULTILINE)
        return {name: 1024 * int(value) for name, value in found}
    return {}
