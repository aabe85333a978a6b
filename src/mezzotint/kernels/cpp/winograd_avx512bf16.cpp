// 3x3 convolutions of fewer multiplications, in bfloat16 with float32 sums: 16 products instead of 36 for 2x2 outputs
// (Winograd's F(2x2, 3x3)); behind a nearest upsampling, 9.
//
// Sums and differences of a tile's inputs are taken in float32 while the map is read, normalised and put through SiLU,
// and are rounded once. Each of them has its own matrix of weights; sums and differences of the products are the outputs.
//
// There are two orders. Large maps: a block of tiles is finished before the next begins, so that all of this stays in the
// second cache; weights are transformed once and kept. Many channels and few tiles: many tiles are multiplied by the
// weights of 64 channels before the next, so that weights, which are most of the memory here, are read once; they are
// kept as nine taps and become those of 16 products in the cache.
//
// Source: Lavin and Gray 2015, arXiv:1509.09308.
#include "winograd_tiles.h"

namespace mezzotint::avx512bf16 {
namespace {

constexpr int64_t OUTPUTS = 32; // channels that are made together
constexpr int64_t CHUNK = 256;  // channels in whose weights of all products are in the cache at once
constexpr int64_t WIDE = 2;     // 32 channels out that are multiplied by factors while these are in the cache

template <typename Axis> constexpr int PRODUCTS = Axis::FACTORS * Axis::FACTORS;

// The memory of one block.
template <typename Axis> struct Work {
  Inputs<Axis> inputs;
  int64_t tiles;                     // in whole groups
  int64_t factor_step, product_step; // from one matrix to the next
  float *products;                   // [PRODUCTS][tiles][32]
  uint16_t *factors;                 // [PRODUCTS][tiles][channels]
  Work(const Convolution &convolution, const Tiles &block, float *memory)
      : inputs(block, memory), tiles((block.rows() * block.columns() + GROUP - 1) / GROUP * GROUP),
        factor_step(tiles * convolution.channels + 2 * APART), product_step(tiles * OUTPUTS + APART),
        products(memory + inputs.size()),
        factors(reinterpret_cast<uint16_t *>(products + PRODUCTS<Axis> * product_step)) {}
  int64_t size() const { return inputs.size() + PRODUCTS<Axis> * (product_step + factor_step / 2); }
};

// The memory of all blocks together: factors of all channels, then weights and products of 64 channels out.
template <typename Axis> struct Together {
  int64_t channels, tiles;
  explicit Together(const Convolution &convolution, const Blocks &blocks)
      : channels(convolution.channels), tiles(blocks.tiles) {}
  int64_t width(int64_t channel) const { return std::min(CHUNK, channels - channel); }
  int64_t factor_step(int64_t channel) const { return tiles * width(channel) + 2 * APART; }
  int64_t product_step() const { return tiles * OUTPUTS + APART; }
  // Factors [chunk][PRODUCTS][tiles][width]: those of the chunk that begins with `channel`.
  int64_t chunk(int64_t channel) const { return PRODUCTS<Axis> * (tiles * channel + channel / CHUNK * 2 * APART); }
  int64_t factors() const { return chunk((channels + CHUNK - 1) / CHUNK * CHUNK); }
  int64_t size() const { return factors() / 2 + WIDE * PRODUCTS<Axis> * (product_step() + CHUNK * OUTPUTS / 2); }
};

// Inputs of 16 channels become factors.
template <typename Axis>
void factor(const Tiles &block, const Inputs<Axis> &inputs, uint16_t *to, int64_t tile_step, int64_t factor_step) {
  for (int64_t i = 0; i < block.rows(); i++)
    for (int64_t j = 0; j < block.columns(); j++, to += tile_step) {
      Floats v[PRODUCTS<Axis>];
      factors_of<Axis>(inputs.data + (i * inputs.columns + j) * Axis::STEP * LANES, inputs.columns, v);
#pragma GCC unroll 16
      for (int k = 0; k < PRODUCTS<Axis>; k++)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + k * factor_step), (__m256i)_mm512_cvtneps_pbh(v[k]));
    }
}

// Products of a group of tiles [8][channels], `step` apart, with the weights [channels / 2][32][2]: added to what is there
// unless they are the first.
template <bool IS_FIRST>
inline void multiply(const uint16_t *factors, int64_t step, int64_t channels, const uint16_t *weights, float *products) {
  Floats sum[GROUP][2];
#pragma GCC unroll 8
  for (int t = 0; t < GROUP; t++)
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++)
      sum[t][half] = IS_FIRST ? _mm512_setzero_ps() : _mm512_load_ps(products + t * OUTPUTS + half * LANES);
  for (int64_t c = 0; c < channels; c += 2, weights += 2 * OUTPUTS) {
    const __m512bh left = (__m512bh)_mm512_load_si512(weights), right = (__m512bh)_mm512_load_si512(weights + OUTPUTS);
#pragma GCC unroll 8
    for (int t = 0; t < GROUP; t++) {
      int32_t pair;
      std::memcpy(&pair, factors + t * step + c, 4);
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

// The same of all tiles.
template <bool IS_FIRST>
void multiply_all(const uint16_t *factors, int64_t step, int64_t width, int64_t tiles, const uint16_t *weights,
                  float *products) {
  for (int64_t tile = 0; tile < tiles; tile += GROUP)
    multiply<IS_FIRST>(factors + tile * step, step, width, weights, products + tile * OUTPUTS);
}

// Products of all tiles become 32 channels of outputs, `channel` the first.
template <typename Axis>
void write(const Convolution &convolution, const Tiles &block, int64_t channel, const float *from, int64_t product_step,
           const uint16_t *added, uint16_t *y) {
  constexpr int N = Axis::PATCH;
  const int64_t rows = convolution.rows * 2 / Axis::STEP, columns = convolution.columns * 2 / Axis::STEP;
  const bool is_whole = channel + OUTPUTS <= convolution.out_channels; // or the last 16
  for (int64_t i = 0; i < block.rows(); i++)
    for (int64_t j = 0; j < block.columns(); j++, from += OUTPUTS) {
      Floats out[2][4];
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        Floats m[N * N], h[2 * N];
#pragma GCC unroll 16
        for (int k = 0; k < N * N; k++) m[k] = _mm512_load_ps(from + half * LANES + k * product_step);
#pragma GCC unroll 4
        for (int c = 0; c < N; c++) Axis::out(m + c, N, h + c, N);
        Axis::out(h, 1, out[half], 1);
        Axis::out(h + N, 1, out[half] + 2, 1);
      }
      const Floats left = _mm512_loadu_ps(convolution.bias + channel);
      const Floats right = _mm512_maskz_loadu_ps(is_whole ? 0xffff : 0, convolution.bias + channel + LANES);
      const Floats left_step = convolution.steps ? _mm512_loadu_ps(convolution.steps + channel) : _mm512_set1_ps(1);
      const Floats right_step =
          convolution.steps && is_whole ? _mm512_loadu_ps(convolution.steps + channel + LANES) : _mm512_set1_ps(1);
      const int64_t row = 2 * (block.first_row + i), column = 2 * (block.first_column + j);
      for (int p = 0; p < 4; p++) {
        if (row + p / 2 >= rows || column + p % 2 >= columns) continue;
        const int64_t at = ((row + p / 2) * columns + column + p % 2) * convolution.out_channels + channel;
        Floats a = out[0][p] * left_step + left, b = out[1][p] * right_step + right;
        if (added) a += widened(added + at);
        if (is_whole) {
          if (added) b += widened(added + at + LANES);
          _mm512_storeu_si512(y + at, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        } else
          _mm256_storeu_si256(reinterpret_cast<__m256i *>(y + at), (__m256i)_mm512_cvtneps_pbh(a));
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
    read<Axis>(convolution, block, x, channel, work.inputs);
    factor<Axis>(block, work.inputs, work.factors + channel, channels, work.factor_step);
  }
  auto *weights = static_cast<const uint16_t *>(convolution.weights);
  for (int64_t channel = 0; channel < convolution.out_channels; channel += OUTPUTS) {
    fetch<Axis>(convolution, block, channel, y);
    for (int64_t first = 0; first < channels; first += CHUNK) {
      const int64_t width = std::min(CHUNK, channels - first);
      const auto run = first ? multiply_all<false> : multiply_all<true>;
      for (int64_t k = 0; k < PRODUCTS<Axis>; k++, weights += width * OUTPUTS)
        run(work.factors + k * work.factor_step + first, channels, width, work.tiles, weights,
            work.products + k * work.product_step);
    }
    write<Axis>(convolution, block, channel, work.products, work.product_step, convolution.added, y);
  }
}

// The first or the second of each of 16 pairs.
template <bool IS_ODD> inline Floats half(const uint16_t *pairs) {
  const __m512i both = _mm512_loadu_si512(pairs);
  return _mm512_castsi512_ps(IS_ODD ? _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)) : _mm512_slli_epi32(both, 16));
}
template <bool IS_ODD> inline Floats half(const int8_t *pairs) {
  const __m512i both = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(pairs)));
  return _mm512_cvtepi32_ps(_mm512_srai_epi32(IS_ODD ? both : _mm512_slli_epi32(both, 16), 16));
}

// Taps of one half of the pairs as weights of sixteen products.
template <bool IS_ODD, typename T> inline void weigh(const T *taps, int64_t step, Floats (&made)[16]) {
  Floats g[9], h[12];
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) g[k] = half<IS_ODD>(taps + k * step);
#pragma GCC unroll 3
  for (int c = 0; c < 3; c++) Pairs::weigh(g + c, 3, h + c, 3);
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) Pairs::weigh(h + 3 * r, 1, made + 4 * r, 1);
}

// Nine taps [9][pairs][32][2] as weights of sixteen products.
template <typename T> void expand(const T *taps, int64_t pairs, uint16_t *weights) {
  const int64_t step = pairs * 2 * OUTPUTS;
  for (int64_t at = 0; at < step; at += 2 * LANES) {
    Floats even[16], odd[16];
    weigh<false>(taps + at, step, even);
    weigh<true>(taps + at, step, odd);
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
      _mm512_store_si512(weights + k * step + at, paired(even[k], odd[k]));
  }
}

// Weights of all products of 32 channels out and those in from `first` on, `width` of them.
template <typename Axis>
const uint16_t *weights_of(const Convolution &convolution, int64_t channel, int64_t first, int64_t width,
                           uint16_t *transformed) {
  const int64_t at = (channel * convolution.channels + first * OUTPUTS) * 9;
  const auto *arranged = static_cast<const uint16_t *>(convolution.weights) + at;
  if (PRODUCTS<Axis> == 9) return arranged;
  convolution.steps ? expand(static_cast<const int8_t *>(convolution.weights) + at, width / 2, transformed)
                    : expand(arranged, width / 2, transformed);
  return transformed;
}

// Results [channel, channel + 64) of all blocks.
template <typename Axis>
void multiply_blocks(const Convolution &convolution, const Blocks &blocks, int64_t channel, const uint16_t *factors,
                     uint16_t *y, float *products) {
  const Together<Axis> all(convolution, blocks);
  const int64_t wide = std::min(WIDE, (convolution.out_channels - channel + OUTPUTS - 1) / OUTPUTS);
  const int64_t panel = PRODUCTS<Axis> * all.product_step();
  auto *transformed = reinterpret_cast<uint16_t *>(products + WIDE * panel);
  for (int64_t first = 0; first < convolution.channels; first += CHUNK) {
    const int64_t width = all.width(first), size = width * OUTPUTS;
    const auto run = first ? multiply_all<false> : multiply_all<true>;
    const uint16_t *weights[WIDE];
    for (int64_t p = 0; p < wide; p++)
      weights[p] = weights_of<Axis>(convolution, channel + p * OUTPUTS, first, width, transformed + p * PRODUCTS<Axis> * size);
    const uint16_t *from = factors + all.chunk(first);
    for (int64_t k = 0; k < PRODUCTS<Axis>; k++, from += all.factor_step(first))
      for (int64_t p = 0; p < wide; p++)
        run(from, width, width, blocks.tiles, weights[p] + k * size, products + p * panel + k * all.product_step());
  }
  const int64_t size = 4 / Axis::STEP / Axis::STEP * convolution.rows * convolution.columns * convolution.out_channels;
  for (int64_t p = 0; p < wide; p++)
    for (const auto &[tiles, picture, at] : blocks.each)
      write<Axis>(convolution, tiles, channel + p * OUTPUTS, products + p * panel + at * OUTPUTS, all.product_step(),
                  convolution.added ? convolution.added + picture * size : nullptr, y + picture * size);
}

template <typename Axis>
void convolve_together_by(const Convolution &convolution, const Blocks &blocks, int64_t first, int64_t last,
                          const uint16_t *x, uint16_t *y, float *memory) {
  const Together<Axis> all(convolution, blocks);
  auto *factors = reinterpret_cast<uint16_t *>(memory);
  float *products = memory + all.factors() / 2;
  const int64_t size = convolution.rows * convolution.columns * convolution.channels;
  for (const auto &[tiles, picture, at] : blocks.each) {
    const Inputs<Axis> inputs(tiles, products); // whose memory is not needed yet
    for (int64_t channel = 0; channel < convolution.channels; channel += LANES) {
      const int64_t begin = channel / CHUNK * CHUNK, width = all.width(begin);
      read<Axis>(convolution, tiles, x + picture * size, channel, inputs);
      factor<Axis>(tiles, inputs, factors + all.chunk(begin) + at * width + channel - begin, width, all.factor_step(begin));
    }
  }
  for (int64_t channel = first; channel < last; channel += WIDE * OUTPUTS)
    multiply_blocks<Axis>(convolution, blocks, channel, factors, y, products);
}

inline float widened(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t rounded(float x) {
  const __m128bh both = _mm_cvtneps_pbh(_mm_set_ss(x));
  return (uint16_t)_mm_extract_epi16((__m128i)both, 0);
}

template <typename T> void arrange_as(const Weights &weights, int64_t channel, bool is_doubled, T *arranged) {
  const int64_t channels = weights.channels, outputs = std::min(OUTPUTS, weights.out_channels - channel);
  if (outputs < OUTPUTS) std::memset(arranged, 0, sizeof(T) * 9 * channels * OUTPUTS);
  for (int64_t first = 0; first < channels; first += CHUNK) {
    const int64_t width = std::min(CHUNK, channels - first);
    T *to = arranged + first * 9 * OUTPUTS;
    for (int64_t o = 0; o < outputs; o++)
      for (int64_t c = 0; c < width; c++) {
        const T *from = static_cast<const T *>(weights.data) + (channel + o) * weights.out_step + (first + c) * weights.step;
        T *at = to + c / 2 * 2 * OUTPUTS + 2 * o + c % 2;
        if (!is_doubled) {
          for (int k = 0; k < 9; k++) at[k * width * OUTPUTS] = from[k * weights.tap_step];
          continue;
        }
        float g[9], h[9], u[9];
        for (int k = 0; k < 9; k++) g[k] = widened(from[k * weights.tap_step]);
        for (int k = 0; k < 3; k++) Doubled::weigh(g + k, 3, h + k, 3);
        for (int k = 0; k < 3; k++) Doubled::weigh(h + 3 * k, 1, u + 3 * k, 1);
        for (int k = 0; k < 9; k++) at[k * width * OUTPUTS] = rounded(u[k]);
      }
  }
}

} // namespace

void arrange(const Weights &weights, int64_t channel, bool is_doubled, void *arranged) {
  weights.is_byte ? arrange_as(weights, channel, false, static_cast<int8_t *>(arranged))
                  : arrange_as(weights, channel, is_doubled, static_cast<uint16_t *>(arranged));
}

void transform(const uint16_t *arranged, int64_t channels, uint16_t *transformed) {
  for (int64_t first = 0; first < channels; first += CHUNK)
    expand(arranged + first * 9 * OUTPUTS, std::min(CHUNK, channels - first) / 2, transformed + first * 16 * OUTPUTS);
}

int64_t convolution_workspace(const Convolution &convolution, const Tiles &block, bool is_doubled) {
  return is_doubled ? Work<Doubled>(convolution, block, nullptr).size()
                    : Work<Pairs>(convolution, block, nullptr).size();
}

void convolve(const Convolution &convolution, const Tiles &block, bool is_doubled, const uint16_t *x, uint16_t *y,
              float *work) {
  is_doubled ? convolve_by<Doubled>(convolution, block, x, y, work) : convolve_by<Pairs>(convolution, block, x, y, work);
}

int64_t together_workspace(const Convolution &convolution, const Blocks &blocks, bool is_doubled) {
  return is_doubled ? Together<Doubled>(convolution, blocks).size() : Together<Pairs>(convolution, blocks).size();
}

void convolve_together(const Convolution &convolution, const Blocks &blocks, int64_t first, int64_t last, bool is_doubled,
                       const uint16_t *x, uint16_t *y, float *work) {
  const auto run = is_doubled ? convolve_together_by<Doubled> : convolve_together_by<Pairs>;
  run(convolution, blocks, first, last, x, y, work);
}

} // namespace mezzotint::avx512bf16
