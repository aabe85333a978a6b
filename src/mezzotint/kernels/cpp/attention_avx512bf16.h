// What attention forward and backward share, for processors that multiply pairs of bfloat16 (vdpbf16ps): a register tile
// of a product, and tiles of rows turned into lanes and back.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "numbers_avx512bf16.h"

namespace mezzotint::avx512bf16 {
namespace { // each object has its own: none may be linked into what an older processor runs

constexpr int64_t BLOCK = 128; // keys per block: keys, values and probabilities stay in the first cache
constexpr float LOG2_E = 1.4426950408889634f;

inline __m512bh pairs(const void *p) { return (__m512bh)_mm512_load_si512(p); }
inline __m512bh broadcast(const uint16_t *p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// a[r][c] += the product of 8 rows of pairs, each value broadcast, and V vectors of pairs. Row r's pair j is at
// left + r * row + j * step, vector c's at right + 2 * LANES * c + j * across.
template <int V>
inline void multiply(const uint16_t *left, int64_t row, int64_t step, const uint16_t *right, int64_t across,
                     int64_t count, __m512 (&a)[GROUP][V]) {
  for (int64_t j = 0; j < count; j++, left += step, right += across) {
    __m512bh b[V];
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) b[c] = pairs(right + 2 * LANES * c);
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; r++) {
      const __m512bh one = broadcast(left + r * row);
#pragma GCC unroll 3
      for (int c = 0; c < V; c++) a[r][c] = _mm512_dpbf16_ps(a[r][c], one, b[c]);
    }
  }
}

// a[r][c] = the 8 rows of V vectors at `from`, or the other way round.
template <int V> inline void load(const float *from, int64_t row, __m512 (&a)[GROUP][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) a[r][c] = _mm512_load_ps(from + r * row + c * LANES);
}
template <int V> inline void store(float *to, int64_t row, const __m512 (&a)[GROUP][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) _mm512_store_ps(to + r * row + c * LANES, a[r][c]);
}

// Scores of 8 packed keys: s[key][vector].
template <int V>
inline void scores(const uint16_t *keys, const uint16_t *q, int64_t width, __m512 (&s)[GROUP][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) s[r][c] = _mm512_setzero_ps();
  multiply<V>(keys, 2, 2 * GROUP, q, 2 * LANES * V, width / 2, s);
}

// The first `count` of the lanes from `lane` on.
inline __mmask16 present(int64_t count, int64_t lane = 0) {
  return (__mmask16)((1u << std::clamp<int64_t>(count - lane, 0, LANES)) - 1);
}

// 16 rows of 16 32-bit values, rows and columns exchanged.
inline void transpose(__m512i (&x)[LANES]) {
  __m512i y[LANES];
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < LANES; i += 4) { // x[i + n]: columns n, n + 4, n + 8, n + 12 of rows i to i + 3
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < 4; n++) {
    y[n] = _mm512_shuffle_i32x4(x[n], x[n + 4], 0x88); // columns n and n + 8 of rows 0 to 7
    y[n + 4] = _mm512_shuffle_i32x4(x[n], x[n + 4], 0xdd);
    y[n + 8] = _mm512_shuffle_i32x4(x[n + 8], x[n + 12], 0x88);
    y[n + 12] = _mm512_shuffle_i32x4(x[n + 8], x[n + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int n = 0; n < 4; n++) {
    x[n] = _mm512_shuffle_i32x4(y[n], y[n + 8], 0x88);
    x[n + 4] = _mm512_shuffle_i32x4(y[n + 4], y[n + 12], 0x88);
    x[n + 8] = _mm512_shuffle_i32x4(y[n], y[n + 8], 0xdd);
    x[n + 12] = _mm512_shuffle_i32x4(y[n + 4], y[n + 12], 0xdd);
  }
}

// Behind the row of a head lies that of the next head, which will be read soon; processors do not guess it.
inline void ask_for_next(const uint16_t *row) { _mm_prefetch((const char *)row + 128, _MM_HINT_T0); }

// 16 rows that lie `stride` apart, turned: x[j] holds pair j of each. Of `count` rows and `columns` pairs; zeros beyond.
inline void turned(const uint16_t *from, int64_t stride, int64_t count, int64_t columns, __m512i (&x)[LANES]) {
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) ask_for_next(from + i * stride);
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    x[i] = i < count ? _mm512_maskz_loadu_epi32(present(columns), from + i * stride) : _mm512_setzero_si512();
  transpose(x);
}

// Two rows of 16 channels as pairs; of `width` channels, the second row only if it is there.
inline __m512i woven(const uint16_t *even, const uint16_t *odd, bool has_odd, int64_t width) {
  ask_for_next(even);
  ask_for_next(odd);
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present(width), even));
  if (!has_odd) return low;
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(present(width), odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// `count` queries [count][width] as [width/2][row][2], zeros behind them.
inline void gathered(const uint16_t *q, int64_t stride, int64_t width, int64_t count, int64_t row, uint16_t *packed) {
  for (int64_t lane = 0; lane < row; lane += LANES)
    for (int64_t j = 0; j < width / 2; j += LANES) {
      const int64_t columns = std::min<int64_t>(LANES, width / 2 - j);
      __m512i x[LANES];
      turned(q + lane * stride + 2 * j, stride, count - lane, columns, x);
      for (int64_t i = 0; i < columns; i++) _mm512_store_si512(packed + 2 * ((j + i) * row + lane), x[i]);
    }
}

// o [width][row], each lane times its factor, as `count` rows of 16-bit values.
inline void scattered(const float *o, const __m512 *factor, int64_t width, int64_t count, int64_t row, uint16_t *out,
                      int64_t stride) {
  for (int64_t lane = 0; lane < row; lane += LANES)
    for (int64_t j = 0; j < width / 2; j += LANES) {
      const int64_t columns = std::min<int64_t>(LANES, width / 2 - j);
      __m512i x[LANES];
      for (int64_t i = 0; i < LANES; i++) {
        const float *from = o + 2 * (j + std::min(i, columns - 1)) * row + lane;
        const __m512 even = _mm512_mul_ps(_mm512_load_ps(from), factor[lane / LANES]);
        x[i] = paired(even, _mm512_mul_ps(_mm512_load_ps(from + row), factor[lane / LANES]));
      }
      transpose(x);
      for (int64_t i = 0; i < std::min<int64_t>(LANES, count - lane); i++)
        _mm512_mask_storeu_epi32(out + (lane + i) * stride + 2 * j, present(columns), x[i]);
    }
}

} // namespace
} // namespace mezzotint::avx512bf16
