// The operations as torch sees them: shapes, memory, threads, and the choice of kernel for this processor.
#include <cmath>

#include "ops.h"

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
  m.def("scaled(Tensor x, Tensor scale, Tensor offset, bool silu, Tensor(a!) y) -> ()");
}

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) {
  m.impl("group_norm", group_norm);
  m.impl("group_norm_forward", group_norm_forward);
  m.impl("moments", moments);
  m.impl("scaled", scaled);
}
