"""A short training of a static scene: how long it takes, and what it reaches.

    python -m benchmarks.static_race -s SCENE [--iterations 1000] [any train.py flag]

SCENE is a COLMAP or Blender folder. Prints the seconds of the whole run of `train.py` from its first line to the last
iteration's evaluation, those of the loop, the Gaussians, and the PSNR of the training views or, with --eval, of those
held out.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from arguments import parse_train
from benchmarks.common import UNDISTURBED, Table, new_parser, publish
from benchmarks.static_scene import static_flags
from train import train
from utils.errors import run_script


def main() -> None:
    parser = new_parser(__doc__, "source_path", "json")
    parser.add_argument("--iterations", type=int, default=1000)
    options, flags = parser.parse_known_args()
    words = ["-s", str(options.source_path), "--iterations", str(options.iterations), *static_flags(options.iterations)]
    with tempfile.TemporaryDirectory(prefix="race-") as folder:
        start = time.perf_counter()
        found = train(parse_train([*words, *UNDISTURBED, "-m", str(Path(folder, "model")), *flags]))
        whole = time.perf_counter() - start
    quality = {f"{split} PSNR": round(values["psnr"], 2) for split, values in found["metrics"].items()}
    row = {"iterations": options.iterations, "seconds": round(whole, 1), "of them the loop": round(found["seconds"], 1)}
    publish(options, [Table("One run:", [{**row, "Gaussians": found["points"], **quality}])])


if __name__ == "__main__":
    run_script(main)
