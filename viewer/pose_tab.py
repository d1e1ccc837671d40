"""The part of the panel that moves the face."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import viser

from viewer.look import expression_bound, strongest_expressions
from viewer.widgets import Widgets

FIRST_EXPRESSIONS = 10
FACE = ("expr", "neck_pose", "jaw_pose", "eyes_pose")
# Label, FLAME parameter, which of its components, and how far the slider goes in degrees.
JOINTS = (
    ("Jaw: open", "jaw_pose", (0,), (-5.0, 35.0)),
    ("Jaw: to the side", "jaw_pose", (1,), (-15.0, 15.0)),
    ("Jaw: tilted", "jaw_pose", (2,), (-15.0, 15.0)),
    ("Neck: down", "neck_pose", (0,), (-45.0, 45.0)),
    ("Neck: around", "neck_pose", (1,), (-60.0, 60.0)),
    ("Neck: tilted", "neck_pose", (2,), (-45.0, 45.0)),
    ("Eyes: down", "eyes_pose", (0, 3), (-35.0, 35.0)),
    ("Eyes: around", "eyes_pose", (1, 4), (-45.0, 45.0)),
)
TURNS = ("Head: down", "Head: around", "Head: tilted")


class PoseTab:
    """Made inside of the tab that it fills. What a slider was moved to stays, the rest goes on with the motion."""

    def __init__(self, widgets: Widgets) -> None:
        self.stage, self.look = widgets.stage, widgets.look
        avatar, gui = self.stage.avatar, widgets.gui
        self.columns = columns = avatar.motion().columns
        self.shown: object = None  # what the sliders show
        widgets.button("Reset", self._reset, key="R", hint="all as the timestep says", icon=viser.Icon.RESTORE)
        widgets.button("From this timestep", self._hold_timestep, hint="keeps this pose whatever the timestep")
        widgets.button("At rest", self._rest, hint="no expression; jaw, neck and eyes straight")
        self.sliders: dict[int, Any] = {}  # column -> its slider
        self.turns = []
        bound = math.ceil(10 * expression_bound(avatar)) / 10
        order = strongest_expressions(avatar)

        def add_expression(index: int) -> None:
            column, names = columns["expr"].start + index, self.stage.expression_names
            label = names[index] if index < len(names) else f"Expression {index + 1}"
            self.sliders[column] = widgets.slider(label, -bound, bound, 0.01, 0.0, partial(self._hold, [column]))

        with gui.add_folder("Joints"):
            for label, name, parts, ends in JOINTS:
                held = [columns[name].start + part for part in parts]
                act = partial(self._hold_degrees, held)
                self.sliders[held[0]] = widgets.slider(label, *ends, 0.1, 0.0, act, hint="degrees")
            for axis, label in enumerate(TURNS):
                hint = "degrees beside what the timestep says"
                self.turns.append(widgets.slider(label, -60.0, 60.0, 0.1, 0.0, partial(self._turn, axis), hint=hint))
        with gui.add_folder("Expression"):
            for index in order[:FIRST_EXPRESSIONS]:
                add_expression(index)
        if order[FIRST_EXPRESSIONS:]:
            with gui.add_folder("More expression", expand_by_default=False):
                for index in order[FIRST_EXPRESSIONS:]:
                    add_expression(index)
        self.refresh()

    def _hold(self, columns: list[int], value: float) -> None:
        self.look.held.update(dict.fromkeys(columns, value))

    def _hold_degrees(self, columns: list[int], degrees: float) -> None:
        self._hold(columns, math.radians(degrees))

    def _turn(self, axis: int, degrees: float) -> None:
        turn = list(self.look.turn)
        turn[axis] = math.radians(degrees)
        self.look.turn = (turn[0], turn[1], turn[2])

    def _held_face(self, values: list[float]) -> None:
        places = [self.columns[name] for name in FACE]
        self.look.held = {column: values[column] for place in places for column in range(place.start, place.stop)}
        self.look.turn = (0.0, 0.0, 0.0)

    def hold(self, pose: dict[str, np.ndarray]) -> None:
        """Holds a pose, by the names of its parameters; where the head is only if it says so."""
        values = [0.0] * self.stage.avatar.motion().values.shape[1]
        for name, given in pose.items():
            start = self.columns[name].start
            values[start : start + len(given)] = given.tolist()
        self._held_face(values)
        for name in ("rotation", "translation"):
            if name in pose:
                part = self.columns[name]
                self.look.held.update(zip(range(part.start, part.stop), pose[name].tolist()))

    def _hold_timestep(self) -> None:
        self._held_face(self.stage.avatar.motion().values[self.look.row].detach().tolist())

    def _rest(self) -> None:
        self._held_face([0.0] * self.stage.avatar.motion().values.shape[1])

    def _reset(self) -> None:
        self.look.held, self.look.turn = {}, (0.0, 0.0, 0.0)

    def refresh(self) -> None:
        """Moves the sliders to where the pose is."""
        showing = (self.look.row, tuple(self.look.held.items()), self.look.turn)
        if showing == self.shown:
            return
        self.shown = showing
        pose, _ = self.look.pose(self.stage.avatar)
        assert pose is not None  # it is rigged
        values = pose.tolist()
        expressions = self.columns["expr"]
        for column, slider in self.sliders.items():
            value = values[column] if expressions.start <= column < expressions.stop else math.degrees(values[column])
            _move(slider, value)
        for slider, angle in zip(self.turns, self.look.turn):
            _move(slider, math.degrees(angle))


def _move(slider: Any, value: float) -> None:
    """Shows a value, or the end of the slider that is nearest to it; a browser that shows it is left in peace."""
    shown = round(min(max(value, slider.min), slider.max), 2)
    if abs(slider.value - shown) > slider.step / 2:
        slider.value = shown
