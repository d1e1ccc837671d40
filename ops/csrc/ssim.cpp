// Mean absolute difference and mean SSIM of two images, with the gradient.
//
// SSIM as Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, C1 = 0.01^2,
// C2 = 0.03^2, zeros outside the image, averaged over channels and pixels.
//
// With p = x + y and m = x - y only four blurred maps are needed (P, M, Q, R for
// p, m, p^2, m^2) instead of five, and what differs between the images is not
// lost by subtracting nearly equal numbers, as it is with E[xy] - E[x]E[y]:
//
//   A1 = (P^2 - M^2)/2 + C1    A2 = (vp - vm)/2 + C2    vp = Q - P^2
//   B1 = (P^2 + M^2)/2 + C1    B2 = (vp + vm)/2 + C2    vm = R - M^2
//   S  = A1 A2 / (B1 B2)
//
// The window is separable and an output row needs only 21 input rows, so both
// directions run row by row through small rings that stay in the cache, and the
// gradient of the SSIM sum is finished in the same sweep. Every pixel sums its
// terms in one fixed order and the row totals are added serially: the result
// does not depend on the number of threads.
#include "common.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace native;

constexpr int kTaps = 2 * kWindowRadius + 1;
static_assert(kLanes >= kWindowRadius, "row buffers are padded to whole vectors, which is their margin of zeros, too");
constexpr float kC1 = kSsimK1 * kSsimK1, kC2 = kSsimK2 * kSsimK2;
constexpr int kMaps = 4;           // p, m, p^2, m^2
constexpr int kPartials = 3;          // d/d(P + M), 2 d/dQ, 2 d/dR

struct Window {
    float tap[kTaps];
    Window() {
        double value[kTaps], total = 0.0;
        for (int k = 0; k < kTaps; ++k) {
            const double t = (k - kWindowRadius) / kWindowSigma;
            total += value[k] = std::exp(-0.5 * t * t);
        }
        for (int k = 0; k < kTaps; ++k) tap[k] = static_cast<float>(value[k] / total);
    }
};
const Window window;

struct Images {
    const float* image;    // [C, H, W]
    const float* ground_truth;   // [C, H, W]
    const float* weights;  // [H, W] or null
    int64_t height, width;
};

// out[x] = sum_k tap[k] * in[x + k - kWindowRadius]; `in` has a margin on both sides.
void blur_along(const float* __restrict in, float* __restrict out, int64_t padded) {
    #pragma omp simd
    for (int64_t x = 0; x < padded; ++x) {
        float sum = 0.0f;
        for (int k = 0; k < kTaps; ++k) sum += window.tap[k] * in[x + k - kWindowRadius];
        out[x] = sum;
    }
}

// out[x] = sum_k tap[k] * rows[k][x]
void blur_across(const float* const* rows, float* __restrict out, int64_t padded) {
    const float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3], *r4 = rows[4], *r5 = rows[5],
                *r6 = rows[6], *r7 = rows[7], *r8 = rows[8], *r9 = rows[9], *r10 = rows[10];
    const float* tap = window.tap;
    #pragma omp simd
    for (int64_t x = 0; x < padded; ++x) {
        out[x] = tap[0] * r0[x] + tap[1] * r1[x] + tap[2] * r2[x] + tap[3] * r3[x] + tap[4] * r4[x] + tap[5] * r5[x]
               + tap[6] * r6[x] + tap[7] * r7[x] + tap[8] * r8[x] + tap[9] * r9[x] + tap[10] * r10[x];
    }
}

// The last kTaps horizontally blurred rows of `planes` maps; rows outside the image read as zeros.
class Ring {
public:
    Ring(int planes, int64_t padded, int64_t height)
        : planes_(planes), padded_(padded), height_(height), rows_(planes * kTaps * padded), zeros_(padded) {}

    float* slot(int plane, int64_t y) { return rows_.data() + (plane * kTaps + y % kTaps) * padded_; }

    // The full blur at row y of one map.
    void blur(int plane, int64_t y, float* out) {
        const float* rows[kTaps];
        for (int k = 0; k < kTaps; ++k) {
            const int64_t source = y + k - kWindowRadius;
            rows[k] = source >= 0 && source < height_ ? slot(plane, source) : zeros_.data();
        }
        blur_across(rows, out, padded_);
    }

private:
    int planes_;
    int64_t padded_, height_;
    std::vector<float> rows_, zeros_;
};

// Sums the rows [top, bottom) of one channel into l1[y], ssim[y] and, if wanted,
// writes d(sum of weighted S)/d(image) of those rows.
void strip(const Images& in, int64_t channel, int64_t top, int64_t bottom, double* l1, double* ssim, float* gradient) {
    const int64_t height = in.height, width = in.width;
    const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
    const int64_t plane = channel * height * width;
    Ring maps(kMaps, padded, height), partials(gradient ? kPartials : 0, padded, height);
    // One row per map with a zero margin at both ends; what lies beyond `width` stays zero.
    const int64_t pitch = padded + 2 * kLanes;
    std::vector<float> source_rows(kMaps * pitch), blurred_rows(kMaps * padded), weight_row(padded, 1.0f);
    float* source[kMaps];
    float* blurred[kMaps];
    for (int i = 0; i < kMaps; ++i) {
        source[i] = source_rows.data() + i * pitch + kLanes;
        blurred[i] = blurred_rows.data() + i * padded;
    }

    const int64_t reach = gradient ? kWindowRadius : 0;  // the gradient of a row needs the partials around it
    int64_t next = std::max<int64_t>(0, top - reach - kWindowRadius);
    for (int64_t y = top - reach; y < bottom + reach; ++y) {
        if (y >= 0 && y < height) {
            for (; next <= std::min(y + kWindowRadius, height - 1); ++next) {
                const float* a = in.image + plane + next * width;
                const float* b = in.ground_truth + plane + next * width;
                float *p = source[0], *m = source[1], *p2 = source[2], *m2 = source[3];
                #pragma omp simd
                for (int64_t x = 0; x < width; ++x) {
                    const float sum = a[x] + b[x], difference = a[x] - b[x];
                    p[x] = sum, m[x] = difference, p2[x] = sum * sum, m2[x] = difference * difference;
                }
                for (int i = 0; i < kMaps; ++i) blur_along(source[i], maps.slot(i, next), padded);
            }
            for (int i = 0; i < kMaps; ++i) maps.blur(i, y, blurred[i]);
            if (in.weights) std::copy_n(in.weights + y * width, width, weight_row.data());

            // The partials overwrite the source rows, whose margins stay zero.
            float *d_mean = source[0], *d_p2 = source[1], *d_m2 = source[2];
            const float *P = blurred[0], *M = blurred[1], *Q = blurred[2], *R = blurred[3], *w = weight_row.data();
            float total = 0.0f;
            #pragma omp simd reduction(+ : total)
            for (int64_t x = 0; x < width; ++x) {
                const float pp = P[x] * P[x], mm = M[x] * M[x];
                // Never negative but by rounding, which for colors far above 1 could exceed C2 and flip B2.
                const float vp = std::max(Q[x] - pp, 0.0f), vm = std::max(R[x] - mm, 0.0f);
                const float a1 = 0.5f * (pp - mm) + kC1, b1 = 0.5f * (pp + mm) + kC1;
                const float a2 = 0.5f * (vp - vm) + kC2, b2 = 0.5f * (vp + vm) + kC2;
                const float inverse = 1.0f / (b1 * b2), over_b1 = b2 * inverse, over_b2 = b1 * inverse;
                const float r1 = a1 * over_b1, r2 = a2 * over_b2;
                total += w[x] * (r1 * r2);
                // d/dA1 + d/dB1 = r2 (1 - r1)/B1 and 1 - r1 = M^2/B1, without cancellation; likewise the others.
                const float first = r2 * over_b1, second = r1 * over_b2;
                const float plus1 = first * mm * over_b1, plus2 = second * vm * over_b2;
                const float minus1 = first * (1.0f + r1), minus2 = second * (1.0f + r2);
                d_mean[x] = w[x] * (P[x] * (plus1 - plus2) + M[x] * (minus2 - minus1));
                d_p2[x] = w[x] * plus2;
                d_m2[x] = -w[x] * minus2;
            }
            if (y >= top && y < bottom) {
                const float* a = in.image + plane + y * width;
                const float* b = in.ground_truth + plane + y * width;
                float absolute = 0.0f;
                #pragma omp simd reduction(+ : absolute)
                for (int64_t x = 0; x < width; ++x) absolute += w[x] * std::fabs(a[x] - b[x]);
                l1[y] = absolute;
                ssim[y] = total;
            }
            if (gradient) {
                for (int i = 0; i < kPartials; ++i) blur_along(source[i], partials.slot(i, y), padded);
            }
        }
        const int64_t done = y - kWindowRadius;
        if (gradient && done >= top) {
            for (int i = 0; i < kPartials; ++i) partials.blur(i, done, blurred[i]);
            const float* a = in.image + plane + done * width;
            const float* b = in.ground_truth + plane + done * width;
            float* out = gradient + plane + done * width;
            const float *g_mean = blurred[0], *g_p2 = blurred[1], *g_m2 = blurred[2];
            #pragma omp simd
            for (int64_t x = 0; x < width; ++x) {
                out[x] = g_mean[x] + (a[x] + b[x]) * g_p2[x] + (a[x] - b[x]) * g_m2[x];
            }
        }
    }
}

// How many strips to cut each channel into: enough to keep the threads busy,
// few enough that the rows computed twice at their edges do not outweigh it.
int64_t strips_per_channel(int64_t channels, int64_t height, int64_t threads) {
    constexpr int64_t overlap = 12;  // what a strip's edges cost, in rows
    int64_t best = 1;
    double least = 1e30;
    for (int64_t count = 1; count <= std::max<int64_t>(1, height / kLanes); ++count) {
        const double rounds = static_cast<double>((channels * count + threads - 1) / threads);
        const double cost = rounds * (static_cast<double>(height) / count + overlap);
        if (cost < least) least = cost, best = count;
    }
    return best;
}

}  // namespace

// Writes sums = {sum of w|image - ground_truth|, sum of w S, sum of w over the pixels},
// the first two over all channels, and, unless `gradient` is null, the derivative
// of the second with respect to the image into gradient[C, H, W].
NATIVE_EXPORT int ssim_forward(const float* image, const float* ground_truth, const float* weights, int64_t channels,
                               int64_t height, int64_t width, double* sums, float* gradient) {
    const Images in{image, ground_truth, weights, height, width};
    const int64_t rows = channels * height;
    std::vector<double> l1, ssim;
    int status = native::guarded([&] { l1.resize(rows), ssim.resize(rows); });
    if (status != 0) return status;
    const int64_t count = strips_per_channel(channels, height, omp_get_max_threads());
    #pragma omp parallel for schedule(dynamic, 1) reduction(| : status)
    for (int64_t task = 0; task < channels * count; ++task) {
        const int64_t channel = task / count, part = task % count;
        status |= native::guarded([&] {
            strip(in, channel, height * part / count, height * (part + 1) / count,
                  l1.data() + channel * height, ssim.data() + channel * height, gradient);
        });
    }
    sums[0] = sums[1] = sums[2] = 0.0;
    for (int64_t i = 0; i < rows; ++i) sums[0] += l1[i], sums[1] += ssim[i];
    if (!weights) {
        sums[2] = static_cast<double>(height * width);
        return status;
    }
    for (int64_t y = 0; y < height; ++y) {
        float total = 0.0f;
        #pragma omp simd reduction(+ : total)
        for (int64_t x = 0; x < width; ++x) total += weights[y * width + x];
        sums[2] += total;
    }
    return status;
}

// out = l1_scale * w * sign(image - ground_truth) + ssim_scale * gradient, all [C, H, W], w [H, W].
NATIVE_EXPORT void ssim_backward(const float* image, const float* ground_truth, const float* weights,
                                 const float* gradient, int64_t channels, int64_t height, int64_t width,
                                 float l1_scale, float ssim_scale, float* out) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < channels * height; ++row) {
        const int64_t at = row * width;
        const float* w = weights ? weights + row % height * width : nullptr;
        #pragma omp simd
        for (int64_t x = 0; x < width; ++x) {
            const float a = image[at + x], b = ground_truth[at + x];
            const float sign = a > b ? l1_scale : (a < b ? -l1_scale : 0.0f);
            out[at + x] = (w ? w[x] : 1.0f) * sign + ssim_scale * gradient[at + x];
        }
    }
}
