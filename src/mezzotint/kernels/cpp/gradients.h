// What gradients in ops_gradients.cpp ask of the kernels; compiled once per instruction set, without torch.
#pragma once
#include "group_norm.h"

namespace mezzotint {

// GroupNorm and SiLU, backward, of positions of one picture; y = SiLU(x * scale + offset) per channel.
// First pass: per channel sums of h', of h' (x - centre) and of x - centre, where h' is the gradient before SiLU.
#define MEZZOTINT_SLOPES(T)                                                                                            \
  void slopes(const T *x, const T *g, int64_t positions, int64_t channels, const float *scale, const float *offset,    \
              const float *centre, bool silu, float *sums)
// Second pass: dx = h' * scale + x * slope + level per channel.
#define MEZZOTINT_UNDO(T)                                                                                              \
  void undo(const T *x, const T *g, T *dx, int64_t positions, int64_t channels, const float *scale,                    \
            const float *offset, const float *slope, const float *level, bool silu)
// Rows of [value gate], each `width` wide -> value * GELU(gate), and the gradient of both from that of the product.
#define MEZZOTINT_GEGLU(T) void geglu(const T *x, T *y, int64_t rows, int64_t width)
#define MEZZOTINT_GEGLU_BACKWARD(T) void geglu_backward(const T *x, const T *g, T *dx, int64_t rows, int64_t width)

#define MEZZOTINT_GRADIENTS                                                                                            \
  MEZZOTINT_SLOPES(float);                                                                                             \
  MEZZOTINT_SLOPES(bfloat16);                                                                                          \
  MEZZOTINT_UNDO(float);                                                                                               \
  MEZZOTINT_UNDO(bfloat16);                                                                                            \
  MEZZOTINT_GEGLU(float);                                                                                              \
  MEZZOTINT_GEGLU(bfloat16);                                                                                           \
  MEZZOTINT_GEGLU_BACKWARD(float);                                                                                     \
  MEZZOTINT_GEGLU_BACKWARD(bfloat16);

namespace avx2 {
MEZZOTINT_GRADIENTS
}
namespace avx512 {
MEZZOTINT_GRADIENTS
}
} // namespace mezzotint
