// Shared by all kernels: the export marker, the guard of the C boundary, arrays and 3-vectors.
// A plain C ABI: raw pointers and sizes, never a PyTorch header.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <utility>

#include "constants.h"

#ifdef _OPENMP
#include <omp.h>
#else  // one thread
#include <chrono>
inline int omp_get_max_threads() { return 1; }
inline int omp_get_num_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
inline double omp_get_wtime() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
#endif

// `ops.kernels.run` reads the types of what is marked so; `int` as a result is a status of `guarded`.
#ifdef _WIN32
#include <malloc.h>
#define NATIVE_EXPORT extern "C" __declspec(dllexport)
#else
#define NATIVE_EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace native {

// Runs `work`; 0, or -1 when it ran out of memory or room. Exceptions must not cross
// the C boundary, nor the end of an OpenMP region: everything that allocates runs in
// here, and `ops.kernels.run` turns the -1 into a MemoryError.
template <typename Work>
int guarded(Work work) noexcept {
    try {
        work();
        return 0;
    } catch (const std::exception&) {
        return -1;
    }
}

#ifdef _WIN32  // has no aligned_alloc
inline void* allocate(size_t bytes) { return _aligned_malloc(bytes, 64); }
inline void release(void* data) { _aligned_free(data); }
#else
inline void* allocate(size_t bytes) { return std::aligned_alloc(64, bytes); }
inline void release(void* data) { std::free(data); }
#endif

// A grow-only array from the boundary of a cache line on (a vector load across two lines takes twice the
// time) that is neither zeroed, unless asked to, nor copied when it grows.
template <typename T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t count) { reserve(count), clear(); }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_), std::swap(capacity_, other.capacity_);
        return *this;
    }
    ~Buffer() { release(data_); }

    // Room for `count` elements; what it held before is lost.
    T* reserve(size_t count) {
        if (count > capacity_) {
            release(data_);
            data_ = nullptr;
            capacity_ = 0;
            const size_t wanted = count + count / 4;
            const size_t bytes = (wanted * sizeof(T) + 63) / 64 * 64;
            data_ = static_cast<T*>(allocate(bytes));
            if (!data_) throw std::bad_alloc();
            capacity_ = wanted;
        }
        return data_;
    }
    void clear() { std::fill_n(data_, capacity_, T()); }
    T* data() const { return data_; }
    T* operator+(size_t i) const { return data_ + i; }
    T& operator[](size_t i) const { return data_[i]; }

private:
    T* data_ = nullptr;
    size_t capacity_ = 0;
};

// A 3-vector of numbers, or of sixteen numbers each.
template <typename T>
struct Vector3 {
    T x, y, z;
};
#define VEC3 template <typename T> ALWAYS_INLINE
VEC3 T dot(const Vector3<T>& a, const Vector3<T>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
VEC3 Vector3<T> operator*(const Vector3<T>& a, const T& s) { return {a.x * s, a.y * s, a.z * s}; }
VEC3 Vector3<T> operator+(const Vector3<T>& a, const Vector3<T>& b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
VEC3 Vector3<T> operator-(const Vector3<T>& a, const Vector3<T>& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
VEC3 Vector3<T> cross(const Vector3<T>& a, const Vector3<T>& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
#undef VEC3

}  // namespace native
