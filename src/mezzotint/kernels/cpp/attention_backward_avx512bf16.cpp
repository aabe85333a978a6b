// Gradients of softmax(q k^T) v in bfloat16 with float32 sums, for processors that multiply pairs of bfloat16.
//
// With P the probabilities, computed again from the scores and the logarithm of their sum, and g the gradient above:
//   dv = P^T g,  dS = P * (g v^T - mean),  dk = dS^T q,  dq = dS k,
// where the mean is that of g v^T by P, which is rowsum(g * o). P and dS are rounded to bfloat16 for the products that
// they go into; everything else is float32.
//
// As forward, 8 keys x 48 queries are one register tile, of scores and then of g v^T, so that P and dS come into being
// in registers. dq adds up over keys as forward's result does. dk and dv are added up over queries: there a lane is a
// channel, and pairs of queries are broadcast. Keys are the outer loop: their gradients stay in the second cache until
// they are written, that of the queries passes by once per block of keys.
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#include "attention_avx512bf16.h"

#include <utility>

namespace mezzotint::avx512bf16 {
namespace {

constexpr int64_t PANEL = 2 * LANES * MAX_VECTORS; // queries over which a tile of dk and dv is added up in registers

int64_t padded(const Shape &shape) { return shape.query_vectors() * LANES; }
int64_t row_of(const Shape &shape) { return (shape.width + LANES - 1) / LANES * LANES; }

// Rows [count][width] as pairs of them, [lanes/2][row][2], zeros behind the last row and channel.
void pair_rows(Rows<const uint16_t> from, int64_t width, int64_t count, int64_t lanes, int64_t row, uint16_t *packed) {
  for (int64_t i = 0; i < lanes; i += 2)
    for (int64_t c = 0; c < row; c += LANES, packed += 2 * LANES) {
      const uint16_t *even = from.data + i * from.stride + c;
      const __m512i none = _mm512_setzero_si512();
      _mm512_store_si512(packed, i < count ? woven(even, even + from.stride, i + 1 < count, width - c) : none);
    }
}

float dot(const uint16_t *a, const uint16_t *b, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < width; j += 2 * LANES) {
    const __mmask16 mask = present((width - j) / 2);
    ask_for_next(b + j);
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi32(mask, a + j),
                           (__m512bh)_mm512_maskz_loadu_epi32(mask, b + j));
  }
  return _mm512_reduce_add_ps(sum);
}

// `count` rows [count][row] of float32, times the factor, as rows of 16-bit values.
void rounded(const float *from, int64_t row, float factor, int64_t width, int64_t count, Rows<uint16_t> to) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t c = 0; c < row; c += LANES) {
      const __m512 x = _mm512_mul_ps(_mm512_load_ps(from + i * row + c), _mm512_set1_ps(factor));
      _mm256_mask_storeu_epi16(to.data + i * to.stride + c, present(width, c), (__m256i)_mm512_cvtneps_pbh(x));
    }
}

// What the kernel works in, carved out of one piece of memory; every part is whole vectors.
struct Work {
  float *log_sum, *mean;       // [queries], the former in powers of 2
  float *dk, *dv;              // [BLOCK][row]
  uint16_t *q, *g;             // packed as forward, a block of queries after the other
  uint16_t *q_pairs, *g_pairs; // [queries/2][row][2]
  uint16_t *keys, *values;     // both packed as keys
  uint16_t *keys_across;       // packed as values
  uint16_t *p, *ds;            // [BLOCK][PANEL]
  uint16_t *ds_pairs;          // [BLOCK/2][lanes of a block of queries][2]
  int64_t size;                // in 32-bit values

  Work(const Shape &shape, float *memory) : size(0) {
    const auto floats = [&](int64_t count) { return std::exchange(size, size + count) + memory; };
    const auto halves = [&](int64_t count) { return reinterpret_cast<uint16_t *>(floats((count + 31) / 32 * 16)); };
    const int64_t queries = padded(shape), row = row_of(shape);
    log_sum = floats(queries), mean = floats(queries);
    dk = floats(BLOCK * row), dv = floats(BLOCK * row);
    q = halves(queries * shape.width), g = halves(queries * shape.width);
    q_pairs = halves(queries * row), g_pairs = halves(queries * row);
    keys = halves(shape.packed()), values = halves(shape.packed()), keys_across = halves(shape.packed());
    p = halves(BLOCK * PANEL), ds = halves(BLOCK * PANEL), ds_pairs = halves(BLOCK * PANEL / 2);
  }
};

// P and dS of a block of queries and the keys of the groups [begin, end), from column `lane` of the panel on; what
// these keys contribute to dq, [width][V*16].
template <int V>
void block_of_queries(const Shape &shape, const Work &work, float factor, int64_t first, int64_t lane, int64_t begin,
                      int64_t end, float *dq) {
  const int64_t width = shape.width;
  constexpr int64_t ROW = LANES * V;
  __m512 log_sum[V], mean[V];
  for (int c = 0; c < V; c++) {
    log_sum[c] = _mm512_load_ps(work.log_sum + first + c * LANES);
    mean[c] = _mm512_load_ps(work.mean + first + c * LANES);
  }
  uint16_t *p = work.p + lane, *ds = work.ds + lane, *pair = work.ds_pairs;
  for (int64_t group = begin; group < end; group++, p += GROUP * PANEL, ds += GROUP * PANEL) {
    __m512 s[GROUP][V], t[GROUP][V];
    scores<V>(work.keys + group * GROUP * width, work.q + first * width, width, s);
    const int64_t there = shape.keys - group * GROUP;
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 3
      for (int c = 0; c < V; c++) {
        s[r][c] = exp2(_mm512_fmsub_ps(s[r][c], _mm512_set1_ps(factor), log_sum[c]));
        if (__builtin_expect(r >= there, 0)) s[r][c] = _mm512_setzero_ps();
        _mm256_store_si256((__m256i *)(p + r * PANEL + c * LANES), (__m256i)_mm512_cvtneps_pbh(s[r][c]));
      }
    scores<V>(work.values + group * GROUP * width, work.g + first * width, width, t);
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; r += 2, pair += 2 * ROW)
#pragma GCC unroll 3
      for (int c = 0; c < V; c++) {
        const __m512 even = _mm512_mul_ps(s[r][c], _mm512_sub_ps(t[r][c], mean[c]));
        const __m512 odd = _mm512_mul_ps(s[r + 1][c], _mm512_sub_ps(t[r + 1][c], mean[c]));
        _mm256_store_si256((__m256i *)(ds + r * PANEL + c * LANES), (__m256i)_mm512_cvtneps_pbh(even));
        _mm256_store_si256((__m256i *)(ds + (r + 1) * PANEL + c * LANES), (__m256i)_mm512_cvtneps_pbh(odd));
        _mm512_store_si512(pair + 2 * LANES * c, paired(even, odd));
      }
  }
  for (int64_t tile = 0; tile < width / GROUP; tile++, dq += GROUP * ROW) {
    __m512 a[GROUP][V];
    load<V>(dq, ROW, a);
    multiply<V>(work.keys_across + (tile * shape.key_groups() + begin) * GROUP * GROUP, 2, 2 * GROUP, work.ds_pairs,
                2 * ROW, (end - begin) * GROUP / 2, a);
    store<V>(dq, ROW, a);
  }
}

// sum [8][row] += rows [8][PANEL] by `count` pairs [row][2], the vectors [begin, begin + V).
template <int V>
void add_up(const uint16_t *rows, const uint16_t *pairs, int64_t row, int64_t begin, int64_t count, float *sum) {
  __m512 a[GROUP][V];
  load<V>(sum + begin * LANES, row, a);
  multiply<V>(rows, PANEL, 2, pairs + 2 * begin * LANES, 2 * row, count, a);
  store<V>(sum + begin * LANES, row, a);
}

// Gradients of 8 keys or values, all channels; their vectors are dealt evenly to tiles.
void group_of_keys(const uint16_t *rows, const uint16_t *pairs, int64_t row, int64_t count, float *sum) {
  const int64_t vectors = row / LANES, tiles = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t begin = tile * vectors / tiles, size = (tile + 1) * vectors / tiles - begin;
    const auto run = size == 3 ? add_up<3> : size == 2 ? add_up<2> : add_up<1>;
    run(rows, pairs, row, begin, count, sum);
  }
}

// Everything of a block of queries that is needed in another order, or once for all keys. Behind the last query
// everything is 0 times something finite.
void prepare(const Shape &shape, const Head &head, const Work &work, Shape::Block block) {
  const auto [first, vectors, count] = block;
  const int64_t width = shape.width, row = row_of(shape), lanes = vectors * LANES;
  const auto at = [first](Rows<const uint16_t> rows) { return Rows{rows.data + first * rows.stride, rows.stride}; };
  const auto q = at(head.q), g = at(head.g), o = at(head.o);
  gathered(q.data, q.stride, width, count, lanes, work.q + first * width);
  gathered(g.data, g.stride, width, count, lanes, work.g + first * width);
  pair_rows(q, width, count, lanes, row, work.q_pairs + first * row);
  pair_rows(g, width, count, lanes, row, work.g_pairs + first * row);
  for (int64_t i = 0; i < lanes; i++) {
    work.log_sum[first + i] = i < count ? head.log_sum[first + i] * LOG2_E : 0;
    work.mean[first + i] = i < count ? dot(g.data + i * g.stride, o.data + i * o.stride, width) : 0;
  }
}

} // namespace

int64_t gradient_workspace(const Shape &shape) { return Work(shape, nullptr).size; }
int64_t gradient_of_queries(const Shape &shape) { return padded(shape) * shape.width; }

void differentiate(const Shape &shape, const Head &head, float scale, int64_t begin, int64_t end, float *dq,
                   float *memory) {
  const Work work(shape, memory);
  const int64_t width = shape.width, row = row_of(shape), blocks = shape.query_blocks();
  const int64_t first_group = begin / GROUP, last_group = (end + GROUP - 1) / GROUP;
  pack_keys(shape, head.k.data, head.k.stride, work.keys, first_group, last_group);
  pack_keys(shape, head.v.data, head.v.stride, work.values, first_group, last_group);
  pack_values(shape, head.k.data, head.k.stride, work.keys_across, first_group, last_group);
  std::memset(dq, 0, sizeof(float) * gradient_of_queries(shape));
  for (int64_t from = first_group; from < last_group; from += BLOCK / GROUP) {
    const int64_t to = std::min(from + BLOCK / GROUP, last_group);
    std::memset(work.dk, 0, sizeof(float) * BLOCK * row);
    std::memset(work.dv, 0, sizeof(float) * BLOCK * row);
    for (int64_t panel = 0; panel < blocks; panel += 2) {
      int64_t lanes = 0;
      for (int64_t block = panel; block < std::min(panel + 2, blocks); block++) {
        const auto [first, vectors, count] = shape.queries_of(block);
        if (from == first_group) prepare(shape, head, work, {first, vectors, count});
        const auto run = vectors == 3 ? block_of_queries<3> : vectors == 2 ? block_of_queries<2> : block_of_queries<1>;
        run(shape, work, scale * LOG2_E, first, lanes, from, to, dq + first * width);
        lanes += vectors * LANES;
      }
      const int64_t pairs = shape.queries_of(panel).first * row;
      for (int64_t key = 0; key < (to - from) * GROUP; key += GROUP) {
        group_of_keys(work.p + key * PANEL, work.g_pairs + pairs, row, lanes / 2, work.dv + key * row);
        group_of_keys(work.ds + key * PANEL, work.q_pairs + pairs, row, lanes / 2, work.dk + key * row);
      }
    }
    const int64_t key = from * GROUP, count = std::min(to * GROUP, shape.keys) - key;
    rounded(work.dk, row, scale, width, count, {head.dk.data + key * head.dk.stride, head.dk.stride});
    rounded(work.dv, row, 1, width, count, {head.dv.data + key * head.dv.stride, head.dv.stride});
  }
}

void write_queries(const Shape &shape, const Head &head, float scale, int64_t parts, float *dq) {
  const int64_t size = gradient_of_queries(shape);
  for (int64_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < size; i++) dq[i] += dq[part * size + i];
  __m512 factor[MAX_VECTORS];
  std::fill_n(factor, MAX_VECTORS, _mm512_set1_ps(scale));
  for (int64_t block = 0; block < shape.query_blocks(); block++) {
    const auto [first, vectors, count] = shape.queries_of(block);
    scattered(dq + first * shape.width, factor, shape.width, count, vectors * LANES,
              head.dq.data + first * head.dq.stride, head.dq.stride);
  }
}

} // namespace mezzotint::avx512bf16
