"""Triton: which tiles a Gaussian covers, and the pairs of tile and Gaussian that are sorted into the tiles' lists.

The tests are those of ops/csrc/splat_bin.cpp: the ellipse alpha >= 1/255, cut to the pixel centers of a tile row, spans
some columns of tiles.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ops.kernels import CONSTANTS

MARGIN = tl.constexpr(CONSTANTS["kMargin"])
MIN_ALPHA = tl.constexpr(CONSTANTS["kMinAlpha"])
LOG2_MIN_ALPHA = tl.constexpr(math.log2(CONSTANTS["kMinAlpha"]))

# A projected Gaussian, in floats: x, y, slope, p, r, log2 of the opacity, red, green, blue, and extent x, extent y, dy
# where the ellipse reaches extent x. Its alpha at a pixel is 2^(log2_opacity - p w^2 - r dy^2), w = dx - slope dy.
RECORD = tl.constexpr(12)
NO_TILE = tl.constexpr((1 << 63) - 1)  # sorts behind every pair


@triton.jit
def span(low, high, pixels, TILE: tl.constexpr):
    """The first and the last tile with pixel centers between `low` and `high`; none when first > last."""
    end = tl.cdiv(pixels, TILE).to(tl.float32)  # clipped as floats: they may not fit an int
    first = tl.ceil((low - MARGIN - (TILE - 0.5)) * (1.0 / TILE))
    last = tl.floor((high + MARGIN - 0.5) * (1.0 / TILE))
    first, last = tl.minimum(tl.maximum(first, 0.0), end), tl.minimum(tl.maximum(last, -1.0), end - 1.0)
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def walk(shape, reach, extents, left, shown, width, height, TILE: tl.constexpr):
    """Goes through the tiles that Gaussians cover, row by row.

    Args:
        shape: x, y, slope, p, r.
        reach: log2 of opacity / MIN_ALPHA.
        extents: as in a record.
        left: which of its tiles is asked for, from 0 on.
        shown: of the others there are none.

    Returns:
        how many there are, and the number of the one asked for, -1 when there are fewer.
    """
    x, y, slope, p, r = shape
    extent_x, extent_y, y_of_extent_x = extents
    first_row, last_row = span(y - extent_y, y + extent_y, height, TILE)
    first_column, last_column = span(x - extent_x, x + extent_x, width, TILE)
    rows = tl.where(shown, last_row - first_row + 1, 0)
    count = tl.zeros_like(first_row)
    tile = count - 1
    inverse_p, edge = 1.0 / p, extent_y + MARGIN
    for i in range(0, tl.max(rows, 0)):
        row = first_row + i
        # The band of this row's pixel centers, relative to the mean and cut to the ellipse. The ellipse is convex:
        # inside the band it is widest at its own ends, or at the band's edge next to them.
        top = tl.maximum(row * TILE + 0.5 - y, -edge)
        bottom = tl.minimum(tl.minimum((row + 1) * TILE, height) - 0.5 - y, edge)
        at_right = tl.minimum(tl.maximum(y_of_extent_x, top), bottom)
        at_left = tl.minimum(tl.maximum(-y_of_extent_x, top), bottom)
        half_right = tl.sqrt(tl.maximum(reach - r * at_right * at_right, 0.0) * inverse_p)
        half_left = tl.sqrt(tl.maximum(reach - r * at_left * at_left, 0.0) * inverse_p)
        first, last = span(x + slope * at_left - half_left, x + slope * at_right + half_right, width, TILE)
        first, last = tl.maximum(first, first_column), tl.minimum(last, last_column)
        found = tl.where(i < rows, tl.maximum(last - first + 1, 0), 0)
        tile = tl.where((left >= 0) & (left < found), row * tl.cdiv(width, TILE) + first + left, tile)
        left -= found
        count += found
    return count, tile


@triton.jit(do_not_specialize=["count", "room", "steps", "width", "height"])
def list_pairs(
    records,  # [N, RECORD]
    depths,  # [N]
    covered,  # [N] int32 tiles of each Gaussian
    ends,  # [N] int64 running sum of them
    count,  # N
    room,  # pairs there is room for
    steps,  # of a binary search over N
    width,
    height,
    keys,  # [room] int64 out: tile, then depth; NO_TILE where there is no pair
    owners,  # [room] int32 out: the pair's Gaussian
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The pairs of Gaussian 0, then those of Gaussian 1, ..."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = pair < tl.minimum(tl.load(ends + count - 1), room)
    low, high = tl.zeros_like(pair), tl.zeros_like(pair) + (count - 1)
    for _ in range(0, steps):
        middle = (low + high) // 2
        before = tl.load(ends + middle) <= pair
        low, high = tl.where(before, middle + 1, low), tl.where(before, high, middle)
    owner = tl.minimum(low, count - 1)
    number = (pair - (tl.load(ends + owner) - tl.load(covered + owner))).to(tl.int32)

    at = records + owner * RECORD
    x, y, slope = tl.load(at, live, 0.0), tl.load(at + 1, live, 0.0), tl.load(at + 2, live, 0.0)
    p, r, log2_opacity = tl.load(at + 3, live, 1.0), tl.load(at + 4, live, 1.0), tl.load(at + 5, live, 0.0)
    extents = tl.load(at + 9, live, 0.0), tl.load(at + 10, live, 0.0), tl.load(at + 11, live, 0.0)
    _, tile = walk((x, y, slope, p, r), log2_opacity - LOG2_MIN_ALPHA, extents, number, live, width, height, TILE)

    # Positive floats sort like their bits. Rounding may count a tile here and not there: its alpha is nothing.
    depth = tl.load(depths + owner, live, 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    key = tl.where(live & (tile >= 0), (tile.to(tl.int64) << 32) | depth, NO_TILE)
    tl.store(keys + pair, key, pair < room)
    tl.store(owners + pair, owner, pair < room)
