// 3x3 convolutions of fewer multiplications, in bfloat16 with float32 sums: 16 products instead of 36 for 2x2 outputs
// (Winograd's F(2x2, 3x3)); behind a nearest upsampling, 9.
//
// Sums and differences of a tile's inputs are taken in float32 while the map is read, normalised and put through SiLU,
// and are rounded once. Each of them has its own matrix of weights; sums and differences of the products are the outputs.
// A block of tiles is finished before the next begins, so that all of this stays in the second cache.
//
// Source: Lavin and Gray 2015, arXiv:1509.09308.
#include "winograd.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace mezzotint::avx512bf16 {
namespace {

using Floats = __m512;

constexpr int64_t LANES = 16, OUTPUTS = 32; // channels in that are read together; channels out
constexpr int64_t GROUP = 8;                // tiles that are multiplied together

// Along one axis: PATCH inputs of a tile, of which the next one's are STEP further, become as many factors; as many
// products become two outputs.
struct Pairs { // F(2, 3)
  static constexpr int PATCH = 4, STEP = 2;
  static void in(const Floats *d, int stride, Floats *v) {
    const Floats a = d[0], b = d[stride], c = d[2 * stride], e = d[3 * stride];
    v[0] = a - c, v[stride] = b + c, v[2 * stride] = c - b, v[3 * stride] = b - e;
  }
  static void out(const Floats *m, int stride, Floats *y, int to) {
    const Floats b = m[stride], c = m[2 * stride];
    y[0] = m[0] + (b + c), y[to] = (b - c) - m[3 * stride];
  }
};
struct Doubled { // an input's two copies: each meets itself, and one of its neighbours
  static constexpr int PATCH = 3, STEP = 1;
  static void in(const Floats *d, int stride, Floats *v) {
    const Floats a = d[0], b = d[stride], c = d[2 * stride];
    v[0] = b, v[stride] = a - b, v[2 * stride] = c - b;
  }
  static void out(const Floats *m, int stride, Floats *y, int to) {
    y[0] = m[0] + m[stride], y[to] = m[0] + m[2 * stride];
  }
};

// The memory of one block.
template <typename Axis> struct Work {
  static constexpr int PRODUCTS = Axis::PATCH * Axis::PATCH;
  static constexpr int64_t APART = 16; // 32-bit values: powers of two apart, lines would share their place in the cache
  int64_t rows, columns, tiles;     // of inputs; tiles in whole groups
  int64_t factor_step, product_step; // from one matrix to the next
  float *inputs, *products;         // [rows][columns][16], [PRODUCTS][tiles][32]
  uint16_t *factors;                // [PRODUCTS][tiles][channels]
  Work(const Convolution &convolution, const Tiles &block, float *memory)
      : rows((block.rows() - 1) * Axis::STEP + Axis::PATCH), columns((block.columns() - 1) * Axis::STEP + Axis::PATCH),
        tiles((block.rows() * block.columns() + GROUP - 1) / GROUP * GROUP),
        factor_step(tiles * convolution.channels + 2 * APART), product_step(tiles * OUTPUTS + APART), inputs(memory),
        products(inputs + rows * columns * LANES),
        factors(reinterpret_cast<uint16_t *>(products + PRODUCTS * product_step)) {}
  int64_t size() const { return rows * columns * LANES + PRODUCTS * (product_step + factor_step / 2); }
};

inline Floats widened(const uint16_t *x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// x / (1 + e^-x), to 1e-4.
inline Floats silu(Floats x) {
  const Floats power = x * _mm512_set1_ps(-1.4426950408889634f);
  const Floats f = _mm512_reduce_ps(power, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); // [0, 1)
  Floats p = _mm512_fmadd_ps(_mm512_set1_ps(0.07802452f), f, _mm512_set1_ps(0.22606716f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69583353f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992522f));
  const Floats below = _mm512_scalef_ps(p, power) + _mm512_set1_ps(1);
  return _mm512_div_ps(x, below);
}

// The block's inputs, 16 channels from `channel` on, normalised; zeros outside the map. The channels that come next, or
// the first ones of the next block, are on their way into the cache meanwhile.
template <typename Axis>
void read(const Convolution &convolution, const Tiles &block, const uint16_t *x, int64_t channel, const Work<Axis> &work) {
  const int64_t channels = convolution.channels;
  const int64_t above = block.first_row * Axis::STEP - 1, before = block.first_column * Axis::STEP - 1;
  const int64_t begin = std::max<int64_t>(0, -before), end = std::min(work.columns, convolution.columns - before);
  const bool is_last = channel + 2 * LANES >= channels;
  const int64_t next = is_last ? block.columns() * Axis::STEP * channels - channel : 2 * LANES;
  const bool is_normalised = convolution.scale != nullptr;
  const Floats scale = is_normalised ? _mm512_loadu_ps(convolution.scale + channel) : _mm512_setzero_ps();
  const Floats offset = is_normalised ? _mm512_loadu_ps(convolution.offset + channel) : _mm512_setzero_ps();
  for (int64_t i = 0; i < work.rows; i++) {
    float *to = work.inputs + i * work.columns * LANES;
    const int64_t row = above + i;
    if (row < 0 || row >= convolution.rows) {
      std::memset(to, 0, sizeof(float) * work.columns * LANES);
      continue;
    }
    const uint16_t *from = x + (row * convolution.columns + before) * channels + channel;
    for (int64_t j = 0; j < begin; j++) _mm512_store_ps(to + j * LANES, _mm512_setzero_ps());
    for (int64_t j = end; j < work.columns; j++) _mm512_store_ps(to + j * LANES, _mm512_setzero_ps());
    for (int64_t j = begin; j < end; j++) {
      __builtin_prefetch(from + j * channels + next);
      const Floats value = widened(from + j * channels);
      _mm512_store_ps(to + j * LANES, is_normalised ? silu(_mm512_fmadd_ps(value, scale, offset)) : value);
    }
  }
}

// Inputs of 16 channels become factors.
template <typename Axis>
void factor(const Tiles &block, int64_t channels, int64_t channel, const Work<Axis> &work) {
  constexpr int N = Axis::PATCH;
  uint16_t *to = work.factors + channel;
  for (int64_t i = 0; i < block.rows(); i++)
    for (int64_t j = 0; j < block.columns(); j++, to += channels) {
      const float *from = work.inputs + (i * work.columns + j) * Axis::STEP * LANES;
      Floats d[N * N], v[N * N];
#pragma GCC unroll 4
      for (int r = 0; r < N; r++)
#pragma GCC unroll 4
        for (int c = 0; c < N; c++) d[r * N + c] = _mm512_load_ps(from + (r * work.columns + c) * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < N; r++) Axis::in(d + r * N, 1, v + r * N);
#pragma GCC unroll 4
      for (int c = 0; c < N; c++) Axis::in(v + c, N, d + c);
#pragma GCC unroll 16
      for (int k = 0; k < N * N; k++)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + k * work.factor_step),
                            (__m256i)_mm512_cvtneps_pbh(d[k]));
    }
}

// Products of a group of tiles [8][channels] with the weights [channels / 2][32][2].
inline void multiply(const uint16_t *factors, int64_t channels, const uint16_t *weights, float *products) {
  Floats sum[GROUP][2];
#pragma GCC unroll 8
  for (int t = 0; t < GROUP; t++) sum[t][0] = sum[t][1] = _mm512_setzero_ps();
  for (int64_t c = 0; c < channels; c += 2, weights += 2 * OUTPUTS) {
    const __m512bh left = (__m512bh)_mm512_load_si512(weights), right = (__m512bh)_mm512_load_si512(weights + OUTPUTS);
#pragma GCC unroll 8
    for (int t = 0; t < GROUP; t++) {
      int32_t pair;
      std::memcpy(&pair, factors + t * channels + c, 4);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      sum[t][0] = _mm512_dpbf16_ps(sum[t][0], both, left);
      sum[t][1] = _mm512_dpbf16_ps(sum[t][1], both, right);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < GROUP; t++) {
    _mm512_store_ps(products + t * OUTPUTS, sum[t][0]);
    _mm512_store_ps(products + t * OUTPUTS + LANES, sum[t][1]);
  }
}

// Products of all tiles become 32 channels of outputs, `channel` the first.
template <typename Axis>
void write(const Convolution &convolution, const Tiles &block, int64_t channel, const Work<Axis> &work, uint16_t *y) {
  constexpr int N = Axis::PATCH;
  const int64_t rows = convolution.rows * 2 / Axis::STEP, columns = convolution.columns * 2 / Axis::STEP;
  const float *from = work.products;
  for (int64_t i = 0; i < block.rows(); i++)
    for (int64_t j = 0; j < block.columns(); j++, from += OUTPUTS) {
      Floats out[2][4];
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        Floats m[N * N], h[2 * N];
#pragma GCC unroll 16
        for (int k = 0; k < N * N; k++) m[k] = _mm512_load_ps(from + half * LANES + k * work.product_step);
#pragma GCC unroll 4
        for (int c = 0; c < N; c++) Axis::out(m + c, N, h + c, N);
        Axis::out(h, 1, out[half], 1);
        Axis::out(h + N, 1, out[half] + 2, 1);
      }
      const Floats left = _mm512_loadu_ps(convolution.bias + channel);
      const Floats right = _mm512_loadu_ps(convolution.bias + channel + LANES);
      const int64_t row = 2 * (block.first_row + i), column = 2 * (block.first_column + j);
      for (int p = 0; p < 4; p++) {
        if (row + p / 2 >= rows || column + p % 2 >= columns) continue;
        uint16_t *to = y + ((row + p / 2) * columns + column + p % 2) * convolution.out_channels + channel;
        Floats a = out[0][p] + left, b = out[1][p] + right;
        if (convolution.is_added) a += widened(to), b += widened(to + LANES);
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(b, a));
      }
    }
}

// What `write` will write is on its way into the cache while there is something to multiply.
template <typename Axis> void fetch(const Convolution &convolution, const Tiles &block, int64_t channel, uint16_t *y) {
  const int64_t rows = convolution.rows * 2 / Axis::STEP, columns = convolution.columns * 2 / Axis::STEP;
  for (int64_t i = 2 * block.first_row; i < std::min(2 * block.last_row, rows); i++)
    for (int64_t j = 2 * block.first_column; j < std::min(2 * block.last_column, columns); j++)
      __builtin_prefetch(y + (i * columns + j) * convolution.out_channels + channel, 1);
}

template <typename Axis>
void convolve_by(const Convolution &convolution, const Tiles &block, const uint16_t *x, uint16_t *y, float *memory) {
  const Work<Axis> work(convolution, block, memory);
  const int64_t channels = convolution.channels;
  for (int64_t channel = 0; channel < channels; channel += LANES) {
    read<Axis>(convolution, block, x, channel, work);
    factor<Axis>(block, channels, channel, work);
  }
  const uint16_t *weights = convolution.weights;
  for (int64_t channel = 0; channel < convolution.out_channels; channel += OUTPUTS) {
    fetch<Axis>(convolution, block, channel, y);
    for (int64_t k = 0; k < work.PRODUCTS; k++, weights += channels * OUTPUTS)
      for (int64_t tile = 0; tile < work.tiles; tile += GROUP)
        multiply(work.factors + k * work.factor_step + tile * channels, channels, weights,
                 work.products + k * work.product_step + tile * OUTPUTS);
    write<Axis>(convolution, block, channel, work, y);
  }
}

} // namespace

int64_t convolution_workspace(const Convolution &convolution, const Tiles &block, bool is_doubled) {
  return is_doubled ? Work<Doubled>(convolution, block, nullptr).size()
                    : Work<Pairs>(convolution, block, nullptr).size();
}

void convolve(const Convolution &convolution, const Tiles &block, bool is_doubled, const uint16_t *x, uint16_t *y,
              float *work) {
  is_doubled ? convolve_by<Doubled>(convolution, block, x, y, work) : convolve_by<Pairs>(convolution, block, x, y, work);
}

} // namespace mezzotint::avx512bf16
