"""The Gaussians of an avatar at a moment, or at each of a motion, as ordinary splats: what a file without a rig holds.

They are in world space, turned and scaled into the axes of the file. What the avatar's color network does to pictures
is put into their colors (`exporters/colors.py`), and those that hardly show may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from arguments import ExportOptions
from exporters import colors
from exporters.view import first_view
from ops import sh as harmonics
from ops.rotations import matrix_to_quaternion, quaternion_multiply
from ops.types import Gaussians
from scene import Avatar
from scene.motion import chosen_motion
from utils.errors import UserError
from utils.files import only_writer, remove
from utils.progress import progress_bar

Array = np.ndarray

# Rows: the axes of the file, seen by a viewer whose axes are x right, y up, z to himself.
AXES = {
    "y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "y-down": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "z": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}
WORLD = "world"


class Place(NamedTuple):
    """How the world stands in a file: a point x is at scale turn (x - origin)."""

    turn: Tensor  # [3, 3] float64, a rotation
    origin: Tensor  # [3] float64, world space
    scale: float

    def points(self, points: Tensor) -> Tensor:
        """[N, 3] float64."""
        return self.scale * (points - self.origin.to(points.device)) @ self.turn.to(points.device).T

    def of(self, gaussians: Gaussians) -> Gaussians:
        """Everything but the colors, see `turned`."""
        means, quats, scales = (value.double() for value in gaussians[:3])
        turn = self.turn.to(means.device)
        return gaussians._replace(
            means=self.points(means).float(),
            quats=quaternion_multiply(matrix_to_quaternion(turn), quats).float(),
            scales=(self.scale * scales).float(),
        )

    def turned(self, sh: Tensor) -> Tensor:
        """[N, K, 3] coefficients of the same colors; a rotation mixes those of one degree only.

        Which mixture it is comes from the basis functions themselves: their values in turned directions.
        """
        degree = harmonics.degree_of(sh.shape[1])
        directions = colors.sphere(4 * sh.shape[1]).to(self.turn)
        ours, theirs = (harmonics.basis(each, degree) for each in (directions, directions @ self.turn.T))
        mixture = torch.linalg.lstsq(theirs, ours).solution.to(sh.device)
        return torch.einsum("kl,nlc->nkc", mixture, sh.double()).float()


@dataclass(frozen=True)
class Splats:
    """What is written: which Gaussians, in which colors and axes, in which poses."""

    avatar: Avatar
    poses: Array | range  # [T, D]; a range: these rows of its own motion, with the offsets it has there
    fps: float | None  # moments a second, where somebody knows
    place: Place | None  # None: as in the capture
    sh: Tensor  # [M, K, 3] in the axes of the file, at the first moment
    first: Tensor  # [N, K', 3] the avatar's own colors at that
    kept: Tensor | None  # [M] int64, which of its Gaussians; None: all
    notes: list[str] = field(default_factory=list)  # what the files do not hold, a sentence each

    def __len__(self) -> int:
        """How many moments there are."""
        return len(self.poses)

    @torch.no_grad()
    def mesh(self, index: int) -> Array:
        """[V, 3] float64: the vertices on which they ride at one of them."""
        vertices = posed_at(self.avatar, self.poses[index])[1]
        assert vertices is not None  # it has a head
        vertices = vertices.double()
        return (vertices if self.place is None else self.place.points(vertices)).cpu().numpy()

    @torch.no_grad()
    def moment(self, index: int) -> Gaussians:
        """The Gaussians of one of them."""
        own = posed_at(self.avatar, self.poses[index])[0]
        posed = colors.taken(own, self.kept)
        if self.place is not None:
            posed = self.place.of(posed)
        # The base color is the same in all axes.
        return posed._replace(sh=colors.at_moment(self.sh, self.first, own.sh, self.kept))

    def follows(self) -> Iterator[str]:
        """What is lost in a file of several moments that has one color for all of them, as a sentence."""
        if self.avatar.model.modes is not None and len(self) > 1:
            yield "the colors are those of the first moment: they do not follow the expression"


def posed_at(avatar: Avatar, pose: Array | int) -> tuple[Gaussians, Tensor | None]:
    """World-space Gaussians and the mesh [V, 3] in a pose [D], or in a row of its own motion."""
    if isinstance(pose, int):
        return avatar.model(pose)
    return avatar.gaussians(torch.from_numpy(pose).to(avatar.model.device, torch.float32))


@torch.no_grad()
def splats(
    avatar: Avatar, options: ExportOptions, *, up: str, scale: float, moving: bool = False, fps: float | None = None
) -> Splats:
    """What the options ask for; `up`, `scale` and `fps` where they do not say.

    Args:
        moving: without a motion it is the avatar's own, and not one moment of that.

    Raises:
        UserError: no such moment or motion, or a static scene that is to move.
    """
    notes: list[str] = []
    poses: Array | range = range(1)
    fps = options.fps or fps
    if options.motion is not None:
        if avatar.head is None:
            raise UserError(f"--motion: {avatar.path} is not bound to a head mesh, so it does not move")
        motion = chosen_motion(options, avatar, options.motion, fps=fps)
        motion = motion.at_rate(fps) if fps else motion
        notes += motion.notes
        poses, fps = motion.rows, motion.fps
        if avatar.motion().dynamic_offset is not None:
            notes.append("the offsets of single timesteps (dynamic_offset) are left out")
    elif options.timestep is not None:
        if avatar.head is None:
            raise UserError(f"--timestep: {avatar.path} is not bound to a head mesh, so it has one moment only")
        row = avatar.row(options.timestep)
        poses = range(row, row + 1)
    elif moving:
        poses = range(len(avatar.motion()))
    played = poses if isinstance(poses, np.ndarray) else np.empty((1, 0))
    if isinstance(poses, range) and avatar.head is not None:
        played = avatar.motion().values[poses.start : poses.stop].detach().double().cpu().numpy()
    view = first_view(avatar, played)
    sampled = np.unique(np.linspace(0, len(poses) - 1, 4).astype(int)).tolist()
    posed = [posed_at(avatar, poses[index])[0] for index in sampled]
    changed = colors.prepare(avatar, posed, view, prune=options.prune, degree=options.sh_degree)
    notes += changed.notes
    place = place_of(view, options.up or up, options.scale or (scale if avatar.head is not None else 1.0))
    sh = changed.sh if place is None else place.turned(changed.sh)
    return Splats(avatar, poses, fps, place, sh, posed[0].sh, changed.kept, notes)


def place_of(view: dict[str, Any], up: str, scale: float) -> Place | None:
    """The file's axes, one of `AXES` or `WORLD`, for what is seen first from that view; None: those of the world."""
    if up == WORLD:
        return Place(torch.eye(3).double(), torch.zeros(3).double(), scale) if scale != 1 else None
    above, back = np.array(view["up"]), np.array(view["back"])
    viewer = np.stack([np.cross(above, back), above, back])
    return Place(torch.from_numpy(np.array(AXES[up]) @ viewer), torch.tensor(view["target"]).double(), scale)


def write_all(
    written: Splats,
    path: Path,
    options: ExportOptions,
    write: Callable[[Path, Gaussians], None],
    *,
    several: bool | None = None,
    ending: str | None = None,
) -> Iterator[str]:
    """Writes the file `path`, or the folder `path` with a numbered file for each moment, by `write`.

    Args:
        several: whether it is a folder; None: of a motion.
        ending: of the files; None: that of the format's name.

    Yields:
        What the files do not hold, and what was written.

    Raises:
        UserError: a folder that holds other files of such names, or it cannot be written.
    """
    yield from written.notes
    count, ending = len(written.sh), ending or f".{options.format}"
    if not (options.motion is not None if several is None else several):
        write(path, written.moment(0))
        yield f"{path}: {count:,} Gaussians, {path.stat().st_size / 1e6:.1f} MB"
        return
    if path.is_dir() and not (path / ".lock").exists() and any(path.glob(f"[0-9]*{ending}")):
        raise UserError(f"{path} holds files that are not of a motion, which would be replaced: name another folder")
    with only_writer(path), progress_bar(len(written), "Writing", "file", quiet=options.quiet) as bar:
        for old in path.glob(f"[0-9][0-9][0-9][0-9][0-9]{ending}"):
            remove(old)
        size = 0
        for index in range(len(written)):
            file = path / f"{index:05d}{ending}"
            write(file, written.moment(index))
            size += file.stat().st_size
            bar.update()
    yield f"{path}: {len(written):,} files of {count:,} Gaussians, {size / 1e6:.1f} MB"
