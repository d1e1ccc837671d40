// Norm penalties on rows of three numbers over the visible Gaussians, with the gradient.
//
// In eager PyTorch such a term is a dozen passes over [N, 3] and costs more than
// its worth in a CPU iteration; here it is one.
#include "common.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int64_t BLOCK = 4096;  // rows; block totals are added serially, so the sum does not depend on the threads

// relu(|v| - threshold) and its derivative
float excess_of_norm(const float* v, float threshold, float* gradient) {
    const float norm = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    const float excess = norm - threshold;
    if (excess <= 0.0f) return 0.0f;  // a NaN goes on and shows in the loss
    const float inverse = norm > 0.0f ? 1.0f / norm : 0.0f;
    for (int i = 0; i < 3; ++i) gradient[i] = v[i] * inverse;
    return excess;
}

// |relu(v - threshold)| and its derivative
float norm_of_excess(const float* v, float threshold, float* gradient) {
    float excess[3], square = 0.0f;
    for (int i = 0; i < 3; ++i) {
        excess[i] = v[i] <= threshold ? 0.0f : v[i] - threshold;
        square += excess[i] * excess[i];
    }
    if (square <= 0.0f) return 0.0f;
    const float norm = std::sqrt(square);
    for (int i = 0; i < 3; ++i) gradient[i] = excess[i] / norm;
    return norm;
}

template <typename Penalty>
void sum_rows(Penalty penalty, const float* rows, const bool* visible, int64_t count, float threshold, double* sums,
              float* gradient) {
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    std::vector<double> total(blocks);
    std::vector<int64_t> seen(blocks);
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        double sum = 0.0;
        int64_t number = 0;
        for (int64_t i = block * BLOCK; i < std::min(count, (block + 1) * BLOCK); ++i) {
            float slope[3] = {0.0f, 0.0f, 0.0f};
            if (visible[i]) {
                sum += penalty(rows + 3 * i, threshold, slope);
                ++number;
            }
            if (gradient) std::copy_n(slope, 3, gradient + 3 * i);
        }
        total[block] = sum;
        seen[block] = number;
    }
    sums[0] = sums[1] = 0.0;
    for (int64_t block = 0; block < blocks; ++block) {
        sums[0] += total[block];
        sums[1] += static_cast<double>(seen[block]);
    }
}

}  // namespace

// Writes sums = {sum over the visible rows, number of visible rows} and, unless
// `gradient` is null, the derivative of the first into gradient[count, 3].
// `norm_first` chooses relu(|v| - threshold), else |relu(v - threshold)|.
NATIVE_EXPORT int regulariser_rows(const float* rows, const bool* visible, int64_t count, float threshold,
                                   bool norm_first, double* sums, float* gradient) {
    return native::guarded([&] {
        if (norm_first) {
            sum_rows(excess_of_norm, rows, visible, count, threshold, sums, gradient);
        } else {
            sum_rows(norm_of_excess, rows, visible, count, threshold, sums, gradient);
        }
    });
}
