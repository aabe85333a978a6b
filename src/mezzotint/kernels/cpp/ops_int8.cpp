// Numbers as bytes for products of integers, as torch sees it.
#include <ATen/ops/empty_like.h>

#include <atomic>
#include <limits>

#include "int8.h"
#include "ops.h"

namespace {

constexpr int64_t GRAIN = 1 << 15; // numbers that are worth a thread

template <typename T> std::tuple<Tensor, Tensor> as_bytes(const Tensor &x) {
  const T *from = reinterpret_cast<const T *>(x.const_data_ptr());
  std::atomic<uint32_t> bits{0};
  at::parallel_for(0, x.numel(), GRAIN, [&](int64_t begin, int64_t end) {
    const uint32_t own = avx512::largest(from + begin, end - begin);
    uint32_t known = bits.load();
    while (known < own && !bits.compare_exchange_weak(known, own)) {
    }
  });
  const uint32_t found = bits.load();
  float largest;
  std::memcpy(&largest, &found, 4);
  Tensor scale = at::empty({1}, x.options().dtype(at::kFloat).memory_format(std::nullopt));
  const float step = largest / 127.0f, least = std::numeric_limits<float>::min();
  *scale.mutable_data_ptr<float>() = step < least ? least : step; // what is no number stays so
  Tensor y = at::empty_like(x, x.options().dtype(at::kByte));
  uint8_t *to = y.mutable_data_ptr<uint8_t>();
  const float factor = 1.0f / (step < least ? least : step);
  at::parallel_for(0, x.numel(), GRAIN, [&](int64_t begin, int64_t end) {
    avx512::bytes(from + begin, to + begin, end - begin, factor);
  });
  return {y, scale};
}

// x as bytes about 128 in the layout of x, and the scale [1] of their steps: a 127th of the largest magnitude.
std::tuple<Tensor, Tensor> bytes(const Tensor &x) {
  TORCH_CHECK(has_avx512(), "bytes: this processor has no AVX-512");
  TORCH_CHECK(x.is_non_overlapping_and_dense(), "bytes: x has gaps");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "bytes: ", x.scalar_type(),
              " is neither float32 nor bfloat16");
  return x.scalar_type() == at::kFloat ? as_bytes<uint32_t>(x) : as_bytes<uint16_t>(x);
}

} // namespace

TORCH_LIBRARY_FRAGMENT(mezzotint, m) { m.def("bytes(Tensor x) -> (Tensor, Tensor)"); }

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) { m.impl("bytes", bytes); }
