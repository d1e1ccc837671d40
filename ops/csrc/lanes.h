// Floats handled as one value: as many as fill a register, or sixteen.
//
// Built on GCC/Clang vector extensions at the machine's own width (16, 8 or 4
// floats), so the same source is one AVX-512 register, two AVX ones or four SSE
// ones. A generic 64-byte vector type would be shorter, but on narrower machines
// the compiler then falls back to scalar code for every comparison. Where many
// values live at once, as in an inner loop, two registers for each are more than
// AVX has: `Floats<kWidth>` takes one.
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

typedef float FloatPart __attribute__((vector_size(4 * kWidth), may_alias));
typedef int32_t IntPart __attribute__((vector_size(4 * kWidth), may_alias));
typedef uint32_t UintPart __attribute__((vector_size(4 * kWidth), may_alias));

template <int n>
struct Floats {
    FloatPart part[n / kWidth];
};
template <int n>
struct Integers {
    IntPart part[n / kWidth];
};
template <int n>
struct Truths {  // all bits set in a true lane
    IntPart part[n / kWidth];
};
using Lanes = Floats<kLanes>;
using Mask = Truths<kLanes>;

#define FOR_PARTS for (int i = 0; i < n / kWidth; ++i)
#define LANES template <int n> ALWAYS_INLINE
#define LANES_OR_SIXTEEN template <int n = kLanes> ALWAYS_INLINE

LANES_OR_SIXTEEN Floats<n> broadcast(float value) {
    Floats<n> r;
    FOR_PARTS r.part[i] = value - FloatPart{};
    return r;
}
LANES_OR_SIXTEEN Floats<n> load(const float* p) {
    Floats<n> r;
    FOR_PARTS std::memcpy(&r.part[i], p + i * kWidth, sizeof(FloatPart));
    return r;
}
LANES void store(float* p, const Floats<n>& a) {
    FOR_PARTS std::memcpy(p + i * kWidth, &a.part[i], sizeof(FloatPart));
}
LANES Integers<n> load(const int32_t* p) {
    Integers<n> r;
    FOR_PARTS std::memcpy(&r.part[i], p + i * kWidth, sizeof(IntPart));
    return r;
}
LANES void store(int32_t* p, const Integers<n>& a) {
    FOR_PARTS std::memcpy(p + i * kWidth, &a.part[i], sizeof(IntPart));
}

#define LANES_BINARY(op)                                                                     \
    LANES Floats<n> operator op(const Floats<n>& a, const Floats<n>& b) {                    \
        Floats<n> r;                                                                         \
        FOR_PARTS r.part[i] = a.part[i] op b.part[i];                                        \
        return r;                                                                            \
    }                                                                                        \
    LANES Floats<n> operator op(const Floats<n>& a, float b) { return a op broadcast<n>(b); }\
    LANES Floats<n> operator op(float a, const Floats<n>& b) { return broadcast<n>(a) op b; }
LANES_BINARY(+)
LANES_BINARY(-)
LANES_BINARY(*)
LANES_BINARY(/)
#undef LANES_BINARY
LANES Floats<n> operator-(const Floats<n>& a) {
    Floats<n> r;
    FOR_PARTS r.part[i] = -a.part[i];
    return r;
}
LANES Floats<n>& operator+=(Floats<n>& a, const Floats<n>& b) { return a = a + b; }

#define LANES_COMPARE(op)                                                                    \
    LANES Truths<n> operator op(const Floats<n>& a, const Floats<n>& b) {                    \
        Truths<n> r;                                                                         \
        FOR_PARTS r.part[i] = a.part[i] op b.part[i];                                        \
        return r;                                                                            \
    }                                                                                        \
    LANES Truths<n> operator op(const Floats<n>& a, float b) { return a op broadcast<n>(b); }
LANES_COMPARE(<)
LANES_COMPARE(<=)
LANES_COMPARE(>)
LANES_COMPARE(>=)
LANES_COMPARE(==)
#undef LANES_COMPARE
LANES Truths<n> operator>(const Integers<n>& a, int32_t b) {
    Truths<n> r;
    FOR_PARTS r.part[i] = a.part[i] > (b - IntPart{});
    return r;
}
LANES Truths<n> operator&(const Truths<n>& a, const Truths<n>& b) {
    Truths<n> r;
    FOR_PARTS r.part[i] = a.part[i] & b.part[i];
    return r;
}

LANES Floats<n> select(const Truths<n>& m, const Floats<n>& yes, const Floats<n>& no) {
    Floats<n> r;
    FOR_PARTS r.part[i] = m.part[i] ? yes.part[i] : no.part[i];
    return r;
}
LANES Floats<n> select(const Truths<n>& m, const Floats<n>& yes, float no) { return select(m, yes, broadcast<n>(no)); }
LANES Integers<n> select(const Truths<n>& m, int32_t yes, const Integers<n>& no) {
    Integers<n> r;
    FOR_PARTS r.part[i] = m.part[i] ? (yes - IntPart{}) : no.part[i];
    return r;
}

// What GCC does not make one instruction of by itself. In `min` and `max` a NaN in `a` gives `b`.
#if defined(__AVX512F__)
#define INTRINSIC(name) _mm512_##name##_ps
#elif defined(__AVX__)
#define INTRINSIC(name) _mm256_##name##_ps
#elif defined(__SSE2__)
#define INTRINSIC(name) _mm_##name##_ps
#endif
LANES Floats<n> min(const Floats<n>& a, const Floats<n>& b) {
#ifdef INTRINSIC
    Floats<n> r;
    FOR_PARTS r.part[i] = INTRINSIC(min)(a.part[i], b.part[i]);
    return r;
#else
    return select(a < b, a, b);
#endif
}
LANES Floats<n> max(const Floats<n>& a, const Floats<n>& b) {
#ifdef INTRINSIC
    Floats<n> r;
    FOR_PARTS r.part[i] = INTRINSIC(max)(a.part[i], b.part[i]);
    return r;
#else
    return select(a > b, a, b);
#endif
}
LANES Floats<n> sqrt(const Floats<n>& a) {
    Floats<n> r;
#ifdef INTRINSIC
    FOR_PARTS r.part[i] = INTRINSIC(sqrt)(a.part[i]);
#else
    FOR_PARTS for (int j = 0; j < kWidth; ++j) r.part[i][j] = std::sqrt(a.part[i][j]);
#endif
    return r;
}
LANES Floats<n> min(const Floats<n>& a, float b) { return min(a, broadcast<n>(b)); }
LANES Floats<n> max(const Floats<n>& a, float b) { return max(a, broadcast<n>(b)); }
LANES Floats<n> abs(const Floats<n>& a) {
    Floats<n> r;
    FOR_PARTS r.part[i] = (FloatPart)((IntPart)a.part[i] & 0x7fffffff);  // without the sign bit
    return r;
}

// One bit per lane, lane 0 lowest.
LANES uint32_t bits(const Truths<n>& m) {
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

// Of `a` and then `b` the floats numbered I.
template <size_t... I>
ALWAYS_INLINE FloatPart shuffle(const FloatPart& a, const FloatPart& b, std::index_sequence<I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, int(I)...);
#else
    return __builtin_shuffle(a, b, IntPart{int(I)...});
#endif
}

// The sums of neighbors, runs of `length` floats each, in `a` and then in `b`. Single floats pair up within 16 bytes,
// where shuffles are cheapest: 16 bytes of the result are of the same 16 of `a` and of `b`.
template <int length, size_t... I>
ALWAYS_INLINE FloatPart paired(const FloatPart& a, const FloatPart& b, std::index_sequence<I...>) {
    constexpr int group = length == 1 ? 4 : kWidth;
    constexpr auto from = [](int i, int odd) {
        const int run = 2 * (i % (group / 2) / length) + odd;
        return size_t((i % group < group / 2 ? 0 : kWidth) + i / group * group + run * length + i % length);
    };
    return shuffle(a, b, std::index_sequence<from(int(I), 0)...>()) +
           shuffle(a, b, std::index_sequence<from(int(I), 1)...>());
}

// The sums over the lanes of `count` values, lane k of the result for value k.
// Neighbors are added pairwise over two registers at a time, so that all sums
// together cost little more than one.
template <int count, int n>
ALWAYS_INLINE Lanes totals(const Floats<n> (&values)[count]) {
    static_assert(count <= kLanes, "one lane per sum");
    constexpr auto index = std::make_index_sequence<kWidth>();
    Lanes r;
    for (int part = 0; part < kLanes / kWidth; ++part) {
        FloatPart level[kWidth];
        for (int j = 0; j < kWidth; ++j) {
            const int k = part * kWidth + j;
            level[j] = k < count ? values[k].part[0] : FloatPart{};
            if (k < count)
                for (int i = 1; i < n / kWidth; ++i) level[j] += values[k].part[i];
        }
        for (int left = kWidth / 2; left; left /= 2)
            for (int j = 0; j < left; ++j) {
                const FloatPart &a = level[2 * j], &b = level[2 * j + 1];
                level[j] = left >= kWidth / 4 ? paired<1>(a, b, index) : paired<4>(a, b, index);
            }
        r.part[part] = level[0];
    }
    return r;
}

// 2^x for |x| <= 126, beyond it anything. Relative error under 3e-7.
// The degree-5 polynomial is a minimax fit of 2^f on [-0.5, 0.5]; the whole part
// goes straight into the exponent bits. An own exponential because expf only
// vectorizes with -ffast-math, which also drops the NaN checks this code needs.
LANES Floats<n> exp2(const Floats<n>& x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    Floats<n> r;
    FOR_PARTS {
        const FloatPart shifted = x.part[i] + kRound;
        const FloatPart f = x.part[i] - (shifted - kRound);
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
