"""The part of the panel that says how to look: what is shown, from where, over what."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import viser
from PIL import Image

from scene.cameras import Viewpoint
from scene.motion.key_frames import KeyFrame, KeyFrames
from viewer.shows import ERROR, NEED_MESH, SHOWS, legend
from viewer.steering import Steering
from viewer.widgets import Widgets

FREELY = "freely"
OWN = "Own color"
BACKGROUNDS: dict[str, tuple[float, float, float] | None] = {
    "As trained": None,
    "White": (1.0, 1.0, 1.0),
    "Black": (0.0, 0.0, 0.0),
    "Gray": (0.5, 0.5, 0.5),
    OWN: (0.2, 0.5, 0.3),
}
NARROWEST, WIDEST = 5.0, 90.0  # degrees


class ViewTab:
    """Made inside of the tab that it fills."""

    def __init__(
        self,
        widgets: Widgets,
        client: viser.ClientHandle,
        steering: Steering,
        snapshot: Callable[[], np.ndarray],  # what is shown, [H, W, 3] uint8
    ) -> None:
        self.stage, self.look, self.gui, self.steering = widgets.stage, widgets.look, widgets.gui, steering
        self.client, self.snapshot = client, snapshot
        shows = [name for name in SHOWS if self.stage.rigged or name not in NEED_MESH]
        if not self.stage.shots:
            shows.remove(ERROR)
        widgets.choice("Show", tuple(shows), self._show)
        self.legend = self.gui.add_html("", visible=False)
        self.camera: Any = None
        if self.stage.shots:
            names = (FREELY, *self.stage.shots)
            self.camera = widgets.choice("Look", names, self._look, hint="freely, or through a camera of the capture")
            self.blend = widgets.slider("Photograph", 0.0, 1.0, 0.05, 0.0, self._blend, visible=False)
            self.beside = widgets.checkbox("Photograph beside", False, self._beside, visible=False)
        fov = round(math.degrees(self.look.fov), 1)
        self.fov = widgets.slider("Field of view", NARROWEST, WIDEST, 0.1, fov, self._set_fov, hint="vertical, degrees")
        widgets.choice("Background", tuple(BACKGROUNDS), self._background)
        self.color = widgets.heard(self.gui.add_rgb("Color", (51, 128, 77), visible=False), self._own_color)
        widgets.slider(
            "Resolution", 0.25, 1.0, 0.05, 1.0, self._resolution, hint="of the window's, while nothing moves"
        )
        widgets.button("Face the avatar", steering.face, key="F", icon=viser.Icon.USER)
        widgets.button("Save picture", self._save, icon=viser.Icon.PHOTO_DOWN)
        hint = "for render.py --camera, and for clips"
        widgets.button("Camera as JSON", self._show_json, hint=hint, icon=viser.Icon.BRACES)
        steering.on_fov, steering.on_leave = self._show_fov, self._show_free

    def _show(self, name: str) -> None:
        self.look.show = name
        text = legend(self.stage.avatar, name)
        self.legend.visible = bool(text)
        self.legend.content = f'<div style="padding:0 0.8em;font-size:0.8em">{text}</div>'

    def _look(self, name: str) -> None:
        self.steering.through(None if name == FREELY else name)
        self.blend.visible = self.beside.visible = name != FREELY

    def _show_free(self) -> None:
        self.camera.value = FREELY
        self.blend.visible = self.beside.visible = False

    def _blend(self, share: float) -> None:
        self.look.blend = share

    def _beside(self, beside: bool) -> None:
        self.look.beside = beside

    def _set_fov(self, degrees: float) -> None:
        self.steering.leave()
        self.steering.go(self.steering.stand().with_fov(math.radians(degrees)))

    def _show_fov(self, fov: float) -> None:
        self.fov.value = round(min(max(math.degrees(fov), NARROWEST), WIDEST), 1)

    def _background(self, name: str) -> None:
        self.color.visible = name == OWN
        self.look.background = BACKGROUNDS[name]
        if name == OWN:
            self._own_color(self.color.value)

    def _own_color(self, color: tuple[float, ...]) -> None:
        if len(color) == 3 and all(0 <= level <= 255 for level in color):
            self.look.background = (color[0] / 255, color[1] / 255, color[2] / 255)

    def _resolution(self, share: float) -> None:
        self.look.resolution = share

    def _save(self) -> None:
        """The browser gets what it sees, as a PNG; on this machine nothing is written."""
        file = io.BytesIO()
        Image.fromarray(self.snapshot()).save(file, "PNG")
        name = f"{self.stage.folder.name}_{self.look.row:05d}.png"
        self.client.send_file_download(name, file.getvalue(), save_immediately=True)

    def _show_json(self) -> None:
        shot = self.stage.shot(self.look.through, self.look.row)
        view = self.look.standing if shot is None else Viewpoint.of(shot.camera)
        text = json.dumps(KeyFrames((KeyFrame(0.0, view),)).as_json(), indent=2)
        window = self.gui.add_modal("The camera, as a file for render.py --camera")
        with window:
            # The text is ours: numbers, and the capture's name of a camera, escaped.
            copy = "navigator.clipboard.writeText(this.nextElementSibling.textContent);this.textContent='Copied'"
            style = "max-height:50vh;overflow:auto;user-select:all;font-size:0.8em"
            self.gui.add_html(
                f'<button type="button" onclick="{copy}">Copy</button><pre style="{style}">{html.escape(text)}</pre>'
            )
