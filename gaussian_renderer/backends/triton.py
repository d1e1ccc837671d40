"""The rasterizer in Triton, for NVIDIA and AMD: needs nothing but PyTorch's GPU wheel, which brings the compiler.

The rules are those of `gaussian_renderer.backends.reference`, the formulas those of the C++ kernels; the kernels
stand in `triton_kernels/`. Computes in float32. The sums over a Gaussian's pixels are written for each tile and added
up in one order, so the same inputs give the same bits; what atomic additions would save is that memory, 36 bytes for
each pair of tile and Gaussian, and its traffic.

With TRITON_INTERPRET=1 in the environment it runs on the CPU, to be checked there, thousands of times slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from gaussian_renderer import self_test
from gaussian_renderer.backends.guards import check_shapes
from gaussian_renderer.backends.triton_kernels.blend import ALL_SUMS, CONFIGS, SUMS, blend, blend_backward
from gaussian_renderer.backends.triton_kernels.project import project
from gaussian_renderer.backends.triton_kernels.project_backward import project_backward
from gaussian_renderer.backends.triton_kernels.tiles import RECORD, list_pairs
from ops import fused
from ops.kernels import CONSTANTS
from ops.triton_kernels import vectors
from ops.triton_kernels.launch import FUSED
from ops.types import Camera, Gaussians, RenderOut

TILE = int(CONSTANTS["kTile"])  # pixels
BLOCK = 128  # Gaussians or pairs of a program
AHEAD = 4  # Gaussians between two looks at whether a tile is opaque
LEAST_ROOM = 1 << 11  # pairs


class _Lists(NamedTuple):
    """The pairs of tile and Gaussian, by tile, each front to back."""

    owners: Tensor  # [room] int32 the Gaussian
    rows: Tensor  # [room] int64 the pair's number, in the order of the Gaussians
    starts: Tensor  # [tiles + 1] int32


class _Total:
    """A number that the GPU works out, fetched while it goes on."""

    def __init__(self, value: Tensor) -> None:
        self.arrived = None
        self.value = value.detach()
        if value.is_cuda:
            self.value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self.value.copy_(value, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(value.device))

    def get(self) -> int:
        if self.arrived is not None:
            self.arrived.synchronize()
        return int(self.value)


# For each device and size of picture the pairs to make room for. The next pass needs about as many as the last ones, so
# that it need not wait for its own number before it goes on. What is too much goes slowly: views differ.
_rooms: dict[tuple[torch.device, int, int], int] = {}


def _roomy(total: int) -> int:
    """Room for `total` pairs, and for a few more the next time.

    Raises:
        MemoryError: their numbers do not fit the kernels.
    """
    if total >= 1 << 30:
        raise MemoryError("too many Gaussians cover too many tiles for the triton rasterizer")
    return max(LEAST_ROOM, -(-total * 5 // 4 // BLOCK) * BLOCK)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,  # [N, 3]
        quats: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        sh: Tensor,  # [N, K, 3]
        background: Tensor,  # [3]
        means2d: Tensor,  # [N, 2] only a place for its gradient
        world: Tensor,  # [4, 4]
        camera: Camera,
        sh_degree: int,
        scale_modifier: float,
        keep: bool,
        absolute: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        fields = [field.detach().contiguous() for field in (means, quats, scales, opacities, sh)]
        background, world = background.detach().contiguous(), world.contiguous()
        count, width, height, device = len(means), camera.width, camera.height, means.device
        lens = (camera.fx, camera.fy, camera.cx, camera.cy, width, height, scale_modifier)
        shapes = {"DEGREE": sh_degree, "BASES": sh.shape[1]}
        records, depths = means.new_empty(count, RECORD.value), means.new_empty(count)
        covered, radii = (torch.empty(count, dtype=torch.int32, device=device) for _ in range(2))
        image, alpha = means.new_empty(3, height, width), means.new_empty(1, height, width)
        rests = means.new_empty(height, width) if keep else alpha
        closed_at = torch.empty(height, width, dtype=torch.int32, device=device) if keep else radii
        with torch.cuda.device_of(means):
            project[(triton.cdiv(count, BLOCK),)](
                *(*fields, world, count, *lens),
                records,
                depths,
                covered,
                radii,
                **shapes,
                **FUSED,
                TILE=TILE,
                BLOCK=BLOCK,
            )
            ends = torch.cumsum(covered, 0, dtype=torch.int64)
            total = _Total(ends[-1])
            room = _rooms.get((device, width, height)) or _roomy(total.get())
            while True:
                lists = _list(records, depths, covered, ends, room, width, height)
                blend[(len(lists.starts) - 1,)](
                    *(records, lists.owners, lists.starts, background, width, height),
                    *(image, alpha, rests, closed_at, room.bit_length() // 2),
                    KEEP=keep,
                    TILE=TILE,
                    AHEAD=AHEAD,
                    **FUSED,
                )
                # Everything is queued by now: to learn the number stops nobody. Rarely it was too large, and all is
                # done again.
                needed = total.get()
                if needed <= room:
                    break
                room = _roomy(needed)
        _rooms[device, width, height] = max(_roomy(needed), room - room // 64)
        if keep:
            ctx.lens, ctx.shapes, ctx.absolute = lens, shapes, absolute
            ctx.save_for_backward(
                *(*fields, background, world, records, covered, ends, *lists, rests, closed_at, alpha)
            )
        ctx.mark_non_differentiable(radii)
        return image, alpha, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *fields, background, world, records, covered, ends, owners, rows, starts, rests, closed_at, alpha = (
            ctx.saved_tensors
        )
        grad_image, grad_alpha = grad_image.contiguous(), grad_alpha.contiguous()
        *_, width, height, _ = ctx.lens
        count = len(records)
        # Zeros: pairs behind all that shows are not visited.
        sums = records.new_zeros(len(rows), ALL_SUMS if ctx.absolute else SUMS)
        grads = [torch.empty_like(field) for field in fields]
        grad_means2d = records.new_empty(count, 2)
        with torch.cuda.device_of(records):
            blend_backward[(len(starts) - 1,)](
                *(records, owners, rows, starts, background, width, height),
                *(rests, closed_at, grad_image, grad_alpha, sums, len(rows).bit_length() // 2),
                ABSOLUTE=ctx.absolute,
                TILE=TILE,
                **FUSED,
            )
            project_backward[(triton.cdiv(count, BLOCK),)](
                *(*fields, world, count, *ctx.lens, records, covered, ends, sums),
                *(*grads, grad_means2d),
                **ctx.shapes,
                **FUSED,
                SUMS=sums.shape[1],
                BLOCK=BLOCK,
            )
        grad_background = (grad_image * (1 - alpha)).sum((1, 2)) if ctx.needs_input_grad[5] else None
        return (*grads, grad_background, grad_means2d, None, None, None, None, None, None)


def _list(records: Tensor, depths: Tensor, covered: Tensor, ends: Tensor, room: int, width: int, height: int) -> _Lists:
    """The lists of all tiles; of more than `room` pairs the last ones are missing."""
    count, tiles = len(records), triton.cdiv(width, TILE) * triton.cdiv(height, TILE)
    keys = torch.empty(room, dtype=torch.int64, device=records.device)
    owners = torch.empty(room, dtype=torch.int32, device=records.device)
    list_pairs[(triton.cdiv(room, BLOCK),)](
        *(records, depths, covered, ends, count, room, count.bit_length(), width, height, keys, owners),
        TILE=TILE,
        BLOCK=BLOCK,
        **FUSED,
    )
    # stable: equal depths keep the order of the Gaussians
    keys, rows = torch.sort(keys, stable=True)
    bounds = torch.arange(0, (tiles + 1) << 32, 1 << 32, device=keys.device)
    return _Lists(owners[rows], rows, torch.searchsorted(keys, bounds, out_int32=True))


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3]
    *,
    sh_degree: int,
    scale_modifier: float = 1.0,
    absolute: bool = False,
) -> RenderOut:
    """Renders; see `gaussian_renderer.backends.reference` for the rules and `RenderOut` for the result.

    Computes in float32 whatever the type of the inputs; differentiable, once, with respect to all fields of
    `gaussians` and `background`. Under `torch.no_grad` nothing is kept for a backward pass.

    Raises:
        ValueError: wrong shapes, or fewer coefficients than `sh_degree` needs.
        MemoryError: the tile lists do not fit.
    """
    count, device = len(gaussians.means), gaussians.means.device
    check_shapes(gaussians, background, sh_degree)
    keep = torch.is_grad_enabled()  # asked here: inside a Function it is always off
    means2d = torch.zeros((), device=device).expand(count, 2).requires_grad_(keep)  # its value is nowhere read
    background = background.float().to(device)
    if count == 0:
        nothing = sum(field.sum() for field in (*gaussians, means2d))  # which has a gradient
        image = background[:, None, None].expand(3, camera.height, camera.width) + nothing
        radii = torch.zeros(0, dtype=torch.int32, device=device)
        return RenderOut(image, image[:1] * 0.0, radii, means2d)
    fields = (field.float() for field in (*gaussians, background))
    world = camera.world_to_camera.to(device)
    image, alpha, radii = _Rasterize.apply(*fields, means2d, world, camera, sh_degree, scale_modifier, keep, absolute)
    return RenderOut(image, alpha, radii, means2d)


@contextlib.contextmanager
def _with(config: triton.Config) -> Iterator[None]:
    """Blends with this number of warps instead of the best one."""
    kernels = (blend, blend_backward)
    for kernel in kernels:
        kernel.configs = [config]
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.configs = CONFIGS


def fault(device: torch.device | str) -> str | None:
    """Why this backend cannot be used on `device`; None if it can. Tries it, where it is new (seconds)."""
    if old := fused.too_old(device):
        return old
    here = Path(__file__)
    sources = [here, *sorted((here.parent / "triton_kernels").glob("*.py")), Path(vectors.__file__)]
    return self_test.fault(
        rasterize,
        device,
        ways=[partial(_with, config) for config in CONFIGS],
        code=[triton.__version__, *(source.read_text(encoding="utf-8") for source in sources)],
    )
