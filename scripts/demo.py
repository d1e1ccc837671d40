"""Everything on a procedural head: the data set, an avatar, its pictures and a table of metrics."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path

from utils import environment


def run(*command: str) -> None:
    """Shows the exact command, then runs it; ends the script if it fails."""
    print("+", shlex.join(command))
    status = environment.call(*command)
    if status:
        sys.exit(status)


def demo(data: str, model: str, iterations: str, flags: list[str], anew: str) -> None:
    """Makes what is not there yet; run again, it continues where it was stopped.

    Args:
        data, model: absolute paths.
        flags: for train.py.
        anew: said behind "to train anew".
    """
    started = time.monotonic()
    python = environment.ensure("requirements.txt")
    if not os.path.samefile(".", environment.ROOT):
        print("+ cd", shlex.quote(str(environment.ROOT)))
        os.chdir(environment.ROOT)
    print(f"== 1/5 A procedural head: a head model and a multi-view capture of it, in {data}")
    run(python, "-m", "synthetic", data)
    if Path(model, f"point_cloud/iteration_{iterations}/point_cloud.ply").exists() and _measured(model, iterations):
        print(f"== 2/5 Training is skipped: {model}/results.json says that it is done")
        print(f"   (to train anew{anew}: remove {model}, or name another folder in DEMO_DIR)")
    else:
        board = shlex.join((python, "-m", "tensorboard.main", "--logdir", model))
        print(f"== 2/5 Training (to watch it: {board})")
        chosen = "--eval --bind_to_mesh --white_background --preset balanced --iterations".split()
        short = "--scale_schedule --densify_grad_threshold 0.001 --start_checkpoint auto".split()
        run(python, "train.py", "-s", data, "-m", model, *chosen, iterations, *short, *flags)
    print("== 3/5 Rendering the held-out camera and the held-out motion")
    run(python, "render.py", "-m", model, "--iteration", iterations, "--skip_train", "--render_mesh")
    print("== 4/5 A page that moves")
    page = os.path.join(model, "avatar.html")
    run(python, "export.py", "-m", model, "--iteration", iterations, "--format", "html", "-o", page)
    print("== 5/5 Done in {} min {} s".format(*divmod(int(time.monotonic() - started), 60)))
    for pattern, line in (
        ("renders", "Pictures:   {} (photographs: gt beside it)"),
        ("comparison.png", "Comparison: {}"),
        ("*.mp4", "Video:      {}"),
    ):
        for path in sorted(map(str, Path(model).glob(f"**/ours_{iterations}/{pattern}"))):
            print(line.format(path))
    print(f"Open this:  {page} (in a browser)")
    if python != os.path.basename(sys.executable):
        activate = shlex.quote(f"{environment.VENV}/bin/activate")
        print(f"To go on with train.py and render.py in this shell: source {activate}")


def _measured(model: str, iterations: str) -> bool:
    """Whether an avatar is measured at this iteration: results.json is written last of all."""
    try:
        return json.loads(Path(model, "results.json").read_text())["iterations"] >= int(iterations)
    except (OSError, ValueError, LookupError, TypeError):
        return False
