// What ops.cpp asks of the normalisation kernels; compiled once per instruction set, without torch (see attention.h).
#pragma once
#include <cstdint>

namespace mezzotint {

constexpr int64_t CHUNK = 1024; // positions whose sums are added up in float32; fixed, so that threads change no bit

struct bfloat16 {
  uint16_t bits;
};

template <typename T> using Moments = void (*)(const T *, int64_t, int64_t, float *, float *);
template <typename T, typename U>
using Apply = void (*)(const T *, U *, int64_t, int64_t, const float *, const float *, bool);

// x [positions channels] -> per channel, of this chunk: mean and sum of squared distances from it.
#define MEZZOTINT_MOMENTS(T) void moments(const T *x, int64_t positions, int64_t channels, float *mean, float *squares)
// y = x * scale + offset per channel, then SiLU.
#define MEZZOTINT_APPLY(T, U)                                                                                          \
  void apply(const T *x, U *y, int64_t positions, int64_t channels, const float *scale, const float *offset, bool silu)
#define MEZZOTINT_NORM                                                                                                 \
  MEZZOTINT_MOMENTS(float);                                                                                            \
  MEZZOTINT_MOMENTS(bfloat16);                                                                                         \
  MEZZOTINT_APPLY(float, float);                                                                                       \
  MEZZOTINT_APPLY(float, bfloat16);                                                                                    \
  MEZZOTINT_APPLY(bfloat16, float);                                                                                    \
  MEZZOTINT_APPLY(bfloat16, bfloat16);

namespace avx2 {
MEZZOTINT_NORM
}
namespace avx512 {
MEZZOTINT_NORM
}
} // namespace mezzotint
