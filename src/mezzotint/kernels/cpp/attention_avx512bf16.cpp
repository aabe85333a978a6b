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
#include "attention_avx512bf16.h"

namespace mezzotint::avx512bf16 {
namespace {

constexpr float TOO_LARGE = 0x1p64f; // of a sum of exponentials

// log(x) of a positive, normal x to 1e-7: by the series of its mantissa in [sqrt(1/2), sqrt(2)).
inline __m512 logarithm(__m512 x) {
  const __m512 one = _mm512_set1_ps(1), exponent = _mm512_getexp_ps(_mm512_mul_ps(x, _mm512_set1_ps((float)M_SQRT2)));
  const __m512 m = _mm512_scalef_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), exponent));
  const __m512 t = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), square = _mm512_mul_ps(t, t);
  __m512 p = _mm512_fmadd_ps(square, _mm512_set1_ps(2.0f / 7), _mm512_set1_ps(2.0f / 5));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(2.0f / 3));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(2.0f));
  return _mm512_fmadd_ps(exponent, _mm512_set1_ps(1 / LOG2_E), _mm512_mul_ps(p, t));
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
                  uint16_t *out, int64_t out_stride, float scale, int64_t count, float *work, float *log_sum) {
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
      multiply<V>(v, 2, 2 * GROUP, p, 2 * ROW, key_pairs, a);
      store<V>(to, ROW, a);
    }
  }

  __m512 inverse[V];
  for (int c = 0; c < V; c++) inverse[c] = _mm512_div_ps(_mm512_set1_ps(1), softmax.sum[c]);
  scattered(o, inverse, width, count, ROW, out, out_stride);
  for (int c = 0; log_sum && c < V; c++) {
    const __m512 log = _mm512_fmadd_ps(softmax.top[c], _mm512_set1_ps(1 / LOG2_E), logarithm(softmax.sum[c]));
    _mm512_mask_storeu_ps(log_sum + c * LANES, present(count, c * LANES), log);
  }
}

} // namespace

void pack_keys(const Shape &shape, const uint16_t *k, int64_t stride, uint16_t *packed, int64_t begin, int64_t end) {
  const int64_t width = shape.width;
  for (int64_t g = begin; g < end; g += 2) // two groups are 16 rows
    for (int64_t j = 0; j < width / 2; j += LANES) {
      const int64_t columns = std::min<int64_t>(LANES, width / 2 - j);
      __m512i x[LANES];
      turned(k + g * GROUP * stride + 2 * j, stride, shape.keys - g * GROUP, columns, x);
      uint16_t *to = packed + g * GROUP * width + 2 * j * GROUP;
      for (int64_t i = 0; i < columns; i++, to += 2 * GROUP) {
        _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(x[i]));
        if (g + 1 < end) _mm256_storeu_si256((__m256i *)(to + GROUP * width), _mm512_extracti64x4_epi64(x[i], 1));
      }
    }
}

void pack_values(const Shape &shape, const uint16_t *v, int64_t stride, uint16_t *packed, int64_t begin, int64_t end) {
  const int64_t width = shape.width, all_pairs = shape.key_groups() * GROUP / 2;
  for (int64_t pair = begin * GROUP / 2; pair < end * GROUP / 2; pair++)
    for (int64_t c = 0; c < width; c += LANES) { // two tiles of channels
      const uint16_t *even = v + 2 * pair * stride + c;
      const int64_t present = shape.keys - 2 * pair;
      const __m512i both = present > 0 ? woven(even, even + stride, present > 1, width - c) : _mm512_setzero_si512();
      uint16_t *to = packed + (c / GROUP * all_pairs + pair) * 2 * GROUP;
      _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(both));
      if (c + GROUP < width)
        _mm256_storeu_si256((__m256i *)(to + all_pairs * 2 * GROUP), _mm512_extracti64x4_epi64(both, 1));
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

void write(const Shape &shape, const float *accumulated, float *sum, int64_t first, int64_t row, uint16_t *out,
           int64_t out_stride) {
  for (int64_t lane = 0; lane < row; lane += LANES)
    _mm512_store_ps(sum + lane, _mm512_div_ps(_mm512_set1_ps(1), _mm512_load_ps(sum + lane)));
  scattered(accumulated, reinterpret_cast<const __m512 *>(sum), shape.width, std::min(row, shape.queries - first), row,
            out + first * out_stride, out_stride);
}

int64_t workspace(const Shape &shape) {
  return LANES * MAX_VECTORS * (shape.width / 2 + shape.width + BLOCK / 2);
}

void attend(const Shape &shape, const uint16_t *q, int64_t q_stride, const uint16_t *keys, const uint16_t *values,
            uint16_t *out, int64_t out_stride, float scale, int64_t block, float *work, float *log_sum) {
  const auto [first, vectors, count] = shape.queries_of(block);
  const auto run = vectors == 3 ? attend_block<3> : vectors == 2 ? attend_block<2> : attend_block<1>;
  run(shape, q + first * q_stride, q_stride, keys, values, out + first * out_stride, out_stride, scale * LOG2_E, count,
      work, log_sum ? log_sum + first : nullptr);
}

} // namespace mezzotint::avx512bf16
