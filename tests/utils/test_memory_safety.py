"""The limits of memory are seen, wherever they are set, and nothing grows beyond them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from runs import train_on

from ops.types import Candidates, Selection
from training import density_control as densification
from training.density_control import while_memory_lasts
from utils import memory
from utils.memory import available_memory, peak_host_memory

MB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a /sys/fs/cgroup to write; this machine has 3000 MB free."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc/meminfo", "MemTotal:  9000000 kB\nMemAvailable:  3072000 kB\nHugePages_Total:  0\n")
    write(tmp_path / "proc/self/status", "Name: python\nVmSize:  1024000 kB\nVmData:  512000 kB\nVmHWM:  204800 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, limit: int | str, used: int, cache: int, version: int = 2) -> None:
    """A control group with these limits in MB."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write(folder / names[0], f"{limit * MB if isinstance(limit, int) else limit}\n")
    write(folder / names[1], f"{used * MB}\n")
    own = "" if version == 2 else "inactive_file 0\ntotal_"
    write(folder / "memory.stat", f"anon 5\n{own}inactive_file {cache * MB}\n")


def test_the_machine_itself(machine: Path) -> None:
    assert available_memory() == 3000 * MB
    assert peak_host_memory() == 200 * MB


def test_a_container_of_version_2(machine: Path) -> None:
    group(machine / "cgroup", 2000, 1500, 300)
    assert available_memory() == 800 * MB
    group(machine / "cgroup", "max", 1500, 300)
    assert available_memory() == 3000 * MB
    group(machine / "cgroup", 1000, 1500, 0)  # lowered while it was used
    assert available_memory() == 0


def test_groups_around_the_own_one_count(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "0::/user.slice/job.scope\n")
    group(machine / "cgroup/user.slice/job.scope", "max", 10, 0)
    group(machine / "cgroup/user.slice", 2000, 1400, 100)
    assert available_memory() == 700 * MB
    group(machine / "cgroup/user.slice/job.scope", 500, 10, 0)
    assert available_memory() == 490 * MB


def test_a_container_of_version_1(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n")
    group(machine / "cgroup/memory/docker/abc", 900, 400, 50, version=1)
    group(machine / "cgroup/memory", 9223372036854771712 // MB, 400, 0, version=1)
    assert available_memory() == 550 * MB
    # Inside the container its group is the top, under a name that is not there.
    write(machine / "proc/self/cgroup", "4:memory:/elsewhere\n")
    group(machine / "cgroup/memory", 800, 400, 0, version=1)
    assert available_memory() == 400 * MB


def test_ulimit(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert available_memory() == 3000 * MB
    limits[resource.RLIMIT_AS] = 1800 * MB
    assert available_memory() == 800 * MB
    limits[resource.RLIMIT_DATA] = 700 * MB
    assert available_memory() == 200 * MB


def test_without_proc(machine: Path) -> None:
    """On another system there is at least the size of the memory."""
    (machine / "proc/meminfo").unlink()
    (machine / "proc/self/status").unlink()
    assert available_memory() > 0 and peak_host_memory() > 50 * MB


def test_the_peak_is_this_process_s_own() -> None:
    """getrusage would show a child what its parent held; here 300 MB, while a bare Python with PyTorch takes less."""
    held = bytearray(300 * MB)
    held[::4096] = b"x" * len(held[::4096])
    program = (
        "from utils.memory import peak_host_memory\nbefore = peak_host_memory()\nheld = bytearray(100 << 20)\n"
        "held[::4096] = b'x' * len(held[::4096])\nprint(before, peak_host_memory())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < peak_host_memory() - 100 * MB and 95 * MB < after - before < 130 * MB
    assert peak_host_memory() > 300 * MB


def test_a_real_limit_on_the_address_space_is_seen() -> None:
    program = (
        "import resource\nfrom utils.memory import available_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\nfree = available_memory()\n"
        "bytearray(free - (8 << 20))\n"
        "try:\n    bytearray(free + (8 << 20))\nexcept MemoryError:\n    print(free)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2048 * MB


# ---- growth ------------------------------------------------------------------------------------------------


def everything(step: int, candidates: Candidates) -> Selection:
    """Clones the first half of what there is and splits the rest."""
    half = torch.arange(len(candidates.statistic)) < len(candidates.statistic) // 2
    return Selection(half, ~half, 1.0, 2.0, "Everything")


def test_growth_ends_where_memory_does_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    count, messages = 1000, []
    candidates = Candidates(*(torch.ones(count) for _ in range(4)))
    need = densification.MEMORY_RESERVE + densification.MEMORY_HELD * count + densification.MEMORY_MOVED * 2 * count
    free = {"bytes": need}
    monkeypatch.setattr(densification, "available_memory", lambda device: free["bytes"])
    policy = while_memory_lasts(everything, torch.device("cpu"), messages.append)
    chosen = policy(10, candidates)
    assert (chosen.clone | chosen.split).all() and not messages
    free["bytes"] = need - 1
    for step in (20, 30):
        chosen = policy(step, candidates)
        assert not chosen.clone.any() and not chosen.split.any() and chosen.name == "Everything"
    assert len(messages) == 1 and "iteration 20: 1,000 Gaussians are not added" in messages[0]
    free["bytes"] = need
    assert policy(40, candidates).split.any()  # there is room again


def test_a_run_without_room_trains_with_what_it_has(
    capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = "--iterations 40 --densify_from_iter 5 --densification_interval 10 --densify_grad_threshold 1e-6"
    grown = train_on(capture, tmp_path / "model", schedule)["points"]
    assert grown > 400 and "not added" not in capfd.readouterr().err
    monkeypatch.setattr(densification, "available_memory", lambda device: 200 * MB)
    results = train_on(capture, tmp_path / "small", schedule)
    assert results["points"] <= 320 and results["peak_memory"]["host_bytes"] > 50 * MB
    assert capfd.readouterr().err.count("Gaussians are not added, because only 210 MB of memory are free") == 1
