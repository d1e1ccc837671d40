// The statistics of the density control over one rendered view, in one pass.
#include "common.h"

#include <cmath>

// means2d_gradient [count, 2] in NDC units, radii [count] pixels; adds to the rest, all [count].
NATIVE_EXPORT void density_observe(int64_t count, const float* means2d_gradient, const int32_t* radii,
                                   float* gradient_sum, float* seen, float* max_radii) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
        const float x = means2d_gradient[2 * n], y = means2d_gradient[2 * n + 1], radius = float(radii[n]);
        gradient_sum[n] += std::sqrt(x * x + y * y);
        seen[n] += radius > 0.0f ? 1.0f : 0.0f;
        max_radii[n] = radius > max_radii[n] ? radius : max_radii[n];
    }
}
