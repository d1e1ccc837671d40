"""Compiles the Triton kernels ahead of time for cards that need not be here, and says what they take.

    python -m benchmarks.triton_targets [--targets sm_80 gfx942] [--kernels rasterizer around]

Needs Triton (tests/requirements-triton.txt, or PyTorch's GPU wheel), no GPU. A cell is registers of a thread, bytes
that it spills, and bytes of shared memory of a program. Spills on sm_80 or newer are an error.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # read when the kernels are imported: an interpreted one does not compile

from benchmarks.common import Row, Table, new_parser, publish
from utils.errors import UserError, run_script

CUDA = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
HIP = ("gfx90a", "gfx942")
# The kernels' arguments by name; the others are pointers to float32.
FLOATS = {
    *("fx", "fy", "cx", "cy", "scale_modifier", "threshold_xyz", "threshold_scale"),
    *("rate", "take1", "take2", "log_beta1", "log_beta2", "eps"),
}
INTEGERS = {"count", "width", "height", "room", "steps", "load", "channels", "programs", "columns", "expr"}
POINTERS = {
    **dict.fromkeys(("covered", "radii", "owners", "starts", "closed_at", "order"), "*i32"),
    **dict.fromkeys(("ends", "keys", "rows", "faces", "binding"), "*i64"),
    "visible": "*u8",
}


class Build(NamedTuple):
    """A kernel as it is used."""

    kernel: Any
    constants: dict[str, Any]
    warps: int


class Compiled(NamedTuple):
    registers: int  # of a thread
    spilled: int  # bytes of a thread
    shared: int  # bytes of a program
    assembly: str  # SASS or GCN


def builds() -> dict[str, Build]:
    """The rasterizer's kernels for degree 3, the blending ones with each number of warps there is to choose."""
    from gaussian_renderer.backends import triton as backend

    sizes = {"TILE": backend.TILE, "BLOCK": backend.BLOCK}
    shapes = {"DEGREE": 3, "BASES": 16}
    found = {"project": Build(backend.project, shapes | sizes, 4), "list_pairs": Build(backend.list_pairs, sizes, 4)}
    for config in backend.CONFIGS:
        constants = {"KEEP": True, "TILE": backend.TILE, "AHEAD": backend.AHEAD}
        found[f"blend, warps: {config.num_warps}"] = Build(backend.blend.fn, constants, config.num_warps)
    for config in backend.CONFIGS:
        constants = {"ABSOLUTE": False, "TILE": backend.TILE}
        found[f"blend_backward, warps: {config.num_warps}"] = Build(
            backend.blend_backward.fn, constants, config.num_warps
        )
    constants = {"SUMS": backend.SUMS, "BLOCK": backend.BLOCK}
    return found | {"project_backward": Build(backend.project_backward, shapes | constants, 4)}


def surrounding() -> dict[str, Build]:
    """The kernels around the rasterizer, as an avatar on FLAME's mesh uses them."""
    from ops.triton_kernels import adam, density, flame, losses, rig

    skeleton, vertices = {"EXPR": 128}, {"BLOCK": flame.BLOCK, "MODES": flame.MODES}
    pixels, few = {"BLOCK": losses.BLOCK}, {"BLOCK": rig.FEW}
    weighted = {"WEIGHTED": True, **pixels}
    return {
        "pose_skeleton": Build(flame.pose_skeleton, skeleton, 1),
        "skin": Build(flame.skin, vertices, 4),
        "pull_back_skin": Build(flame.pull_back_skin, vertices, 4),
        "pull_back_skeleton": Build(flame.pull_back_skeleton, skeleton, 1),
        "bind": Build(rig.bind, {"BLOCK": rig.BLOCK}, 4),
        "pull_back_bound": Build(rig.pull_back_bound, {"BLOCK": rig.BLOCK}, 4),
        "pull_back_frames": Build(rig.pull_back_frames, few, 1),
        "add_corners": Build(rig.add_corners, few, 1),
        "blur_products": Build(losses.blur_products, pixels, 4),
        "compare": Build(losses.compare, {"KEEP": True, **weighted}, 4),
        "finish_comparison": Build(losses.finish_comparison, {"BLOCK": losses.SUMS}, 4),
        "blur_slopes": Build(losses.blur_slopes, pixels, 4),
        "pull_back_comparison": Build(losses.pull_back_comparison, weighted, 4),
        "regularize": Build(losses.regularize, pixels, 4),
        "finish_regularizers": Build(losses.finish_regularizers, {"BLOCK": losses.SUMS}, 4),
        "pull_back_regularizers": Build(losses.pull_back_regularizers, pixels, 4),
        "observe_rows": Build(density.observe_rows, {"BLOCK": density.BLOCK}, 4),
        "move": Build(adam.move, {"EVEN": False, "ALWAYS": False, "BLOCK": adam.BLOCK}, 4),
    }


KERNELS = {"rasterizer": builds, "around": surrounding}


def compiled(build: Build, target: str) -> Compiled:
    """The machine code of a kernel, and what it takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ops.triton_kernels.launch import FUSED

    def kind(name: str) -> str:
        if name in build.constants:
            return "constexpr"
        return "fp32" if name in FLOATS else "i32" if name in INTEGERS else POINTERS.get(name, "*fp32")

    nvidia = target in CUDA
    where = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    signature = {name: kind(name) for name in build.kernel.arg_names}
    source = ASTSource(build.kernel, signature=signature, constexprs=build.constants)
    code = triton.compile(source, target=where, options={"num_warps": build.warps, **FUSED})
    if not nvidia:
        text = code.asm["amdgcn"]
        numbers = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
        spilled = 4 * (numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"])
        return Compiled(numbers["vgpr_count"], spilled, code.metadata.shared, text)
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source_file, file = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source_file.write_text(code.asm["ptx"])
        file.write_bytes(code.asm["cubin"])
        name = re.findall(r"^\.target (\w+)", code.asm["ptx"], re.MULTILINE)[0]
        tool = get_ptxas(int(target[3:])).path
        words = [tool, "-v", f"--gpu-name={name}", source_file, "-o", os.devnull]
        usage = subprocess.run(words, capture_output=True, text=True, check=True).stderr
        words = [Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", "-sass", file]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    (registers,) = re.findall(r"Used (\d+) registers", usage)
    most = max(int(count) for count in re.findall(r"(\d+) bytes spill", usage))  # stores, loads
    return Compiled(int(registers), most, code.metadata.shared, text)


def rows(kernels: dict[str, Build], targets: list[str]) -> Iterator[Row]:
    for name, build in kernels.items():
        row: Row = {"kernel": name}
        for target in targets:
            found = compiled(build, target)
            row[target] = f"{found.registers} / {found.spilled} / {found.shared}"
            if found.spilled and target in CUDA[1:]:
                raise UserError(f"{name} spills {found.spilled} bytes on {target}")
        yield row


def main() -> None:
    parser = new_parser(__doc__, "json")
    parser.add_argument("--targets", nargs="+", choices=(*CUDA, *HIP), default=[*CUDA, *HIP])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=[*KERNELS], help="of it, or of what is around")
    options = parser.parse_args()
    try:
        import triton
    except ImportError as error:
        raise UserError("Triton is not installed: pip install -r tests/requirements-triton.txt") from error
    title = f"Triton {triton.__version__}: registers / bytes spilled / bytes of shared memory"
    publish(options, [Table(title, list(rows(KERNELS[name](), options.targets))) for name in options.kernels])


if __name__ == "__main__":
    run_script(main)
