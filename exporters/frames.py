"""A motion as numbered world-space PLYs and a manifest that describes them, for programs that play such sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arguments import ExportOptions
from exporters.moment import splats, write_all
from exporters.ply import SCALE, UP
from ops.sh import degree_of
from ops.types import Gaussians
from scene import Avatar
from scene.motion.rows import FPS
from scene.ply import export_world
from utils.errors import UserError
from utils.files import remove, write_json

MANIFEST_NAME = "manifest.json"
FORMAT, VERSION = "gaussian frames", 1


def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the folder `path`: a PLY for each moment of the avatar's own motion or of `--motion`, last the manifest.

    Yields:
        What they do not hold, and what was written.

    Raises:
        UserError: a static scene, a folder that holds other files of such names, or it cannot be written.
    """
    if avatar.head is None:
        raise UserError(
            f"{avatar.path} is not bound to a head mesh, so it does not move: --format ply is its one moment"
        )
    written = splats(avatar, options, up=UP, scale=SCALE, moving=True)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)

    def write(file: Path, gaussians: Gaussians) -> None:
        export_world(file, gaussians)
        means = gaussians.means.cpu().double().numpy()
        np.minimum(low, means.min(0), out=low)
        np.maximum(high, means.max(0), out=high)

    if (path / ".lock").exists():  # ours, as `write_all` tells
        remove(path / MANIFEST_NAME)  # whoever finds one has the files that it lists
    yield from write_all(written, path, options, write, several=True, ending=".ply")
    place = written.place
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fps": written.fps or FPS,
        "files": [f"{index:05d}.ply" for index in range(len(written))],
        "timesteps": list(avatar.motion().timesteps) if isinstance(written.poses, range) else None,
        "gaussians": len(written.sh),
        "sh_degree": degree_of(written.sh.shape[1]),
        "bounds": {"low": low.tolist(), "high": high.tolist()},
        "up": options.up or UP,
        "scale": place.scale if place else 1.0,
        "turn": place.turn.tolist() if place else np.eye(3).tolist(),
        "origin": place.origin.tolist() if place else [0.0, 0.0, 0.0],
    }
    write_json(path / MANIFEST_NAME, about)
    yield f"{path / MANIFEST_NAME}: {len(written):,} moments, {about['fps']:g} a second"
