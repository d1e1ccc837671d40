// A smooth weight map from a coarse grid of bit masks: look up, blur, enlarge, normalize.
//
// In eager PyTorch these are eight small operations, together more than 1 % of a
// short iteration. Same steps as the twin in ops/region_map.py.
// One thread: the work takes less time than waking a second one on a busy machine.
#include "common.h"

#include <algorithm>
#include <vector>

namespace {

// Bilinear enlargement with pixel centers at +0.5 and the border repeated.
struct Taps {
    std::vector<int> low, high;
    std::vector<float> fraction;

    Taps(int64_t from, int64_t to) : low(to), high(to), fraction(to) {
        const float ratio = static_cast<float>(from) / to;
        for (int64_t i = 0; i < to; ++i) {
            const float at = std::max(0.0f, ratio * (i + 0.5f) - 0.5f);
            low[i] = std::min<int>(static_cast<int>(at), from - 1);
            high[i] = std::min<int>(low[i] + 1, from - 1);
            fraction[i] = std::min(1.0f, at - low[i]);
        }
    }
};

}  // namespace

// bits [rows, columns], weight_of [256]; writes out [height, width], mean 1.
NATIVE_EXPORT int region_map(const uint8_t* bits, const float* weight_of, int64_t rows, int64_t columns,
                             int64_t height, int64_t width, float* out) {
    return native::guarded([&] {
        const Taps across(columns, width), down(rows, height);
        std::vector<float> coarse(rows * columns), wide(rows * width);
        std::vector<float> mixed(columns), blurred(columns);
        std::vector<double> total(rows), share(rows, 0.0);
        float least = weight_of[bits[0]], most = least;
        for (int64_t i = 0; i < rows * columns; ++i) {
            coarse[i] = weight_of[bits[i]];
            least = std::min(least, coarse[i]), most = std::max(most, coarse[i]);
        }
        if (least == most) {  // exactly 1, so that a loss without emphasis is exactly the plain one
            std::fill_n(out, height * width, 1.0f);
            return;
        }
        for (int64_t r = 0; r < rows; ++r) {  // binomial 1 2 1 both ways, the border repeated
            const float* above = coarse.data() + std::max<int64_t>(r - 1, 0) * columns;
            const float* here = coarse.data() + r * columns;
            const float* below = coarse.data() + std::min(r + 1, rows - 1) * columns;
            for (int64_t c = 0; c < columns; ++c) mixed[c] = 0.25f * (above[c] + below[c]) + 0.5f * here[c];
            for (int64_t c = 0; c < columns; ++c) {
                blurred[c] = 0.25f * (mixed[std::max<int64_t>(c - 1, 0)] + mixed[std::min(c + 1, columns - 1)])
                           + 0.5f * mixed[c];
            }
            float* row = wide.data() + r * width;
            float sum = 0.0f;
            #pragma omp simd reduction(+ : sum)
            for (int64_t x = 0; x < width; ++x) {
                const float a = blurred[across.low[x]], b = blurred[across.high[x]];
                row[x] = a + across.fraction[x] * (b - a);
                sum += row[x];
            }
            total[r] = sum;
        }
        for (int64_t y = 0; y < height; ++y) {
            share[down.low[y]] += 1.0f - down.fraction[y];
            share[down.high[y]] += down.fraction[y];
        }
        double sum = 0.0;
        for (int64_t r = 0; r < rows; ++r) sum += share[r] * total[r];
        const float scale = static_cast<float>(static_cast<double>(height * width) / sum);
        for (float& value : wide) value *= scale;
        for (int64_t y = 0; y < height; ++y) {
            const float* a = wide.data() + down.low[y] * width;
            const float* b = wide.data() + down.high[y] * width;
            const float t = down.fraction[y];
            #pragma omp simd
            for (int64_t x = 0; x < width; ++x) out[y * width + x] = a[x] + t * (b[x] - a[x]);
        }
    });
}
