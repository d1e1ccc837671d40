"""The viewer: browsers come and go, and the thread that owns the avatar draws for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import imageio.v3
import numpy as np
import torch
import viser

from scene import Avatar
from utils.errors import one_line
from viewer import server
from viewer.framing import before
from viewer.stage import Stage
from viewer.visitor import Visitor

BRAND = (88, 116, 204)


class Viewer:
    """Shows a stage at a door. All of it is for the thread in which the avatar may be drawn."""

    def __init__(self, door: server.Doorkeeper, stage: Stage) -> None:
        """Opens the door."""
        self.stage = stage
        self.visitors: dict[int, Visitor] = {}
        self._worked = False
        self._heard = time.monotonic()
        # What encodes pictures takes a second to load: not when the first browser waits for one.
        imageio.v3.imwrite("<bytes>", np.zeros((8, 8, 3), np.uint8), extension=".jpeg")
        self._server = server.serve(door)
        gui, scene, start = self._server.gui, self._server.scene, self._server.initial_camera
        gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=True, brand_color=BRAND)
        gui.main_panel.dock_right()
        gui.set_panel_label(stage.folder.name)
        stand = before(stage.avatar, stage.cameras, 4, 3)
        scene.set_up_direction(stand.up)
        start.fov, start.up, start.position, start.look_at = stand.fov, stand.up, stand.position, stand.target

        @self._server.on_client_connect
        async def _(client: viser.ClientHandle) -> None:
            server.limit(client)
            stage.note(client.client_id, lambda: self._welcome(client))

        @self._server.on_client_disconnect
        async def _(client: viser.ClientHandle) -> None:
            stage.note(client.client_id, lambda: self._forget(client.client_id))

        door.open = True

    def _welcome(self, client: viser.ClientHandle) -> None:
        if client.client_id in self._server.get_clients():  # else it is gone already
            self.visitors[client.client_id] = Visitor(self.stage, client)

    def _forget(self, number: int) -> None:
        self.visitors.pop(number, None)

    @property
    def idle(self) -> bool:
        """Nobody is connected and no note is left: `turn` would do nothing."""
        return not (self.visitors or self.stage.notes or self.stage.jobs)

    def turn(self) -> bool:
        """Does what is due, at most one picture; False if there was nothing to do."""
        heard = self.hear()
        return self.draw() or heard

    @torch.no_grad()
    def hear(self) -> bool:
        """Does what browsers have asked for since, but draws nothing; False if they did not ask for anything."""
        now = time.monotonic()
        elapsed, self._heard = now - self._heard, now
        notes = len(self.stage.notes)
        for _ in range(notes):  # those left meanwhile come next time
            self._for(*self.stage.notes.popleft())

        def go_on(visitor: Visitor) -> None:
            visitor.look.play(now, elapsed, self.stage.rows)
            visitor.panel.refresh(now)

        for number, visitor in list(self.visitors.items()):
            self._for(number, partial(go_on, visitor))
        return notes > 0

    @torch.no_grad()
    def draw(self) -> bool:
        """Draws for the browser that has waited longest for a picture, or a frame of a clip; False if nothing waits."""
        now, state = time.monotonic(), self.stage.state
        due = {number: how for number, visitor in self.visitors.items() if (how := visitor.look.due(now, state))}
        if self.stage.jobs and (not due or not self._worked):
            self._worked = True
            return self._work()
        self._worked = False  # pictures and jobs take turns
        if not due:
            return False
        number = min(due, key=lambda number: self.visitors[number].look.drawn)
        self._for(number, partial(self.visitors[number].draw, full=due[number] == "rest"))
        return True

    def _work(self) -> bool:
        """A piece of the first job."""
        try:
            next(self.stage.jobs[0])
        except StopIteration:
            self.stage.jobs.popleft()
        except Exception as error:
            self.stage.jobs.popleft()
            print(f"warning: a clip was not made: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
        return True

    def _for(self, number: int, act: Callable[[], None]) -> None:
        """Does something for a browser. Whatever goes wrong ends that browser's visit, and nothing else."""
        try:
            act()
        except Exception as error:
            self.visitors.pop(number, None)
            print(f"warning: the viewer gave a browser up: {type(error).__name__}: {one_line(error)}", file=sys.stderr)

    def wait(self, seconds: float) -> None:
        """Sleeps until a browser wants something, at most that long."""
        if any(visitor.look.playing or visitor.look.film for visitor in self.visitors.values()):
            seconds = min(seconds, 0.01)
        elif self.visitors:  # something may be about to come to rest
            seconds = min(seconds, 0.05)
        self.stage.woken.wait(seconds)
        self.stage.woken.clear()

    def show(self, avatar: Avatar) -> None:
        """Shows another avatar from now on, such as a newer one of the same training."""
        self.stage.avatar, self.stage.state = avatar, object()

    def close(self) -> None:
        """Ends the web server, and what it has not finished."""
        for job in self.stage.jobs:
            job.close()
        self._server.stop()
