// What all threads together can do: lanes of independent float operations, additions and fused or plain
// multiplications half and half as in the blending, and bytes copied far beyond the caches; both in 10^9 a second.
#include <omp.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "../ops/csrc/lanes.h"

using lanes::FloatPart;
using lanes::kWidth;

double operations() {
    constexpr int kChains = 12, kRounds = 500'000;
    const double start = omp_get_wtime();
#pragma omp parallel
    {
        FloatPart chain[kChains];
        for (auto& c : chain) c = FloatPart{} + 1.0f;
        const FloatPart factor = FloatPart{} + 0.9999f;
        for (int i = 0; i < kRounds; ++i)
            for (int k = 0; k < kChains; ++k) {
                chain[k] = k % 2 ? chain[k] * factor + factor : chain[k] + factor;
                asm("" : "+x"(chain[k]));
            }
        for (auto& c : chain) asm volatile("" : : "x"(c));
    }
    return 1e-9 * kChains * kRounds * kWidth * omp_get_max_threads() / (omp_get_wtime() - start);
}

double bytes() {
    constexpr size_t kSize = size_t(64) << 20;
    std::vector<char> from(kSize, 1), to(kSize, 2);
    const double start = omp_get_wtime();
#pragma omp parallel for
    for (int i = 0; i < 64; ++i) std::memcpy(to.data() + (size_t(i) << 20), from.data() + (size_t(i) << 20), 1 << 20);
    return 1e-9 * 2 * kSize / (omp_get_wtime() - start);
}

int main() {
    double most[2] = {};
    for (int i = 0; i < 40; ++i) most[0] = std::max(most[0], operations()), most[1] = std::max(most[1], bytes());
    std::printf("%g %g %d\n", most[0], most[1], kWidth);
}
