"""The panel of one browser: what is shown, the timeline, and the tabs below."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import viser

from scene.motion.key_frames import KeyFrame
from utils.errors import one_line
from viewer.clip_tab import ClipTab
from viewer.look import Look
from viewer.pose_tab import PoseTab
from viewer.stage import Stage
from viewer.steering import Steering
from viewer.training_tab import TrainingTab
from viewer.view_tab import ViewTab
from viewer.widgets import Widgets

FOLLOW = 0.2  # seconds between two looks at what goes on by itself
READ = 0.5  # seconds that a figure stays to be read


class Panel:
    """Everything in it can be reached with the tab key, what is needed often also by a key of its own."""

    def __init__(
        self,
        stage: Stage,
        client: viser.ClientHandle,
        look: Look,
        steering: Steering,
        snapshot: Callable[[], np.ndarray],  # what is shown, in full
    ) -> None:
        self.stage, self.look = stage, look
        self._followed_at = self._read_at = -math.inf
        widgets = Widgets(stage, client, look)
        self.status = client.gui.add_markdown("…")
        self.timeline = Timeline(widgets) if stage.rows > 1 else None
        tabs = client.gui.add_tab_group()
        with tabs.add_tab("View"):
            self.view = ViewTab(widgets, client, steering, snapshot)
        self.pose = None
        if stage.rigged:
            with tabs.add_tab("Pose"):
                self.pose = PoseTab(widgets)

        def go(moment: KeyFrame) -> None:
            if moment.view is not None:
                steering.to(moment.view)
            if self.pose is not None and moment.pose is not None:
                self.pose.hold(moment.pose)

        with tabs.add_tab("Clip"):
            self.clip = ClipTab(widgets, client, go)
        self.training = None
        if stage.status.training:
            tab = tabs.add_tab("Training")
            with tab:
                self.training = TrainingTab(widgets, tab)

    def refresh(self, now: float) -> None:
        """Follows what goes on by itself."""
        if now - self._followed_at < FOLLOW:
            return
        self._followed_at = now
        if self.timeline is not None:
            self.timeline.refresh()
        if self.pose is not None and not self.look.playing:
            self.pose.refresh()
        self.clip.refresh()
        if self.training is not None:
            self.training.refresh(now)

    def drawn(self, width: int, height: int, seconds: float, trouble: str, *, full: bool) -> None:
        """Says what was drawn, and why not what was asked for."""
        now = time.monotonic()
        if now - self._read_at < READ and not (full or trouble):
            return
        self._read_at = now
        size = f"{width} × {height} in {1e3 * seconds:.0f} ms"
        text = " · ".join(filter(None, (self.stage.status.headline, size)))
        self.status.content = f"{text}\n\n**{one_line(trouble).replace('![', '[')}**" if trouble else text


class Timeline:
    """Which timestep of the motion is shown."""

    def __init__(self, widgets: Widgets) -> None:
        self.look, self.rows = widgets.look, widgets.stage.rows
        self.slider = widgets.slider("Timestep", 0, self.rows - 1, 1, 0, self._scrub)
        self.button: Any = widgets.button("Play", self._toggle, key="P", icon=viser.Icon.PLAYER_PLAY)
        with widgets.gui.add_folder("Playing", expand_by_default=False):
            widgets.slider("Speed", 0.1, 4.0, 0.1, 1.0, self._set_speed, hint="1: 25 timesteps a second")
            widgets.checkbox("Loop", True, self._set_loop)
            widgets.button("Next timestep", lambda: self._step(1), key="N")
            widgets.button("Previous timestep", lambda: self._step(-1), key="B")

    def _scrub(self, row: float) -> None:
        self.look.clock = float(round(row))

    def _toggle(self) -> None:
        look = self.look
        look.playing = not look.playing
        if look.playing and not look.loop and look.row == self.rows - 1:
            look.clock = 0.0

    def _set_speed(self, speed: float) -> None:
        self.look.speed = speed

    def _set_loop(self, loop: bool) -> None:
        self.look.loop = loop

    def _step(self, rows: int) -> None:
        self.look.clock = float((self.look.row + rows) % self.rows)

    def refresh(self) -> None:
        """Follows the motion."""
        if self.slider.value != self.look.row:
            self.slider.value = self.look.row
        label = "Pause" if self.look.playing else "Play"
        if self.button.label != label:
            self.button.label = label
            self.button.icon = viser.Icon.PLAYER_PAUSE if self.look.playing else viser.Icon.PLAYER_PLAY
