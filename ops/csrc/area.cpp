// Reduces an image to a coarser grid: the mean of the area that each pixel of that grid covers.
#include "common.h"

#include <algorithm>
#include <vector>

namespace {

// Pixel j of the reduced image covers [j, j + 1) * source / reduced; `first[j]` is the first source pixel in it and
// `weights[k * reduced + j]` is the share of the k-th from there, zero past the end.
struct Axis {
    int64_t taps;
    std::vector<int32_t> first;
    std::vector<float> weights;

    Axis(int64_t source, int64_t reduced) : taps((source + reduced - 1) / reduced + 1), first(reduced),
                                           weights(reduced * taps) {
        for (int64_t j = 0; j < reduced; ++j) {
            // In units of 1/reduced of a source pixel everything is a whole number: no edge is ever rounded.
            const int64_t begin = j * source, end = begin + source;
            first[j] = int32_t(begin / reduced);
            for (int64_t k = 0; k < taps; ++k) {
                const int64_t left = std::max(begin, (first[j] + k) * reduced);
                const int64_t right = std::min(end, (first[j] + k + 1) * reduced);
                weights[k * reduced + j] = right > left ? float(double(right - left) / double(source)) : 0.0f;
            }
        }
    }
};

}  // namespace

// source [channels, height, width] -> reduced [channels, new_height, new_width], not larger, rounded to bytes.
// One thread: the caller reduces many images at once. Nonzero when there is no memory.
NATIVE_EXPORT int area_reduce(const uint8_t* source, int64_t channels, int64_t height, int64_t width,
                              uint8_t* reduced, int64_t new_height, int64_t new_width) {
    return native::guarded([&] {
        const Axis rows(height, new_height), columns(width, new_width);
        std::vector<float> mean(new_width), sum(width + columns.taps);  // with room behind for taps of weight zero
        for (int64_t line = 0; line < channels * new_height; ++line) {
            const int64_t channel = line / new_height, j = line % new_height;
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (int64_t k = 0; k < rows.taps; ++k) {
                const float weight = rows.weights[k * new_height + j];
                if (weight == 0.0f) continue;
                const uint8_t* row = source + (channel * height + rows.first[j] + k) * width;
                for (int64_t i = 0; i < width; ++i) sum[i] += weight * float(row[i]);
            }
            uint8_t* out = reduced + line * new_width;
            std::fill(mean.begin(), mean.end(), 0.5f);  // for the rounding
            for (int64_t k = 0; k < columns.taps; ++k) {
                const float* weight = columns.weights.data() + k * new_width;
                const float* shifted = sum.data() + k;
                for (int64_t i = 0; i < new_width; ++i) mean[i] += weight[i] * shifted[columns.first[i]];
            }
            for (int64_t i = 0; i < new_width; ++i) out[i] = uint8_t(std::min(255.0f, mean[i]));
        }
    });
}
