"""One browser: its camera, its panel, and the pictures it is sent."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
import viser
from torch import Tensor

from ops.types import Camera
from utils.errors import UserError
from utils.images import to_bytes
from viewer.framing import before
from viewer.look import Look, window_size
from viewer.panel import Panel
from viewer.shows import ERROR, SHOWS, Shot, Wish, letterboxed
from viewer.stage import Stage
from viewer.steering import Steering

MOVING_QUALITY, REST_QUALITY = 75, 95  # of a JPEG


class Visitor:
    """Draws for one browser. All of it runs in the thread that draws."""

    def __init__(self, stage: Stage, client: viser.ClientHandle) -> None:
        self.stage, self.client = stage, client
        size = window_size(client.camera.image_width, client.camera.image_height)
        stand = before(stage.avatar, stage.cameras, *size)
        self.look = Look(*size, stand.fov, stand.position, stand.view.rotation)
        self.steering = Steering(stage, client, self.look, stand)
        self.panel = Panel(stage, client, self.look, self.steering, self.snapshot)

    def draw(self, full: bool) -> None:
        """Draws what is asked for and sends it: in full, or as fast as something that moves has to be."""
        look, began = self.look, time.monotonic()
        look.drawn, look.model = began, self.stage.state
        trouble = ""
        try:
            image, pixels = self.image(look.show, full)
        except UserError as error:
            trouble = str(error)
            image, pixels = self.image("Picture", full)
        quality = REST_QUALITY if full else MOVING_QUALITY
        self.client.scene.set_background_image(to_bytes(image), format="jpeg", jpeg_quality=quality)
        self.client.flush()
        seconds = time.monotonic() - began
        look.sharp = full or look.size(full) == look.size(True)
        if not full:
            look.pace.note(pixels, seconds)
        self.panel.drawn(image.shape[2], image.shape[1], seconds, trouble, full=full)

    def snapshot(self) -> np.ndarray:
        """[H, W, 3] uint8: what is shown, in full."""
        return to_bytes(self.image(self.look.show, full=True)[0])

    def image(self, show: str, full: bool) -> tuple[Tensor, int]:
        """[3, H, W] in the proportions of the window, and how many pixels had to be drawn for it."""
        look = self.look
        shot = self.stage.shot(look.through, look.row)
        if shot is not None and look.film is None:
            return self._through(shot, show, full)
        camera = look.view().camera(*look.size(full))
        return SHOWS[show](self.stage.avatar, self.wish(camera)), camera.width * camera.height

    def _through(self, shot: Shot, show: str, full: bool) -> tuple[Tensor, int]:
        """What a camera of the capture sees, at its own resolution, with the photograph over or beside it."""
        look, camera = self.look, shot.camera
        if not full:
            camera = camera.scaled(min(1.0, math.sqrt(look.pace.pixels / (camera.width * camera.height))))
        photograph = self.photograph(camera)
        wish = self.wish(camera, photograph)
        image = SHOWS[show](self.stage.avatar, wish).clamp(0.0, 1.0)
        panels = [image]
        if photograph is not None and show != ERROR:
            panels = [torch.lerp(image, photograph, look.blend)]
        if photograph is not None and look.beside:
            panels.append(photograph)
        return letterboxed(panels, look.width / look.height, wish.background), camera.width * camera.height

    def photograph(self, camera: Camera) -> Tensor | None:
        """[3, H, W] of the camera that is looked through, at this timestep, in the size of `camera`; None for none."""
        look = self.look
        if not (look.show == ERROR or look.blend > 0 or look.beside):
            return None
        if look.through is None or look.row not in self.stage.shots[look.through]:
            return None
        photograph = self.stage.photograph(look.through, look.row).to(self.stage.avatar.model.device)
        if photograph.shape[1:] != (camera.height, camera.width):
            size = (camera.height, camera.width)
            photograph = torch.nn.functional.interpolate(photograph[None], size, mode="area")[0]
        return photograph

    def wish(self, camera: Camera, photograph: Tensor | None = None) -> Wish:
        """What is to be drawn, but for the way it is shown."""
        avatar = self.stage.avatar
        pose, row = self.look.pose(avatar)
        background = avatar.background
        if self.look.background is not None:
            background = torch.tensor(self.look.background).to(background)
        return Wish(camera.to(avatar.model.device), pose, row, background, photograph)
