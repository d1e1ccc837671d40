// Base colors that move along modes: each row's modes, weighted with a code that all rows share, and added.
//
// The floor is the memory: a Gaussian of degree 3 with 10 modes has 192 bytes of coefficients to copy and 120 of modes to
// read; backwards 120 are written. Rows are independent, so the bits do not depend on the number of threads.
#include "common.h"

#include <algorithm>

// features [count, bases, 3], modes [count, size, 3], code [size] -> shaded [count, bases, 3].
NATIVE_EXPORT void shade_forward(int64_t count, int64_t bases, int64_t size, const float* features, const float* modes,
                                 const float* code, float* shaded) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
        const float *own = features + 3 * bases * n, *mode = modes + 3 * size * n;
        float* out = shaded + 3 * bases * n;
        float red = 0.0f, green = 0.0f, blue = 0.0f;
        for (int64_t k = 0; k < size; ++k, mode += 3) {
            red += code[k] * mode[0];
            green += code[k] * mode[1];
            blue += code[k] * mode[2];
        }
        std::copy_n(own, 3 * bases, out);
        out[0] += red;
        out[1] += green;
        out[2] += blue;
    }
}

// gradient [count, bases, 3] of what came out, code [size] -> of the modes [count, size, 3].
NATIVE_EXPORT void shade_backward(int64_t count, int64_t bases, int64_t size, const float* gradient, const float* code,
                                  float* of_modes) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < count; ++n) {
        const float* g = gradient + 3 * bases * n;
        float* out = of_modes + 3 * size * n;
        for (int64_t k = 0; k < size; ++k, out += 3) {
            out[0] = code[k] * g[0];
            out[1] = code[k] * g[1];
            out[2] = code[k] * g[2];
        }
    }
}
