// Shared by all native sources: the export marker and the thread helpers.
// A plain C ABI: raw pointers and sizes, never a PyTorch header.
#pragma once

#include <cstddef>
#include <cstdint>

#define NATIVE_EXPORT extern "C" __attribute__((visibility("default")))
