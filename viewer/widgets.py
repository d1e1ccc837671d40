"""Widgets of one browser whose changes are done by the thread that draws."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import viser

from viewer.look import Look
from viewer.stage import Stage


class Widgets:
    """Made anew for every browser, so that nobody moves the sliders of others."""

    def __init__(self, stage: Stage, client: viser.ClientHandle, look: Look) -> None:
        self.stage, self.gui, self.look = stage, client.gui, look
        self._number = client.client_id

    def heard(self, handle: Any, act: Callable[[Any], None]) -> Any:
        """Has `act` done with the new value when the browser changes the widget; returns that.

        The value is of the type of the widget's, but what it says is the browser's.
        """

        @handle.on_update
        async def _(event: viser.GuiEvent) -> None:
            if event.client is not None:  # else the change is ours
                value = event.target.value
                self._note(lambda: act(value))

        return handle

    def button(self, label: str, act: Callable[[], None], *, key: str = "", hint: str = "", **more: Any) -> Any:
        """A button; with `key` also a key, which stands in the command palette."""
        if key:
            command = self.gui.add_command(label, hotkey=key)  # type: ignore[arg-type]

            @command.on_trigger
            async def _(_: Any) -> None:
                self._note(act)

        note = "; ".join(filter(None, (hint, f"key {key}" if key else "")))
        handle = self.gui.add_button(label, hint=note or None, **more)

        @handle.on_click
        async def _(_: Any) -> None:
            self._note(act)

        return handle

    def slider(
        self, label: str, low: float, high: float, step: float, value: float, act: Callable[[float], None], **more: Any
    ) -> Any:
        """A slider of numbers; what a browser sends beyond its ends stops there."""
        handle = self.gui.add_slider(label, low, high, step, min(max(value, low), high), **more)

        def limited(number: Any) -> None:
            if isinstance(number, (int, float)) and math.isfinite(number):
                act(min(max(float(number), low), high))

        return self.heard(handle, limited)

    def choice(self, label: str, options: tuple[str, ...], act: Callable[[str], None], **more: Any) -> Any:
        """One of some names."""
        handle = self.gui.add_dropdown(label, options, **more)
        return self.heard(handle, lambda name: act(name) if name in handle.options else None)

    def checkbox(self, label: str, value: bool, act: Callable[[bool], None], **more: Any) -> Any:
        """Yes or no."""
        return self.heard(self.gui.add_checkbox(label, value, **more), lambda value: act(value is True))

    def _note(self, act: Callable[[], None]) -> None:
        def noted() -> None:
            act()
            self.look.touch(time.monotonic())

        self.stage.note(self._number, noted)
