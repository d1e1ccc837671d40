"""What is shown while many subjects are trained: on a terminal a line for each that moves, in a log one for news."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from fleet.report import totals
from fleet.work import State

MOVES = ("trains", "renders", "exports", "starts")


class Screen:
    """Give it the states now and then."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.live = sys.stdout.isatty() and not quiet
        self._told: dict[str, str] = {}
        self._drawn = 0  # lines

    def show(self, states: Sequence[State]) -> None:
        """Says what is new, and on a terminal draws what moves."""
        self._clear()
        for state in states:
            name, news = state["name"], state["state"]
            if self._told.get(name, "waits") != news:
                self._told[name] = news
                if news == "failed":
                    print(f"{name}: failed: {state.get('reason')}", file=sys.stderr)
                elif not self.quiet and news not in ("starts", "waits"):
                    print(line_of(state), flush=True)
        if self.live:
            self._draw(states)

    def _draw(self, states: Sequence[State]) -> None:
        width, height = shutil.get_terminal_size()
        moving = [line_of(state) for state in states if state["state"] in MOVES][: max(1, height - 3)]
        counted = ", ".join(f"{count} {name}" for name, count in totals(states).items())
        lines = [line[: width - 1] for line in [*moving, f"{len(states)} subjects: {counted}"]]
        print("\n".join(lines), flush=True)
        self._drawn = len(lines)

    def _clear(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0


def line_of(state: State) -> str:
    """state, step, speed, Gaussians, quality and time left of a subject."""
    parts = [f"{state['name']}: {state['state']}"]
    if state["state"] == "trains" and state.get("step"):
        parts.append(f"{state['step']:,}/{state['iterations']:,}")
        parts += [f"{state['rate']:.1f} it/s"] if state.get("rate") else []
    parts += [f"{state['points']:,} Gaussians"] if state.get("points") else []
    parts += [f"{state['psnr']:.2f} dB"] if state.get("psnr") is not None else []
    parts += [f"{state['left']} left"] if state["state"] == "trains" and state.get("left") else []
    parts += [f"on {state['node']}"] if state["state"] in MOVES and state.get("node") else []
    parts += [f"started {state['attempts']} times"] if state.get("attempts", 0) > 1 else []
    return ", ".join(parts)
