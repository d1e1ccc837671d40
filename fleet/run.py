"""Many subjects' work from start to end: who does it, what is shown meanwhile, what all ended in."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from arguments import ManyOptions
from fleet.cluster import run_locally, run_on_ray
from fleet.report import collect, write_report, write_status
from fleet.screen import Screen
from fleet.work import MARK, STATE, State, Work, state_of
from utils.files import write_json

KEPT = ("attempts", "done", "step", "points", "psnr")  # of the state that an earlier command left
SHARE = 0.05  # of one core's time, at most, for looking at how the subjects do


def run_all(out: Path, names: Sequence[str], works: Sequence[Work], options: ManyOptions) -> list[State]:
    """Does `works`, whose folders stand in `out`; the states that all subjects, by their `names`, ended in.

    Raises:
        UserError: nothing was started, because the cluster is not what `options` ask for.
        KeyboardInterrupt: everything was stopped, and is saved.
    """
    mark = uuid.uuid4().hex
    write_json(out / MARK, {"mark": mark})
    for work in works:
        folder = Path(work.folder)
        kept = {name: value for name, value in state_of(folder).items() if name in KEPT}
        write_json(folder / STATE, {**kept, "name": work.name, "state": "waits"})
    works = [work._replace(mark=mark) for work in works]
    screen = Screen(quiet=options.quiet)
    shown, due = "", 0.0

    def tell() -> None:
        nonlocal shown, due
        began = time.monotonic()
        if began < due:
            return
        states = collect(out, names)
        if shown != (news := json.dumps(states)):
            shown = news
            write_status(out, states)
        screen.show(states)
        now = time.monotonic()
        due = now + (now - began) / SHARE

    ended: dict[str, State] = {}
    try:
        if works:
            ended = run_locally(works, tell) if options.local else run_on_ray(works, options, tell)
    finally:
        # What could not write its state: of a lost machine, or without the folder.
        states = [ended.get(state["name"], state) for state in collect(out, names)]
        screen.show(states)
        write_status(out, states)
        write_report(out, states)
    return states
