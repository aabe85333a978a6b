// GroupNorm and SiLU of channels_last pictures in two passes over memory, vectors along channels: groups of 10 channels
// need not fill a vector, because sums are kept per channel and joined into groups at the end (ops.cpp).
//
// Sums of squares are about the chunk's first position, not about 0: a mean of many standard deviations costs no digits.
//
// Source: Wu and He 2018, arXiv:1803.08494; Chan, Golub and LeVeque 1983 (sums about a pivot).
#include "group_norm.h"

#include <vector>

#include "numbers.h"

namespace mezzotint::MEZZOTINT_ISA {
namespace {

template <typename T>
void moments_of(const T *__restrict x, int64_t positions, int64_t channels, float *__restrict mean,
                float *__restrict squares) {
  constexpr int ROWS = 4; // read together, so that the sums are read and written a quarter as often
  std::vector<float> pivots(channels);
  float *__restrict pivot = pivots.data();
  for (int64_t c = 0; c < channels; c++) {
    pivot[c] = widened(x[c]);
    mean[c] = squares[c] = 0;
  }
  int64_t at = 0;
  for (; at + ROWS <= positions; at += ROWS) {
    const T *__restrict a = x + at * channels, *__restrict b = a + channels, *__restrict d = b + channels,
                        *__restrict e = d + channels;
    for (int64_t c = 0; c < channels; c++) {
      const float p = pivot[c], w = widened(a[c]) - p, y = widened(b[c]) - p, z = widened(d[c]) - p,
                  u = widened(e[c]) - p;
      mean[c] += (w + y) + (z + u);
      squares[c] += (w * w + y * y) + (z * z + u * u);
    }
  }
  for (; at < positions; at++)
    for (int64_t c = 0; c < channels; c++) {
      const float y = widened(x[at * channels + c]) - pivot[c];
      mean[c] += y;
      squares[c] += y * y;
    }
  const float n = (float)positions;
  for (int64_t c = 0; c < channels; c++) {
    const float about = mean[c] / n;
    squares[c] = std::max(0.0f, squares[c] - about * mean[c]);
    mean[c] = pivot[c] + about;
  }
}

template <bool SILU, typename T, typename U>
void apply_to(const T *__restrict x, U *__restrict y, int64_t positions, int64_t channels,
              const float *__restrict scale, const float *__restrict offset) {
  for (int64_t at = 0; at < positions; at++, x += channels, y += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float h = widened(x[c]) * scale[c] + offset[c];
      narrow(SILU ? h / (1.0f + exponential(-h)) : h, y[c]);
    }
}

} // namespace

#define MOMENTS(T)                                                                                                     \
  MEZZOTINT_MOMENTS(T) { moments_of(x, positions, channels, mean, squares); }
#define APPLY(T, U)                                                                                                    \
  MEZZOTINT_APPLY(T, U) {                                                                                              \
    silu ? apply_to<true>(x, y, positions, channels, scale, offset)                                                    \
         : apply_to<false>(x, y, positions, channels, scale, offset);                                                  \
  }
MOMENTS(float)
MOMENTS(bfloat16)
APPLY(float, float)
APPLY(float, bfloat16)
APPLY(bfloat16, float)
APPLY(bfloat16, bfloat16)

} // namespace mezzotint::MEZZOTINT_ISA
