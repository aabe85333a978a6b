// The operations as torch sees them: shapes, memory, threads, and the choice of kernel for this processor.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "attention.h"
#include "group_norm.h"

namespace {

using at::Tensor;
using namespace mezzotint;

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_bf16_pairs() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// A buffer for vectors of 64 bytes.
Tensor buffer(int64_t count, at::ScalarType type, const Tensor &like) {
  return at::empty({count}, like.options().dtype(type).memory_format(std::nullopt));
}

Strided strided(const Tensor &x) {
  return {reinterpret_cast<const uint16_t *>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

Tensor attention(const Tensor &q, const Tensor &k, const Tensor &v, double scale) {
  TORCH_CHECK(has_bf16_pairs(), "attention: this processor has no AVX512-BF16");
  for (const Tensor &x : {q, k, v}) {
    TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kBFloat16 && x.stride(3) == 1,
                "attention: q, k and v are bfloat16 [b l heads d], contiguous in d");
  }
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3),
              "attention: q ", q.sizes(), ", k ", k.sizes(), ", v ", v.sizes());
  const Shape shape{q.size(0), q.size(2), q.size(1), k.size(1), q.size(3)};
  TORCH_CHECK(shape.width % GROUP == 0 && shape.keys > 0 && scale > 0,
              "attention: width ", shape.width, " is no multiple of 8, or no keys, or scale ", scale, " not above 0");
  Tensor out = at::empty({shape.batch, shape.queries, shape.heads, shape.width}, q.options());
  if (out.numel() == 0) return out;

  const Strided qs = strided(q), ks = strided(k), vs = strided(v);
  const int64_t heads = shape.batch * shape.heads, groups = shape.key_groups(), blocks = shape.query_blocks();
  const Tensor packed = buffer(2 * heads * shape.packed(), at::kBFloat16, q);
  auto *keys = reinterpret_cast<uint16_t *>(packed.mutable_data_ptr()), *values = keys + heads * shape.packed();
  at::parallel_for(0, heads * groups, 16, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t head = at / groups, first = at % groups, last = std::min(groups, first + end - at);
      const int64_t b = head / shape.heads, h = head % shape.heads, to = head * shape.packed();
      avx512bf16::pack_keys(shape, ks.data + b * ks.batch + h * ks.head, ks.position, keys + to, first, last);
      avx512bf16::pack_values(shape, vs.data + b * vs.batch + h * vs.head, vs.position, values + to, first, last);
      at += last - first;
    }
  });
  auto *result = reinterpret_cast<uint16_t *>(out.mutable_data_ptr());
  at::parallel_for(0, heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const Tensor work = buffer(avx512bf16::workspace(shape), at::kFloat, q);
    for (int64_t at = begin; at < end; at++) {
      const int64_t head = at / blocks, b = head / shape.heads, h = head % shape.heads;
      avx512bf16::attend(shape, qs.data + b * qs.batch + h * qs.head, qs.position, keys + head * shape.packed(),
                         values + head * shape.packed(), result + (b * shape.queries * shape.heads + h) * shape.width,
                         shape.heads * shape.width, (float)scale, at % blocks, work.mutable_data_ptr<float>());
    }
  });
  return out;
}

// Mean and 1 / standard deviation of one group, from those of its channels' chunks.
std::pair<double, double> joined(const float *mean, const float *squares, const float *shift, int64_t chunks,
                                 int64_t positions, int64_t channels, int64_t first, int64_t width, double eps) {
  const auto size = [&](int64_t i) { return (double)std::min(CHUNK, positions - i * CHUNK); };
  double sum = 0, about = 0;
  for (int64_t i = 0; i < chunks; i++)
    for (int64_t c = first; c < first + width; c++) sum += size(i) * (mean[i * channels + c] + (shift ? shift[c] : 0));
  const double centre = sum / (double)(positions * width);
  for (int64_t i = 0; i < chunks; i++)
    for (int64_t c = first; c < first + width; c++) {
      const double away = mean[i * channels + c] + (shift ? shift[c] : 0) - centre;
      about += squares[i * channels + c] + size(i) * away * away;
    }
  return {centre, 1 / std::sqrt(about / (double)(positions * width) + eps)};
}

template <typename T, typename U>
void normalise(const Tensor &x, const Tensor &y, int64_t groups, const float *weight, const float *bias,
               const float *shift, double eps, bool silu) {
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.size(2) * x.size(3), width = channels / groups;
  const int64_t chunks = (positions + CHUNK - 1) / CHUNK;
  const auto *from = reinterpret_cast<const T *>(x.const_data_ptr());
  auto *to = reinterpret_cast<U *>(y.mutable_data_ptr());
  const bool is_wide = has_avx512();
  const Tensor memory = buffer(2 * batch * (chunks + 1) * channels, at::kFloat, x);
  float *mean = memory.mutable_data_ptr<float>(), *squares = mean + batch * chunks * channels;
  float *scale = squares + batch * chunks * channels, *offset = scale + batch * channels;

  at::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i % chunks * CHUNK, count = std::min(CHUNK, positions - first);
      const T *part = from + (i / chunks * positions + first) * channels;
      (is_wide ? Moments<T>{avx512::moments} : Moments<T>{avx2::moments})(part, count, channels, mean + i * channels,
                                                                          squares + i * channels);
    }
  });
  for (int64_t b = 0; b < batch; b++)
    for (int64_t g = 0; g < groups; g++) {
      const float *added = shift ? shift + b * channels : nullptr;
      const auto [centre, inverse] = joined(mean + b * chunks * channels, squares + b * chunks * channels, added, chunks,
                                            positions, channels, g * width, width, eps);
      for (int64_t c = g * width; c < (g + 1) * width; c++) {
        const double factor = inverse * (weight ? weight[c] : 1);
        scale[b * channels + c] = (float)factor;
        offset[b * channels + c] = (float)((bias ? bias[c] : 0) + ((added ? added[c] : 0) - centre) * factor);
      }
    }
  constexpr int64_t ROWS = 64; // positions per piece of the second pass
  at::parallel_for(0, (batch * positions + ROWS - 1) / ROWS, 8, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * ROWS, batch * positions);
    for (int64_t at = begin * ROWS; at < last;) {
      const int64_t b = at / positions, count = std::min(last, (b + 1) * positions) - at;
      (is_wide ? Apply<T, U>{avx512::apply} : Apply<T, U>{avx2::apply})(
          from + at * channels, to + at * channels, count, channels, scale + b * channels, offset + b * channels, silu);
      at += count;
    }
  });
}

Tensor group_norm(const Tensor &x, int64_t groups, const std::optional<Tensor> &weight,
                  const std::optional<Tensor> &bias, double eps, bool silu, const std::optional<Tensor> &shift,
                  std::optional<at::ScalarType> dtype) {
  TORCH_CHECK(has_avx2(), "group_norm: this processor has no AVX2");
  TORCH_CHECK(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "group_norm: x is a channels_last [b c h w]");
  const at::ScalarType in = x.scalar_type(), out = dtype.value_or(in);
  for (const at::ScalarType type : {in, out})
    TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "group_norm: ", type, " is neither float32 nor bfloat16");
  TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, "group_norm: ", x.size(1), " channels in ", groups, " groups");
  const auto values = [&](const std::optional<Tensor> &given, int64_t count) {
    if (!given.has_value()) return Tensor();
    TORCH_CHECK(given->numel() == count, "group_norm: ", given->numel(), " values for ", count, " channels");
    return given->to(at::kFloat).contiguous();
  };
  const Tensor w = values(weight, x.size(1)), b = values(bias, x.size(1)), s = values(shift, x.size(0) * x.size(1));
  const auto data = [](const Tensor &t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
  Tensor y = at::empty(x.sizes(), x.options().dtype(out).memory_format(at::MemoryFormat::ChannelsLast));
  if (y.numel() == 0) return y;
  const auto run = in == at::kFloat ? (out == at::kFloat ? normalise<float, float> : normalise<float, bfloat16>)
                                    : (out == at::kFloat ? normalise<bfloat16, float> : normalise<bfloat16, bfloat16>);
  run(x, y, groups, data(w), data(b), data(s), eps, silu);
  return y;
}

std::string instructions() {
  return has_bf16_pairs() ? "avx2 avx512 avx512_bf16" : has_avx512() ? "avx2 avx512" : has_avx2() ? "avx2" : "";
}

} // namespace

TORCH_LIBRARY(mezzotint, m) {
  m.def("instructions() -> str", instructions);
  m.def("attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor");
  m.def("group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, Tensor? shift, "
        "ScalarType? dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) {
  m.impl("attention", attention);
  m.impl("group_norm", group_norm);
}
