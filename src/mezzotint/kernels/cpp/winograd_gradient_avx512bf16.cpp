// Gradients of the weights of 3x3 convolutions, of 16 products for 2x2 outputs instead of 36.
//
// A product of the convolution is a sum over channels of a tile's factor and a weight; so the weight's gradient is the sum
// over all tiles of the factor and the product's own gradient, and what made weights of nine taps, turned round, makes nine
// gradients of sixteen. Factors of two tiles stand beside each other, as pairs that are multiplied at once.
#include "winograd_tiles.h"

namespace mezzotint::avx512bf16 {
namespace {

constexpr int PRODUCTS = 16;
constexpr int64_t COLUMNS = 32; // channels in that are multiplied together

// Gradients of two outputs become those of the four products.
struct Outputs {
  static constexpr int PATCH = 2, STEP = 2, BEFORE = 0, FACTORS = 4;
  static void in(const Floats *g, int stride, Floats *m, int to) {
    const Floats a = g[0], b = g[stride];
    m[0] = a, m[to] = a + b, m[2 * to] = a - b, m[3 * to] = -b;
  }
};

// Gradients of what multiplied the factors become those of three taps.
void taps(const Floats *u, int stride, Floats *g, int to) {
  const Floats half = _mm512_set1_ps(0.5f), b = u[stride], c = u[2 * stride];
  g[0] = u[0] + (b + c) * half, g[to] = (b - c) * half, g[2 * to] = (b + c) * half + u[3 * stride];
}

// The memory of some blocks: factors of all channels in, [PRODUCTS][tiles / 2][channels][2], those of the gradients above
// of some channels out, and inputs of a block's tiles.
struct Memory {
  int64_t factor_step, slope_step; // from one product to the next
  uint16_t *factors, *slopes;
  float *inputs;
  Memory(const Blocks &blocks, int64_t channels, int64_t out_channels, float *memory)
      : factor_step(blocks.tiles * channels + 2 * APART), slope_step(blocks.tiles * out_channels + 2 * APART),
        factors(reinterpret_cast<uint16_t *>(memory)), slopes(factors + PRODUCTS * factor_step),
        inputs(reinterpret_cast<float *>(slopes + PRODUCTS * slope_step)) {}
};

// Factors of 16 channels of a block, whose first tile is an even one, among `width` channels that begin at `to`.
template <typename Axis>
void factor(const Convolution &map, const Tiles &tiles, const uint16_t *x, int64_t channel, float *memory, int64_t width,
            int64_t step, uint16_t *to) {
  const Inputs<Axis> inputs(tiles, memory);
  read<Axis>(map, tiles, x, channel, inputs);
  const int64_t count = tiles.rows() * tiles.columns();
  for (int64_t at = 0; at < count; at += 2, to += 2 * width) {
    Floats even[PRODUCTS], odd[PRODUCTS] = {};
    const auto place = [&](int64_t tile) {
      return inputs.data + (tile / tiles.columns() * inputs.columns + tile % tiles.columns()) * Axis::STEP * LANES;
    };
    factors_of<Axis>(place(at), inputs.columns, even);
    if (at + 1 < count) factors_of<Axis>(place(at + 1), inputs.columns, odd);
#pragma GCC unroll 16
    for (int k = 0; k < PRODUCTS; k++) _mm512_storeu_si512(to + k * step, paired(even[k], odd[k]));
  }
}

// Of eight channels above and 32 below, or the last 16: sums over all pairs of tiles, added to what is there.
template <bool IS_WHOLE>
inline void multiply(const uint16_t *above, int64_t out_channels, const uint16_t *factors, int64_t channels,
                     int64_t pairs, bool is_first, float *sums) {
  Floats sum[GROUP][2];
#pragma GCC unroll 8
  for (int t = 0; t < GROUP; t++) {
    sum[t][0] = is_first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + t * channels);
    sum[t][1] = is_first || !IS_WHOLE ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + t * channels + LANES);
  }
  for (int64_t j = 0; j < pairs; j++, above += 2 * out_channels, factors += 2 * channels) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(factors);
    const __m512bh right = IS_WHOLE ? (__m512bh)_mm512_loadu_si512(factors + 2 * LANES) : left;
#pragma GCC unroll 8
    for (int t = 0; t < GROUP; t++) {
      int32_t pair;
      std::memcpy(&pair, above + 2 * t, 4);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      sum[t][0] = _mm512_dpbf16_ps(sum[t][0], both, left);
      if (IS_WHOLE) sum[t][1] = _mm512_dpbf16_ps(sum[t][1], both, right);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < GROUP; t++) {
    _mm512_storeu_ps(sums + t * channels, sum[t][0]);
    if (IS_WHOLE) _mm512_storeu_ps(sums + t * channels + LANES, sum[t][1]);
  }
}

} // namespace

int64_t gradient_workspace(const Convolution &map, const Blocks &blocks, int64_t out_channels) {
  int64_t most = 0;
  for (const auto &block : blocks.each) most = std::max(most, Inputs<Pairs>(block.tiles, nullptr).size());
  const Memory memory(blocks, map.channels, out_channels, nullptr);
  return PRODUCTS / 2 * (memory.factor_step + memory.slope_step) + most;
}

void add_gradient(const Convolution &map, const Blocks &blocks, int64_t first, int64_t last, const uint16_t *x,
                  const uint16_t *above, bool is_first, float *sums, float *work) {
  const int64_t channels = map.channels, count = last - first, positions = map.rows * map.columns;
  const Memory memory(blocks, channels, count, work);
  Convolution result = map;
  result.channels = map.out_channels;
  for (const auto &[tiles, picture, at] : blocks.each) {
    for (int64_t c = 0; c < channels; c += LANES)
      factor<Pairs>(map, tiles, x + picture * positions * channels, c, memory.inputs, channels, memory.factor_step,
                    memory.factors + at * channels + 2 * c);
    for (int64_t o = 0; o < count; o += LANES)
      factor<Outputs>(result, tiles, above + picture * positions * map.out_channels, first + o, memory.inputs, count,
                      memory.slope_step, memory.slopes + at * count + 2 * o);
  }
  for (int64_t k = 0; k < PRODUCTS; k++)
    for (int64_t c = 0; c < channels; c += COLUMNS) {
      const auto run = c + COLUMNS <= channels ? multiply<true> : multiply<false>;
      float *to = sums + k * (channels * map.out_channels + APART) + first * channels + c;
      for (int64_t o = 0; o < count; o += GROUP)
        run(memory.slopes + k * memory.slope_step + 2 * o, count, memory.factors + k * memory.factor_step + 2 * c,
            channels, blocks.tiles / 2, is_first, to + o * channels);
    }
}

int64_t sums_size(const Convolution &map) { return PRODUCTS * (map.channels * map.out_channels + APART); }

void finish_gradient(const Convolution &map, int64_t out_channel, const float *sums, uint16_t *gradient) {
  const int64_t step = map.channels * map.out_channels + APART;
  sums += out_channel * map.channels;
  gradient += out_channel * map.channels * 9;
  for (int64_t c = 0; c < map.channels; c += LANES) {
    Floats u[PRODUCTS], h[12], g[9];
#pragma GCC unroll 16
    for (int k = 0; k < PRODUCTS; k++) u[k] = _mm512_loadu_ps(sums + k * step + c);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) taps(u + 4 * r, 1, h + 3 * r, 1);
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++) taps(h + k, 3, g + k, 3);
    alignas(32) uint16_t made[9][LANES];
#pragma GCC unroll 9
    for (int k = 0; k < 9; k++)
      _mm256_store_si256(reinterpret_cast<__m256i *>(made[k]), (__m256i)_mm512_cvtneps_pbh(g[k]));
    for (int64_t lane = 0; lane < LANES; lane++)
      for (int k = 0; k < 9; k++) gradient[(c + lane) * 9 + k] = made[k][lane];
  }
}

} // namespace mezzotint::avx512bf16
