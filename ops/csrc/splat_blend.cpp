// Alpha blending of the tile lists, front to back, and its gradient, back to front.
//
// The work is the inner loop over one row of a tile: sixteen pixels against one
// Gaussian. Rows that the Gaussian does not reach, and rows where every pixel is
// opaque already, are skipped by a bit mask.
//
// The gradient of alpha needs the light from behind each Gaussian. Going back to
// front that is a running sum; going front to back it would be the total less a
// running sum, which cancels in float32 just where little light is left. The price
// is one integer per pixel: the place of its last contributor.
#include <algorithm>

#include "splat.h"

namespace splat {
namespace {

using namespace lanes;

// A pixel that needs no more Gaussians carries its transmittance negated; the
// sign marks it and the value is kept.
ALWAYS_INLINE Lanes closed(const Lanes& t) { return -abs(t); }

constexpr float kLaneIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

constexpr int kAhead = 4;  // list entries to fetch in advance: neighbors in a list lie far apart in memory

struct Tile {
    int column, row;
    int columns_inside, rows_inside;  // pixels of the tile inside the image
    Lanes px, py;                     // pixel centers along a row, and of the sixteen rows

    Tile(const Workspace& w, int index) {
        column = index % w.tiles_x * kTile;
        row = index / w.tiles_x * kTile;
        columns_inside = std::min(kTile, w.view.width - column);
        rows_inside = std::min(kTile, w.view.height - row);
        px = load(kLaneIndex) + (column + 0.5f);
        py = load(kLaneIndex) + (row + 0.5f);
    }
};

// The Gaussian along the sixteen rows: 2^(height[i] - p (px - middle[i])^2).
struct Rows {
    float middle[kLanes], height[kLanes], dy[kLanes];
    uint32_t reached;  // one bit per row that may hold alpha >= 1/255
};

ALWAYS_INLINE void prepare(Rows& rows, const Splat& s, const Tile& tile) {
    const Lanes dy = tile.py - s.y;
    const Lanes middle = s.x + s.slope * dy;
    const Lanes height = s.log2_opacity - s.r * (dy * dy);
    // distance from the row's pixels to its brightest point, which may lie outside the tile
    const float first = tile.column + 0.5f;
    const Lanes gap = max(max(first - middle, middle - (first + (kTile - 1))), 0.0f);
    // The slack keeps rounding from deciding what the exact per-pixel test is there for.
    rows.reached = bits(height - s.p * (gap * gap) >= kLog2MinAlpha - 1e-3f);
    store(rows.middle, middle);
    store(rows.height, height);
    store(rows.dy, dy);
}

// opacity * density before the limits at 0.99 and 1/255
ALWAYS_INLINE Lanes density(const Lanes& offset, const Lanes& height, const Lanes& p) {
    return exp2(height - p * (offset * offset));
}

template <bool keep>
void blend_tile(Workspace& w, int index, const float* background, float* image, float* alpha_out) {
    const Tile tile(w, index);
    alignas(64) float transmittance[kTile][kTile], color[3][kTile][kTile] = {};
    alignas(64) int32_t last[kTile][kTile];
    uint32_t open = (1u << tile.rows_inside) - 1;  // rows that still take Gaussians
    for (int y = 0; y < kTile; ++y)
        for (int x = 0; x < kTile; ++x) {
            transmittance[y][x] = x < tile.columns_inside ? 1.0f : -1.0f;
            last[y][x] = -1;
        }

    const uint32_t begin = w.tile_start[index], end = w.tile_start[index + 1];
    Rows rows;
    for (uint32_t i = begin; i < end && open; ++i) {
        if (i + kAhead < end) __builtin_prefetch(&w.splats[w.entries[i + kAhead].splat]);
        const Splat& s = w.splats[w.entries[i].splat];
        prepare(rows, s, tile);
        const Lanes p = broadcast(s.p);
        const Lanes red = broadcast(s.color[0]), green = broadcast(s.color[1]), blue = broadcast(s.color[2]);
        const Ints place = broadcast_int(int32_t(i - begin));
        for (uint32_t todo = rows.reached & open; todo; todo &= todo - 1) {
            const int y = __builtin_ctz(todo);
            const Lanes e = density(tile.px - rows.middle[y], broadcast(rows.height[y]), p);
            const Lanes capped = min(e, kMaxAlpha);
            const Lanes alpha = select(e >= kMinAlpha, capped, 0.0f);
            const Lanes before = load(transmittance[y]);
            const Lanes light = alpha * before;
            const Lanes after = before - light;
            const Mask goes_on = after >= kMinTransmittance;
            const Lanes weight = select(goes_on, light, 0.0f);
            store(transmittance[y], select(goes_on, after, closed(before)));
            store(color[0][y], load(color[0][y]) + weight * red);
            store(color[1][y], load(color[1][y]) + weight * green);
            store(color[2][y], load(color[2][y]) + weight * blue);
            if (keep) store_int(last[y], select(weight > 0.0f, place, load_int(last[y])));
            if (!bits(goes_on)) open &= ~(1u << y);
        }
    }

    const size_t plane = size_t(w.view.width) * w.view.height;
    for (int y = 0; y < tile.rows_inside; ++y) {
        const size_t row = size_t(tile.row + y) * w.view.width + tile.column;
        for (int x = 0; x < tile.columns_inside; ++x) {
            const float t = std::fabs(transmittance[y][x]);
            for (int c = 0; c < 3; ++c) image[c * plane + row + x] = color[c][y][x] + t * background[c];
            alpha_out[row + x] = 1.0f - t;
        }
    }
    if (keep) {
        float* t = w.transmittance.data() + size_t(index) * kTilePixels;
        for (int y = 0; y < kTile; ++y) store(t + y * kTile, abs(load(transmittance[y])));
        std::memcpy(w.last.data() + size_t(index) * kTilePixels, last, sizeof last);
    }
}

template <bool absolute>
void blend_tile_backward(Workspace& w, int index, const float* background, const float* grad_image,
                         const float* grad_alpha) {
    constexpr int kCollected = absolute ? kAllMoments : kMoments;
    const Tile tile(w, index);
    alignas(64) float grad[4][kTile][kTile] = {};  // of red, green, blue, alpha
    alignas(64) float transmittance[kTile][kTile]; // behind the Gaussian at hand
    alignas(64) float behind[kTile][kTile];        // what everything behind it adds to the loss, to first order
    alignas(64) int32_t last[kTile][kTile];
    alignas(64) int32_t last_of_row[kTile];
    const size_t plane = size_t(w.view.width) * w.view.height;
    for (int y = 0; y < tile.rows_inside; ++y) {
        const size_t row = size_t(tile.row + y) * w.view.width + tile.column;
        for (int x = 0; x < tile.columns_inside; ++x) {
            for (int c = 0; c < 3; ++c) grad[c][y][x] = grad_image[c * plane + row + x];
            grad[3][y][x] = grad_alpha[row + x];
        }
    }
    std::memcpy(transmittance, w.transmittance.data() + size_t(index) * kTilePixels, sizeof transmittance);
    std::memcpy(last, w.last.data() + size_t(index) * kTilePixels, sizeof last);
    int32_t deepest = -1;
    for (int y = 0; y < kTile; ++y) {
        last_of_row[y] = *std::max_element(last[y], last[y] + kTile);
        deepest = std::max(deepest, last_of_row[y]);
        for (int x = 0; x < kTile; ++x)
            behind[y][x] = transmittance[y][x] * (grad[0][y][x] * background[0] + grad[1][y][x] * background[1] +
                                                  grad[2][y][x] * background[2]);
    }
    const Ints row_end = load_int(last_of_row);

    const uint32_t begin = w.tile_start[index], end = w.tile_start[index + 1];
    const auto moments_of = [&](uint32_t i) { return w.moments.data() + size_t(w.entries[i].slot) * kMomentStride; };
    for (uint32_t i = begin + uint32_t(deepest + 1); i < end; ++i)  // behind everything that shows
        std::memset(moments_of(i), 0, sizeof(float) * kCollected);

    Rows rows;
    for (int32_t place = deepest; place >= 0; --place) {
        if (place >= kAhead) {
            __builtin_prefetch(&w.splats[w.entries[begin + place - kAhead].splat]);
            __builtin_prefetch(moments_of(begin + place - kAhead), 1);
        }
        const Splat& s = w.splats[w.entries[begin + place].splat];
        prepare(rows, s, tile);
        const Lanes p = broadcast(s.p);
        const Lanes red = broadcast(s.color[0]), green = broadcast(s.color[1]), blue = broadcast(s.color[2]);
        const Lanes zero = broadcast(0.0f);
        Lanes sum_red = zero, sum_green = zero, sum_blue = zero;
        Lanes sum = zero, sum_w = zero, sum_y = zero, sum_ww = zero, sum_wy = zero, sum_yy = zero;
        Lanes size_x = zero, size_y = zero;  // what the mean's gradient is made of, in absolute values
        const Lanes r = broadcast(s.r), shear = broadcast(s.slope * s.p);
        for (uint32_t todo = rows.reached & bits(row_end >= place); todo; todo &= todo - 1) {
            const int y = __builtin_ctz(todo);
            const Lanes offset = tile.px - rows.middle[y];
            const Lanes e = density(offset, broadcast(rows.height[y]), p);
            const Mask counted = (e >= kMinAlpha) & (load_int(last[y]) >= place);
            const Lanes alpha = select(counted, min(e, kMaxAlpha), 0.0f);
            const Lanes inverse = 1.0f / (1.0f - alpha);
            const Lanes before = load(transmittance[y]) * inverse;
            const Lanes weight = alpha * before;
            const Lanes g_red = load(grad[0][y]), g_green = load(grad[1][y]), g_blue = load(grad[2][y]);
            const Lanes own = g_red * red + g_green * green + g_blue * blue + load(grad[3][y]);
            const Lanes rest = load(behind[y]);
            store(behind[y], rest + weight * own);
            store(transmittance[y], before);
            sum_red += weight * g_red;
            sum_green += weight * g_green;
            sum_blue += weight * g_blue;
            // dL/d(exponent); where alpha is capped it does not depend on the exponent
            const Lanes slope = select(e < kMaxAlpha, alpha * (before * own - rest * inverse), 0.0f);
            const float dy = rows.dy[y];
            const Lanes slope_w = slope * offset;
            const Lanes slope_y = slope * dy;
            sum += slope;
            sum_w += slope_w;
            sum_y += slope_y;
            sum_ww += slope_w * offset;
            sum_wy += slope_w * dy;
            sum_yy += slope_y * dy;
            if constexpr (absolute) {
                size_x += abs(slope_w);
                size_y += abs(r * slope_y - shear * slope_w);
            }
        }
        if constexpr (absolute) {
            const Lanes sums[] = {sum_red, sum_green, sum_blue, sum, sum_w, sum_y, sum_ww, sum_wy, sum_yy,
                                  p * size_x, size_y};
            store(moments_of(begin + place), totals(sums));
        } else {
            const Lanes sums[] = {sum_red, sum_green, sum_blue, sum, sum_w, sum_y, sum_ww, sum_wy, sum_yy};
            store(moments_of(begin + place), totals(sums));
        }
    }
}

}  // namespace

void blend(Workspace& w, const float* background, float* image, float* alpha, bool keep) {
    const int tiles = w.tiles();
    if (keep) {
        w.transmittance.reserve(size_t(tiles) * kTilePixels);
        w.last.reserve(size_t(tiles) * kTilePixels);
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
    w.moments.reserve(size_t(w.slots) * kMomentStride);
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
