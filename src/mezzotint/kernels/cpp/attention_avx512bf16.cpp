// softmax(q k^T) v in bfloat16 with float32 sums, for processors that multiply pairs of bfloat16 (vdpbf16ps).
//
// Everything is transposed: a lane is a query, so maxima, exponentials and sums never cross lanes, keys are broadcast
// from memory as they are, and the 8 keys x 48 queries of one register tile become probabilities without leaving the
// registers.
//
// The maximum that softmax subtracts is that of the first 8 keys. Any number would do as long as nothing overflows:
// float32 and bfloat16 keep their relative precision over 2^±126. A block of keys whose sum says that the first 8 were a
// bad guess is done again with its true maximum, and what came before is rescaled.
//
// Source: Dao 2023, arXiv:2307.08691 (blocks, deferred division); Milakov and Gimelshein 2018, arXiv:1805.02867.
#include "attention.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mezzotint::avx512bf16 {
namespace {

constexpr int64_t BLOCK = 128;          // keys per block: keys, values and probabilities stay in the first cache
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float TOO_LARGE = 0x1p64f;    // of a sum of exponentials

// 2^x to 8e-5, a twenty-fifth of what rounding to bfloat16 loses; 0 for -inf, inf from 128 on.
inline __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); // [0, 1)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.07802452f), f, _mm512_set1_ps(0.22606716f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69583353f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992522f));
  return _mm512_scalef_ps(p, x);
}

inline __m512bh pairs(const void *p) { return (__m512bh)_mm512_load_si512(p); }
inline __m512bh broadcast(const uint16_t *p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// Two vectors of float32 as one of 16-bit pairs: lane i holds (even[i], odd[i]).
inline __m512i paired(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// Scores of 8 keys: s[key][vector].
template <int V>
inline void scores(const uint16_t *keys, const uint16_t *q, int64_t width, __m512 (&s)[GROUP][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) s[r][c] = _mm512_setzero_ps();
  for (int64_t j = 0; j < width / 2; j++, keys += 2 * GROUP, q += 2 * LANES * V) {
    __m512bh b[V];
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) b[c] = pairs(q + 2 * LANES * c);
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; r++) {
      const __m512bh a = broadcast(keys + 2 * r);
#pragma GCC unroll 3
      for (int c = 0; c < V; c++) s[r][c] = _mm512_dpbf16_ps(s[r][c], a, b[c]);
    }
  }
}

// Byte offsets of 16 rows.
inline __m512i sixteen(int64_t stride) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)(2 * stride)));
}
inline __mmask16 present(int64_t count, int64_t lane) {
  return (__mmask16)((1u << std::clamp<int64_t>(count - lane, 0, LANES)) - 1);
}

// `count` queries [count][width] as [width/2][row][2], zeros behind them.
inline void gathered(const uint16_t *q, int64_t stride, int64_t width, int64_t count, int64_t row, uint16_t *packed) {
  for (int64_t lane = 0; lane < row; lane += LANES)
    for (int64_t j = 0; j < width / 2; j++) {
      const __m512i pair = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), present(count, lane), sixteen(stride),
                                                       q + lane * stride + 2 * j, 1);
      _mm512_store_si512(packed + 2 * (j * row + lane), pair);
    }
}

// o [width][row] / sum as `count` rows of 16-bit values.
inline void scattered(const float *o, const __m512 *sum, int64_t width, int64_t count, int64_t row, uint16_t *out,
                      int64_t stride) {
  for (int64_t lane = 0; lane < row; lane += LANES) {
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), sum[lane / LANES]);
    for (int64_t j = 0; j < width / 2; j++) {
      const float *from = o + 2 * j * row + lane;
      const __m512 even = _mm512_mul_ps(_mm512_load_ps(from), inverse);
      const __m512 odd = _mm512_mul_ps(_mm512_load_ps(from + row), inverse);
      _mm512_mask_i32scatter_epi32(out + lane * stride + 2 * j, present(count, lane), sixteen(stride),
                                   paired(even, odd), 1);
    }
  }
}

template <int V> struct Softmax {
  const Shape &shape;
  const uint16_t *q;  // [width/2][V*16][2]
  float scale;        // of scores, log2(e) included
  __m512 top[V];      // what is subtracted from scaled scores
  __m512 sum[V];      // of exponentials

  // Maximum of scaled scores over the groups [begin, end).
  void maximum(const uint16_t *keys, int64_t begin, int64_t end, __m512 (&most)[V]) const {
    for (int c = 0; c < V; c++) most[c] = _mm512_set1_ps(-INFINITY);
    for (int64_t g = begin; g < end; g++) {
      __m512 s[GROUP][V];
      scores<V>(keys + g * GROUP * shape.width, q, shape.width, s);
      const int64_t present = std::min<int64_t>(GROUP, shape.keys - g * GROUP);
      for (int r = 0; r < present; r++)
        for (int c = 0; c < V; c++) most[c] = _mm512_max_ps(most[c], s[r][c]);
    }
    for (int c = 0; c < V; c++) most[c] = _mm512_mul_ps(most[c], _mm512_set1_ps(scale));
  }

  // Probabilities of the groups [begin, end) as p[key pair][V*16][2]; their sum per query.
  void probabilities(const uint16_t *keys, int64_t begin, int64_t end, uint16_t *p, __m512 (&total)[V]) const {
    for (int c = 0; c < V; c++) total[c] = _mm512_setzero_ps();
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t g = begin; g < end; g++) {
      __m512 s[GROUP][V];
      scores<V>(keys + g * GROUP * shape.width, q, shape.width, s);
      const int64_t present = shape.keys - g * GROUP;
      if (__builtin_expect(present < GROUP, 0)) {
#pragma GCC unroll 8
        for (int r = 0; r < GROUP; r++)
          if (r >= present)
#pragma GCC unroll 3
            for (int c = 0; c < V; c++) s[r][c] = _mm512_set1_ps(-INFINITY);
      }
#pragma GCC unroll 4
      for (int r = 0; r < GROUP; r += 2)
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) {
          const __m512 even = exp2(_mm512_fmsub_ps(s[r][c], factor, top[c]));
          const __m512 odd = exp2(_mm512_fmsub_ps(s[r + 1][c], factor, top[c]));
          total[c] = _mm512_add_ps(total[c], _mm512_add_ps(even, odd));
          _mm512_store_si512(p + ((g - begin) * GROUP / 2 + r / 2) * 2 * LANES * V + 2 * LANES * c, paired(even, odd));
        }
    }
  }
};

template <int V>
void attend_block(const Shape &shape, const uint16_t *q, int64_t q_stride, const uint16_t *keys, const uint16_t *values,
                  uint16_t *out, int64_t out_stride, float scale, int64_t count, float *work) {
  const int64_t width = shape.width, groups = shape.key_groups();
  constexpr int64_t ROW = LANES * V;
  auto *packed = reinterpret_cast<uint16_t *>(work); // [width/2][ROW][2]
  float *o = work + width / 2 * ROW;                 // [width][ROW]
  auto *p = reinterpret_cast<uint16_t *>(o + width * ROW);
  gathered(q, q_stride, width, count, ROW, packed);
  std::memset(o, 0, sizeof(float) * width * ROW);

  Softmax<V> softmax{shape, packed, scale, {}, {}};
  softmax.maximum(keys, 0, 1, softmax.top);
  for (int c = 0; c < V; c++) softmax.sum[c] = _mm512_setzero_ps();

  for (int64_t begin = 0; begin < groups; begin += BLOCK / GROUP) {
    const int64_t end = std::min(begin + BLOCK / GROUP, groups), key_pairs = (end - begin) * GROUP / 2;
    __m512 total[V], alpha[V];
    softmax.probabilities(keys, begin, end, p, total);
    bool is_fine = true;
    for (int c = 0; c < V; c++) {
      alpha[c] = _mm512_set1_ps(1);
      is_fine &= _mm512_cmp_ps_mask(total[c], _mm512_set1_ps(TOO_LARGE), _CMP_LE_OQ) == 0xffff;
    }
    if (__builtin_expect(!is_fine, 0)) {
      __m512 most[V];
      softmax.maximum(keys, begin, end, most);
      for (int c = 0; c < V; c++) {
        most[c] = _mm512_max_ps(softmax.top[c], most[c]);
        alpha[c] = exp2(_mm512_sub_ps(softmax.top[c], most[c]));
        softmax.top[c] = most[c];
        softmax.sum[c] = _mm512_mul_ps(softmax.sum[c], alpha[c]);
      }
      softmax.probabilities(keys, begin, end, p, total);
    }
    for (int c = 0; c < V; c++) softmax.sum[c] = _mm512_add_ps(softmax.sum[c], total[c]);

    for (int64_t tile = 0; tile < width / GROUP; tile++) {
      float *to = o + tile * GROUP * ROW;
      const uint16_t *v = values + (tile * groups + begin) * GROUP * GROUP;
      __m512 a[GROUP][V];
#pragma GCC unroll 8
      for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) a[r][c] = _mm512_mul_ps(_mm512_load_ps(to + r * ROW + c * LANES), alpha[c]);
      const uint16_t *probability = p;
      for (int64_t j = 0; j < key_pairs; j++, v += 2 * GROUP, probability += 2 * ROW) {
        __m512bh b[V];
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) b[c] = pairs(probability + 2 * LANES * c);
#pragma GCC unroll 8
        for (int r = 0; r < GROUP; r++) {
          const __m512bh one = broadcast(v + 2 * r);
#pragma GCC unroll 3
          for (int c = 0; c < V; c++) a[r][c] = _mm512_dpbf16_ps(a[r][c], one, b[c]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) _mm512_store_ps(to + r * ROW + c * LANES, a[r][c]);
    }
  }

  scattered(o, softmax.sum, width, count, ROW, out, out_stride);
}

} // namespace

void pack_keys(const Shape &shape, const uint16_t *k, int64_t stride, uint16_t *packed, int64_t begin, int64_t end) {
  const int64_t width = shape.width;
  for (int64_t g = begin; g < end; g++)
    for (int64_t r = 0; r < GROUP; r++) {
      const int64_t key = g * GROUP + r;
      uint16_t *to = packed + g * GROUP * width + 2 * r;
      for (int64_t j = 0; j < width / 2; j++, to += 2 * GROUP) {
        if (key < shape.keys)
          std::memcpy(to, k + key * stride + 2 * j, 4);
        else
          std::memset(to, 0, 4);
      }
    }
}

void pack_values(const Shape &shape, const uint16_t *v, int64_t stride, uint16_t *packed, int64_t begin, int64_t end) {
  const int64_t width = shape.width, groups = shape.key_groups();
  for (int64_t g = begin; g < end; g++)
    for (int64_t pair = g * GROUP / 2; pair < (g + 1) * GROUP / 2; pair++) {
      const int64_t present = shape.keys - 2 * pair;
      const uint16_t *even = v + 2 * pair * stride, *odd = even + stride;
      for (int64_t tile = 0; tile < width / GROUP; tile++) {
        uint16_t *to = packed + (tile * groups * GROUP / 2 + pair) * 2 * GROUP;
        for (int64_t r = 0; r < GROUP; r++) {
          to[2 * r] = present > 0 ? even[tile * GROUP + r] : 0;
          to[2 * r + 1] = present > 1 ? odd[tile * GROUP + r] : 0;
        }
      }
    }
}

void pack_queries(const Shape &shape, const uint16_t *q, int64_t stride, int64_t first, int64_t row,
                  uint16_t *packed) {
  gathered(q + first * stride, stride, shape.width, std::min(row, shape.queries - first), row, packed);
}

void transpose_values(const Shape &shape, const uint16_t *v, int64_t from, uint16_t *packed, int64_t stride,
                      int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c++)
    for (int64_t key = 0; key < stride; key++) packed[c * stride + key] = key < shape.keys ? v[key * from + c] : 0;
}

void weigh(const float *scores, int64_t keys, int64_t row, float scale, float *top, float *sum, float *accumulated,
           int64_t width, uint16_t *probabilities) {
  const __m512 factor = _mm512_set1_ps(scale * LOG2_E), none = _mm512_set1_ps(-INFINITY);
  for (int64_t lane = 0; lane < row; lane += LANES) {
    const __m512 before = _mm512_load_ps(top + lane);
    __m512 most = none, total = _mm512_setzero_ps();
    for (int64_t key = 0; key < keys; key++) most = _mm512_max_ps(most, _mm512_load_ps(scores + key * row + lane));
    most = _mm512_max_ps(before, _mm512_mul_ps(most, factor));
    for (int64_t key = 0; key < keys; key += 2) {
      const float *s = scores + key * row + lane;
      const __m512 last = key + 1 < keys ? _mm512_load_ps(s + row) : none;
      const __m512 even = exp2(_mm512_fmsub_ps(_mm512_load_ps(s), factor, most));
      const __m512 odd = exp2(_mm512_fmsub_ps(last, factor, most));
      total = _mm512_add_ps(total, _mm512_add_ps(even, odd));
      _mm512_store_si512(probabilities + key * row + 2 * lane, paired(even, odd));
    }
    const __m512 alpha = exp2(_mm512_sub_ps(before, most));
    if (_mm512_cmp_ps_mask(before, most, _CMP_NEQ_UQ))
      for (int64_t c = 0; c < width; c++) {
        float *at = accumulated + c * row + lane;
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), alpha));
      }
    _mm512_store_ps(top + lane, most);
    _mm512_store_ps(sum + lane, _mm512_fmadd_ps(_mm512_load_ps(sum + lane), alpha, total));
  }
}

void write(const Shape &shape, const float *accumulated, const float *sum, int64_t first, int64_t row, uint16_t *out,
           int64_t out_stride) {
  scattered(accumulated, reinterpret_cast<const __m512 *>(sum), shape.width, std::min(row, shape.queries - first), row,
            out + first * out_stride, out_stride);
}

int64_t workspace(const Shape &shape) {
  return LANES * MAX_VECTORS * (shape.width / 2 + shape.width + BLOCK / 2);
}

void attend(const Shape &shape, const uint16_t *q, int64_t q_stride, const uint16_t *keys, const uint16_t *values,
            uint16_t *out, int64_t out_stride, float scale, int64_t block, float *work) {
  const auto [first, vectors, count] = shape.queries_of(block);
  const auto run = vectors == 3 ? attend_block<3> : vectors == 2 ? attend_block<2> : attend_block<1>;
  run(shape, q + first * q_stride, q_stride, keys, values, out + first * out_stride, out_stride, scale * LOG2_E, count,
      work);
}

} // namespace mezzotint::avx512bf16
