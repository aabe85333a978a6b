// Backward passes of GroupNorm with SiLU and of GEGLU, and GEGLU forward: each input is read as it is, everything between
// is computed again in float32 and never stored.
//
// Source: Wu and He 2018, arXiv:1803.08494; Shazeer 2020, arXiv:2002.05202; Abramowitz and Stegun 1964, 7.1.26 (erf).
#include "gradients.h"

#include <vector>

#include "numbers.h"

namespace mezzotint::MEZZOTINT_ISA {
namespace {

template <bool SILU> inline float before(float g, float h) { // the gradient before SiLU
  if (!SILU) return g;
  const float s = 1.0f / (1.0f + exponential(-h));
  return g * (s + h * s * (1.0f - s));
}

template <bool SILU, typename T>
void slopes_of(const T *__restrict x, const T *__restrict g, int64_t positions, int64_t channels,
               const float *__restrict scale, const float *__restrict offset, const float *__restrict centre,
               float *__restrict sums) {
  float *__restrict first = sums, *__restrict second = sums + channels, *__restrict third = second + channels;
  std::fill_n(sums, 3 * channels, 0.0f);
  for (int64_t at = 0; at < positions; at++, x += channels, g += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float v = widened(x[c]), slope = before<SILU>(widened(g[c]), v * scale[c] + offset[c]), away = v - centre[c];
      first[c] += slope;
      second[c] += slope * away;
      third[c] += away;
    }
}

template <bool SILU, typename T>
void undone(const T *__restrict x, const T *__restrict g, T *__restrict dx, int64_t positions, int64_t channels,
            const float *__restrict scale, const float *__restrict offset, const float *__restrict slope,
            const float *__restrict level) {
  for (int64_t at = 0; at < positions; at++, x += channels, g += channels, dx += channels)
    for (int64_t c = 0; c < channels; c++) {
      const float v = widened(x[c]), above = before<SILU>(widened(g[c]), v * scale[c] + offset[c]);
      narrow(above * scale[c] + (v * slope[c] + level[c]), dx[c]);
    }
}

struct Gate {
  float share, density; // normal distribution up to x, and its density there
};

inline Gate gate_of(float x) {
  const float size = x < 0 ? -x : x, power = exponential(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * size);
  const float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float tail = 0.5f * p * power;
  return {x < 0 ? tail : 1.0f - tail, 0.39894228f * power};
}

template <typename T>
void gate_row(const T *__restrict value, const T *__restrict gate, T *__restrict y, int64_t width) {
  for (int64_t c = 0; c < width; c++) {
    const float at = widened(gate[c]);
    narrow(widened(value[c]) * at * gate_of(at).share, y[c]);
  }
}

template <typename T>
void ungate_row(const T *__restrict value, const T *__restrict gate, const T *__restrict g, T *__restrict dvalue,
                T *__restrict dgate, int64_t width) {
  for (int64_t c = 0; c < width; c++) {
    const float at = widened(gate[c]), above = widened(g[c]);
    const Gate found = gate_of(at);
    narrow(above * at * found.share, dvalue[c]);
    narrow(above * widened(value[c]) * (found.share + at * found.density), dgate[c]);
  }
}

} // namespace

#define SLOPES(T)                                                                                                      \
  MEZZOTINT_SLOPES(T) {                                                                                                \
    silu ? slopes_of<true>(x, g, positions, channels, scale, offset, centre, sums)                                     \
         : slopes_of<false>(x, g, positions, channels, scale, offset, centre, sums);                                   \
  }
#define UNDO(T)                                                                                                        \
  MEZZOTINT_UNDO(T) {                                                                                                  \
    silu ? undone<true>(x, g, dx, positions, channels, scale, offset, slope, level)                                    \
         : undone<false>(x, g, dx, positions, channels, scale, offset, slope, level);                                  \
  }
#define GEGLU(T)                                                                                                       \
  MEZZOTINT_GEGLU(T) {                                                                                                 \
    for (int64_t row = 0; row < rows; row++) gate_row(x + 2 * row * width, x + (2 * row + 1) * width, y + row * width, width); \
  }
#define GEGLU_BACKWARD(T)                                                                                              \
  MEZZOTINT_GEGLU_BACKWARD(T) {                                                                                        \
    for (int64_t row = 0; row < rows; row++)                                                                           \
      ungate_row(x + 2 * row * width, x + (2 * row + 1) * width, g + row * width, dx + 2 * row * width,                \
                 dx + (2 * row + 1) * width, width);                                                                   \
  }
SLOPES(float)
SLOPES(bfloat16)
UNDO(float)
UNDO(bfloat16)
GEGLU(float)
GEGLU(bfloat16)
GEGLU_BACKWARD(float)
GEGLU_BACKWARD(bfloat16)

} // namespace mezzotint::MEZZOTINT_ISA
