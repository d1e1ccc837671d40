"""Looks at avatars where no camera looked, over black and over gray, and counts their specks (`evaluation.debris`).

    python -m benchmarks.debris OUT [OUT ...] [--picture FILE.png]

OUT is an output folder of a training. The picture has two rows for each: eight views around the head, from above, and
from above behind; first over black, then over mid-gray.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from evaluation.debris import cameras_around, speck_share
from scene import load_avatar
from utils.errors import UserError, run_script
from utils.images import to_bytes, write_png

BACKGROUNDS = (0.0, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.debris", description=__doc__.split("\n")[0])
    parser.add_argument("outputs", nargs="+", type=Path, metavar="OUT")
    parser.add_argument("--picture", type=Path, default=Path("debris.png"))
    options = parser.parse_args()
    rows = []
    for output in options.outputs:
        avatar = load_avatar(output, device="cpu")
        specks = speck_share(avatar.model, avatar.background)
        if specks is None:
            raise UserError(f"{output} is a static scene: there is no head to look at")
        print(f"{output}: {len(avatar.model):,} Gaussians, specks {100 * specks:.4f} % of their area")
        pose = avatar.pose(avatar.motion().timesteps[0])
        vertices = avatar.gaussians(pose)[1]
        assert vertices is not None  # it is bound to a head
        cameras = cameras_around(vertices)
        for level in BACKGROUNDS:
            over = torch.full((3,), level)
            rows.append(torch.cat([avatar.render(camera, pose, over) for camera in cameras], dim=2))
    write_png(options.picture, to_bytes(torch.cat(rows, dim=1)))
    print(f"{options.picture}: from eight directions, above, and above behind")


if __name__ == "__main__":
    run_script(main)
