"""results.json: what a run ends with."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.files import write_json
from utils.memory import peak_memory
from utils.untrusted import read_regular

Metrics = Mapping[str, float | None]  # None: could not be had (LPIPS without its weights)


def json_ready(value: Any) -> Any:
    """`value` with numbers that JSON does not have (an infinite PSNR) turned into null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    return value


def write_results(
    path: Path,
    *,
    metrics: Mapping[str, Metrics],
    iterations: int,
    points: int,
    seconds: float,
    iterations_per_second: float | None,
    device: torch.device | str,
    backend: str,
    **more: Any,
) -> dict[str, Any]:
    """Writes results.json and returns what it holds.

    Args:
        path: of the file.
        metrics: means per split.
        iterations: how many were trained.
        points: Gaussians at the end.
        seconds: of training, without evaluations and saving.
        iterations_per_second: median over the run.
        device: trained on.
        backend: the rasterizer used.
        more: anything else worth keeping, as JSON values.
    """
    results = json_ready(
        {
            "metrics": metrics,
            "iterations": iterations,
            "points": points,
            "seconds": seconds,
            "iterations_per_second": iterations_per_second,
            "peak_memory": peak_memory(device),
            "backend": backend,
            "device": device_name(device),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "platform": platform.platform(),
            },
            "git_commit": git_commit(),
            **more,
        }
    )
    write_json(path, results)
    return results


def measured_iterations(path: Path) -> int:
    """The iterations of the run that the results.json at `path` is about; 0 when there is none."""
    try:
        return int(json.loads(read_regular(path, 16 << 20) or b"0")["iterations"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return 0


def device_name(device: torch.device | str) -> str:
    """Which GPU, or which processor with how many threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of this source tree ("-dirty" when changed), or None outside a repository."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
