"""Where the camera of a clip stands: before the face, around it, where one of the capture stood, or by key frames."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ops.types import Camera
from scene.avatar import Avatar
from scene.cameras import CAMERAS_NAME, Viewpoint, read_cameras_json
from scene.motion.key_frames import KeyFrames
from utils.errors import UserError

Array = np.ndarray

FRONT, ORBIT, CAPTURE = "front", "orbit", "capture:"
SIZE = (512, 512)  # pixels, where neither user, capture nor file says
FILLED = 2 / 3  # of the window, by the head
DISTANCE = 4.2  # heights of the head: about a metre, from where a face looks as it does to others
NEAR = 0.2  # metres: rasterizers draw nothing nearer
# A chin is so far below the eyes, in distances from the eyes to the crown. Every head model has joints for its eyes,
# but few have masks beside them.
CHIN = 1.15
SAMPLES = 32  # poses of a motion that its camera is placed by


@dataclass(frozen=True)
class HeadPlace:
    """Where a head is in the world, and how large."""

    center: Array  # [3] metres, of the box around it from chin to crown
    rotation: Array  # [3, 3] from the head's axes (x its left, y up, z forward) to the world
    outline: Array  # [P, 3] metres, its vertices from the center, in its axes, without a pose

    @property
    def up(self) -> Array:
        return self.rotation[:, 1]


@torch.no_grad()
def place_of_head(avatar: Avatar, rows: Array) -> HeadPlace:
    """Where the head is on the average over the poses `rows` [T, D].

    It is found by the mesh itself: the rotation and shift that take the head without a pose, whose axes are FLAME's, to
    the posed one (Kabsch), so neither the world of the tracking nor its units matter.

    Raises:
        UserError: a static scene.
    """
    motion, flame = avatar.motion(), avatar.model.flame
    assert flame is not None  # what has a motion has a head

    def mesh(row: Array) -> Array:
        values = torch.from_numpy(row).to(motion.values)
        return flame.from_row(values, motion.shape, motion.static_offset).double().cpu().numpy()

    still = mesh(np.zeros(rows.shape[1]))
    eyes = (flame.joint_regressor.double().cpu().numpy() @ still)[3:5, 1].mean()
    carried = flame.weights[:, 1:].sum(dim=1).cpu().numpy() > 0.5  # by the neck and what hangs on it
    crown = still[carried if carried.any() else slice(None), 1].max()
    chosen = carried & (still[:, 1] >= eyes - CHIN * (crown - eyes))
    chosen = chosen if chosen.sum() >= 4 else np.ones(len(still), dtype=bool)
    own = still[chosen]
    middle = 0.5 * (own.min(axis=0) + own.max(axis=0))
    rotations, centers = [], []
    for index in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLES)).round().astype(int)):
        posed = mesh(rows[index])[chosen]
        turn, _ = Rotation.align_vectors(posed - posed.mean(axis=0), own - own.mean(axis=0))
        rotations.append(turn)
        centers.append(posed.mean(axis=0) + turn.apply(middle - own.mean(axis=0)))
    return HeadPlace(np.mean(centers, axis=0), Rotation.concatenate(rotations).mean().as_matrix(), own - middle)


def front(head: HeadPlace, width: int, height: int) -> Viewpoint:
    """The camera before the face, upright, whose window of `width` x `height` pixels the head fills to two thirds.

    A small head is not looked at from nearer than the near plane allows.
    """
    size = np.maximum(head.outline.max(axis=0) - head.outline.min(axis=0), 1e-6)
    distance = max(DISTANCE * size[1], 0.5 * size[2] + NEAR + 0.1)
    seen = head.outline[:, :2] / (distance - head.outline[:, 2:])  # as the camera sees it, one metre away
    low, high = seen.min(axis=0), seen.max(axis=0)
    extent = np.maximum(high - low, 1e-6)
    # Half of the window's height, one metre away.
    half = 0.5 / FILLED * max(extent[1], extent[0] * height / width)
    middle = 0.5 * (low + high) / (2 * half)  # in picture heights
    x, y, z = head.rotation.T
    axes = np.stack([x, -y, -z], axis=1)
    return Viewpoint(head.center + distance * z, axes, 2 * math.atan(half), (-float(middle[0]), float(middle[1])))


def centered_front(head: HeadPlace, width: int, height: int) -> tuple[Viewpoint, Array]:
    """`front` for a camera that is turned by hand: the principal point is in the middle, the camera moved.

    Also returns the point [3] in the middle of the picture, at the head's distance.
    """
    view = front(head, width, height)
    seen = 2 * math.tan(view.fov / 2) * float(np.linalg.norm(view.position - head.center))  # metres from top to bottom
    right, down, _ = view.rotation.T
    aside = -seen * (view.shift[0] * right + view.shift[1] * down)
    return Viewpoint(view.position + aside, view.rotation, view.fov), head.center + aside


def orbit(view: Viewpoint, head: HeadPlace, degrees: float, turn: float) -> Viewpoint:
    """The view after a share `turn` (0..1) of a round: to both sides by `degrees`, a little up and down.

    180 degrees are a full circle, at one height.
    """
    phase, reach = 2 * math.pi * turn, math.radians(degrees)
    if degrees >= 180:
        return view.turned(head.center, head.up, phase)
    return view.turned(head.center, head.up, reach * math.sin(phase), 0.2 * reach * math.sin(2 * phase))


@dataclass(frozen=True)
class ViewPath:
    """A camera over time."""

    name: str  # for names of files
    at: Callable[[float], Viewpoint]  # seconds -> the camera
    size: tuple[int, int]  # (width, height) pixels
    seconds: float = 0.0  # until it ends, or begins again; 0: it stands still
    repeats: bool = False
    fps: float | None = None  # that a file asks for
    head: HeadPlace | None = None  # what it looks at, where that is a head

    def frames(self, fps: float) -> int:
        """How many pictures show all of it."""
        count = round(self.seconds * fps)
        return max(1, count if self.repeats else count + 1)

    def sides(self, count: int, degrees: float) -> list[Viewpoint]:
        """So many views for a contact sheet: moments of the path, or from up to so many degrees on both sides.

        Raises:
            UserError: several views of a camera that stands still, before no head.
        """
        if self.seconds and not self.repeats:
            return [self.at(self.seconds * place) for place in np.linspace(0.0, 1.0, count)]
        view = self.at(0.0)
        if count == 1:
            return [view]
        if self.head is None:
            raise UserError("--contact_sheet: a static scene has one view of a camera that stands still")
        yaws = np.radians(np.linspace(-degrees, degrees, count))
        return [view.turned(self.head.center, self.head.up, yaw) if yaw else view for yaw in yaws]


def load_view_path(
    source: str,
    avatar: Avatar,
    rows: Array,
    *,
    size: tuple[int, int] | None = None,
    degrees: float = 40.0,
    seconds: float = 6.0,
) -> ViewPath:
    """The camera that `source` names.

    Args:
        source: `front`; `orbit`; `capture:ID`, a camera of the avatar's cameras.json; a .json of key frames.
        rows: [T, D] the motion that it will see.
        size: (width, height) of the pictures; None: as the capture or the file has it.
        degrees, seconds: of `orbit`, to each side and for a round.

    Raises:
        UserError: no such camera, or a broken file.
    """
    head = None if avatar.model.flame is None else place_of_head(avatar, rows)
    if source in (FRONT, ORBIT):
        if head is None:
            raise UserError(
                f"--camera {source}: {avatar.path} is not bound to a head mesh: give {CAPTURE}ID or key frames"
            )
        chosen = size or SIZE
        view = front(head, *chosen)
        if source == FRONT:
            return ViewPath(FRONT, lambda _: view, chosen, head=head)
        turn = functools.partial(orbit, view, head, degrees)
        return ViewPath(ORBIT, lambda time: turn(time / seconds), chosen, seconds, repeats=True, head=head)
    if source.startswith(CAPTURE):
        # The avatar's folder is three above its PLY.
        path = avatar.folder / CAMERAS_NAME
        camera = choose_camera(read_cameras_json(path), source.removeprefix(CAPTURE), path)
        view = Viewpoint.of(camera)
        name = source.replace(CAPTURE, "camera_")
        return ViewPath(name, lambda _: view, size or (camera.width, camera.height), head=head)
    if not source.lower().endswith(".json"):
        raise UserError(f"--camera {source} is neither {FRONT}, {ORBIT}, {CAPTURE}ID nor a .json file of key frames")
    keys = KeyFrames.load(source)
    if not keys.has_views:
        raise UserError(f"the key frames of {source} have poses but no cameras: give them to --motion")
    return ViewPath(Path(source).stem, keys.views(), size or keys.size or SIZE, keys.seconds, fps=keys.fps)


def choose_camera(cameras: dict[str, Camera], wanted: str, path: Path) -> Camera:
    """The camera of this name, or of this number; UserError when there is none or more than one."""
    if wanted in cameras:
        return cameras[wanted]
    numbered = [name for name in cameras if wanted.isdecimal() and _number(name) == int(wanted)]
    if len(numbered) == 1:
        return cameras[numbered[0]]
    names = list(cameras)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise UserError(f"{path} has no camera '{wanted}': it has {', '.join(names[:20])}{more}")


def _number(name: str) -> int | None:
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits and len(digits) < 10 else None
