"""How fast the viewer draws while the camera moves, and what it costs a training.

    python -m benchmarks.viewer -m OUT [--gaussians 20000] [--seconds 8]
    python -m benchmarks.viewer -m OUT -s DATA [--iterations 600]    also the cost

The first part shows the avatar in OUT, with as many Gaussians as asked for, to a scripted browser in a process of its
own, which drags the camera all the time. The second trains with a port and without in turns (see
`benchmarks.timing`): first while nobody looks, then while a browser on the same machine drags the camera all the time,
which takes its part of the cores from both.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.nn import Parameter

from arguments import RunOptions
from benchmarks.common import HEAD, ROOT, Row, Table, new_parser, publish
from benchmarks.timing import SLICE, ratio, slice_count, time_in_turns
from scene import Avatar, load_avatar
from utils.errors import run_script
from viewer.server import Doorkeeper, listen
from viewer.session import Viewer
from viewer.stage import Stage


def resized(avatar: Avatar, count: int) -> Avatar:
    """The avatar with `count` Gaussians: some of its own, or some twice, a little beside themselves."""
    model = avatar.model
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(max(count, len(model)), generator=generator)[:count] % len(model)
    parameters = {name: Parameter(value.detach()[rows]) for name, value in model.parameters().items()}
    with torch.no_grad():
        parameters["xyz"].add_(0.05 * torch.randn(parameters["xyz"].shape, generator=generator))
    model.replace_rows(parameters, None if model.binding is None else model.binding[rows])
    return avatar


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def browser(port: int, seconds: float) -> subprocess.Popen[str]:
    """A scripted browser in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.scripted_browser", str(port), str(seconds)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def speed(avatar: Avatar, folder: Path, seconds: float) -> Row:
    """Pictures that reach a browser which drags the camera."""
    door = Doorkeeper(listen(None, free_port()), None)
    viewer = Viewer(door, Stage(avatar, folder, {}))
    process = browser(door.port, seconds)
    while process.poll() is None:
        if not viewer.turn():
            viewer.wait(0.1)
    viewer.close()
    found = json.loads(process.communicate()[0])
    return {
        "Gaussians": len(avatar.model),
        "window": "400x550",
        "pictures per second": round(found["pictures_per_second"], 1),
        "share of the window's pixels drawn": round(found["share_of_pixels"], 2),
    }


def cost(source: Path, iterations: int) -> list[Row]:
    """Time per iteration relative to a training without a port, which runs in turns with each."""
    plain = [*f"-s {source} --iterations {iterations} --scale_schedule --densify_grad_threshold 0.001".split(), *HEAD]
    alone, watched = free_port(), free_port()
    slices = time_in_turns({"alone": plain, "port": [*plain, "--port", str(alone)]}, slice_count(iterations))
    with ExitStack() as stack:  # the browser works during the turns of both
        process = browser(watched, 1e6)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        runs = {"disturbed": plain, "watched": [*plain, "--port", str(watched)]}
        slices |= time_in_turns(runs, slice_count(iterations))
    share = RunOptions().viewer_share
    rows = (("a port, nobody there", "port", "alone"), (f"dragged all the time, {share:g}", "watched", "disturbed"))
    return [
        {
            "--port, and --viewer_share": label,
            "ms per iteration": round(1e3 * statistics.median(slices[name]) / SLICE, 1),
            "without": round(1e3 * statistics.median(slices[base]) / SLICE, 1),
            "relative time": round(ratio(slices[name], slices[base]), 3),
        }
        for label, name, base in rows
    ]


def main() -> None:
    parser = new_parser(__doc__, "model_path", "json")
    parser.add_argument("-s", "--source_path", type=Path, help="folder of the capture; then the cost is measured too")
    parser.add_argument("--gaussians", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="that the camera is dragged")
    parser.add_argument("--iterations", type=int, default=600, help="of each training whose time is compared")
    options = parser.parse_args()
    avatar = resized(load_avatar(options.model_path, device="cpu"), options.gaussians)
    tables = [Table("Dragging the camera", [speed(avatar, options.model_path, options.seconds)])]
    if options.source_path:
        tables.append(Table("What it costs a training", cost(options.source_path, options.iterations)))
    publish(options, tables)


if __name__ == "__main__":
    run_script(main)
