"""What the Triton kernels should take on cards that are not here: to be held against the first measurement.

    python -m benchmarks.triton_estimate [--gaussians 100000] [--size 550 802]

A scene like an avatar is counted by the native kernels (pairs of tile and Gaussian) and the Triton kernels are compiled
for each card. A stage takes the longer of two times: the instructions of its loop for every pair, one for each
scheduler and clock, and the bytes that it must move. Added is what launching costs, a few microseconds each, as long as
nothing overlaps. Tiles that are opaque early, caches and waiting are left out: the first makes it faster, the others
slower. What surrounds the rasterizer does little for each byte: of it the bytes are counted alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks import triton_targets
from benchmarks.common import Row, Table, new_parser, publish
from benchmarks.launches import BACKWARD, FORWARD
from benchmarks.raster import SceneKind, make_scene
from gaussian_renderer.backends import native
from utils.errors import UserError, run_script

LAUNCH = 4e-6  # seconds: of a kernel in a queue that is never long


class Card(NamedTuple):
    """From the vendor's data sheet."""

    target: str
    processors: int  # with four schedulers each
    clock: float  # Hz
    bandwidth: float  # bytes/s


CARDS = {
    "RTX 3060": Card("sm_86", 28, 1.78e9, 360e9),
    "RTX 4090": Card("sm_89", 128, 2.52e9, 1008e9),
    "H100 SXM": Card("sm_90", 132, 1.83e9, 3350e9),
}
# Bytes of a Gaussian: parameters with 48 coefficients, the record; of a pair: key, owner and row sorted in eight
# passes, the sums.
PARAMETERS, RECORD, SORTED, SUMS = 4 * 59, 4 * 15, 8 * 2 * 16, 4 * 9
# FLAME with teeth, and the numbers of its row that displace vertices
VERTICES, FACES, MODES = 5143, 10144, 136


def loop(sass: str) -> int:
    """Instructions of the longest loop with an exponential, once around."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", sass)]
    bodies = []
    for at, text in lines:
        jump = re.search(r"BRA.* 0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            bodies.append([one for place, one in lines if int(jump[1], 16) <= place <= at])
    return max(len(body) for body in bodies if any("MUFU.EX2" in one for one in body))


def instructions(target: str) -> dict[str, float]:
    """Per pair of tile and Gaussian, all warps together: the least among the numbers of warps."""
    found: dict[str, float] = {}
    for name, build in triton_targets.builds().items():
        stage = name.partition(",")[0]
        if stage.startswith("blend"):
            once = loop(triton_targets.compiled(build, target).assembly) * build.warps / build.constants.get("AHEAD", 1)
            found[stage] = min(found.get(stage, once), once)
    return found


def stages(card: Card, count: int, pairs: int, pixels: int) -> Iterator[Row]:
    per_pair = instructions(card.target)
    issue = card.processors * 4 * card.clock
    room = pairs * 9 // 8
    back = pairs * (12 + RECORD) + (pairs + room) * SUMS + pixels * 24
    # the stage, what it issues, what it moves in bytes, and its launches: ours, and those of PyTorch's operators
    table = [
        ("project", 0.0, count * (PARAMETERS + RECORD), 1),
        ("list_pairs, sorted", 0.0, count * 24 + room * (12 + RECORD + SORTED + 24), FORWARD - 2),
        ("blend", pairs * per_pair["blend"], pairs * (4 + RECORD) + pixels * 24, 1),
        ("blend_backward", pairs * per_pair["blend_backward"], back, BACKWARD - 1),
        ("project_backward", 0.0, count * (2 * PARAMETERS + RECORD) + pairs * SUMS, 1),
    ]
    total = 0.0
    for name, issued, moved, launches in table:
        arithmetic, memory = 1e3 * issued / issue, 1e3 * moved / card.bandwidth
        milliseconds = max(arithmetic, memory) + 1e3 * LAUNCH * launches
        total += milliseconds
        yield {
            "stage": name,
            "instructions per pair": round(issued / pairs) if issued else None,
            "arithmetic, ms": round(arithmetic, 3) if issued else None,
            "bytes, ms": round(memory, 3),
            "launches": launches,
            "expected, ms": round(milliseconds, 2),
        }
    yield {"stage": "together", "launches": sum(row[3] for row in table), "expected, ms": round(total, 2)}


def around(card: Card, count: int, pixels: int) -> Iterator[Row]:
    """What surrounds the rasterizer, forward and backward together, for a picture of three channels."""
    displaced = 3 * VERTICES * MODES
    bound = 22 + 2 + 6 + 9  # of a Gaussian in and out; its triangle's number, corners and their places
    # the stage, the numbers that it moves, and its launches
    table = [
        ("FLAME", 2 * displaced + VERTICES * (14 + 11), 5),
        ("rig", count * (2 * bound + 11 + 2 * 7 + 1) + FACES * (15 + 9 + 12), 4),
        ("L1, SSIM", 3 * pixels * (6 + 9 + 6 + 6), 5),
        ("regularizers", count * (2 * 6 + 6 + 1), 3),
        ("Adam", count * 7 * PARAMETERS // 4, 7),
        ("statistics", count * 9, 1),
    ]
    total = 0.0
    for name, numbers, launches in table:
        memory = 1e3 * 4 * numbers / card.bandwidth
        total += memory + 1e3 * LAUNCH * launches
        expected = round(memory + 1e3 * LAUNCH * launches, 2)
        yield {"stage": name, "bytes, ms": round(memory, 3), "launches": launches, "expected, ms": expected}
    yield {"stage": "together", "launches": sum(row[2] for row in table), "expected, ms": round(total, 2)}


def main() -> None:
    parser = new_parser(__doc__, "json")
    parser.add_argument("--gaussians", type=int, default=100_000)
    parser.add_argument("--size", type=int, nargs=2, default=(550, 802), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    width, height = options.size
    kind = SceneKind(options.gaussians, width, height, (1.0, 4.0), (0.05, 0.9))
    gaussians, camera = make_scene(kind, torch.device("cpu"))
    out = native.rasterize(gaussians, camera, torch.ones(3), sh_degree=3)
    if out.image.grad_fn is None:
        raise UserError("the native kernels count the pairs, and cannot be built here")
    pairs = out.image.grad_fn.workspace.entries()  # type: ignore[attr-defined]
    tables = []
    for name, card in CARDS.items():
        title = f"{name} ({card.target}), {options.gaussians:,} Gaussians at {width}×{height}, {pairs:,} pairs:"
        tables.append(Table(title, list(stages(card, options.gaussians, pairs, width * height))))
        tables.append(Table(f"{name}, around the rasterizer:", list(around(card, options.gaussians, width * height))))
    publish(options, tables)


if __name__ == "__main__":
    run_script(main)
