"""How many kernels an iteration of training launches on a GPU, by stage, counted without one.

    python -m benchmarks.launches -s DATA [any train.py flag]

Runs the loop of `train.py` on the CPU with the C++ kernels of everything but the rasterizer switched off, as on a GPU,
and counts PyTorch's operators, without those that only look at memory otherwise. A few operators launch two kernels
(`cumsum`), so the true number is somewhat larger. The rasterizer counts with what the Triton backend launches.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arguments import parse_train
from benchmarks.common import HEAD, Row, Table, new_parser, publish
from benchmarks.raster import SCENES, make_scene
from gaussian_renderer.backends import reference
from ops import kernels
from train import train
from utils.errors import run_script

# Of the Triton backend: ours, and those of cumsum, of fetching its end, and of searching, gathering and sorting 64-bit
# keys (one for numbering, two for counting, eight passes); back, ours and one that writes zeros.
FORWARD, BACKWARD = 3 + 2 + 1 + 3 + 11, 3
VIEWS = {
    *("view", "expand", "slice", "select", "unbind", "detach", "t", "transpose", "alias", "unsqueeze", "squeeze"),
    *("permute", "split", "split_with_sizes", "as_strided", "_unsafe_view", "_reshape_alias", "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense", "item"),
}


class Operators(TorchDispatchMode):
    """Counts what PyTorch would launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += operator.__name__.split(".")[0] not in VIEWS
        return operator(*args, **(kwargs or {}))


class Counted:
    """Stands in for `training.stages.Stages`: counts the operators of every stage."""

    def __init__(self) -> None:
        self.now: dict[str, Operators] = {}
        self.iterations: list[dict[str, int]] = []

    def __call__(self, name: str) -> Operators:
        return self.now.setdefault(name, Operators())

    def end_iteration(self) -> None:
        self.iterations.append({name: counted.count for name, counted in self.now.items()})
        self.now = {}


def of_the_reference() -> int:
    """Forward and backward of a picture of one tile."""
    gaussians, camera = make_scene(SCENES["screen"]._replace(number=500), torch.device("cpu"))
    with Operators() as counted:
        out = reference.rasterize(gaussians, camera.resized(16, 16), torch.ones(3), sh_degree=3)
        (out.image.sum() + out.alpha.sum()).backward()
    return counted.count


def main() -> None:
    options, flags = new_parser(__doc__, "source_path", "json").parse_known_args()
    counted = Counted()
    kernels.usable = lambda *tensors, **conditions: False
    with tempfile.TemporaryDirectory(prefix="launches-") as folder:
        words = ["-s", str(options.source_path), "-m", f"{folder}/model", *HEAD, "--device", "cpu", "--quiet"]
        train(parse_train([*words, "--iterations", "12", "--interval", "1000", "--metrics", "psnr", *flags]), counted)  # type: ignore[arg-type]
    names = dict.fromkeys(name for iteration in counted.iterations for name in iteration)
    median = {name: int(statistics.median(it.get(name, 0) for it in counted.iterations[4:])) for name in names}
    rows: list[Row] = []
    for name, count in median.items():
        more = {"forward": FORWARD, "backward": BACKWARD}.get(name, 0)
        rows.append({"stage": name, "PyTorch": count, "triton": more or None, "together": count + more})
    rows.append({"stage": "all", "triton": FORWARD + BACKWARD, "together": sum(row["together"] for row in rows)})
    title = (
        "Launches of an iteration (median), the rasterizer being triton; by the reference the rasterizer alone takes "
        f"{of_the_reference()} for a picture of one tile, and more for every further one:"
    )
    publish(options, [Table(title, rows)])


if __name__ == "__main__":
    run_script(main)
