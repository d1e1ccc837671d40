"""Triton: the statistics of the density control over one rendered view, in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ops.triton_kernels.launch import launch

BLOCK = 256  # Gaussians of a program


@triton.jit(do_not_specialize=["count"])
def observe_rows(
    gradient,  # [N, 2] in NDC units
    radii,  # [N] int32
    count,  # N
    gradient_sum,  # [N] added to
    seen,  # [N] added to
    max_radii,  # [N]
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < count
    x, y = tl.load(gradient + 2 * rows, live, 0.0), tl.load(gradient + 2 * rows + 1, live, 0.0)
    radius = tl.load(radii + rows, live, 0).to(tl.float32)
    tl.store(gradient_sum + rows, tl.load(gradient_sum + rows, live, 0.0) + tl.sqrt(x * x + y * y), live)
    tl.store(seen + rows, tl.load(seen + rows, live, 0.0) + tl.where(radius > 0.0, 1.0, 0.0), live)
    tl.store(max_radii + rows, tl.maximum(tl.load(max_radii + rows, live, 0.0), radius), live)


def observe(gradient: Tensor, radii: Tensor, gradient_sum: Tensor, seen: Tensor, max_radii: Tensor) -> None:
    """`ops.density.observe` of float32."""
    gradient, radii = gradient.contiguous(), radii.int().contiguous()
    count = len(radii)
    launch(observe_rows, triton.cdiv(count, BLOCK), gradient, radii, count, gradient_sum, seen, max_radii, BLOCK=BLOCK)
