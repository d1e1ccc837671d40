"""The part of the panel that a training has: how it goes, and how to pause and to end it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import viser
from viser import uplot

from viewer.widgets import Widgets

CURVES_EVERY = 3.0  # seconds
SHOWN_POINTS = 400  # of a curve
COLORS = ("#6f9bea", "#e8a15b", "#7bc58a", "#d77f9b")


class TrainingTab:
    """Made inside of `tab`, which it fills."""

    def __init__(self, widgets: Widgets, tab: viser.GuiTabHandle) -> None:
        self.widgets, self.tab, self.gui, self.status = widgets, tab, widgets.gui, widgets.stage.status
        self.figures = self.gui.add_markdown("…")
        icon = viser.Icon.PLAYER_PAUSE
        self.pause = widgets.button("Pause training", self._toggle, key="T", hint="until you go on", icon=icon)
        widgets.button("Stop and save", self._ask, hint="as Ctrl-C does", color="red", icon=viser.Icon.PLAYER_STOP)
        self.plots: dict[str, Any] = {}
        self._plotted_at = -math.inf

    def _toggle(self) -> None:
        self.status.paused = not self.status.paused

    def _ask(self) -> None:
        question = self.gui.add_modal("Stop the training?")
        with question:
            self.gui.add_markdown(
                "It writes a checkpoint and ends. The same command with `--start_checkpoint auto` goes on from there."
            )
            self.widgets.button("Stop it now", lambda: self._stop(question), color="red")
            self.widgets.button("Let it run", question.close)

    def _stop(self, question: Any) -> None:
        question.close()
        self.status.stop = True

    def refresh(self, now: float) -> None:
        """The figures and curves of the moment."""
        rows = "\n".join(f"| {name} | {value} |" for name, value in self.status.figures.items())
        text = f"| | |\n|:--|--:|\n{rows}"
        if self.figures.content != text:
            self.figures.content = text
        label = "Go on" if self.status.paused else "Pause training"
        if self.pause.label != label:
            self.pause.label = label
            self.pause.icon = viser.Icon.PLAYER_PLAY if self.status.paused else viser.Icon.PLAYER_PAUSE
        if now - self._plotted_at > CURVES_EVERY:
            self._plotted_at = now
            for title, names in self.status.charts.items():
                curves = {label: dict(self.status.curves.get(name, ())) for label, name in names.items()}
                self._plot(title, {label: curve for label, curve in curves.items() if len(curve) > 1})

    def _plot(self, title: str, curves: dict[str, dict[float, float]]) -> None:
        """One chart of curves, each iteration -> value, by label."""
        if not curves:
            return
        steps = sorted(set().union(*curves.values()))
        # From the last back, so that the newest is always there.
        steps = steps[:: -max(1, math.ceil(len(steps) / SHOWN_POINTS))][::-1]
        data = (np.array(steps), *(np.array([curve.get(step, np.nan) for step in steps]) for curve in curves.values()))
        plot = self.plots.get(title)
        if plot is not None and len(plot.data) == len(data):
            plot.data = data
            return
        if plot is not None:
            plot.remove()
        series = [uplot.Series(label="iteration")]
        for label, color in zip(curves, COLORS):
            series.append(uplot.Series(label=label, stroke=color, width=2, spanGaps=True))
        with self.tab:
            self.plots[title] = self.gui.add_uplot(
                data, tuple(series), title=title, scales={"x": uplot.Scale(time=False)}, aspect=1.8
            )
