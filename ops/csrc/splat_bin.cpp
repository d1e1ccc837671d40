// Front to back lists of Gaussians per 16x16 tile.
//
// The Gaussians are sorted once by depth and then dealt to the tiles in that
// order (a counting sort), so every list comes out sorted. The result does not
// depend on the number of threads: chunks are contiguous and joined in order.

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "splat.h"

namespace splat {
namespace {

// The visible Gaussians by depth; equal depths keep the order of their index, for
// a least-significant-digit radix sort is stable. Positive floats sort like their
// bits, and counted from the nearest they mostly fit two digits.
const uint32_t* depth_order(Workspace& w, uint32_t& visible) {
    constexpr int kDigitBits = 12, kDigits = 1 << kDigitBits;
    const size_t count = size_t(w.count);
    uint32_t* keys = w.keys.reserve(count);
    uint32_t* order = w.order.reserve(count);
    uint32_t lowest = std::numeric_limits<uint32_t>::max(), highest = 0;
    visible = 0;
    for (size_t i = 0; i < count; ++i) {
        if (!w.boxed[i]) continue;
        uint32_t key;
        std::memcpy(&key, &w.depth[i], sizeof key);
        lowest = std::min(lowest, key);
        highest = std::max(highest, key);
        keys[visible] = key;
        order[visible++] = uint32_t(i);
    }
    if (visible == 0) return order;

    uint32_t* other_keys = w.keys_spare.reserve(count);
    uint32_t* other_order = w.order_spare.reserve(count);
    for (int shift = 0; shift < 32 && (highest - lowest) >> shift; shift += kDigitBits) {
        uint32_t start[kDigits] = {}, sum = 0;
        for (uint32_t i = 0; i < visible; ++i) ++start[(keys[i] - lowest) >> shift & (kDigits - 1)];
        for (uint32_t& digit : start) sum += std::exchange(digit, sum);
        for (uint32_t i = 0; i < visible; ++i) {
            const uint32_t to = start[(keys[i] - lowest) >> shift & (kDigits - 1)]++;
            other_keys[to] = keys[i];
            other_order[to] = order[i];
        }
        std::swap(keys, other_keys);
        std::swap(order, other_order);
    }
    return order;
}

// Calls visit(tile row, first tile, last tile) for the tiles whose pixel centers
// the ellipse alpha >= 1/255 covers.
template <typename Visit>
void cover(const Splat& s, const View& view, Visit visit) {
    const float reach = s.log2_opacity - kLog2MinAlpha;
    const float inverse_p = 1.0f / s.p;
    const TileRange columns = tile_range(s.x - s.extent_x, s.x + s.extent_x, view.width);
    const TileRange rows = tile_range(s.y - s.extent_y, s.y + s.extent_y, view.height);
    for (int row = rows.first; row <= rows.last; ++row) {
        // the band of this row's pixel centers, relative to the mean and cut to the ellipse
        const float edge = s.extent_y + kMargin;
        const float top = larger(row * kTile + 0.5f - s.y, -edge);
        const float bottom = smaller(smaller(row * kTile + kTile, view.height) - 0.5f - s.y, edge);
        // the ellipse is convex: inside the band it is widest at its own ends, or at the band's edge next to them
        const float at_right = smaller(larger(s.y_of_extent_x, top), bottom);
        const float at_left = smaller(larger(-s.y_of_extent_x, top), bottom);
        const float half_right = std::sqrt(larger(reach - s.r * at_right * at_right, 0.0f) * inverse_p);
        const float half_left = std::sqrt(larger(reach - s.r * at_left * at_left, 0.0f) * inverse_p);
        const TileRange found = tile_range(s.x + s.slope * at_left - half_left,
                                           s.x + s.slope * at_right + half_right, view.width);
        const int first = std::max(found.first, columns.first), last = std::min(found.last, columns.last);
        if (first <= last) visit(row, first, last);
    }
}

}  // namespace

void bin(Workspace& w) {
    const int tiles = w.tiles();
    uint32_t visible = 0;
    const uint32_t* order = depth_order(w, visible);
    const int chunks = omp_get_max_threads();
    const auto chunk_start = [&](int chunk) { return uint32_t(uint64_t(visible) * chunk / chunks); };

    // Every Gaussian gets as many slots as tiles meet its box; some stay empty.
    uint32_t* slot_start = w.slot_start.reserve(size_t(visible) + 1);
    uint64_t slots = 0;
    for (uint32_t i = 0; i < visible; ++i) {
        slot_start[i] = uint32_t(slots);
        slots += w.boxed[order[i]];
    }
    if (slots > std::numeric_limits<uint32_t>::max())
        throw std::length_error("more than 2^32 pairs of tile and Gaussian");
    slot_start[visible] = w.slots = uint32_t(slots);

    // Find the tiles of each Gaussian and count them per tile and chunk.
    uint32_t* used = w.slots_used.reserve(visible);
    uint32_t* slot_tile = w.slot_tile.reserve(slots);
    uint32_t* histogram = w.histogram.reserve(size_t(chunks) * tiles);
#pragma omp parallel for schedule(static, 1)
    for (int chunk = 0; chunk < chunks; ++chunk) {
        uint32_t* counts = histogram + size_t(chunk) * tiles;
        std::fill(counts, counts + tiles, 0u);
        const uint32_t end = chunk_start(chunk + 1);
        for (uint32_t i = chunk_start(chunk); i < end; ++i) {
            if (i + 8 < end) __builtin_prefetch(&w.splats[order[i + 8]], 1);
            Splat& s = w.splats[order[i]];
            uint32_t at = slot_start[i];
            cover(s, w.view, [&](int row, int first, int last) {
                for (int column = first; column <= last; ++column) {
                    const uint32_t tile = uint32_t(row * w.tiles_x + column);
                    ++counts[tile];
                    slot_tile[at++] = tile;
                }
            });
            s.first_slot = slot_start[i];
            s.slots = used[i] = at - slot_start[i];
        }
    }

    uint32_t* start = w.tile_start.reserve(size_t(tiles) + 1);
    uint32_t sum = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        start[tile] = sum;
        for (int chunk = 0; chunk < chunks; ++chunk) sum += std::exchange(histogram[size_t(chunk) * tiles + tile], sum);
    }
    start[tiles] = sum;

    TileEntry* entries = w.entries.reserve(sum);
#pragma omp parallel for schedule(static, 1)
    for (int chunk = 0; chunk < chunks; ++chunk) {
        uint32_t* next = histogram + size_t(chunk) * tiles;
        const uint32_t end = chunk_start(chunk + 1);
        for (uint32_t i = chunk_start(chunk); i < end; ++i) {
            for (uint32_t slot = slot_start[i]; slot < slot_start[i] + used[i]; ++slot)
                entries[next[slot_tile[slot]]++] = {order[i], slot};
        }
    }
}

}  // namespace splat
