// The operations as torch sees them: shapes, memory, threads, and the choice of kernel for this processor.
#include <atomic>
#include <cmath>

#include "ops.h"
#include "winograd.h"

namespace {

using at::Tensor;
using namespace mezzotint;

// First pass: of every chunk and channel, mean and sum of squared distances from it; both [batch chunks channels].
template <typename T> void measure(const Picture &picture, const Tensor &x, float *mean, float *squares) {
  const auto *from = reinterpret_cast<const T *>(x.const_data_ptr());
  const Moments<T> moments = has_avx512() ? Moments<T>{avx512::moments} : Moments<T>{avx2::moments};
  const int64_t chunks = picture.chunks(), channels = picture.channels;
  at::parallel_for(0, picture.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i / chunks * picture.positions + i % chunks * CHUNK;
      moments(from + first * channels, picture.size(i % chunks), channels, mean + i * channels, squares + i * channels);
    }
  });
}

// Second pass: y = x * scale + offset per channel, then SiLU; scale and offset are [batch channels].
template <typename T, typename U>
void rescale(const Picture &picture, const Tensor &x, const Tensor &y, const float *scale, const float *offset,
             bool silu) {
  constexpr int64_t ROWS = 64; // positions per piece
  const auto *from = reinterpret_cast<const T *>(x.const_data_ptr());
  auto *to = reinterpret_cast<U *>(y.mutable_data_ptr());
  const Apply<T, U> apply = has_avx512() ? Apply<T, U>{avx512::apply} : Apply<T, U>{avx2::apply};
  const int64_t all = picture.batch * picture.positions, channels = picture.channels;
  at::parallel_for(0, (all + ROWS - 1) / ROWS, 8, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * ROWS, all);
    for (int64_t at = begin * ROWS; at < last;) {
      const int64_t b = at / picture.positions, count = std::min(last, (b + 1) * picture.positions) - at;
      apply(from + at * channels, to + at * channels, count, channels, scale + b * channels, offset + b * channels,
            silu);
      at += count;
    }
  });
}

// Mean and 1 / standard deviation of the channels [first, first + width), `shift` added to them, from their chunks'.
std::pair<double, double> joined(const Picture &picture, const float *mean, const float *squares, const float *shift,
                                 int64_t first, int64_t width, double eps) {
  const auto at = [&](int64_t i, int64_t c) { return (double)mean[i * picture.channels + c] + (shift ? shift[c] : 0); };
  const double count = (double)(picture.positions * width);
  double sum = 0, about = 0;
  for (int64_t i = 0; i < picture.chunks(); i++)
    for (int64_t c = first; c < first + width; c++) sum += (double)picture.size(i) * at(i, c);
  for (int64_t i = 0; i < picture.chunks(); i++)
    for (int64_t c = first; c < first + width; c++) {
      const double away = at(i, c) - sum / count;
      about += squares[i * picture.channels + c] + (double)picture.size(i) * away * away;
    }
  return {sum / count, 1 / std::sqrt(about / count + eps)};
}

template <typename T, typename U>
void normalise(const Tensor &x, const Tensor &y, int64_t groups, const float *weight, const float *bias,
               const float *shift, double eps, bool silu, const Told &told) {
  const Picture picture(x);
  const int64_t channels = picture.channels, width = channels / groups, per = picture.chunks() * channels;
  const Tensor memory = buffer(2 * picture.batch * per, at::kFloat, x);
  float *mean = memory.mutable_data_ptr<float>(), *squares = mean + picture.batch * per;
  measure<T>(picture, x, mean, squares);
  for (int64_t b = 0; b < picture.batch; b++)
    for (int64_t g = 0; g < groups; g++) {
      const float *added = shift ? shift + b * channels : nullptr;
      const auto [centre, inverse] = joined(picture, mean + b * per, squares + b * per, added, g * width, width, eps);
      told.centre[b * groups + g] = (float)centre;
      told.inverse[b * groups + g] = (float)inverse;
      for (int64_t c = g * width; c < (g + 1) * width; c++) {
        const double factor = inverse * (weight ? weight[c] : 1);
        told.scale[b * channels + c] = (float)factor;
        told.offset[b * channels + c] = (float)((bias ? bias[c] : 0) + ((added ? added[c] : 0) - centre) * factor);
      }
    }
  rescale<T, U>(picture, x, y, told.scale, told.offset, silu);
}

// Mean and sum of squared distances from it of every picture and channel: [2 b c], float64.
Tensor moments(const Tensor &x) {
  check_picture("moments", x);
  const Picture picture(x);
  const int64_t channels = picture.channels, per = picture.chunks() * channels;
  const Tensor memory = buffer(2 * picture.batch * per, at::kFloat, x);
  float *mean = memory.mutable_data_ptr<float>(), *squares = mean + picture.batch * per;
  x.scalar_type() == at::kFloat ? measure<float>(picture, x, mean, squares)
                                : measure<bfloat16>(picture, x, mean, squares);
  Tensor result = at::empty({2, picture.batch, channels}, x.options().dtype(at::kDouble));
  double *to = result.mutable_data_ptr<double>();
  for (int64_t b = 0; b < picture.batch; b++)
    for (int64_t c = 0; c < channels; c++) {
      const auto [centre, inverse] = joined(picture, mean + b * per, squares + b * per, nullptr, c, 1, 0);
      to[b * channels + c] = centre;
      to[(picture.batch + b) * channels + c] = (double)picture.positions / (inverse * inverse);
    }
  return result;
}

// x * scale + offset per picture and channel, then SiLU, into y.
void scaled(const Tensor &x, const Tensor &scale, const Tensor &offset, bool silu, const Tensor &y) {
  check_picture("scaled", x);
  check_picture("scaled", y);
  for (const Tensor &values : {scale, offset})
    TORCH_CHECK(values.scalar_type() == at::kFloat && values.is_contiguous() &&
                    values.numel() == x.size(0) * x.size(1),
                "scaled: scale and offset are float32 [b c]");
  TORCH_CHECK(x.sizes() == y.sizes(), "scaled: ", x.sizes(), " into ", y.sizes());
  const bool from = x.scalar_type() == at::kFloat, to = y.scalar_type() == at::kFloat;
  const auto run = from ? (to ? rescale<float, float> : rescale<float, bfloat16>)
                        : (to ? rescale<bfloat16, float> : rescale<bfloat16, bfloat16>);
  run(Picture(x), x, y, scale.const_data_ptr<float>(), offset.const_data_ptr<float>(), silu);
}

// The result and what it was made by (Told), which its gradient needs.
std::tuple<Tensor, Tensor> group_norm_forward(const Tensor &x, int64_t groups, const std::optional<Tensor> &weight,
                                              const std::optional<Tensor> &bias, double eps, bool silu,
                                              const std::optional<Tensor> &shift, std::optional<at::ScalarType> dtype) {
  check_picture("group_norm", x);
  const at::ScalarType in = x.scalar_type(), out = dtype.value_or(in);
  TORCH_CHECK(out == at::kFloat || out == at::kBFloat16, "group_norm: ", out, " is neither float32 nor bfloat16");
  TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, "group_norm: ", x.size(1), " channels in ", groups, " groups");
  const int64_t batch = x.size(0), channels = x.size(1);
  const Tensor w = floats(weight, channels), b = floats(bias, channels), s = floats(shift, batch * channels);
  Tensor y = at::empty(x.sizes(), x.options().dtype(out).memory_format(at::MemoryFormat::ChannelsLast));
  Tensor told = buffer(Told::size(batch, channels, groups), at::kFloat, x);
  if (y.numel() == 0) return {y, told};
  const auto run = in == at::kFloat ? (out == at::kFloat ? normalise<float, float> : normalise<float, bfloat16>)
                                    : (out == at::kFloat ? normalise<bfloat16, float> : normalise<bfloat16, bfloat16>);
  run(x, y, groups, data(w), data(b), data(s), eps, silu, Told(told.mutable_data_ptr<float>(), batch, channels, groups));
  return {y, told};
}

Tensor group_norm(const Tensor &x, int64_t groups, const std::optional<Tensor> &weight,
                  const std::optional<Tensor> &bias, double eps, bool silu, const std::optional<Tensor> &shift,
                  std::optional<at::ScalarType> dtype) {
  return std::get<0>(group_norm_forward(x, groups, weight, bias, eps, silu, shift, dtype));
}

// Rows [first, last) of x, through scale, offset and SiLU if they are there, convolved 3x3 into y or added to it; both are
// whole maps. `weights` are transformed (winograd.h).
void convolve(const Tensor &x, const std::optional<Tensor> &scale, const std::optional<Tensor> &offset,
              const Tensor &weights, const Tensor &bias, bool is_doubled, bool is_added, int64_t first, int64_t last,
              const Tensor &y) {
  constexpr int64_t ROWS = 4, COLUMNS = 16; // tiles of a block
  check_picture("convolve", x);
  check_picture("convolve", y);
  TORCH_CHECK(has_bf16_pairs(), "convolve: this processor has no AVX512-BF16");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16 && y.scalar_type() == at::kBFloat16 &&
                  weights.scalar_type() == at::kBFloat16 && weights.is_contiguous(),
              "convolve: x, y and weights are bfloat16");
  Convolution convolution{x.size(1), x.size(2), x.size(3), y.size(1)};
  const int64_t factor = is_doubled ? 2 : 1, products = is_doubled ? 9 : 16;
  TORCH_CHECK(convolution.channels % 16 == 0 && convolution.out_channels % 32 == 0 && x.size(0) == 1 &&
                  y.size(0) == 1 && y.size(2) == factor * x.size(2) && y.size(3) == factor * x.size(3) &&
                  weights.numel() == products * convolution.channels * convolution.out_channels,
              "convolve: ", x.sizes(), " into ", y.sizes(), " by ", weights.numel(), " weights");
  const auto values = [&](const std::optional<Tensor> &given, int64_t count) -> const float * {
    if (!given) return nullptr;
    TORCH_CHECK(given->scalar_type() == at::kFloat && given->is_contiguous() && given->numel() == count,
                "convolve: bias, scale and offset are float32, one for every channel");
    return given->const_data_ptr<float>();
  };
  convolution.bias = values(bias, convolution.out_channels);
  convolution.scale = values(scale, convolution.channels);
  convolution.offset = values(offset, convolution.channels);
  TORCH_CHECK(!convolution.scale == !convolution.offset, "convolve: scale and offset come together");
  convolution.weights = reinterpret_cast<const uint16_t *>(weights.const_data_ptr());
  convolution.is_added = is_added;
  const auto *from = reinterpret_cast<const uint16_t *>(x.const_data_ptr());
  auto *to = reinterpret_cast<uint16_t *>(y.mutable_data_ptr());

  const int64_t step = is_doubled ? 1 : 2; // rows and columns of x per tile
  TORCH_CHECK(0 <= first && first <= last && last <= convolution.rows && first % step == 0,
              "convolve: rows ", first, " to ", last, " of ", convolution.rows);
  const int64_t above = first / step, below = (last + step - 1) / step, end_column = (convolution.columns + step - 1) / step;
  const int64_t across = (end_column + COLUMNS - 1) / COLUMNS, down = (below - above + ROWS - 1) / ROWS;
  const auto block = [&](int64_t at) {
    const int64_t row = above + at / across * ROWS, column = at % across * COLUMNS;
    return Tiles{row, std::min(row + ROWS, below), column, std::min(column + COLUMNS, end_column)};
  };
  std::atomic<int64_t> next = 0; // block: whoever is ready takes it, so that nobody waits for a thread that was held up
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), across * down), 1, [&](int64_t, int64_t) {
    const Tensor work = buffer(avx512bf16::convolution_workspace(convolution, block(0), is_doubled), at::kFloat, x);
    for (int64_t at = next++; at < across * down; at = next++)
      avx512bf16::convolve(convolution, block(at), is_doubled, from, to, work.mutable_data_ptr<float>());
  });
}

std::string instructions() {
  return has_bf16_pairs() ? "avx2 avx512 avx512_bf16" : has_avx512() ? "avx2 avx512" : has_avx2() ? "avx2" : "";
}

} // namespace

TORCH_LIBRARY(mezzotint, m) {
  m.def("instructions() -> str", instructions);
  m.def("group_norm_forward(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, Tensor? shift, "
        "ScalarType? dtype) -> (Tensor, Tensor)");
  m.def("group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, Tensor? shift, "
        "ScalarType? dtype) -> Tensor");
  m.def("moments(Tensor x) -> Tensor");
  m.def("convolve(Tensor x, Tensor? scale, Tensor? offset, Tensor weights, Tensor bias, bool is_doubled, bool is_added, "
        "int first, int last, Tensor(a!) y) -> ()");
  m.def("scaled(Tensor x, Tensor scale, Tensor offset, bool silu, Tensor(a!) y) -> ()");
}

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) {
  m.impl("convolve", convolve);
  m.impl("group_norm", group_norm);
  m.impl("group_norm_forward", group_norm_forward);
  m.impl("moments", moments);
  m.impl("scaled", scaled);
}
