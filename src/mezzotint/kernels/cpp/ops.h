// What the files share that speak to torch: which instructions there are, memory, channels_last pictures.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "group_norm.h"

namespace {

using at::Tensor;
using namespace mezzotint;

// torch's own variable, so that what it is limited to limits these kernels too.
inline bool is_limited_to(const char *what) {
  static const char *limit = std::getenv("ATEN_CPU_CAPABILITY");
  return limit && !std::strcmp(limit, what);
}
inline bool has_avx2() {
  return !is_limited_to("default") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
inline bool has_avx512() {
  return has_avx2() && !is_limited_to("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
inline bool has_bf16_pairs() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
// AMX, by oneDNN's own check.
inline bool has_tiles() { return has_bf16_pairs() && at::native::cpublas::could_pack(at::kBFloat16); }

// A buffer for vectors of 64 bytes.
inline Tensor buffer(int64_t count, at::ScalarType type, const Tensor &like) {
  return at::empty({count}, like.options().dtype(type).memory_format(std::nullopt));
}

// A channels_last picture, and its positions in chunks.
struct Picture {
  int64_t batch, channels, positions;
  explicit Picture(const Tensor &x) : batch(x.size(0)), channels(x.size(1)), positions(x.size(2) * x.size(3)) {}
  int64_t chunks() const { return (positions + CHUNK - 1) / CHUNK; }
  int64_t size(int64_t chunk) const { return std::min(CHUNK, positions - chunk * CHUNK); }
};

// What a normalisation is for one picture after another: y = SiLU(x * scale + offset), all [batch channels]; and of each
// group, `centre` and `inverse` standard deviation, [batch groups].
struct Told {
  float *scale, *offset, *centre, *inverse;
  static int64_t size(int64_t batch, int64_t channels, int64_t groups) { return 2 * batch * (channels + groups); }
  Told(float *memory, int64_t batch, int64_t channels, int64_t groups)
      : scale(memory), offset(scale + batch * channels), centre(offset + batch * channels),
        inverse(centre + batch * groups) {}
};

inline void check_picture(const char *name, const Tensor &x) {
  TORCH_CHECK(has_avx2(), name, ": this processor has no AVX2");
  TORCH_CHECK(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast), name, ": a channels_last [b c h w]");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, name, ": ", x.scalar_type(),
              " is neither float32 nor bfloat16");
}

// float32 values, contiguous; undefined if there are none.
inline Tensor floats(const std::optional<Tensor> &given, int64_t count) {
  if (!given.has_value()) return Tensor();
  TORCH_CHECK(given->numel() == count, "group_norm: ", given->numel(), " values for ", count);
  return given->to(at::kFloat).contiguous();
}
inline const float *data(const Tensor &values) { return values.defined() ? values.const_data_ptr<float>() : nullptr; }

} // namespace
