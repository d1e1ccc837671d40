"""How many kernels an iteration of training launches on a GPU, by stage, counted without one.

    python -m benchmarks.launches -s DATA [any train.py flag]

Runs the loop of `train.py` on the CPU with the C++ kernels of everything but the rasterizer switched off, as on a GPU:
once all in PyTorch, once with our Triton kernels in Triton's interpreter (minutes; needs Triton). Counted are PyTorch's
operators, without those that only look at memory otherwise, and our kernels. A few operators launch two kernels
(`cumsum`) or many (a sort), so the true numbers are somewhat larger. The rasterizer counts with what the Triton backend
launches. Beside them: how often the host waits for the GPU, which a CUDA graph could not hold.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from arguments import parse_train
from benchmarks.common import HEAD, Row, Table, new_parser, publish
from benchmarks.raster import SCENES, make_scene
from gaussian_renderer.backends import native, reference
from innovations import amp
from ops import fused, kernels
from ops.finite import not_finite_flag
from ops.types import RenderOut
from train import train
from utils.errors import UserError, run_script

# Of the Triton backend: ours, and those of cumsum, of fetching its end, and of searching, gathering and sorting 64-bit
# keys (one for numbering, two for counting, eight passes); back, ours and one that writes zeros. Once it waits, for
# the number of pairs.
FORWARD, BACKWARD = 3 + 2 + 1 + 3 + 11, 3
WAITS = 1
SETTLE, ITERATIONS = 2, 5
VIEWS = {
    *("view", "expand", "slice", "select", "unbind", "detach", "t", "transpose", "alias", "unsqueeze", "squeeze"),
    *("permute", "split", "split_with_sizes", "as_strided", "_unsafe_view", "_reshape_alias", "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense", "item"),
}
WAITING = {"lift_fresh", "_local_scalar_dense", "nonzero", "masked_select"}  # the host, for values or for their copy


class Operators(TorchDispatchMode):
    """Counts what PyTorch would launch, where the host would wait, and our kernels."""

    now: Operators | None = None

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = self.ours = 0

    def __enter__(self) -> Any:
        Operators.now = self
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        Operators.now = None
        super().__exit__(*raised)

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = operator.__name__.split(".")[0]
        self.count += name not in VIEWS
        self.waits += name in WAITING
        return operator(*args, **(kwargs or {}))


class Counted:
    """Stands in for `training.stages.Stages`: counts the operators of every stage."""

    def __init__(self) -> None:
        self.now: dict[str, Operators] = {}
        self.iterations: list[dict[str, Operators]] = []

    def __call__(self, name: str) -> Operators:
        return self.now.setdefault(name, Operators())

    def end_iteration(self) -> None:
        self.iterations.append(self.now)
        self.now = {}

    def median(self, stage: str, what: str) -> int:
        """Of an iteration, once everything is in place."""
        settled = self.iterations[SETTLE:]
        return int(statistics.median(getattr(of[stage], what) if stage in of else 0 for of in settled))


def as_on_a_gpu() -> None:
    """Switches off the C++ kernels but the rasterizer, which counts with nothing, and makes ours be counted."""
    kernels.usable = lambda *tensors, **conditions: False
    amp.not_finite = not_finite_flag  # type: ignore[assignment]
    rasterize = native.rasterize

    def uncounted(*arguments: Any, **options: Any) -> RenderOut:
        before = (Operators.now.count, Operators.now.waits) if Operators.now else (0, 0)
        out = rasterize(*arguments, **options)
        if Operators.now:
            Operators.now.count, Operators.now.waits = before
        return out

    native.rasterize = uncounted
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError as error:
        raise UserError("Triton is not installed: pip install -r tests/requirements-triton.txt") from error
    from ops.triton_kernels import adam, density, flame, losses, rig

    # The interpreter takes its time for every program of a kernel, not for the numbers in it.
    adam.BLOCK, density.BLOCK, flame.BLOCK, losses.BLOCK, rig.BLOCK, rig.FEW = 1 << 18, 1 << 14, 512, 8192, 4096, 4096
    interpret = InterpretedFunction.run

    def run(*arguments: Any, **options: Any) -> Any:
        if Operators.now:
            Operators.now.ours += 1
        with _disable_current_modes():
            return interpret(*arguments, **options)

    InterpretedFunction.run = run


def count(words: list[str], in_triton: bool) -> Counted:
    """A short training; every iteration of it."""
    counted = Counted()
    fused.runs_on = lambda device: in_triton and len(counted.iterations) < ITERATIONS  # not in the evaluation
    with tempfile.TemporaryDirectory(prefix="launches-") as folder:
        short = ["--iterations", str(ITERATIONS), "--interval", "1000", "--metrics", "psnr", "--rasterizer", "native"]
        train(parse_train([*words, "-m", f"{folder}/model", *short]), counted)  # type: ignore[arg-type]
    return counted


def of_the_reference() -> int:
    """Forward and backward of a picture of one tile."""
    gaussians, camera = make_scene(SCENES["screen"]._replace(number=500), torch.device("cpu"))
    with Operators() as counted:
        out = reference.rasterize(gaussians, camera.resized(16, 16), torch.ones(3), sh_degree=3)
        (out.image.sum() + out.alpha.sum()).backward()
    return counted.count


def main() -> None:
    options, flags = new_parser(__doc__, "source_path", "json").parse_known_args()
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    as_on_a_gpu()
    words = ["-s", str(options.source_path), *HEAD, "--device", "cpu", "--quiet", *flags]
    plain, in_triton = count(words, in_triton=False), count(words, in_triton=True)
    names = dict.fromkeys(name for counted in (plain, in_triton) for of in counted.iterations for name in of)
    rows: list[Row] = []
    for name in names:
        more = {"forward": FORWARD, "backward": BACKWARD}.get(name, 0)
        before = plain.median(name, "count")
        rest, ours = in_triton.median(name, "count"), in_triton.median(name, "ours")
        rows.append(
            {
                "stage": name,
                "all in PyTorch": before,
                "PyTorch": rest,
                "Triton": ours,
                "rasterizer": more or None,
                "together": rest + ours + more,
                "waits": in_triton.median(name, "waits") + (WAITS if name == "forward" else 0),
            }
        )
    numbers = [name for name in rows[0] if name != "stage"]
    rows.append({"stage": "all", **{name: sum(row[name] or 0 for row in rows) for name in numbers}})
    title = (
        "Launches of an iteration (median) without the rasterizer, all in PyTorch; then with our kernels, and the "
        "rasterizer being triton; by the reference the rasterizer alone takes "
        f"{of_the_reference()} for a picture of one tile, and more for every further one:"
    )
    publish(options, [Table(title, rows)])


if __name__ == "__main__":
    run_script(main)
