"""Procedural heads on a Ray cluster of several nodes on this machine, one of which is killed in the middle.

    python tests/torture/cluster.py [--subjects 12] [--iterations 300] [--out DIR]
    python tests/torture/cluster.py --toy 200 --iterations 50       # overhead: toy captures, nothing is killed

Every subject must end bit-identical to its run alone. Then the driver is killed in the middle of a second lot, and the
same command must finish it without training anything twice. Minutes; needs requirements-cluster.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from toy_capture import TIMESTEPS, write_capture

from fleet.work import state_of
from scene.gaussian_model import PLY_NAME

FLAGS = "--eval --bind_to_mesh -w --device cpu --threads 1 --metrics psnr --densify_grad_threshold 0.001"
SIZE = ["--size", "96", "128", "--cameras", "4", "--timesteps", "6"]


def captures(out: Path, count: int, toy: bool) -> list[Path]:
    folders = [out / "captures" / f"s{number:03d}" for number in range(count)]
    for number, folder in enumerate(folders):
        if not folder.exists():
            if toy:
                write_capture(folder, TIMESTEPS, size=(32, 48))
            else:
                words = [sys.executable, "-m", "synthetic", str(folder), *SIZE, "--seed", str(number)]
                subprocess.run(words, check=True, cwd=ROOT, capture_output=True)
    return folders


def driver(out: Path, name: str, subjects: list[Path], flags: list[str], address: str | None) -> subprocess.Popen:
    cluster = ["--address", address] if address else []
    words = [sys.executable, "train_many.py", *map(str, subjects), "-o", str(out / name), *cluster, *flags]
    return subprocess.Popen(words, cwd=ROOT)


def wait_for(out: Path, subjects: list[Path], done: int, process: subprocess.Popen) -> None:
    """Until so many subjects are finished and another one has a checkpoint."""
    while True:
        states = [state_of(out / subject.name).get("state") for subject in subjects]
        going = [s for s, state in zip(subjects, states) if state == "trains" and any((out / s.name).glob("chkpnt*"))]
        if states.count("done") >= done and going:
            return
        assert process.poll() is None, "the driver has ended early"
        time.sleep(0.02)


def same(first: Path, second: Path, iterations: int) -> bool:
    place = Path("point_cloud", f"iteration_{iterations}", PLY_NAME)
    return (first / place).read_bytes() == (second / place).read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--toy", type=int, default=0, help="so many toy captures instead")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.out or Path(temporary)).absolute()
        subjects = captures(out, options.toy or options.subjects, options.toy > 0)
        length = str(options.iterations)
        flags = [*FLAGS.split(), "--iterations", length, "--interval", str(max(10, options.iterations // 10))]
        (overhead if options.toy else kill)(out, subjects, flags, options.iterations)


def overhead(out: Path, subjects: list[Path], flags: list[str], iterations: int) -> None:
    """Prints what a subject costs beside its own training, and the memory of a driver."""
    process = driver(out, "many", subjects, flags, None)
    used = {process.pid: Used("driver", 0.0, 0.0)}
    memory, before = [], 0.0
    while process.poll() is None:
        look(used)
        if not before and any(one.children for one in used.values() if one.kind == "workers"):
            before = sum(one.own for one in used.values())
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{process.pid}/status").read_text()
            memory.append(int(text.split("VmRSS:")[1].split()[0]) / 1024)
        time.sleep(0.25)
    assert process.returncode == 0
    own = {kind: sum(one.own for one in used.values() if one.kind == kind) for kind in ("driver", "workers", "Ray")}
    parts = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in own.items())
    each = (sum(own.values()) - before) / len(subjects)
    print(
        f"beside the trainings: {sum(own.values()):.1f} s of CPU ({parts}), {before:.1f} of them until the first ended"
    )
    print(f"so {each:.2f} s for each of {len(subjects)} subjects")
    trainings = sum(one.children for one in used.values() if one.kind == "workers") / len(subjects)
    alone = []
    for subject in subjects[:5]:
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        train_alone(out, subject, flags)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        alone.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    print(f"a training: {trainings:.2f} s of CPU as a subject, {statistics.median(alone):.2f} s alone")
    third = len(memory) // 3
    print(f"the driver's memory: {memory[third]:.0f} MB after a third, {memory[-2]:.0f} MB at the end")


class Used(NamedTuple):
    """Seconds of CPU of a process."""

    kind: str  # driver, workers, Ray
    own: float
    children: float  # those that it has waited for: of a worker, the trainings


def look(used: dict[int, Used]) -> None:
    """Brings `used` up to date, with what these processes have started since; the trainings are left out."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            pid, line = int(folder.name), (folder / "cmdline").read_bytes()
            if b"fleet.child" in line:
                used.pop(pid, None)
            elif pid in used or (int(words[1]) in used and line):  # one that ends has no line any more
                known = used[pid].kind if pid in used else "Ray"
                own, waited = (sum(map(int, words[start : start + 2])) / ticks for start in (11, 13))
                used[pid] = Used("workers" if b"ray::" in line and b"Agent" not in line else known, own, waited)


def train_alone(out: Path, subject: Path, flags: list[str]) -> Path:
    folder = out / "alone" / subject.name
    words = [sys.executable, "train.py", "-s", str(subject), "-m", str(folder), *flags]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return folder


def kill(out: Path, subjects: list[Path], flags: list[str], iterations: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)
    try:
        process = driver(out, "many", subjects, flags, cluster.address)
        wait_for(out / "many", subjects, 3, process)  # by now both nodes train
        cluster.remove_node(lost, allow_graceful=False)
        print("killed: one of two nodes")
        assert process.wait() == 0
        again = [s.name for s in subjects if state_of(out / "many" / s.name)["attempts"] > 1]
        assert again, "the node that was killed trained nothing"
        print(f"started again: {', '.join(again)}")

        process = driver(out, "second", subjects, flags, cluster.address)
        wait_for(out / "second", subjects, 2, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = {s: out / "second" / s.name / "results.json" for s in subjects}
        before = {s: path.stat().st_mtime_ns for s, path in kept.items() if path.exists()}
        print(f"killed: the driver, with {len(before)} subjects finished")
        assert driver(out, "second", subjects, flags, cluster.address).wait() == 0
        twice = [s.name for s, moment in before.items() if kept[s].stat().st_mtime_ns != moment]
        assert not twice, f"trained twice: {twice}"
    finally:
        cluster.shutdown()
    for subject in subjects:
        alone = train_alone(out, subject, [*flags, "--quiet"])
        for name in ("many", "second"):
            assert same(alone, out / name / subject.name, iterations), (
                f"{name}/{subject.name} differs from its run alone"
            )
    totals = json.loads((out / "many" / "status.json").read_text())["totals"]
    print(f"{totals}: each bit-identical to its run alone; after the driver's death nothing was trained twice")


if __name__ == "__main__":
    main()
