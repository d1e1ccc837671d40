"""Triton: alpha blending of the tiles' lists, front to back, and its gradient, back to front; a program for each tile.

The gradient of alpha needs the light from behind each Gaussian. Going back to front that is a running blend; going
front to back it would be the total less a running sum, which cancels in float32 just where little light is left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gaussian_renderer.backends.triton_kernels.tiles import LOG2_MIN_ALPHA, RECORD
from ops.kernels import CONSTANTS

MAX_ALPHA = tl.constexpr(CONSTANTS["kMaxAlpha"])
MIN_TRANSMITTANCE = tl.constexpr(CONSTANTS["kMinTransmittance"])
OPEN = tl.constexpr((1 << 31) - 1)
FAINT = tl.constexpr(-1e30)  # log2 of an opacity that shows nowhere
SUMS = 9  # per pair of tile and Gaussian: see `blend_backward`
ALL_SUMS = 11

# How many warps share a tile: with more, a tile is done sooner; with fewer, less is said between them. Which is best
# depends on the load, which is a power of 4 of pairs; the interpreter has nothing to choose from.
CONFIGS = [triton.Config({}, num_warps=warps) for warps in (1, 2, 4)][: 1 if triton.knobs.runtime.interpret else None]


@triton.jit
def pixels_of(tile, width, height, TILE: tl.constexpr):
    """The tile's corner, its pixels' centers from there, their places in the image, and which are inside."""
    columns = tl.cdiv(width, TILE)
    left, upper = tile % columns * TILE, tile // columns * TILE
    pixel = tl.arange(0, TILE * TILE)
    x, y = pixel % TILE, pixel // TILE
    inside = (x < width - left) & (y < height - upper)
    return left, upper, x + 0.5, y + 0.5, (upper + y) * width + left + x, inside


@triton.autotune(CONFIGS, key=["KEEP", "load"], cache_results=True)
@triton.jit(do_not_specialize=["width", "height", "load"])
def blend(
    records,  # [N, RECORD]
    owners,  # [pairs] int32 by tile, each front to back
    starts,  # [tiles + 1] int32
    background,  # [3]
    width,
    height,
    image,  # [3, H, W] out
    alpha,  # [H, W] out
    rests,  # [H, W] out: transmittance after the last one
    closed_at,  # [H, W] int32 out: place in `owners` of the first one too many
    load,  # for the choice of warps only
    KEEP: tl.constexpr,  # whether the last two are wanted
    TILE: tl.constexpr,
    AHEAD: tl.constexpr,  # Gaussians between two looks at whether a pixel is still open
):
    tile = tl.program_id(0)
    left, upper, px, py, at, inside = pixels_of(tile, width, height, TILE)
    rest = tl.where(inside, 1.0, 0.0)
    closed = tl.where(inside, OPEN, 0)
    red, green, blue = rest * 0.0, rest * 0.0, rest * 0.0
    place, end = tl.load(starts + tile), tl.load(starts + tile + 1)
    going = place < end
    while going:
        for _ in tl.static_range(AHEAD):
            record = records + tl.load(owners + tl.minimum(place, end - 1)) * RECORD
            x, y, slope = tl.load(record), tl.load(record + 1), tl.load(record + 2)
            p, r, log2_opacity = tl.load(record + 3), tl.load(record + 4), tl.load(record + 5)
            dy = py - (y - upper)
            w = px - (x - left) - slope * dy
            exponent = tl.where(place < end, log2_opacity, FAINT) - p * (w * w) - r * (dy * dy)
            counted = (exponent >= LOG2_MIN_ALPHA) & (closed == OPEN)
            weight = tl.where(counted, tl.minimum(tl.exp2(exponent), MAX_ALPHA), 0.0) * rest
            after = rest - weight
            closes = counted & (after < MIN_TRANSMITTANCE)
            closed = tl.where(closes, place, closed)
            rest = tl.where(closes, rest, after)
            weight = tl.where(closes, 0.0, weight)
            red += weight * tl.load(record + 6)
            green += weight * tl.load(record + 7)
            blue += weight * tl.load(record + 8)
            place += 1
        going = (place < end) & (tl.max(closed, 0) == OPEN)

    plane = width * height
    tl.store(image + at, red + rest * tl.load(background), inside)
    tl.store(image + plane + at, green + rest * tl.load(background + 1), inside)
    tl.store(image + 2 * plane + at, blue + rest * tl.load(background + 2), inside)
    tl.store(alpha + at, 1.0 - rest, inside)
    if KEEP:
        tl.store(rests + at, rest, inside)
        tl.store(closed_at + at, closed, inside)


@triton.autotune(CONFIGS, key=["ABSOLUTE", "load"], cache_results=True)
@triton.jit(do_not_specialize=["width", "height", "load"])
def blend_backward(
    records,  # [N, RECORD]
    owners,  # [pairs] int32 by tile, each front to back
    rows,  # [pairs] int64 where in `sums`
    starts,  # [tiles + 1] int32
    background,  # [3]
    width,
    height,
    rests,  # [H, W]
    closed_at,  # [H, W] int32
    grad_image,  # [3, H, W]
    grad_alpha,  # [H, W]
    sums,  # [pairs, 9 or 11] out: zeros before
    load,  # for the choice of warps only
    ABSOLUTE: tl.constexpr,
    TILE: tl.constexpr,
):
    """For each pair of tile and Gaussian sums over the pixels, in this order.

    Of the gradients of red, green and blue; of the gradient of the exponent times 1, w, dy, w^2, w dy, dy^2; and, if
    ABSOLUTE, of the absolute values of what it contributes to the gradient of x and y, over 2 ln 2.
    """
    COUNT: tl.constexpr = 11 if ABSOLUTE else 9
    tile = tl.program_id(0)
    left, upper, px, py, at, inside = pixels_of(tile, width, height, TILE)
    plane = width * height
    rest, closed = tl.load(rests + at, inside, 0.0), tl.load(closed_at + at, inside, 0)
    g_red, g_green = tl.load(grad_image + at, inside, 0.0), tl.load(grad_image + plane + at, inside, 0.0)
    g_blue, g_alpha = tl.load(grad_image + 2 * plane + at, inside, 0.0), tl.load(grad_alpha + at, inside, 0.0)
    # what a pixel of what is behind the Gaussian at hand adds to the loss, to first order
    behind = g_red * tl.load(background) + g_green * tl.load(background + 1) + g_blue * tl.load(background + 2)

    begin, end = tl.load(starts + tile), tl.load(starts + tile + 1)
    last = tl.minimum(tl.max(closed, 0), end)  # what is behind shows in no pixel
    for i in range(0, last - begin):
        place = last - 1 - i
        record, to = records + tl.load(owners + place) * RECORD, sums + tl.load(rows + place) * COUNT
        x, y, slope = tl.load(record), tl.load(record + 1), tl.load(record + 2)
        p, r, log2_opacity = tl.load(record + 3), tl.load(record + 4), tl.load(record + 5)
        red, green, blue = tl.load(record + 6), tl.load(record + 7), tl.load(record + 8)
        dy = py - (y - upper)
        w = px - (x - left) - slope * dy
        exponent = log2_opacity - p * (w * w) - r * (dy * dy)
        density = tl.exp2(exponent)
        a = tl.where((exponent >= LOG2_MIN_ALPHA) & (place < closed), tl.minimum(density, MAX_ALPHA), 0.0)
        step = tl.rsqrt(1.0 - a)  # squared it is the inverse, in a third of the instructions of a division
        rest = rest * step * step  # before it
        weight = a * rest
        more = g_red * red + g_green * green + g_blue * blue + g_alpha - behind
        behind += a * more
        # where alpha is capped it does not depend on the exponent
        change = tl.where(density < MAX_ALPHA, weight * more, 0.0)
        change_w, change_y = change * w, change * dy
        tl.store(to, tl.sum(weight * g_red, 0))
        tl.store(to + 1, tl.sum(weight * g_green, 0))
        tl.store(to + 2, tl.sum(weight * g_blue, 0))
        tl.store(to + 3, tl.sum(change, 0))
        tl.store(to + 4, tl.sum(change_w, 0))
        tl.store(to + 5, tl.sum(change_y, 0))
        tl.store(to + 6, tl.sum(change_w * w, 0))
        tl.store(to + 7, tl.sum(change_w * dy, 0))
        tl.store(to + 8, tl.sum(change_y * dy, 0))
        if ABSOLUTE:
            size = tl.abs(change)
            tl.store(to + 9, tl.sum(size * tl.abs(p * w), 0))
            tl.store(to + 10, tl.sum(size * tl.abs(r * dy - slope * p * w), 0))
