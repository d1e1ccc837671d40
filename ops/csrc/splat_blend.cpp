// Alpha blending of the tile lists, front to back, and its gradient, back to front.
//
// The work is the inner loop over one block of a tile: as many pixels as a register
// holds, four columns wide, against one Gaussian. Blocks that the Gaussian does not
// reach, and blocks where every pixel is opaque already, are skipped by a bit mask.
//
// The gradient of alpha needs the light from behind each Gaussian. Going back to
// front that is a running blend; going front to back it would be the total less a
// running sum, which cancels in float32 just where little light is left. The price
// is one integer per pixel: the place of the Gaussian that closed it.
#include <algorithm>
#include <limits>

#include "splat.h"

namespace splat {
namespace {

using namespace lanes;

using Block = Floats<kWidth>;

// Two rows where a register holds more than four floats. Blocks follow each other down the tile, one group of
// columns after the other: the one that begins at row y of group g is number b = g kTile + y, its bit in `Blocks`
// and, times kColumns, its place in memory. In a block the rows of a column are neighbors, so that what is the
// same along a row is one short load, repeated.
constexpr int kRows = kWidth > 4 ? 2 : 1, kColumns = kWidth / kRows;
constexpr int kGroups = kTile / kColumns, kNumbers = kGroups * kTile;
using Blocks = uint64_t;
static_assert(kNumbers <= 64, "a bit for each");

constexpr int place_of(int x, int y) {
    return (x / kColumns * kTile + y / kRows * kRows) * kColumns + x % kColumns * kRows + y % kRows;
}

ALWAYS_INLINE Block load_block(const float* p) { return load<kWidth>(p); }
ALWAYS_INLINE Block all(float value) { return broadcast<kWidth>(value); }

// The values of a block's rows, from the first on.
ALWAYS_INLINE Block of_rows(const float* rows) {
    using Few = std::conditional_t<kRows == 2, uint64_t, uint32_t>;
    typedef Few Repeated __attribute__((vector_size(4 * kWidth)));
    Few few;
    std::memcpy(&few, rows, sizeof few);
    return {(FloatPart)(few - Repeated{})};
}

// From a bit for each row of each group to one for each block.
ALWAYS_INLINE Blocks any_row(Blocks rows) { return kRows == 2 ? (rows | rows >> 1) & 0x5555555555555555 : rows; }

// What does not change from tile to tile.
struct Constants {
    alignas(64) float x[kTilePixels];  // pixel centers from the tile's left edge
    alignas(64) float y[kTile];        // and of the rows from its upper edge
    float offset[2 * kTile], square[2 * kTile];  // i and i^2, for i from -kTile on
    constexpr Constants() : x(), y(), offset(), square() {
        for (int i = 0; i < kTilePixels; ++i) x[place_of(i % kTile, i / kTile)] = i % kTile + 0.5f;
        for (int i = 0; i < kTile; ++i) y[i] = i + 0.5f;
        for (int i = 0; i < 2 * kTile; ++i) offset[i] = i - kTile, square[i] = (i - kTile) * (i - kTile);
    }
};
constexpr Constants kConstants;

constexpr int kAhead = 4;  // list entries to fetch in advance: neighbors in a list lie far apart in memory

struct Tile {
    int column, row;
    int columns_inside, rows_inside;  // pixels of the tile inside the image

    Tile(const Workspace& w, int index) {
        column = index % w.tiles_x * kTile;
        row = index / w.tiles_x * kTile;
        columns_inside = std::min(kTile, w.view.width - column);
        rows_inside = std::min(kTile, w.view.height - row);
    }
    bool whole() const { return columns_inside == kTile && rows_inside == kTile; }
};

// Pairs of rows become blocks of two rows, and back.
template <size_t... I>
ALWAYS_INLINE void zip(FloatPart& a, FloatPart& b, std::index_sequence<I...>) {
    const FloatPart low = shuffle(a, b, std::index_sequence<(I % 2 * kWidth + I / 2)...>());
    b = shuffle(a, b, std::index_sequence<(I % 2 * kWidth + I / 2 + kWidth / 2)...>());
    a = low;
}
template <size_t... I>
ALWAYS_INLINE void unzip(FloatPart& a, FloatPart& b, std::index_sequence<I...>) {
    const FloatPart even = shuffle(a, b, std::index_sequence<(2 * I)...>());
    b = shuffle(a, b, std::index_sequence<(2 * I + 1)...>());
    a = even;
}

// Rows of the image to and from the order of blocks. Both run over all sixteen of them; of a tile at the image's
// edge the pixels outside read 0.
void load_tile(const Tile& tile, const float* plane, int stride, float* blocks) {
    alignas(64) float edge[kTile][kTile] = {};
    const float* from = plane + size_t(tile.row) * stride + tile.column;
    if (!tile.whole()) {
        for (int y = 0; y < tile.rows_inside; ++y) std::copy_n(from + size_t(y) * stride, tile.columns_inside, edge[y]);
        from = edge[0], stride = kTile;
    }
    for (int y = 0; y < kTile; y += kRows) {
        Lanes rows[kRows];
        for (int i = 0; i < kRows; ++i) rows[i] = load(from + size_t(y + i) * stride);
        for (int i = 0; i < kTile / kWidth; ++i) {
            if constexpr (kRows == 2) zip(rows[0].part[i], rows[1].part[i], std::make_index_sequence<kWidth>());
            for (int j = 0; j < kRows; ++j)
                store(blocks + place_of(i * kWidth + j * kColumns, y), Block{rows[j].part[i]});
        }
    }
}
void store_tile(const Tile& tile, const float* blocks, float* plane, int stride) {
    alignas(64) float edge[kTile][kTile];
    float* to = plane + size_t(tile.row) * stride + tile.column;
    const auto put = [&](float* rows_to, int stride_to) {
        for (int y = 0; y < kTile; y += kRows) {
            Lanes rows[kRows];
            for (int i = 0; i < kTile / kWidth; ++i) {
                for (int j = 0; j < kRows; ++j)
                    rows[j].part[i] = load_block(blocks + place_of(i * kWidth + j * kColumns, y)).part[0];
                if constexpr (kRows == 2) unzip(rows[0].part[i], rows[1].part[i], std::make_index_sequence<kWidth>());
            }
            for (int i = 0; i < kRows; ++i) store(rows_to + size_t(y + i) * stride_to, rows[i]);
        }
    };
    if (tile.whole()) return put(to, stride);
    put(edge[0], kTile);
    for (int y = 0; y < tile.rows_inside; ++y) std::copy_n(edge[y], tile.columns_inside, to + size_t(y) * stride);
}

// The Gaussian along the sixteen rows: 2^(height[i] - p (px - middle[i])^2), px from the tile's left edge, where
// floats have digits to spare.
struct Rows {
    alignas(64) float middle[kTile], height[kTile];
    alignas(64) float r_dy[kTile];  // only for the absolute sums
};

// Returns the blocks that may hold alpha >= 1/255.
template <bool absolute>
ALWAYS_INLINE Blocks prepare(Rows& rows, const Splat& s, const Tile& tile) {
    const Lanes dy = load(kConstants.y) - (s.y - tile.row);
    const Lanes middle = (s.x - tile.column) + s.slope * dy;
    const Lanes height = s.log2_opacity - s.r * (dy * dy);
    store(rows.middle, middle);
    store(rows.height, height);
    if constexpr (absolute) store(rows.r_dy, s.r * dy);
    // The slack keeps rounding from deciding what the exact per-pixel test is there for. Rows out of reach are NaN.
    const Lanes half = sqrt((height - (kLog2MinAlpha - 1e-3f)) * (1.0f / s.p));
    const Lanes left = middle - half, right = middle + half;
    Blocks reached = 0;
    for (int g = 0; g < kGroups; ++g) {
        const float first = g * kColumns + 0.5f;
        const Mask within = (left <= first + (kColumns - 1)) & (right >= broadcast(first));
        reached |= Blocks(bits(within)) << (g * kTile);
    }
    return any_row(reached);
}

// The exponent of opacity * density, before the limits at log2(0.99) and log2(1/255)
ALWAYS_INLINE Block exponent(const Block& offset, const float* heights, const Block& p) {
    return of_rows(heights) - p * (offset * offset);
}

template <bool keep>
void blend_tile(Workspace& w, int index, const float* background, float* image, float* alpha_out) {
    const Tile tile(w, index);
    // A pixel that needs no more Gaussians closes: its transmittance moves to `final` and it goes on with 0, so that
    // the loop need not ask. What transmittance must not fall below, `limit`, is then out of its reach.
    constexpr float kClosed = -1.0f;
    alignas(64) float transmittance[kTilePixels], limit[kTilePixels], final[kTilePixels] = {};
    alignas(64) float color[3][kTilePixels] = {};
    alignas(64) int32_t closed_at[kTilePixels];
    Blocks open = 0;  // blocks that still take Gaussians
    for (int y = 0; y < kTile; ++y)
        for (int x = 0; x < kTile; ++x) {
            const int i = place_of(x, y);
            const bool inside = x < tile.columns_inside && y < tile.rows_inside;
            transmittance[i] = inside ? 1.0f : 0.0f;
            limit[i] = inside ? kMinTransmittance : kClosed;
            closed_at[i] = inside ? std::numeric_limits<int32_t>::max() : 0;
            if (inside) open |= Blocks(1) << (i / kWidth * kRows);
        }

    const uint32_t begin = w.tile_start[index], end = w.tile_start[index + 1];
    Rows rows;
    for (uint32_t i = begin; i < end && open; ++i) {
        if (i + kAhead < end) __builtin_prefetch(&w.splats[w.entries[i + kAhead].splat]);
        const Splat& s = w.splats[w.entries[i].splat];
        const Blocks reached = prepare<false>(rows, s, tile);
        const Block p = all(s.p), red = all(s.color[0]), green = all(s.color[1]), blue = all(s.color[2]);
        for (Blocks todo = reached & open; todo; todo &= todo - 1) {
            const int number = __builtin_ctzll(todo), y = number % kTile, at = number * kColumns;
            const Block e = exponent(load_block(kConstants.x + at) - of_rows(rows.middle + y), rows.height + y, p);
            const Block alpha = select(e >= kLog2MinAlpha, min(exp2(e), kMaxAlpha), 0.0f);
            const Block before = load_block(transmittance + at);
            Block weight = alpha * before;
            Block after = before - weight;
            const auto closing = after < load_block(limit + at);
            if (__builtin_expect(bits(closing), 0)) {
                weight = select(closing, all(0.0f), weight);
                after = select(closing, all(0.0f), after);
                store(final + at, select(closing, before, load_block(final + at)));
                store(closed_at + at, select(closing, int32_t(i - begin), load<kWidth>(closed_at + at)));
                const Block limits = select(closing, all(kClosed), load_block(limit + at));
                store(limit + at, limits);
                if (!bits(limits > kClosed)) open &= ~(Blocks(1) << number);
            }
            store(transmittance + at, after);
            store(color[0] + at, load_block(color[0] + at) + weight * red);
            store(color[1] + at, load_block(color[1] + at) + weight * green);
            store(color[2] + at, load_block(color[2] + at) + weight * blue);
        }
    }

    const size_t plane = size_t(w.view.width) * w.view.height;
    alignas(64) float covered[kTilePixels];
    for (int i = 0; i < kTilePixels; ++i) {
        final[i] += transmittance[i];  // one of them is 0
        for (int c = 0; c < 3; ++c) color[c][i] += final[i] * background[c];
        covered[i] = 1.0f - final[i];
    }
    for (int c = 0; c < 3; ++c) store_tile(tile, color[c], image + c * plane, w.view.width);
    store_tile(tile, covered, alpha_out, w.view.width);
    if (keep) {
        std::memcpy(w.transmittance + size_t(index) * kTilePixels, final, sizeof final);
        std::memcpy(w.closed_at + size_t(index) * kTilePixels, closed_at, sizeof closed_at);
    }
}

template <bool absolute>
void blend_tile_backward(Workspace& w, int index, const float* background, const float* grad_image,
                         const float* grad_alpha) {
    constexpr int kCollected = absolute ? kAllPartials : kPartials;
    const Tile tile(w, index);
    alignas(64) float grad[4][kTilePixels];        // of red, green, blue, alpha
    alignas(64) float transmittance[kTilePixels];  // behind the Gaussian at hand
    alignas(64) float behind[kTilePixels];         // what a pixel of what is behind it adds to the loss, to first order
    alignas(64) int32_t closed_at[kTilePixels];
    const size_t plane = size_t(w.view.width) * w.view.height;
    for (int c = 0; c < 3; ++c) load_tile(tile, grad_image + c * plane, w.view.width, grad[c]);
    load_tile(tile, grad_alpha, w.view.width, grad[3]);
    std::memcpy(transmittance, w.transmittance + size_t(index) * kTilePixels, sizeof transmittance);
    std::memcpy(closed_at, w.closed_at + size_t(index) * kTilePixels, sizeof closed_at);
    for (int i = 0; i < kTilePixels; ++i)
        behind[i] = grad[0][i] * background[0] + grad[1][i] * background[1] + grad[2][i] * background[2];

    const uint32_t begin = w.tile_start[index], end = w.tile_start[index + 1];
    int32_t ends[kNumbers];  // of each block: what it takes lies before
    for (int number = 0; number < kNumbers; number += kRows) {
        const int32_t* pixels = closed_at + number * kColumns;
        ends[number] = std::min(*std::max_element(pixels, pixels + kWidth), int32_t(end - begin));
    }
    // The blocks that take the Gaussian at `place`; `next` is the first end among the others.
    int32_t next = 0;
    const auto taking = [&](int32_t place) {
        Blocks found = 0;
        next = 0;
        for (int number = 0; number < kNumbers; number += kRows) {
            if (ends[number] > place)
                found |= Blocks(1) << number;
            else
                next = std::max(next, ends[number]);
        }
        return found;
    };
    Blocks active = taking(int32_t(end - begin));

    const auto partials_of = [&](uint32_t i) { return w.partials.data() + size_t(w.entries[i].slot) * kPartialStride; };
    for (uint32_t i = begin + uint32_t(next); i < end; ++i)  // behind everything that shows
        std::memset(partials_of(i), 0, sizeof(float) * kCollected);

    Rows rows;
    for (int32_t place = next - 1; place >= 0; --place) {
        if (place >= kAhead) {
            __builtin_prefetch(&w.splats[w.entries[begin + place - kAhead].splat]);
            __builtin_prefetch(partials_of(begin + place - kAhead), 1);
        }
        if (place < next) active = taking(place);
        const Splat& s = w.splats[w.entries[begin + place].splat];
        Blocks todo = prepare<absolute>(rows, s, tile) & active;
        const Block p = all(s.p), slope = all(s.slope), shear = all(s.slope * s.p);
        const Block red = all(s.color[0]), green = all(s.color[1]), blue = all(s.color[2]);
        const Block zero = all(0.0f);
        Block sum_red = zero, sum_green = zero, sum_blue = zero;
        Block sum = zero, sum_w = zero, sum_v = zero, sum_ww = zero, sum_wv = zero, sum_vv = zero;
        Block size_x = zero, size_y = zero;  // what the mean's gradient is made of, in absolute values
        // With w = px - middle and dy, the sums of dL/d(exponent) times 1, w, dy, w^2, w dy, dy^2 are wanted. Few
        // registers are left: down a column of pixels, where px is constant, only those with the powers of v are
        // carried. v = dy - dy[nearest] counts rows from the one nearest to the mean, and w = u - slope v. From the
        // mean itself u^2 would cancel against (slope v)^2 in a long Gaussian's far tiles; from here they are at most
        // some hundred times w^2, as the low-pass keeps slope^2 / var(w) under 1 / kLowPass.
        const float y_mean = s.y - tile.row;
        const int nearest = y_mean > 0.0f ? y_mean < kTile ? int(y_mean) : kTile - 1 : 0;
        const float *v = kConstants.offset + kTile - nearest, *vv = kConstants.square + kTile - nearest;
        while (todo) {
            const int first = __builtin_ctzll(todo) / kTile * kTile;  // number of the column's first block
            const Block x = load_block(kConstants.x + first * kColumns);
            Block column_1 = zero, column_v = zero, column_vv = zero;
            const Blocks column = Blocks((1u << kTile) - 1) << first;
            for (Blocks left = todo & column; left; left &= left - 1) {
                const int number = __builtin_ctzll(left), y = number % kTile, at = number * kColumns;
                const Block offset = x - of_rows(rows.middle + y);
                const Block e = exponent(offset, rows.height + y, p);
                const auto counted = (e >= kLog2MinAlpha) & (load<kWidth>(closed_at + at) > place);
                const Block density = exp2(e);
                const Block alpha = select(counted, min(density, kMaxAlpha), 0.0f);
                const Block before = load_block(transmittance + at) / (1.0f - alpha);
                const Block weight = alpha * before;
                const Block g_red = load_block(grad[0] + at), g_green = load_block(grad[1] + at);
                const Block g_blue = load_block(grad[2] + at), rest = load_block(behind + at);
                const Block more = g_red * red + g_green * green + g_blue * blue + (load_block(grad[3] + at) - rest);
                store(behind + at, rest + alpha * more);
                store(transmittance + at, before);
                sum_red += weight * g_red;
                sum_green += weight * g_green;
                sum_blue += weight * g_blue;
                // dL/d(exponent); where alpha is capped it does not depend on the exponent
                const Block change = select(density < kMaxAlpha, weight * more, 0.0f);
                column_1 += change;
                column_v += change * of_rows(v + y);
                column_vv += change * of_rows(vv + y);
                if constexpr (absolute) {
                    const Block size = abs(change);
                    size_x += size * abs(offset);
                    size_y += size * abs(of_rows(rows.r_dy + y) - shear * offset);
                }
            }
            todo &= ~column;
            const Block u = x - rows.middle[nearest];
            const Block of_w = u * column_1 - slope * column_v, of_wv = u * column_v - slope * column_vv;
            sum += column_1;
            sum_w += of_w;
            sum_v += column_v;
            sum_ww += u * of_w - slope * of_wv;
            sum_wv += of_wv;
            sum_vv += column_vv;
        }
        const float nearest_dy = kConstants.y[nearest] - y_mean;
        const Block sum_y = sum_v + sum * nearest_dy;
        const Block sum_wy = sum_wv + sum_w * nearest_dy;
        const Block sum_yy = sum_vv + (sum_v + sum_y) * nearest_dy;
        if constexpr (absolute) {
            const Block sums[] = {sum_red, sum_green, sum_blue, sum, sum_w, sum_y, sum_ww, sum_wy, sum_yy,
                                  p * size_x, size_y};
            store(partials_of(begin + place), totals(sums));
        } else {
            const Block sums[] = {sum_red, sum_green, sum_blue, sum, sum_w, sum_y, sum_ww, sum_wy, sum_yy};
            store(partials_of(begin + place), totals(sums));
        }
    }
}

}  // namespace

void blend(Workspace& w, const float* background, float* image, float* alpha, bool keep) {
    const int tiles = w.tiles();
    if (keep) {
        w.transmittance.reserve(size_t(tiles) * kTilePixels);
        w.closed_at.reserve(size_t(tiles) * kTilePixels);
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (int tile = 0; tile < tiles; ++tile) {
        if (keep)
            blend_tile<true>(w, tile, background, image, alpha);
        else
            blend_tile<false>(w, tile, background, image, alpha);
    }
}

void blend_backward(Workspace& w, const float* background, const float* grad_image, const float* grad_alpha,
                    bool absolute) {
    w.partials.reserve(size_t(w.slots) * kPartialStride);
    const int tiles = w.tiles();
#pragma omp parallel for schedule(dynamic, 1)
    for (int tile = 0; tile < tiles; ++tile) {
        if (absolute)
            blend_tile_backward<true>(w, tile, background, grad_image, grad_alpha);
        else
            blend_tile_backward<false>(w, tile, background, grad_image, grad_alpha);
    }
}

}  // namespace splat
