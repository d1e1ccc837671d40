"""Where a browser stands, and sending it somewhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import viser
from scipy.spatial.transform import Rotation

from scene.cameras import Viewpoint
from viewer.framing import CLOSEST, Stand, before
from viewer.look import Look, same_place, window_size
from viewer.stage import Stage

ARRIVAL = 2.0  # seconds that a browser may take to go where it is sent


class Steering:
    """The camera of one browser, which both sides move."""

    def __init__(self, stage: Stage, client: viser.ClientHandle, look: Look, stand: Stand) -> None:
        self.stage, self.client, self.look = stage, client, look
        self._sent_at = -math.inf  # when the browser was last sent somewhere, until it is there
        # To be set: who shows these.
        self.on_fov: Callable[[float], None] = lambda fov: None
        self.on_leave: Callable[[], None] = lambda: None
        client.camera.min_orbit_distance = CLOSEST
        self.go(stand)

        @client.camera.on_update
        async def _(camera: viser.CameraHandle) -> None:
            seen = camera.position, camera.wxyz, camera.fov, camera.image_width, camera.image_height
            stage.note(client.client_id, lambda: self.moved(*seen))

    def face(self) -> None:
        """Goes back to where the face is seen from the front."""
        self.leave()
        self.go(before(self.stage.avatar, self.stage.cameras, self.look.width, self.look.height))

    def go(self, stand: Stand) -> None:
        """Sends the browser somewhere; a drag goes on from there."""
        look, camera = self.look, self.client.camera
        look.position, look.orientation, look.fov = stand.position, stand.view.rotation, stand.fov
        self._sent_at = time.monotonic()
        with self.client.atomic():
            camera.fov = stand.fov
            camera.up_direction = stand.up
            camera.position = stand.position
            camera.look_at = stand.target
        look.touch(self._sent_at)
        self.on_fov(stand.fov)

    def stand(self) -> Stand:
        """Where it is, and what it turns around."""
        camera = self.client.camera
        return Stand(self.look.position, np.asarray(camera.look_at), np.asarray(camera.up_direction), self.look.fov)

    def moved(self, position: np.ndarray, wxyz: np.ndarray, fov: float, width: int, height: int) -> None:
        """The browser says where it is now; garbage is passed over."""
        numbers = np.array([*position, *wxyz, fov, width, height], dtype=np.float64)
        if len(numbers) != 10 or not np.isfinite(numbers).all() or np.abs(numbers[:3]).max() > 1e4:
            return
        if np.linalg.norm(numbers[3:7]) < 1e-6 or not 1e-3 < fov < 3.1:
            return
        look, orientation = self.look, Rotation.from_quat(numbers[3:7], scalar_first=True).as_matrix()
        now, size = time.monotonic(), window_size(width, height)
        if size != (look.width, look.height):
            look.width, look.height = size
            look.touch(now)
        arrived = same_place(look, numbers[:3], orientation)
        if arrived:
            self._sent_at = -math.inf
        elif now - self._sent_at < ARRIVAL:
            return  # from before it heard where to go
        else:
            self.leave()
        if not arrived or abs(fov - look.fov) > 1e-4:
            look.position, look.orientation, look.fov = numbers[:3], orientation, float(fov)
            look.touch(now)

    def through(self, name: str | None) -> None:
        """Looks through a camera of the capture, until the browser moves; None: freely again."""
        self.look.through = name
        shot = self.stage.shot(name, self.look.row)
        if shot is not None:
            self._stand_at(Viewpoint.of(shot.camera))

    def to(self, view: Viewpoint) -> None:
        """Goes to where a key frame stands."""
        self.leave()
        self._stand_at(view)

    def _stand_at(self, view: Viewpoint) -> None:
        """What it turns around from there is as far away as what it turned around before."""
        distance = max(float(np.linalg.norm(view.position - self.stand().target)), CLOSEST)
        self.go(Stand(view.position, view.position + distance * view.rotation[:, 2], -view.rotation[:, 1], view.fov))

    def leave(self) -> None:
        """Looks through no camera any more."""
        if self.look.through is not None:
            self.look.through = None
            self.on_leave()
