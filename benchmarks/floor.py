"""How far the native rasterizer is from what the machine could do.

    [NATIVE_ARCH=x86-64-v3] python -m benchmarks.floor [--scenes screen avatar]

The floor of a stage is the larger of two times: its arithmetic for the pairs of a pixel and a Gaussian that reaches it,
with every lane of every register at work, and the bytes that it cannot avoid to read and write. Rates are those that
`peak.cpp` reaches here with the same threads (OMP_NUM_THREADS), the best of many tries; so is the measured time the
least. Nothing else may run meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks.common import Row, Table, new_parser, publish
from benchmarks.raster import SCENES, Passes, count_pairs
from benchmarks.raster_turns import build
from gaussian_renderer.backends import native
from utils.errors import run_script

# Float operations of a pair in ops/csrc/splat_blend.cpp, a fused multiply-add counted once. Both: 3 to the exponent,
# 10 of exp2, 3 for the limits of alpha. Forward: 3 of transmittance, 3 of color. Backward: 4 of transmittance and
# weight (one a division), 7 of the light behind, 3 for the slope, 6 sums.
OPERATIONS = {"blend": 3 + 10 + 3 + 3 + 3, "blend backward": 3 + 10 + 3 + 4 + 7 + 3 + 6}
INPUT = 4 * (3 + 4 + 3 + 1 + 3 * 16)  # bytes of a Gaussian: mean, quaternion, scale, opacity, harmonics
LINE = 64  # bytes of a projected Gaussian, and of its sums in a tile


def moved(gaussians: int, entries: int, pixels: int) -> dict[str, int]:
    """Bytes that each stage has to read and write."""
    return {
        "project": gaussians * (INPUT + LINE),
        "bin": gaussians * LINE + entries * 8,
        "blend": entries * (8 + LINE) + pixels * 4 * (4 + 2),  # image and alpha; transmittance and place for later
        "blend backward": entries * (8 + 2 * LINE) + pixels * 4 * (4 + 2),
        "project backward": gaussians * (2 * INPUT + LINE) + entries * LINE,
    }


def main() -> None:
    parser = new_parser(__doc__, "repeats", "json")
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=["screen", "avatar"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="floor-") as folder:
        answer = subprocess.run([str(build("peak", Path(folder)))], capture_output=True, text=True, check=True).stdout
    operations, bandwidth, width = (float(word) for word in answer.split())
    rows: list[Row] = []
    for name in options.scenes:
        kind = SCENES[name]
        passes = Passes(native.rasterize, kind, torch.device("cpu"))
        for _ in range(options.repeats + 2):
            passes.both()
        pairs = count_pairs(passes.gaussians, passes.camera)
        for stage, size in moved(kind.number, passes.entries, kind.width * kind.height).items():
            work = OPERATIONS.get(stage, 0) * pairs / operations / 1e6
            floor, measured = max(work, size / bandwidth / 1e6), min(passes.stages[stage])
            rows.append(
                {
                    "scene": name,
                    "stage": stage,
                    "pairs × operations, 10⁶": round(OPERATIONS.get(stage, 0) * pairs / 1e6) or None,
                    "MB": round(size / 1e6, 1),
                    "floor, ms": round(floor, 2),
                    "measured, ms": round(measured, 2),
                    "measured / floor": round(measured / floor, 1),
                }
            )
    arch = os.environ.get("NATIVE_ARCH", "native")
    title = (
        f"Kernels built for `{arch}`, {width:.0f} floats wide; {operations:.0f}·10⁹ operations, {bandwidth:.1f} GB/s:"
    )
    publish(options, [Table(title, rows)])


if __name__ == "__main__":
    run_script(main)
