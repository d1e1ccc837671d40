"""Where the time of a training iteration goes.

    python benchmarks/stages.py -s DATA [--json FILE] [any train.py flag]

Runs the very loop of `train.py` into a temporary folder with a stop-watch
around each stage, and prints the median milliseconds of the run's last half
(the point count has settled by then) and the iterations per second. The line
"(rasterizer)" is the native rasterizer's part of forward and backward. Defaults to
300 iterations of a bound avatar on white; to time a trained avatar, give the
length and schedule of its run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from arguments import parse_train
from evaluation.results import device_name, git_commit
from gaussian_renderer import choose_device_and_rasterizer
from gaussian_renderer.backends import native
from train import train
from training.stages import Stages
from utils.errors import run_script


def time_rasterizer(stages: Stages) -> None:
    """Has the native rasterizer report itself as a stage, within those of the loop."""
    for name in ("forward", "backward"):

        def timed(*args: Any, inner: Callable[..., Any] = getattr(native._Rasterize, name)) -> Any:
            with stages("(rasterizer)"):
                return inner(*args)

        setattr(native._Rasterize, name, staticmethod(timed))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the medians here")
    ours, flags = parser.parse_known_args()
    if "--iterations" not in flags:
        flags += ["--iterations", "300"]
    with tempfile.TemporaryDirectory(prefix="stages-") as folder:
        options = parse_train(
            [*flags, "-m", os.path.join(folder, "model"), "--eval", "--bind_to_mesh", "--white_background"]
        )
        device = choose_device_and_rasterizer(options.run.device, options.pipeline.rasterizer)[0]
        stages = Stages(True, device)
        time_rasterizer(stages)
        results = train(options, stages)
    half = options.optimization.iterations // 2
    print(f"\n{device_name(device)}, rasterizer {results['backend']}, {results['points']:,} Gaussians at the end")
    print(stages.table(skip=half))
    if ours.json:
        ours.json.write_text(
            json.dumps(
                {
                    "milliseconds": stages.medians(skip=half),
                    "points": results["points"],
                    "backend": results["backend"],
                    "device": device_name(device),
                    "torch": torch.__version__,
                    "commit": git_commit(),
                    "flags": flags,
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    run_script(main)
