// Numbers as bytes for products of integers. Numbers are read as their bits: without the sign, these order like the
// numbers themselves, with what is no number above all, so that the largest never hides it.
#include "int8.h"

#include <algorithm>
#include <cstring>

namespace mezzotint::avx512 {
namespace {

template <typename T> constexpr int MISSING = 32 - 8 * sizeof(T); // low bits that float32 has and T has not

template <typename T> inline float number(T x) {
  const uint32_t bits = (uint32_t)x << MISSING<T>;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

template <typename T> inline uint32_t largest_of(const T *__restrict x, int64_t count) {
  constexpr T MAGNITUDE = (T)~(T)0 >> 1;
  T found = 0;
  for (int64_t i = 0; i < count; i++) found = std::max(found, (T)(x[i] & MAGNITUDE));
  return (uint32_t)found << MISSING<T>;
}

template <typename T> inline void bytes_of(const T *__restrict x, uint8_t *__restrict y, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i++) y[i] = (uint8_t)(int32_t)(number(x[i]) * factor + 128.5f);
}

} // namespace

MEZZOTINT_LARGEST(uint16_t) { return largest_of(x, count); }
MEZZOTINT_LARGEST(uint32_t) { return largest_of(x, count); }
MEZZOTINT_BYTES(uint16_t) { bytes_of(x, y, count, factor); }
MEZZOTINT_BYTES(uint32_t) { bytes_of(x, y, count, factor); }

} // namespace mezzotint::avx512
