// Whether several tensors hold finite numbers only, in one parallel region.
//
// PyTorch would open one region for each tensor, and on a busy machine the waiting of
// its threads for each other costs several times the work, a read of the memory.
#include "common.h"

#include <algorithm>

namespace {

constexpr int64_t kBlock = 1 << 15;  // elements

// 0 x is 0 for a finite x and NaN for any other, so nothing can overflow or cancel.
float zero_or_nan(const float* values, int64_t count) {
    float sum = 0.0f;
    #pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += 0.0f * values[i];
    return sum;
}

}  // namespace

// 1 if all of tensors[i][0 .. counts[i]) are finite, else 0.
NATIVE_EXPORT int all_finite(const float* const* tensors, const int64_t* counts, int64_t number) {
    int broken = 0;
    #pragma omp parallel reduction(| : broken)
    for (int64_t k = 0; k < number; ++k) {
        #pragma omp for schedule(static) nowait
        for (int64_t first = 0; first < counts[k]; first += kBlock)
            broken |= zero_or_nan(tensors[k] + first, std::min(kBlock, counts[k] - first)) != 0.0f;
    }
    return !broken;
}
