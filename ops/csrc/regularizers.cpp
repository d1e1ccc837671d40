// Norm penalties on rows of three numbers over the visible Gaussians, with the gradient.
//
// In eager PyTorch such a term is a dozen passes over [N, 3] and costs more than
// its worth in a CPU iteration; here it is one, and both terms of an avatar share it.
#include "common.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace {

constexpr int64_t kBlock = 4096;  // rows; block totals are added serially, so the sum does not depend on the threads

// relu(|v| - threshold) and its derivative
float excess_of_norm(const float* v, float threshold, float* gradient) {
    const float norm = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    const float excess = norm - threshold;
    if (excess <= 0.0f) return 0.0f;  // a NaN goes on and shows in the loss
    const float inverse = norm > 0.0f ? 1.0f / norm : 0.0f;
    for (int i = 0; i < 3; ++i) gradient[i] = v[i] * inverse;
    return excess;
}

// |relu(exp(v) - threshold)| and its derivative: hardly any Gaussian is beyond the threshold,
// so hardly any exponential is taken
float norm_of_exp_excess(const float* v, float threshold, float log_threshold, float* gradient) {
    float size[3] = {}, excess[3] = {}, square = 0.0f;
    for (int i = 0; i < 3; ++i) {
        if (v[i] <= log_threshold) continue;  // a NaN goes on and shows in the loss
        size[i] = std::exp(v[i]);
        excess[i] = size[i] <= threshold ? 0.0f : size[i] - threshold;  // the logarithm was rounded
        square += excess[i] * excess[i];
    }
    if (square <= 0.0f) return 0.0f;
    const float norm = std::sqrt(square);
    for (int i = 0; i < 3; ++i) gradient[i] = excess[i] / norm * size[i];
    return norm;
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

// Calls work(i) for every row i, which returns what row i adds to each of `sums`.
template <size_t number, typename Work>
void sum_rows(Work work, int64_t count, double* sums) {
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    std::vector<std::array<double, number>> totals(blocks);
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        std::array<double, number> total = {};
        for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); ++i) {
            const std::array<double, number> row = work(i);
            for (size_t k = 0; k < number; ++k) total[k] += row[k];
        }
        totals[block] = total;
    }
    std::fill_n(sums, number, 0.0);
    for (const auto& total : totals)
        for (size_t k = 0; k < number; ++k) sums[k] += total[k];
}

}  // namespace

// Writes sums = {sum over the visible rows, number of visible rows} and, unless
// `gradient` is null, the derivative of the first into gradient[count, 3].
// `norm_first` chooses relu(|v| - threshold), else |relu(v - threshold)|.
NATIVE_EXPORT int regularizer_rows(const float* rows, const bool* visible, int64_t count, float threshold,
                                   bool norm_first, double* sums, float* gradient) {
    return native::guarded([&] {
        const auto penalty = norm_first ? excess_of_norm : norm_of_excess;
        sum_rows<2>([&](int64_t i) {
            float slope[3] = {};
            std::array<double, 2> sum = {};
            if (visible[i]) sum = {penalty(rows + 3 * i, threshold, slope), 1.0};
            if (gradient) std::copy_n(slope, 3, gradient + 3 * i);
            return sum;
        }, count, sums);
    });
}

// Both terms of a bound avatar in one pass: of the positions xyz[count, 3] relu(|v| - threshold), and
// of the logarithms of the scales[count, 3] |relu(exp(v) - threshold)|. Writes sums = {the first, the
// second, number of visible rows} and the derivatives, where their pointers are not null.
NATIVE_EXPORT int regularizer_local(const float* xyz, const float* log_scales, const bool* visible, int64_t count,
                                    float threshold_xyz, float threshold_scale, double* sums, float* grad_xyz,
                                    float* grad_scales) {
    return native::guarded([&] {
        // One step below: what rounding puts beside the threshold is sorted out after the exponential.
        const float log_threshold = std::nextafter(std::log(threshold_scale), -INFINITY);
        sum_rows<3>([&](int64_t i) {
            float slopes[2][3] = {};
            std::array<double, 3> sum = {};
            if (visible[i]) {
                sum = {excess_of_norm(xyz + 3 * i, threshold_xyz, slopes[0]),
                       norm_of_exp_excess(log_scales + 3 * i, threshold_scale, log_threshold, slopes[1]), 1.0};
            }
            if (grad_xyz) std::copy_n(slopes[0], 3, grad_xyz + 3 * i);
            if (grad_scales) std::copy_n(slopes[1], 3, grad_scales + 3 * i);
            return sum;
        }, count, sums);
    });
}
