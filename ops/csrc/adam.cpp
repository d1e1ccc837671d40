// Adam (Kingma & Ba 2015) over several tensors in one call, one pass over the memory.
//
//   m <- m + (1 - beta1) (g - m)
//   v <- v + (1 - beta2) (g^2 - v)
//   p <- p - rate factor / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
//
// with a factor for every column of a row, so that the spherical harmonics can
// lie in one tensor, as the rasterizer wants them, and still learn at two rates.
//
// The floor: four floats are read and three written per element, 28 bytes. An
// avatar of 20,000 Gaussians has 59 numbers each, so a step moves 34 MB: more
// than the second-level caches hold, hence no less than 34 MB over the
// bandwidth of what lies behind them. On the machine of doc/results.md adding two
// arrays of that size runs at 28 GB/s with two threads, which makes 1.2 ms, and
// this kernel takes 1.1 to 1.2. The arithmetic, a root and a division per
// sixteen elements, hides behind it.
//
// Every element passes through the same vector instructions wherever it lies,
// so the bits do not depend on the number of threads.
#include "common.h"
#include "lanes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace lanes;

constexpr int64_t kBlock = 64 * kLanes;  // elements that a thread takes at a time

// Mirrored by `Slot` in ops/kernels.py.
struct Slot {
    float* value;
    const float* gradient;
    float* mean;           // m
    float* square;         // v
    float* step;           // t, one number
    const float* factors;  // of the rate, for each element of a row
    int64_t count, row;    // elements of the tensor and of a row
    double rate, beta1, beta2, eps;
};

struct Factors {
    float take1, take2;        // 1 - beta
    std::vector<float> rates;  // with the correction of m: of a row, repeated until any 16 in turn are there
    float correction;          // of sqrt(v)
    float eps;
};

// Below the smallest normal number everything becomes 0. The moments of a
// Gaussian that is never seen decay into that range and, by rounding, never
// leave it; there the processor is a hundred times slower (a fifth of all
// momenta after 6,000 iterations, which tripled the time of a step). Next to eps
// they mean nothing.
ALWAYS_INLINE Lanes flushed(const Lanes& a) {
    return select(abs(a) < std::numeric_limits<float>::min(), broadcast(0.0f), a);
}

ALWAYS_INLINE void update(const Factors& f, const float* rates, float* value, const float* gradient, float* mean,
                         float* square) {
    const Lanes g = load(gradient), m0 = load(mean), v0 = load(square);
    const Lanes m = flushed(m0 + f.take1 * (g - m0));
    const Lanes v = flushed(v0 + f.take2 * (g * g - v0));
    store(mean, m);
    store(square, v);
    store(value, load(value) - load(rates) * m / (sqrt(v) * f.correction + f.eps));
}

void update_block(const Factors& f, const Slot& s, int64_t first) {
    const int64_t last = std::min(first + kBlock, s.count);
    int64_t i = first, column = first % s.row;
    for (; i + kLanes <= last; i += kLanes, column = (column + kLanes) % s.row)
        update(f, &f.rates[column], s.value + i, s.gradient + i, s.mean + i, s.square + i);
    if (i == last) return;
    // What is left at the end goes through a copy, filled up with zeros.
    float* const parts[4] = {s.value + i, const_cast<float*>(s.gradient) + i, s.mean + i, s.square + i};
    float rest[4][kLanes] = {};
    for (int k = 0; k < 4; ++k) std::copy_n(parts[k], last - i, rest[k]);
    update(f, &f.rates[column], rest[0], rest[1], rest[2], rest[3]);
    for (int k : {0, 2, 3}) std::copy_n(rest[k], last - i, parts[k]);
}

Factors factors(const Slot& s) {
    const double t = *s.step, rate = s.rate / (1.0 - std::pow(s.beta1, t));
    Factors f = {float(1.0 - s.beta1), float(1.0 - s.beta2), std::vector<float>(size_t(s.row + kLanes)),
                 float(1.0 / std::sqrt(1.0 - std::pow(s.beta2, t))), float(s.eps)};
    for (size_t i = 0; i < f.rates.size(); ++i) f.rates[i] = float(rate * s.factors[i % s.row]);
    return f;
}

}  // namespace

// One step of all tensors; counts up their `step`.
NATIVE_EXPORT int adam_step(const Slot* slots, int64_t count) {
    return native::guarded([&] {
        std::vector<Factors> all;
        all.reserve(size_t(count));
        for (int64_t k = 0; k < count; ++k) {
            *slots[k].step += 1.0f;
            all.push_back(factors(slots[k]));
        }
#pragma omp parallel
        for (int64_t k = 0; k < count; ++k) {
#pragma omp for schedule(static) nowait
            for (int64_t first = 0; first < slots[k].count; first += kBlock) update_block(all[k], slots[k], first);
        }
    });
}
