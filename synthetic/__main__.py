"""`python -m synthetic OUT`: a procedural head, captured."""

from __future__ import annotations

import argparse
import time

from synthetic.capture import make_capture
from synthetic.hair import HAIR_STYLES
from utils.errors import run_script


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m synthetic",
        allow_abbrev=False,
        description="Writes a head model and a multi-view capture of it, made from code, to train on.",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; a stopped run is completed")
    parser.add_argument("--size", nargs=2, type=int, default=(256, 352), metavar=("W", "H"), help="pixels")
    parser.add_argument("--cameras", type=int, default=12, help="views, one of them held out (default 12)")
    parser.add_argument("--timesteps", type=int, default=30, help="moments, the last sixth held out (default 30)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the person (form, skin, hair color) and the motion (default 0)"
    )
    parser.add_argument("--samples", type=int, default=4, help="rays per pixel (default 4)")
    parser.add_argument(
        "--tracking_noise",
        type=float,
        default=1.0,
        help="noise of the tracked parameters, 1 = 0.3 mm, 0.3 degrees, 0.03 expression units",
    )
    parser.add_argument(
        "--wrinkles",
        action="store_true",
        help="lines of forehead, brow, eyes and smile, and blush, as strong as the expression of the moment",
    )
    parser.add_argument(
        "--hair",
        default="short",
        metavar="|".join(HAIR_STYLES),
        help="long falls to the shoulders and stands out from the model's outline, none is shaved (default short)",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    options = parser.parse_args()
    start = time.perf_counter()
    out = make_capture(
        options.out,
        size=tuple(options.size),
        cameras=options.cameras,
        timesteps=options.timesteps,
        seed=options.seed,
        samples=options.samples,
        tracking_noise=options.tracking_noise,
        wrinkles=options.wrinkles,
        hair=options.hair,
        workers=options.workers,
    )
    print(f"synthetic capture in {out} ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    run_script(main)
