// What the convolutions of few multiplications and their gradients share: tiles, how they are read, and how they become
// factors. For one instruction set; see winograd_avx512bf16.cpp.
#pragma once
#include <algorithm>
#include <cstring>

#include "numbers_avx512bf16.h"
#include "winograd.h"

namespace mezzotint::avx512bf16 {
namespace {

using Floats = __m512;

constexpr int64_t LANES = 16; // channels that are read together
constexpr int64_t GROUP = 8;  // what is multiplied together by 32 others
constexpr int64_t APART = 16; // 32-bit values: powers of two apart, lines would share their place in the cache

// Along one axis: PATCH inputs of a tile, the first of them BEFORE its place and the next tile's STEP further, become
// FACTORS; as many products become two outputs.
struct Pairs { // F(2, 3)
  static constexpr int PATCH = 4, STEP = 2, BEFORE = 1, FACTORS = 4;
  static void in(const Floats *d, int stride, Floats *v, int to) {
    const Floats a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride];
    v[0] = a - c, v[to] = b + c, v[2 * to] = c - b, v[3 * to] = b - e;
  }
  static void out(const Floats *m, int stride, Floats *y, int to) {
    const Floats b = m[stride], c = m[2 * stride];
    y[0] = m[0] + (b + c), y[to] = (b - c) - m[3 * stride];
  }
  // Three taps become what multiplies the factors.
  template <typename T> static void weigh(const T *g, int stride, T *u, int to) {
    const T outer = (g[0] + g[2 * stride]) * 0.5f, middle = g[stride] * 0.5f;
    u[0] = g[0], u[to] = outer + middle, u[2 * to] = outer - middle, u[3 * to] = g[2 * stride];
  }
};
struct Doubled { // an input's two copies: each meets itself, and one of its neighbours
  static constexpr int PATCH = 3, STEP = 1, BEFORE = 1, FACTORS = 3;
  static void in(const Floats *d, int stride, Floats *v, int to) {
    const Floats a = d[0], b = d[stride], c = d[2 * stride];
    v[0] = b, v[to] = a - b, v[2 * to] = c - b;
  }
  static void out(const Floats *m, int stride, Floats *y, int to) {
    y[0] = m[0] + m[stride], y[to] = m[0] + m[2 * stride];
  }
  template <typename T> static void weigh(const T *g, int stride, T *u, int to) {
    u[0] = (g[0] + g[stride]) + g[2 * stride], u[to] = g[0], u[2 * to] = g[2 * stride];
  }
};

// The inputs of a block's tiles, 16 channels.
template <typename Axis> struct Inputs {
  int64_t rows, columns;
  float *data; // [rows][columns][16]
  Inputs(const Tiles &block, float *memory)
      : rows((block.rows() - 1) * Axis::STEP + Axis::PATCH), columns((block.columns() - 1) * Axis::STEP + Axis::PATCH),
        data(memory) {}
  int64_t size() const { return rows * columns * LANES; }
};

inline Floats widened(const uint16_t *x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// x / (1 + e^-x), to 1e-4.
inline Floats silu(Floats x) {
  return _mm512_div_ps(x, exp2(x * _mm512_set1_ps(-1.4426950408889634f)) + _mm512_set1_ps(1));
}

// The block's inputs, 16 channels from `channel` on, normalised; zeros outside the map. The channels that come next, or
// the first ones of the next block, are on their way into the cache meanwhile.
template <typename Axis>
void read(const Convolution &convolution, const Tiles &block, const uint16_t *x, int64_t channel, const Inputs<Axis> &inputs) {
  const int64_t channels = convolution.channels;
  const int64_t above = block.first_row * Axis::STEP - Axis::BEFORE,
                before = block.first_column * Axis::STEP - Axis::BEFORE;
  const int64_t begin = std::max<int64_t>(0, -before), end = std::min(inputs.columns, convolution.columns - before);
  const bool is_last = channel + 2 * LANES >= channels;
  const int64_t next = is_last ? block.columns() * Axis::STEP * channels - channel : 2 * LANES;
  const bool is_normalised = convolution.scale != nullptr;
  const Floats scale = is_normalised ? _mm512_loadu_ps(convolution.scale + channel) : _mm512_setzero_ps();
  const Floats offset = is_normalised ? _mm512_loadu_ps(convolution.offset + channel) : _mm512_setzero_ps();
  for (int64_t i = 0; i < inputs.rows; i++) {
    float *to = inputs.data + i * inputs.columns * LANES;
    const int64_t row = above + i;
    if (row < 0 || row >= convolution.rows) {
      std::memset(to, 0, sizeof(float) * inputs.columns * LANES);
      continue;
    }
    const uint16_t *from = x + (row * convolution.columns + before) * channels + channel;
    for (int64_t j = 0; j < begin; j++) _mm512_store_ps(to + j * LANES, _mm512_setzero_ps());
    for (int64_t j = end; j < inputs.columns; j++) _mm512_store_ps(to + j * LANES, _mm512_setzero_ps());
    for (int64_t j = begin; j < end; j++) {
      __builtin_prefetch(from + j * channels + next);
      const Floats value = widened(from + j * channels);
      _mm512_store_ps(to + j * LANES, is_normalised ? silu(_mm512_fmadd_ps(value, scale, offset)) : value);
    }
  }
}

// The factors of one tile.
template <typename Axis>
inline void factors_of(const float *inputs, int64_t columns, Floats (&factors)[Axis::FACTORS * Axis::FACTORS]) {
  constexpr int N = Axis::PATCH, M = Axis::FACTORS;
  Floats d[N], h[N * M];
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) {
#pragma GCC unroll 4
    for (int c = 0; c < N; c++) d[c] = _mm512_load_ps(inputs + (r * columns + c) * LANES);
    Axis::in(d, 1, h + r * M, 1);
  }
#pragma GCC unroll 4
  for (int c = 0; c < M; c++) Axis::in(h + c, M, factors + c, M);
}

} // namespace
} // namespace mezzotint::avx512bf16
