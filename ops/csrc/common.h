// Shared by all native sources: the export marker and the guard of the C boundary.
// A plain C ABI: raw pointers and sizes, never a PyTorch header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>

#define NATIVE_EXPORT extern "C" __attribute__((visibility("default")))

namespace native {

// Runs `work`; 0, or -1 when it ran out of memory or room. Exceptions must not cross
// the C boundary, nor the end of an OpenMP region: everything that allocates runs in
// here, and `ops.kernels.run` turns the -1 into a MemoryError: an exported function's `int` is such a status.
template <typename Work>
int guarded(Work work) noexcept {
    try {
        work();
        return 0;
    } catch (const std::exception&) {
        return -1;
    }
}

}  // namespace native
