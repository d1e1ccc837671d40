// What the stages of the splatting rasterizer share: constants, the camera, the
// record of a projected Gaussian, and the workspace that carries one forward
// pass to its backward pass.
#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"
#include "lanes.h"

namespace splat {

using namespace native;

static_assert(kTile == lanes::kLanes, "one row of a tile is one `Lanes`");
constexpr int kTilePixels = kTile * kTile;
constexpr float kLog2E = 1.44269504f;
constexpr float kTwoLn2 = 1.38629436f;  // 2 / log2(e)
constexpr float kLog2MinAlpha = -7.99435344f;  // log2(1/255)
constexpr int kMaxBases = (kMaxDegree + 1) * (kMaxDegree + 1);
constexpr int kPartials = 9;                // sums per (tile, Gaussian) that the backward pass collects
constexpr int kAllPartials = 11;            // with the two of absolute values, where they are asked for
constexpr int kPartialStride = lanes::kLanes;

// Mirrored by `View` in ops/kernels.py.
struct View {
    float rotation[9];     // world to camera, row-major
    float translation[3];  // metres
    float center[3];       // optical center in world space, metres
    float fx, fy, cx, cy;  // pixels
    int32_t width, height;
    float scale_modifier;
    int32_t sh_degree;     // active degree
    int32_t sh_bases;      // K, coefficients per channel in memory
};

// A projected Gaussian, one cache line. Its density at (px, py) is
//   2^(log2_opacity - p w^2 - r dy^2),  dy = py - y,  w = px - x - slope dy,
// the squared form completed in x. Unlike the usual a dx^2 + 2 b dx dy + c dy^2 it
// does not cancel for long thin Gaussians, so float32 keeps its digits.
struct Splat {
    float x, y;            // pixels
    float slope;           // cov_xy / cov_yy
    float p, r;            // log2(e)/2 * (cov_yy / det), log2(e)/2 / cov_yy
    float log2_opacity;
    float color[3];
    float extent_x, extent_y;  // half sides in pixels of the box around alpha >= 1/255
    float y_of_extent_x;   // dy where the ellipse reaches +extent_x
    uint32_t first_slot;   // where its rows of `partials` begin
    uint32_t slots;        // and how many of them there are, one per tile; 0 = culled
    uint32_t padding[2];
};
static_assert(sizeof(Splat) == 64, "one cache line");

// std::fmin and std::fmax are library calls here, for the sake of NaN.
inline float smaller(float a, float b) { return a < b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }

// The tiles with pixel centers inside a box, inclusive; empty when first > last.
struct TileRange {
    int first, last;
};
inline TileRange tile_range(float low, float high, int pixels) {
    const float end = float((pixels + kTile - 1) / kTile);  // clipped as floats: they may not fit an int
    const float first = std::ceil((low - kMargin - (kTile - 0.5f)) / kTile);
    const float last = std::floor((high + kMargin - 0.5f) / kTile);
    return {int(smaller(larger(first, 0.0f), end)), int(smaller(larger(last, -1.0f), end - 1.0f))};
}

struct TileEntry {
    uint32_t splat;
    uint32_t slot;  // row of `partials` for this (tile, Gaussian)
};

struct Workspace {
    View view;
    int64_t count = 0;             // Gaussians
    int tiles_x = 0, tiles_y = 0;
    uint32_t slots = 0;            // rows of `partials`, one cache line each
    Buffer<Splat> splats;          // [count]
    // apart from `splats` because the sort needs only these
    Buffer<float> depth;           // [count] metres
    Buffer<uint32_t> boxed;        // [count] tiles that the box around the Gaussian meets, 0 = culled
    Buffer<uint32_t> order, order_spare, keys, keys_spare;  // [visible] depth sort
    Buffer<uint32_t> slot_start, slots_used;  // [visible + 1], [visible] by depth
    Buffer<uint32_t> slot_tile;    // [slots] the tile of each slot
    Buffer<uint32_t> histogram;    // [chunks][tiles]
    Buffer<uint32_t> tile_start;   // [tiles + 1]
    Buffer<TileEntry> entries;     // by tile, each front to back
    Buffer<float> transmittance;   // [tiles][256] after the last contributor
    Buffer<int32_t> closed_at;     // [tiles][256] place in the tile's list of the first one too many, or beyond it
    Buffer<float> partials;         // [slots][kPartialStride]
    double seconds[5] = {};        // of the last project, bin, blend, blend backward, project backward

    int tiles() const { return tiles_x * tiles_y; }
};

// Fills `splats` and `radii` [count].
void project(Workspace& w, const float* means, const float* quats, const float* scales, const float* opacities,
             const float* sh, int32_t* radii);
// Depth sort, then one front-to-back list per tile.
void bin(Workspace& w);
// image [3, H, W], alpha [H, W]. With `keep`, what the backward pass needs is stored.
void blend(Workspace& w, const float* background, float* image, float* alpha, bool keep);
// Fills `partials`, all of them if `absolute`.
void blend_backward(Workspace& w, const float* background, const float* grad_image, const float* grad_alpha,
                    bool absolute);
// From `partials` to the gradients of the inputs; `grad_means2d` [count, 2] is in NDC units, and with `absolute`
// the sum of the absolute values of what the pixels contribute to it.
void project_backward(const Workspace& w, const float* means, const float* quats, const float* scales,
                      const float* opacities, const float* sh, float* grad_means, float* grad_quats,
                      float* grad_scales, float* grad_opacities, float* grad_sh, float* grad_means2d, bool absolute);

}  // namespace splat
