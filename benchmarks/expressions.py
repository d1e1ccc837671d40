"""How avatars of one capture look where the face moves most.

    python -m benchmarks.expressions OUT [OUT ...] --picture FILE.jpg [--expressions smile brow_down]

OUT is an output folder of a training. The picture has a row for each expression, named as in the `expr_names.json`
beside the head model: the held-out view that has most of it, its photograph first, then every avatar.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from benchmarks.common import open_trained
from scene.images.cache import ImageCache
from scene.motion.blendshapes import mode_names
from utils.errors import UserError, run_script
from utils.images import to_bytes

QUALITY = 92  # of JPEG


@torch.no_grad()
def picture(outputs: list[Path], expressions: list[str]) -> torch.Tensor:
    """[3, H, W] a row for each expression: photograph, avatars."""
    columns: list[list[torch.Tensor]] = []
    for output in outputs:
        avatar, dataset = open_trained(output)
        assert avatar.head is not None and avatar.head_file is not None and dataset.flame is not None
        names = list(mode_names(avatar.head_file, avatar.head.n_expr))
        chosen = []
        for name in expressions:
            if name not in names:
                raise UserError(f"--expressions {name}: the head model has {', '.join(names) or 'no names'}")
            tracked = dataset.flame["expr"][:, names.index(name)]
            chosen.append(max(dataset.val, key=lambda view: tracked[view.camera.timestep]))
        if not columns:
            images = ImageCache(chosen, dataset.background, progress=False)
            columns.append([images.image(index, "cpu") for index in range(len(chosen))])
        cameras = [view.camera.to(avatar.model.device) for view in chosen]
        drawn = [avatar.look(avatar.model(camera.timestep)[0], camera).image for camera in cameras]
        columns.append([image.clamp(0, 1).cpu() for image in drawn])
    return torch.cat([torch.cat(list(row), dim=2) for row in zip(*columns)], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expressions", description=__doc__.split("\n")[0])
    parser.add_argument("outputs", nargs="+", type=Path, metavar="OUT")
    parser.add_argument("--picture", type=Path, required=True, help="file to write")
    parser.add_argument("--expressions", nargs="+", default=["smile", "brow_down"], metavar="NAME", help="its rows")
    options = parser.parse_args()
    Image.fromarray(to_bytes(picture(options.outputs, options.expressions))).save(options.picture, quality=QUALITY)
    print(f"{options.picture}: rows {', '.join(options.expressions)}; photograph, then the avatars in this order")


if __name__ == "__main__":
    run_script(main)
