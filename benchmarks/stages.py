"""Where the time of a training iteration goes.

    python -m benchmarks.stages -s DATA [any train.py flag]

Runs the very loop of `train.py` into a temporary folder with a stop-watch around each stage, and prints the
median milliseconds of the run's last half (the number of Gaussians has settled by then). Defaults to 300
iterations; to time a trained avatar, give the length and schedule of its run.
"""

from __future__ import annotations

import tempfile

from arguments import parse_train
from benchmarks.common import HEAD, Table, new_parser, publish
from gaussian_renderer import choose_device_and_rasterizer
from train import train
from training.stages import Stages
from utils.errors import run_script


def main() -> None:
    options, flags = new_parser(__doc__, "source_path", "json").parse_known_args()
    if "--iterations" not in flags:
        flags += ["--iterations", "300"]
    with tempfile.TemporaryDirectory(prefix="stages-") as folder:
        trained = parse_train(["-s", str(options.source_path), "-m", f"{folder}/model", *HEAD, *flags])
        device = choose_device_and_rasterizer(trained.run.device, trained.pipeline.rasterizer)[0]
        stages = Stages(True, device)
        points = train(trained, stages)["points"]
    medians = stages.medians(skip=trained.optimization.iterations // 2)
    row = {
        "Gaussians": points,
        **{name: round(value, 2) for name, value in medians.items()},
        "it/s": round(1e3 / medians["total"], 1),
    }
    publish(options, [Table("Median milliseconds of a stage, over the second half of the run:", [row])], device)


if __name__ == "__main__":
    run_script(main)
