// The map of colors of ops/color_lattice.py: the growth g of a color's odds is known on a lattice
// of colors and interpolated in between (trilinear), for each of the three channels by itself:
//
//   y = x g / (1 - x + x g)      x = the image, clamped to [0, 1]; g = g(red, green, blue)
//   dy/dx = g / D^2, dy/dg = x (1 - x) / D^2      D = 1 - x + x g
//
// The three channels of a vertex lie side by side, padded to four, so that one load of eight floats
// gets two neighbors: a pixel costs four loads forward and four backward, whatever made the lattice.
// Gradients of the lattice are summed in shares of the pixels whose number is fixed, and these in
// turn: the result does not depend on the number of threads.
#include "common.h"
#include "lanes.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

using namespace lanes;

typedef float Four __attribute__((vector_size(16)));   // red, green, blue, nothing
typedef float Eight __attribute__((vector_size(32)));  // two of them, neighbors along blue

#pragma GCC diagnostic ignored "-Wpsabi"  // without AVX an `Eight` is passed in another way: all of it is inlined

constexpr int64_t kShares = 8;  // of the pixels; each has a lattice for its sums

ALWAYS_INLINE Eight pair_at(const float* p) {
    Eight v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <typename Vector>
ALWAYS_INLINE Vector mix(const Vector& a, const Vector& b, float share) { return a + share * (b - a); }
ALWAYS_INLINE Four half(const Eight& pair, int which) {
    Four halves[2];
    std::memcpy(halves, &pair, sizeof halves);
    return halves[which];
}
ALWAYS_INLINE Four along_blue(const Eight& pair, float share) { return mix(half(pair, 0), half(pair, 1), share); }

// NaN passes through: a broken picture must not look like a white one.
ALWAYS_INLINE Lanes clamped(const Lanes& a) {
    const Lanes b = select(a < 0.0f, broadcast(0.0f), a);
    return select(b > 1.0f, broadcast(1.0f), b);
}

// A color outside [0, 1] may come back but not go further out.
ALWAYS_INLINE Lanes inward(const Lanes& slope, const Lanes& x) {
    const Lanes below = select((x > 1.0f) & (slope < 0.0f), broadcast(0.0f), slope);
    return select((x < 0.0f) & (below > 0.0f), broadcast(0.0f), below);
}

// Sixteen values of each channel.
struct Channels {
    float at[3][kLanes];

    // Those of `count` pixels of a picture, zeros after them; and back.
    void read(const float* from, int64_t plane, int64_t count) {
        for (int c = 0; c < 3; ++c) {
            store(at[c], count == kLanes ? load(from + c * plane) : broadcast(0.0f));
            for (int64_t k = 0; count < kLanes && k < count; ++k) at[c][k] = from[c * plane + k];
        }
    }
    void write(float* to, int64_t plane, int64_t count) const {
        for (int c = 0; c < 3; ++c) {
            if (count == kLanes) store(to + c * plane, load(at[c]));
            for (int64_t k = 0; count < kLanes && k < count; ++k) to[c * plane + k] = at[c][k];
        }
    }
};

// Where sixteen pixels are in the lattice.
struct Places {
    Channels share;       // of the way to the next vertex along red, green, blue
    int32_t at[kLanes];   // float of their cell's first vertex

    Places(const Channels& color, int side) {
        constexpr int n = kLanes;
        Integers<n> cell = {};
        for (int c = 0; c < 3; ++c) {
            const Lanes position = clamped(load(color.at[c])) * (side - 1.0f);
            const Lanes last = min(position, side - 2.0f);  // the last cell ends with 1 and takes a NaN
            Lanes low;
            FOR_PARTS {
                const IntPart whole = __builtin_convertvector(last.part[i], IntPart);
                low.part[i] = __builtin_convertvector(whole, FloatPart);
                cell.part[i] = cell.part[i] * side + whole;
            }
            store(share.at[c], position - low);
        }
        FOR_PARTS cell.part[i] *= 4;
        store(at, cell);
    }
};

// The corners of a pixel's cell: pairs along blue at the near and far end of green (a, b) at the near end of
// red, and at its far end (c, d).
struct Cell {
    Eight a, b, c, d;

    Cell(const float* corner, int64_t side) {
        const int64_t green = 4 * side, red = 4 * side * side;
        a = pair_at(corner), b = pair_at(corner + green);
        c = pair_at(corner + red), d = pair_at(corner + red + green);
    }
};

// Adds to `sum`, the gradient of the pixels, what `slope`, that of their growth, makes of it.
void to_image(const float* lattice, int64_t side, const Places& places, const Channels& slope, const Channels& color,
              Channels& sum) {
    Channels more;
    for (int k = 0; k < kLanes; ++k) {
        const Cell cell(lattice + places.at[k], side);
        const float red = places.share.at[0][k], green = places.share.at[1][k], blue = places.share.at[2][k];
        const Four s = {slope.at[0][k], slope.at[1][k], slope.at[2][k], 0.0f};
        const Eight near = mix(cell.a, cell.b, green), far = mix(cell.c, cell.d, green), edge = mix(near, far, red);
        const Four along[3] = {s * along_blue(far - near, blue),
                               s * along_blue(mix(cell.b - cell.a, cell.d - cell.c, red), blue),
                               s * (half(edge, 1) - half(edge, 0))};
        for (int c = 0; c < 3; ++c) more.at[c][k] = along[c][0] + along[c][1] + along[c][2];
    }
    for (int c = 0; c < 3; ++c)
        store(sum.at[c], inward(load(sum.at[c]) + (side - 1.0f) * load(more.at[c]), load(color.at[c])));
}

// Adds `slope`, the gradient of the growth of `count` pixels, to that of the vertices around them.
void to_lattice(float* sums, int64_t side, const Places& places, const Channels& slope, int64_t count) {
    for (int k = 0; k < count; ++k) {
        const float red = places.share.at[0][k], green = places.share.at[1][k], blue = places.share.at[2][k];
        const float r = slope.at[0][k], g = slope.at[1][k], b = slope.at[2][k], near = 1.0f - blue;
        const Eight both = {near * r, near * g, near * b, 0.0f, blue * r, blue * g, blue * b, 0.0f};
        for (int end = 0; end < 4; ++end) {
            float* const to = sums + places.at[k] + 4 * side * ((end & 1) + side * (end >> 1));
            const Eight sum = pair_at(to) + (end & 1 ? green : 1.0f - green) * (end >> 1 ? red : 1.0f - red) * both;
            std::memcpy(to, &sum, sizeof sum);
        }
    }
}

// Rows of four floats from rows of three.
std::vector<float> padded(const float* rows, int64_t count) {
    std::vector<float> out(4 * count);
    for (int64_t i = 0; i < count; ++i) std::copy_n(rows + 3 * i, 3, out.data() + 4 * i);
    return out;
}

// Calls flat(first value, white) for groups of 16 white or black pixels and mixed(first value, pixels, share) for others.
template <typename OnFlat, typename OnMixed>
void for_groups(const float* image, int64_t images, int64_t plane, OnFlat on_flat, OnMixed on_mixed) {
    constexpr uint32_t all = (1u << kLanes) - 1;
    const int64_t per_image = (plane + kLanes - 1) / kLanes, groups = images * per_image;
    #pragma omp parallel for schedule(dynamic, 1)
    for (int64_t share = 0; share < kShares; ++share) {
        for (int64_t group = groups * share / kShares; group < groups * (share + 1) / kShares; ++group) {
            const int64_t pixel = group % per_image * kLanes, count = std::min<int64_t>(kLanes, plane - pixel);
            const int64_t start = group / per_image * 3 * plane + pixel;
            if (count == kLanes) {
                const Lanes r = load(image + start), g = load(image + start + plane), b = load(image + start + 2 * plane);
                const bool white = bits((r >= 1.0f) & (g >= 1.0f) & (b >= 1.0f)) == all;
                if (white || bits((r <= 0.0f) & (g <= 0.0f) & (b <= 0.0f)) == all) {
                    on_flat(start, white);
                    continue;
                }
            }
            on_mixed(start, count, share);
        }
    }
}

}  // namespace

// image, out, between: [images, 3, plane]; growth: [side, side, side, 3] along red, green, blue, positive.
// Writes the picture and, except where it is white or black, the growth of each pixel.
NATIVE_EXPORT int color_lattice_forward(const float* image, int64_t images, int64_t plane, const float* growth,
                                        int64_t side, float* out, float* between) {
    return native::guarded([&] {
        const std::vector<float> lattice = padded(growth, side * side * side);
        for_groups(image, images, plane, [&](int64_t start, bool) {
            for (int c = 0; c < 3; ++c) store(out + start + c * plane, clamped(load(image + start + c * plane)));
        }, [&](int64_t start, int64_t count, int64_t) {
            Channels color, grown;
            color.read(image + start, plane, count);
            const Places places(color, side);
            for (int k = 0; k < kLanes; ++k) {
                const Cell cell(lattice.data() + places.at[k], side);
                const float red = places.share.at[0][k], green = places.share.at[1][k], blue = places.share.at[2][k];
                const Four g = along_blue(mix(mix(cell.a, cell.b, green), mix(cell.c, cell.d, green), red), blue);
                for (int c = 0; c < 3; ++c) grown.at[c][k] = g[c];
            }
            grown.write(between + start, plane, count);
            for (int c = 0; c < 3; ++c) {
                const Lanes x = clamped(load(color.at[c])), y = x * load(grown.at[c]);
                store(color.at[c], y / ((1.0f - x) + y));
            }
            color.write(out + start, plane, count);
        });
    });
}

// gradient: of `out`. Writes the gradients of the image and of the growth, each unless null.
NATIVE_EXPORT int color_lattice_backward(const float* image, const float* gradient, int64_t images, int64_t plane,
                                         const float* growth, int64_t side, const float* between,
                                         float* image_gradient, float* growth_gradient) {
    return native::guarded([&] {
        const int64_t vertices = side * side * side;
        const std::vector<float> lattice = padded(growth, vertices);
        std::vector<float> sums(growth_gradient ? kShares * 4 * vertices : 0);
        for_groups(image, images, plane, [&](int64_t start, bool white) {
            // x (1 - x) is zero here: nothing reaches the lattice, and dy/dx is 1 / g on white and g on black.
            for (int c = 0; image_gradient && c < 3; ++c) {
                const float slope = white ? 1.0f / growth[3 * (vertices - 1) + c] : growth[c];
                const int64_t at = start + c * plane;
                store(image_gradient + at, inward(load(gradient + at) * slope, load(image + at)));
            }
        }, [&](int64_t start, int64_t count, int64_t share) {
            Channels color, up, grown, own, slope;
            color.read(image + start, plane, count);
            up.read(gradient + start, plane, count);
            grown.read(between + start, plane, count);
            for (int c = 0; c < 3; ++c) {
                const Lanes x = clamped(load(color.at[c])), g = load(grown.at[c]);
                const Lanes inverse = 1.0f / ((1.0f - x) + x * g), squared = load(up.at[c]) * inverse * inverse;
                store(own.at[c], squared * g);
                store(slope.at[c], squared * x * (1.0f - x));
            }
            const Places places(color, side);
            if (image_gradient) to_image(lattice.data(), side, places, slope, color, own);
            if (image_gradient) own.write(image_gradient + start, plane, count);
            if (growth_gradient) to_lattice(sums.data() + share * 4 * vertices, side, places, slope, count);
        });
        for (int64_t i = 0; growth_gradient && i < vertices; ++i) {
            for (int c = 0; c < 3; ++c) {
                float sum = 0.0f;
                for (int64_t share = 0; share < kShares; ++share) sum += sums[(share * vertices + i) * 4 + c];
                growth_gradient[3 * i + c] = sum;
            }
        }
    });
}
