// Sixteen floats handled as one value: one row of a tile, or sixteen Gaussians.
//
// Built on GCC/Clang vector extensions at the machine's own width (16, 8 or 4
// floats), so the same source is one AVX-512 register, two AVX ones or four SSE
// ones. A generic 64-byte vector type would be shorter, but on narrower machines
// the compiler then falls back to scalar code for every comparison.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lanes {

using native::kLanes;
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float FloatPart __attribute__((vector_size(4 * kWidth), may_alias));
typedef int32_t IntPart __attribute__((vector_size(4 * kWidth), may_alias));
typedef uint32_t UintPart __attribute__((vector_size(4 * kWidth), may_alias));

#define FOR_PARTS for (int i = 0; i < kParts; ++i)

struct Lanes {
    FloatPart part[kParts];
};
struct Ints {
    IntPart part[kParts];
};
struct Mask {  // all bits set in a true lane
    IntPart part[kParts];
};

ALWAYS_INLINE Lanes broadcast(float value) {
    Lanes r;
    FOR_PARTS r.part[i] = value - FloatPart{};
    return r;
}
ALWAYS_INLINE Ints broadcast_int(int32_t value) {
    Ints r;
    FOR_PARTS r.part[i] = value - IntPart{};
    return r;
}
ALWAYS_INLINE Lanes load(const float* p) {
    Lanes r;
    std::memcpy(&r, p, sizeof r);
    return r;
}
ALWAYS_INLINE void store(float* p, const Lanes& a) { std::memcpy(p, &a, sizeof a); }
ALWAYS_INLINE Ints load_int(const int32_t* p) {
    Ints r;
    std::memcpy(&r, p, sizeof r);
    return r;
}
ALWAYS_INLINE void store_int(int32_t* p, const Ints& a) { std::memcpy(p, &a, sizeof a); }

#define LANES_BINARY(op)                                                                     \
    ALWAYS_INLINE Lanes operator op(const Lanes& a, const Lanes& b) {                        \
        Lanes r;                                                                             \
        FOR_PARTS r.part[i] = a.part[i] op b.part[i];                                        \
        return r;                                                                            \
    }                                                                                        \
    ALWAYS_INLINE Lanes operator op(const Lanes& a, float b) { return a op broadcast(b); }   \
    ALWAYS_INLINE Lanes operator op(float a, const Lanes& b) { return broadcast(a) op b; }
LANES_BINARY(+)
LANES_BINARY(-)
LANES_BINARY(*)
LANES_BINARY(/)
#undef LANES_BINARY
ALWAYS_INLINE Lanes operator-(const Lanes& a) {
    Lanes r;
    FOR_PARTS r.part[i] = -a.part[i];
    return r;
}
ALWAYS_INLINE Lanes& operator+=(Lanes& a, const Lanes& b) { return a = a + b; }

#define LANES_COMPARE(op)                                                                    \
    ALWAYS_INLINE Mask operator op(const Lanes& a, const Lanes& b) {                         \
        Mask r;                                                                              \
        FOR_PARTS r.part[i] = a.part[i] op b.part[i];                                        \
        return r;                                                                            \
    }                                                                                        \
    ALWAYS_INLINE Mask operator op(const Lanes& a, float b) { return a op broadcast(b); }
LANES_COMPARE(<)
LANES_COMPARE(<=)
LANES_COMPARE(>)
LANES_COMPARE(>=)
LANES_COMPARE(==)
#undef LANES_COMPARE
ALWAYS_INLINE Mask operator>=(const Ints& a, int32_t b) {
    Mask r;
    FOR_PARTS r.part[i] = a.part[i] >= (b - IntPart{});
    return r;
}
ALWAYS_INLINE Mask operator&(const Mask& a, const Mask& b) {
    Mask r;
    FOR_PARTS r.part[i] = a.part[i] & b.part[i];
    return r;
}

ALWAYS_INLINE Lanes select(const Mask& m, const Lanes& yes, const Lanes& no) {
    Lanes r;
    FOR_PARTS r.part[i] = m.part[i] ? yes.part[i] : no.part[i];
    return r;
}
ALWAYS_INLINE Lanes select(const Mask& m, const Lanes& yes, float no) { return select(m, yes, broadcast(no)); }
ALWAYS_INLINE Ints select(const Mask& m, const Ints& yes, const Ints& no) {
    Ints r;
    FOR_PARTS r.part[i] = m.part[i] ? yes.part[i] : no.part[i];
    return r;
}

// A NaN in `a` gives `b`, as the processor's own instructions do.
ALWAYS_INLINE Lanes min(const Lanes& a, const Lanes& b) { return select(a < b, a, b); }
ALWAYS_INLINE Lanes max(const Lanes& a, const Lanes& b) { return select(a > b, a, b); }
ALWAYS_INLINE Lanes min(const Lanes& a, float b) { return min(a, broadcast(b)); }
ALWAYS_INLINE Lanes max(const Lanes& a, float b) { return max(a, broadcast(b)); }
ALWAYS_INLINE Lanes abs(const Lanes& a) {
    Lanes r;
    FOR_PARTS r.part[i] = (FloatPart)((IntPart)a.part[i] & 0x7fffffff);  // without the sign bit
    return r;
}

ALWAYS_INLINE Lanes sqrt(const Lanes& a) {
    float values[kLanes];
    store(values, a);
    for (int i = 0; i < kLanes; ++i) values[i] = std::sqrt(values[i]);
    return load(values);
}

// One bit per lane, lane 0 lowest.
ALWAYS_INLINE uint32_t bits(const Mask& m) {
    uint32_t r = 0;
    FOR_PARTS {
#if defined(__AVX512DQ__)
        r |= uint32_t(_mm512_movepi32_mask((__m512i)m.part[i]));
#elif defined(__AVX512F__)
        r |= uint32_t(_mm512_cmplt_epi32_mask((__m512i)m.part[i], _mm512_setzero_si512()));
#elif defined(__AVX__)
        r |= uint32_t(_mm256_movemask_ps((__m256)m.part[i])) << (i * kWidth);
#elif defined(__SSE2__)
        r |= uint32_t(_mm_movemask_ps((__m128)m.part[i])) << (i * kWidth);
#else
        for (int j = 0; j < kWidth; ++j) r |= uint32_t(m.part[i][j] & 1) << (i * kWidth + j);
#endif
    }
    return r;
}

// The inverse of `bits`.
ALWAYS_INLINE Mask mask_of(uint32_t bits) {
    IntPart lane;
    for (int j = 0; j < kWidth; ++j) lane[j] = 1 << j;
    Mask r;
    FOR_PARTS r.part[i] = (int32_t(bits >> (i * kWidth)) & lane) != 0;
    return r;
}

template <int odd, size_t... I>
ALWAYS_INLINE FloatPart every_other(const FloatPart& a, const FloatPart& b, std::index_sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, int(2 * I + odd)...);
#else
    return __builtin_shuffle(a, b, IntPart{int(2 * I + odd)...});
#endif
}

// The sums over the lanes of `count` values, lane k of the result for value k.
// Neighbors are added pairwise over two registers at a time, so that all sums
// together cost little more than one.
template <int count>
ALWAYS_INLINE Lanes totals(const Lanes (&values)[count]) {
    static_assert(count <= kLanes, "one lane per sum");
    using Index = std::make_index_sequence<kWidth>;
    Lanes r;
    for (int part = 0; part < kParts; ++part) {
        FloatPart level[kWidth];
        for (int j = 0; j < kWidth; ++j) {
            const int k = part * kWidth + j;
            level[j] = FloatPart{};
            if (k < count) FOR_PARTS level[j] += values[k].part[i];
        }
        for (int left = kWidth / 2; left; left /= 2)
            for (int j = 0; j < left; ++j)
                level[j] = every_other<0>(level[2 * j], level[2 * j + 1], Index{}) +
                           every_other<1>(level[2 * j], level[2 * j + 1], Index{});
        r.part[part] = level[0];
    }
    return r;
}

// 2^x for x <= 127; below -126 it stays at 2^-126. Relative error under 3e-7.
// The degree-5 polynomial is a minimax fit of 2^f on [-0.5, 0.5]; the whole part
// goes straight into the exponent bits. An own exponential because expf only
// vectorises with -ffast-math, which also drops the NaN checks this code needs.
ALWAYS_INLINE Lanes exp2(const Lanes& x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    Lanes r;
    FOR_PARTS {
        const FloatPart lowest = -126.0f - FloatPart{};
        const FloatPart v = x.part[i] > lowest ? x.part[i] : lowest;
        const FloatPart shifted = v + kRound;
        const FloatPart f = v - (shifted - kRound);
        FloatPart p = 0.00132764717f * f + 0.00967554154f;
        p = p * f + 0.0555071328f;
        p = p * f + 0.240221197f;
        p = p * f + 0.693146967f;
        p = p * f + 1.00000007f;
        r.part[i] = (FloatPart)((UintPart)p + ((UintPart)shifted << 23));
    }
    return r;
}

}  // namespace lanes
