"""The part of the panel that makes clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

import torch
import viser

from scene.clip import Painter
from scene.motion.key_frames import KeyFrame
from utils.errors import UserError, one_line
from viewer.film import FOLDER, Film, joined, key_frame, load_key_frames, new_file, saved_key_frames, seconds_between
from viewer.widgets import Widgets

SIZES = {"512 × 512": (512, 512), "400 × 550": (400, 550), "720 × 1280": (720, 1280), "1280 × 720": (1280, 720)}
RATES = {"25": 25.0, "30": 30.0, "50": 50.0, "60": 60.0}
MOST = 200  # key frames


class ClipTab:
    """Made inside of the tab that it fills."""

    def __init__(self, widgets: Widgets, client: viser.ClientHandle, go: Callable[[KeyFrame], None]) -> None:
        """
        Args:
            go: sends the browser to a key frame.
        """
        self.stage, self.look, self.gui, self.client, self._go = widgets.stage, widgets.look, widgets.gui, client, go
        self.moments: list[KeyFrame] = []
        self.gap, self.size, self.rate, self.name = 1.5, SIZES["512 × 512"], 25.0, "clip"
        self.count = self.gui.add_markdown("")
        icon = viser.Icon.CAMERA_PLUS
        widgets.button("Add key frame", self._add, key="K", hint="this camera and this pose", icon=icon)
        widgets.button("Remove the last", self._remove)
        widgets.slider("Seconds between", 0.2, 10.0, 0.1, self.gap, self._set_gap)
        self.preview = widgets.button("Preview", self._preview, icon=viser.Icon.EYE)
        with self.gui.add_folder("File", expand_by_default=True):
            widgets.heard(self.gui.add_text("Name", self.name), self._set_name)
            widgets.choice("Size", tuple(SIZES), self._set_size)
            widgets.choice("Frames a second", tuple(RATES), self._set_rate)
            widgets.button("Make mp4", self._shoot, icon=viser.Icon.MOVIE)
            self.progress: Any = self.gui.add_progress_bar(0.0, visible=False)
            self.message = self.gui.add_markdown(f"Clips go into `{FOLDER}` in the avatar's folder.")
            widgets.button("Save key frames", self._save, icon=viser.Icon.DEVICE_FLOPPY)
            self.saved = widgets.choice("Load", ("…", *saved_key_frames(self.stage.folder)), self._load)
        self._show()

    def _show(self) -> None:
        count = len(self.moments)
        lasting = f", {self.gap * (count - 1):.1f} seconds" if count > 1 else ""
        hint = "Add two or more." if count < 2 else ""
        self.count.content = f"**{count} key frames**{lasting}. {hint}"

    def _say(self, text: str) -> None:
        self.message.content = one_line(text).replace("![", "[")

    def _add(self) -> None:
        if len(self.moments) < MOST:
            pose, _ = self.look.pose(self.stage.avatar)
            self.moments.append(key_frame(0.0, self.look.standing, self.stage.avatar, pose))
        self._show()

    def _remove(self) -> None:
        del self.moments[-1:]
        if self.moments:
            self._go(self.moments[-1])
        self._show()

    def _set_gap(self, seconds: float) -> None:
        self.gap = seconds
        self._show()

    def _set_name(self, name: str) -> None:
        self.name = name

    def _set_size(self, name: str) -> None:
        self.size = SIZES[name]

    def _set_rate(self, name: str) -> None:
        self.rate = RATES[name]

    def _preview(self) -> None:
        if self.look.film is not None or len(self.moments) < 2:
            self.look.film = None
        else:
            self.look.film = Film(joined(self.moments, self.gap), self.stage.avatar)
            self.look.film_from = time.monotonic()

    def refresh(self) -> None:
        """The button says what it would do."""
        label = "Stop the preview" if self.look.film is not None else "Preview"
        if self.preview.label != label:
            self.preview.label = label

    def _shoot(self) -> None:
        if len(self.moments) < 2:
            return self._say("A clip needs two key frames.")
        try:
            path = new_file(self.stage.folder, self.name, ".mp4")
        except UserError as error:
            return self._say(str(error))
        avatar = self.stage.avatar
        film = Film(joined(self.moments, self.gap), avatar, self.rate)
        background = avatar.background
        if self.look.background is not None:
            background = torch.tensor(self.look.background).to(background)
        drawn = Painter(avatar, self.size, background)

        def job() -> Generator[None, None, None]:
            self.progress.visible = True
            try:
                for done, count in film.shoot(path, drawn):
                    if done == count or done % 5 == 0:
                        self.progress.value = 100.0 * done / count
                        self._say(f"{done} of {count} frames")
                    yield
                self._say(f"Saved as {FOLDER}/{path.name}")
            except UserError as error:
                self._say(str(error))
            finally:
                self.progress.visible = False

        self.stage.jobs.append(job())

    def _save(self) -> None:
        if not self.moments:
            return self._say("There is no key frame yet.")
        try:
            path = new_file(self.stage.folder, self.name, ".json")
            joined(self.moments, self.gap).save(path)
        except UserError as error:
            return self._say(str(error))
        self._say(f"Saved as {FOLDER}/{path.name}")
        self.saved.options = ("…", *saved_key_frames(self.stage.folder))

    def _load(self, name: str) -> None:
        if name == "…":
            return
        try:
            moments = load_key_frames(self.stage.folder, name)[:MOST]
        except UserError as error:
            return self._say(str(error))
        self.moments, self.gap = moments, min(max(seconds_between(moments), 0.2), 10.0)
        self._go(moments[0])
        self._show()
