// Convolutions of few multiplications as torch sees them (winograd.h).
#include <ATen/ops/zeros.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "ops.h"
#include "winograd.h"

namespace {

constexpr int64_t OUTPUTS = 32, LANES = 16; // channels out and in that are made together

// Memory of so many 32-bit values that a thread works in. It keeps it: what is given back comes again as empty pages.
float *workspace(int64_t size) {
  thread_local std::unique_ptr<float, decltype(&std::free)> kept{nullptr, &std::free};
  thread_local int64_t known = 0;
  if (known < size) {
    kept.reset();
    kept.reset(static_cast<float *>(std::aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64)));
    known = kept ? size : 0;
    TORCH_CHECK(kept, "convolution: no memory for ", size * sizeof(float), " bytes");
  }
  return kept.get();
}

// Whoever is ready takes the next of so many, so that nobody waits for a thread that was held up; each in memory of its
// thread, of so many 32-bit values.
template <typename Do> void shared_out(int64_t count, int64_t size, const Do &run) {
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), count), 1, [&](int64_t, int64_t) {
    float *memory = workspace(size);
    for (int64_t at = next++; at < count; at = next++) run(at, memory);
  });
}

uint16_t *bits(const Tensor &x) { return reinterpret_cast<uint16_t *>(x.mutable_data_ptr()); }
const uint16_t *const_bits(const Tensor &x) { return reinterpret_cast<const uint16_t *>(x.const_data_ptr()); }

int64_t panels_of(int64_t out_channels) { return (out_channels + OUTPUTS - 1) / OUTPUTS; }

// Weights [o c 3 3] in the order in which `convolve_together` reads them or, transformed, `convolve`. Turned: of the
// convolution that is the gradient, from o channels to c, the taps from last to first.
Tensor convolution_weights(const Tensor &weight, bool is_doubled, bool is_transformed, bool is_turned) {
  const bool is_byte = weight.scalar_type() == at::kChar;
  TORCH_CHECK(has_bf16_pairs(), "convolution_weights: this processor has no AVX512-BF16");
  TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
                  weight.stride(2) == 3 * weight.stride(3) && weight.size(0) % LANES == 0 && weight.size(1) % LANES == 0 &&
                  (weight.scalar_type() == at::kBFloat16 || (is_byte && !is_doubled && !is_transformed)),
              "convolution_weights: bfloat16 or whole int8 [o c 3 3], o and c multiples of 16 (found ",
              weight.scalar_type(), " ", weight.sizes(), ")");
  const int64_t out = is_turned ? 1 : 0, in = 1 - out, tap = weight.stride(3), item = weight.element_size();
  const Weights weights{static_cast<const char *>(weight.const_data_ptr()) + (is_turned ? 8 * tap * item : 0),
                        is_byte,
                        weight.size(in),
                        weight.size(out),
                        weight.stride(out),
                        weight.stride(in),
                        is_turned ? -tap : tap};
  const int64_t panels = panels_of(weights.out_channels), arranged = 9 * weights.channels * OUTPUTS;
  const bool is_expanded = is_transformed && !is_doubled; // nine products have nine weights as they are
  const int64_t size = is_expanded ? 16 * weights.channels * OUTPUTS : arranged;
  Tensor made = buffer(panels * size, weight.scalar_type(), weight);
  auto *all = static_cast<char *>(made.mutable_data_ptr());
  shared_out(panels, is_expanded ? arranged / 2 : 0, [&](int64_t panel, float *work) {
    char *to = all + panel * size * item;
    avx512bf16::arrange(weights, panel * OUTPUTS, is_doubled, is_expanded ? static_cast<void *>(work) : to);
    if (is_expanded)
      avx512bf16::transform(reinterpret_cast<uint16_t *>(work), weights.channels, reinterpret_cast<uint16_t *>(to));
  });
  return made;
}

// What the tensors say: of b pictures x, through scale, offset and SiLU if they are there, into y, and `add` to it.
Convolution checked(const char *name, const Tensor &x, const std::optional<Tensor> &scale,
                    const std::optional<Tensor> &offset, const Tensor &weights, const Tensor &bias,
                    const std::optional<Tensor> &add, const std::optional<Tensor> &steps, bool is_doubled,
                    int64_t matrices, const Tensor &y) {
  check_picture(name, x);
  check_picture(name, y);
  TORCH_CHECK(has_bf16_pairs(), name, ": this processor has no AVX512-BF16");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && y.scalar_type() == at::kBFloat16 &&
                  weights.scalar_type() == (steps ? at::kChar : at::kBFloat16) && weights.is_contiguous(),
              name, ": x, y and weights are bfloat16, or weights int8 and their steps float32");
  Convolution convolution{x.size(1), x.size(2), x.size(3), y.size(1)};
  const int64_t factor = is_doubled ? 2 : 1;
  TORCH_CHECK(convolution.channels % LANES == 0 && convolution.out_channels % LANES == 0 && x.size(0) == y.size(0) &&
                  y.size(2) == factor * x.size(2) && y.size(3) == factor * x.size(3) &&
                  weights.numel() == matrices * convolution.channels * OUTPUTS * panels_of(convolution.out_channels),
              name, ": ", x.sizes(), " into ", y.sizes(), " by ", weights.numel(), " weights");
  const auto values = [&](const std::optional<Tensor> &given, int64_t count) -> const float * {
    if (!given) return nullptr;
    TORCH_CHECK(given->scalar_type() == at::kFloat && given->is_contiguous() && given->numel() == count, name,
                ": bias, scale, offset and steps are float32, one for every channel");
    return given->const_data_ptr<float>();
  };
  convolution.bias = values(bias, convolution.out_channels);
  convolution.scale = values(scale, convolution.channels);
  convolution.offset = values(offset, convolution.channels);
  TORCH_CHECK(!convolution.scale == !convolution.offset, name, ": scale and offset come together");
  convolution.steps = values(steps, convolution.out_channels);
  convolution.weights = weights.const_data_ptr();
  if (add) check_picture(name, *add);
  TORCH_CHECK(!add || (add->sizes() == y.sizes() && add->scalar_type() == y.scalar_type()), name, ": ",
              add ? add->sizes() : y.sizes(), " added to ", y.sizes());
  convolution.added = add ? const_bits(*add) : nullptr;
  return convolution;
}

// Rows [first, last) of a large picture, with transformed weights.
void convolve(const Tensor &x, const std::optional<Tensor> &scale, const std::optional<Tensor> &offset,
              const Tensor &weights, const Tensor &bias, bool is_doubled, bool is_added, int64_t first, int64_t last,
              const Tensor &y) {
  constexpr int64_t ROWS = 4, COLUMNS = 16; // tiles of a block
  const Convolution convolution =
      checked("convolve", x, scale, offset, weights, bias, is_added ? std::optional(y) : std::nullopt, std::nullopt,
              is_doubled, is_doubled ? 9 : 16, y);
  const int64_t step = is_doubled ? 1 : 2; // rows and columns of x per tile
  TORCH_CHECK(x.size(0) == 1, "convolve: one picture (found ", x.size(0), ")");
  TORCH_CHECK(0 <= first && first <= last && last <= convolution.rows && first % step == 0,
              "convolve: rows ", first, " to ", last, " of ", convolution.rows);
  const int64_t above = first / step, below = (last + step - 1) / step, end_column = (convolution.columns + step - 1) / step;
  const int64_t across = (end_column + COLUMNS - 1) / COLUMNS, down = (below - above + ROWS - 1) / ROWS;
  const auto block = [&](int64_t at) {
    const int64_t row = above + at / across * ROWS, column = at % across * COLUMNS;
    return Tiles{row, std::min(row + ROWS, below), column, std::min(column + COLUMNS, end_column)};
  };
  const int64_t size = avx512bf16::convolution_workspace(convolution, block(0), is_doubled);
  shared_out(across * down, size, [&](int64_t at, float *work) {
    avx512bf16::convolve(convolution, block(at), is_doubled, const_bits(x), bits(y), work);
  });
}

// Whole pictures in blocks, some of them together, so that what they need fits into the caches: of so many tiles, if one
// picture or band is not more. Each block begins at a multiple of `even` tiles, and all are a multiple of `whole`.
std::vector<Blocks> in_blocks(const Convolution &convolution, int64_t pictures, int64_t step, int64_t even, int64_t whole) {
  constexpr int64_t BYTES = 6 << 20; // of factors
  const auto up = [](int64_t count, int64_t to) { return (count + to - 1) / to * to; };
  const int64_t at_once = std::clamp<int64_t>(BYTES / (32 * convolution.channels), 64, 256); // tiles
  const int64_t rows = (convolution.rows + step - 1) / step, columns = (convolution.columns + step - 1) / step;
  const int64_t most = std::min(rows, std::max<int64_t>(1, at_once / columns)); // rows of tiles of a block
  const int64_t bands = (rows + most - 1) / most, high = (rows + bands - 1) / bands;
  const int64_t per = std::max<int64_t>(1, at_once / up(high * columns, even));
  std::vector<Blocks> all;
  for (int64_t at = 0; at < pictures * bands; at++) {
    if (at % per == 0) all.push_back({{}, 0});
    Blocks &together = all.back();
    const Tiles tiles{at % bands * high, std::min(at % bands * high + high, rows), 0, columns};
    const int64_t first = together.each.empty() ? 0 : up(together.tiles, even);
    together.each.push_back({tiles, at / bands, first});
    together.tiles = first + tiles.rows() * columns;
  }
  for (Blocks &together : all) together.tiles = up(together.tiles, whole);
  return all;
}

// Whole small pictures, with arranged weights. A thread makes all factors that it needs, even if another one makes them
// too: what one thread writes comes slowly to another.
Tensor convolve_together(const Tensor &x, const Tensor &weights, const Tensor &bias, const std::optional<Tensor> &add,
                         const std::optional<Tensor> &steps, bool is_doubled) {
  constexpr int64_t WIDE = 2 * OUTPUTS; // channels out that are made together
  const int64_t factor = is_doubled ? 2 : 1;
  TORCH_CHECK(x.dim() == 4, "convolve_together: a channels_last [b c h w]");
  TORCH_CHECK(!steps || !is_doubled, "convolve_together: weights of 8 bits are not doubled");
  Tensor y = at::empty({x.size(0), bias.numel(), factor * x.size(2), factor * x.size(3)},
                       x.options().memory_format(at::MemoryFormat::ChannelsLast));
  const Convolution convolution =
      checked("convolve_together", x, std::nullopt, std::nullopt, weights, bias, add, steps, is_doubled, 9, y);
  if (y.numel() == 0) return y;
  const auto blocks = in_blocks(convolution, x.size(0), is_doubled ? 1 : 2, 1, 8);
  const int64_t count = (int64_t)blocks.size(), threads = at::get_num_threads();
  const int64_t panels = (convolution.out_channels + WIDE - 1) / WIDE;
  const int64_t parts = count >= 4 * threads ? 1 : std::min(panels, threads / std::gcd(count, threads));
  const int64_t size = avx512bf16::together_workspace(convolution, blocks[0], is_doubled);
  shared_out(count * parts, size, [&](int64_t at, float *memory) {
    const int64_t part = at % parts, first = panels * part / parts * WIDE, last = panels * (part + 1) / parts * WIDE;
    avx512bf16::convolve_together(convolution, blocks[at / parts], first, std::min(last, convolution.out_channels),
                                  is_doubled, const_bits(x), bits(y), memory);
  });
  return y;
}

// The gradient of the weights [o c 3 3] of a convolution of x from that of its result.
Tensor convolution_gradient(const Tensor &g, const Tensor &x) {
  check_picture("convolution_gradient", g);
  check_picture("convolution_gradient", x);
  TORCH_CHECK(has_bf16_pairs(), "convolution_gradient: this processor has no AVX512-BF16");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && g.scalar_type() == at::kBFloat16 && x.size(0) == g.size(0) &&
                  x.size(2) == g.size(2) && x.size(3) == g.size(3) && x.size(1) % LANES == 0 && g.size(1) % LANES == 0,
              "convolution_gradient: bfloat16 maps of one size, channels multiples of 16 (found ", g.sizes(), " and ",
              x.sizes(), ")");
  Convolution map{};
  map.channels = x.size(1), map.rows = x.size(2), map.columns = x.size(3), map.out_channels = g.size(1);
  Tensor gradient = at::zeros({g.size(1), x.size(1), 3, 3}, x.options().memory_format(std::nullopt));
  if (x.numel() == 0) return gradient;
  const Tensor memory = buffer(avx512bf16::sums_size(map), at::kFloat, x);
  float *sums = memory.mutable_data_ptr<float>();
  const auto blocks = in_blocks(map, x.size(0), 2, 2, 2);
  const int64_t units = map.out_channels / LANES, parts = std::min<int64_t>(at::get_num_threads(), units);
  const int64_t size = avx512bf16::gradient_workspace(map, blocks[0], (units + parts - 1) / parts * LANES);
  shared_out(parts, size, [&](int64_t part, float *work) { // as above, a thread makes all factors that it needs
    const int64_t first = units * part / parts * LANES, last = units * (part + 1) / parts * LANES;
    for (const Blocks &some : blocks)
      avx512bf16::add_gradient(map, some, first, last, const_bits(x), const_bits(g), &some == &blocks[0], sums, work);
  });
  shared_out(map.out_channels, 0, [&](int64_t at, float *) {
    avx512bf16::finish_gradient(map, at, sums, bits(gradient));
  });
  return gradient;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(mezzotint, m) {
  m.def("convolution_weights(Tensor weight, bool is_doubled, bool is_transformed, bool is_turned) -> Tensor");
  m.def("convolve(Tensor x, Tensor? scale, Tensor? offset, Tensor weights, Tensor bias, bool is_doubled, bool is_added, "
        "int first, int last, Tensor(a!) y) -> ()");
  m.def("convolution_gradient(Tensor g, Tensor x) -> Tensor");
  m.def("convolve_together(Tensor x, Tensor weights, Tensor bias, Tensor? add, Tensor? steps, bool is_doubled) -> Tensor");
}

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) {
  m.impl("convolution_weights", convolution_weights);
  m.impl("convolve", convolve);
  m.impl("convolution_gradient", convolution_gradient);
  m.impl("convolve_together", convolve_together);
}
