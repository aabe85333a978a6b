// What ops.cpp asks of the kernels that make bytes of numbers; compiled without torch (see attention.h).
#pragma once
#include <cstdint>

namespace mezzotint::avx512 {

// The bits of the largest magnitude of x, as float32's; numbers are uint16_t for bfloat16, uint32_t for float32.
#define MEZZOTINT_LARGEST(T) uint32_t largest(const T *x, int64_t count)
// y = x * factor + 128.5 cut off: 128 is 0, and the half makes it the nearest.
#define MEZZOTINT_BYTES(T) void bytes(const T *x, uint8_t *y, int64_t count, float factor)

MEZZOTINT_LARGEST(uint16_t);
MEZZOTINT_LARGEST(uint32_t);
MEZZOTINT_BYTES(uint16_t);
MEZZOTINT_BYTES(uint32_t);

} // namespace mezzotint::avx512
