"""Random scenes by the Triton backend, in Triton's interpreter on the CPU, against the float64 reference.

    python tests/torture/fuzz_triton.py [--minutes 5] [--seed 0]

Pictures of 1x1 to 70x50 pixels, all degrees, Gaussians of every size, opacity and depth, some of them broken. Stops at
the first scene that differs, with its seed; exit status 1.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from raster_scenes import Scene, compare, make_scene

from gaussian_renderer.backends import native
from gaussian_renderer.backends import triton as backend
from ops.types import Gaussians
from utils.errors import run_script


def draw_scene(seed: int) -> Scene:
    dice = random.Random(seed)
    low = dice.choice([1e-4, 0.02, 0.3, 2.0])
    scene = make_scene(
        seed,
        dice.randint(1, 60),
        size=(dice.randint(1, 70), dice.randint(1, 50)),
        sigma=(low, low * dice.choice([2.0, 30.0, 300.0])),
        opacity=(0.003, dice.choice([0.3, 0.95, 1.0])),
        depth=(dice.choice([0.1, 0.5, -1.0]), 4.0),
        spread=dice.choice([0.7, 1.0, 3.0]),
        centered=dice.random() < 0.3,
        degree=dice.randint(0, 3),
    )
    fields = Gaussians(*(field.clone() for field in scene.gaussians))
    for _ in range(dice.randint(0, 4)):
        field = dice.choice(fields)
        numbers = field.view(-1)
        # A huge color would be a huge picture, of which float32 holds seven digits.
        broken = [math.nan, math.inf] if field is fields.sh else [math.nan, math.inf, -1e30, 0.0, 1e20]
        numbers[dice.randrange(len(numbers))] = dice.choice(broken)
    return scene._replace(gaussians=fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    np.seterr(all="ignore")  # where a kernel makes NaN, NumPy says so
    end, seed, compared, beyond = time.monotonic() + 60 * options.minutes, options.seed, 0, 0
    while time.monotonic() < end:
        scene, told = draw_scene(seed), {"seed": seed, "absolute": seed % 2 == 0, "floor": 1e-4}
        try:
            compare(native.rasterize, scene, **told)
        except AssertionError:
            beyond += 1  # of float32: at a threshold, or needles of thousands of pixels
        else:
            try:
                _, actual = compare(backend.rasterize, scene, **told)
            except AssertionError as error:
                print(f"seed {seed}: {error}")
                sys.exit(1)
            assert all(torch.isfinite(grad).all() for grad in actual.grads.values()), seed
            compared += 1
        seed += 1
    print(f"{compared} scenes agree, {beyond} are beyond float32 (the native kernels differ too); next seed {seed}")


if __name__ == "__main__":
    run_script(main)
