// softmax(q k^T) v in float32; compiled once per instruction set. The same blocks, transposed and with the same shortcut
// for the maximum, as in attention_avx512bf16.cpp.
#include "attention.h"

#include <algorithm>
#include <cstring>

namespace mezzotint::MEZZOTINT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int LANE = 16, TILE = 8; // queries per vector, keys or channels per register tile
#else
constexpr int LANE = 8, TILE = 4;
#endif
constexpr int64_t BLOCK = 64;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float TOO_LARGE = 0x1p64f;

using Vector = float __attribute__((vector_size(4 * LANE)));
using Integers = int32_t __attribute__((vector_size(4 * LANE)));

inline Vector all(float x) { return x - Vector{}; }
inline Vector load(const float *p) { return *reinterpret_cast<const Vector *>(p); }
inline void store(float *p, Vector x) { *reinterpret_cast<Vector *>(p) = x; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

inline Vector exp2(Vector x) { // to 2e-7 between 2^-126 and 2^126, which is where it stays
  x = larger(x, all(-126.0f));
  x = x < all(126.0f) ? x : all(126.0f);
  const Vector shifted = x + 12582912.0f; // 1.5 * 2^23: its last bits are the nearest integer
  const Vector f = x - (shifted - 12582912.0f);
  Vector p = all(1.3333558e-3f);
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 0.24022651f;
  p = p * f + 0.69314718f;
  p = p * f + 1.0f;
  return (Vector)((Integers)p + ((Integers)shifted << 23));
}

// Adds to a[TILE][V], over `count` steps, broadcast from[step][GROUP] times to[step][V].
template <int V> inline void accumulate(const float *from, const float *to, int64_t count, Vector (&a)[TILE][V]) {
  for (int64_t j = 0; j < count; j++, from += GROUP, to += LANE * V) {
    Vector b[V];
#pragma GCC unroll 3
    for (int c = 0; c < V; c++) b[c] = load(to + LANE * c);
#pragma GCC unroll 8
    for (int r = 0; r < TILE; r++) {
      const Vector one = all(from[r]);
#pragma GCC unroll 3
      for (int c = 0; c < V; c++) a[r][c] += one * b[c];
    }
  }
}

template <int V> struct Softmax {
  const Shape &shape;
  const float *q; // [width][V*LANE]
  float scale;    // of scores, log2(e) included
  Vector top[V], sum[V];

  // Calls use(tile of scores, first key, keys present) over the groups [begin, end).
  template <typename Use> void scores(const float *keys, int64_t begin, int64_t end, Use use) const {
    for (int64_t key = begin * GROUP; key < end * GROUP; key += TILE) {
      Vector s[TILE][V] = {};
      accumulate<V>(keys + key / GROUP * GROUP * shape.width + key % GROUP, q, shape.width, s);
      use(s, key, std::clamp<int64_t>(shape.keys - key, 0, TILE));
    }
  }

  void maximum(const float *keys, int64_t begin, int64_t end, Vector (&most)[V]) const {
    for (int c = 0; c < V; c++) most[c] = all(-0x1p126f);
    scores(keys, begin, end, [&](const Vector(&s)[TILE][V], int64_t, int64_t present) {
      for (int r = 0; r < present; r++)
        for (int c = 0; c < V; c++) most[c] = larger(most[c], s[r][c]);
    });
    for (int c = 0; c < V; c++) most[c] *= scale;
  }

  // Probabilities as p[key][V*LANE]; their sum per query.
  void probabilities(const float *keys, int64_t begin, int64_t end, float *p, Vector (&total)[V]) const {
    for (int c = 0; c < V; c++) total[c] = Vector{};
    scores(keys, begin, end, [&](const Vector(&s)[TILE][V], int64_t key, int64_t present) {
      float *to = p + (key - begin * GROUP) * LANE * V;
#pragma GCC unroll 8
      for (int r = 0; r < TILE; r++)
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) {
          const Vector weight = r < present ? exp2(s[r][c] * scale - top[c]) : Vector{};
          total[c] += weight;
          store(to + (r * V + c) * LANE, weight);
        }
    });
  }
};

template <int V>
void attend_block(const Shape &shape, const float *q, int64_t q_stride, const float *keys, const float *values,
                  float *out, int64_t out_stride, float scale, int64_t count, float *work) {
  const int64_t width = shape.width, groups = shape.key_groups();
  constexpr int64_t ROW = LANE * V;
  float *packed = work, *o = packed + width * ROW, *p = o + width * ROW;
  for (int64_t lane = 0; lane < ROW; lane++)
    for (int64_t j = 0; j < width; j++) packed[j * ROW + lane] = lane < count ? q[lane * q_stride + j] : 0;
  std::memset(o, 0, sizeof(float) * width * ROW);

  Softmax<V> softmax{shape, packed, scale, {}, {}};
  softmax.maximum(keys, 0, 1, softmax.top);
  for (int64_t begin = 0; begin < groups; begin += BLOCK / GROUP) {
    const int64_t end = std::min(begin + BLOCK / GROUP, groups);
    Vector total[V], alpha[V];
    softmax.probabilities(keys, begin, end, p, total);
    bool is_fine = true;
    for (int c = 0; c < V; c++) {
      alpha[c] = all(1.0f);
      for (int lane = 0; lane < LANE; lane++) is_fine &= total[c][lane] <= TOO_LARGE;
    }
    if (__builtin_expect(!is_fine, 0)) {
      Vector most[V];
      softmax.maximum(keys, begin, end, most);
      for (int c = 0; c < V; c++) {
        most[c] = larger(softmax.top[c], most[c]);
        alpha[c] = exp2(softmax.top[c] - most[c]);
        softmax.top[c] = most[c];
        softmax.sum[c] *= alpha[c];
      }
      softmax.probabilities(keys, begin, end, p, total);
    }
    for (int c = 0; c < V; c++) softmax.sum[c] += total[c];
    for (int64_t channel = 0; channel < width; channel += TILE) {
      float *to = o + channel * ROW;
      Vector a[TILE][V];
#pragma GCC unroll 8
      for (int r = 0; r < TILE; r++)
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) a[r][c] = load(to + r * ROW + c * LANE) * alpha[c];
      const float *v = values + (channel / GROUP * groups + begin) * GROUP * GROUP + channel % GROUP;
      accumulate<V>(v, p, (end - begin) * GROUP, a);
#pragma GCC unroll 8
      for (int r = 0; r < TILE; r++)
#pragma GCC unroll 3
        for (int c = 0; c < V; c++) store(to + r * ROW + c * LANE, a[r][c]);
    }
  }
  for (int64_t lane = 0; lane < count; lane++) {
    const float inverse = 1 / softmax.sum[lane / LANE][lane % LANE];
    for (int64_t j = 0; j < width; j++) out[lane * out_stride + j] = o[j * ROW + lane] * inverse;
  }
}

} // namespace

int64_t lanes() { return LANE; }

void pack_keys(const Shape &shape, const float *k, int64_t stride, float *packed, int64_t begin, int64_t end) {
  for (int64_t key = begin * GROUP; key < end * GROUP; key++)
    for (int64_t j = 0; j < shape.width; j++)
      packed[(key / GROUP * shape.width + j) * GROUP + key % GROUP] = key < shape.keys ? k[key * stride + j] : 0;
}

void pack_values(const Shape &shape, const float *v, int64_t stride, float *packed, int64_t begin, int64_t end) {
  const int64_t all_keys = shape.key_groups() * GROUP;
  for (int64_t key = begin * GROUP; key < end * GROUP; key++)
    for (int64_t j = 0; j < shape.width; j++)
      packed[(j / GROUP * all_keys + key) * GROUP + j % GROUP] = key < shape.keys ? v[key * stride + j] : 0;
}

int64_t workspace(const Shape &shape) { return LANE * MAX_VECTORS * (2 * shape.width + BLOCK); }

void attend(const Shape &shape, const float *q, int64_t q_stride, const float *keys, const float *values, float *out,
            int64_t out_stride, float scale, int64_t block, float *work) {
  const auto [first, vectors, count] = shape.queries_of(block);
  const auto run = vectors == 3 ? attend_block<3> : vectors == 2 ? attend_block<2> : attend_block<1>;
  run(shape, q + first * q_stride, q_stride, keys, values, out + first * out_stride, out_stride, scale * LOG2_E, count,
      work);
}

} // namespace mezzotint::MEZZOTINT_ISA
