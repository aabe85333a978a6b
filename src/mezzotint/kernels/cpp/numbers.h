// Conversions and an exponential that compilers turn into vectors, for sources that are compiled per instruction set.
#pragma once
#include <algorithm>
#include <cstring>

#include "group_norm.h"

namespace mezzotint::MEZZOTINT_ISA {
namespace { // each object has its own: none may be linked into what an older processor runs

inline float widened(float x) { return x; }
inline float widened(bfloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline void narrow(float x, float &y) { y = x; }
inline void narrow(float x, bfloat16 &y) { // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  y.bits = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float exponential(float x) { // to 2e-7 between e^-87 and e^87, which is where it stays
  const float scaled = std::min(std::max(x * 1.44269504f, -126.0f), 126.0f);
  const float shifted = scaled + 12582912.0f; // 1.5 * 2^23: its last bits are the nearest integer
  const float f = scaled - (shifted - 12582912.0f);
  float p = 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 0.24022651f;
  p = p * f + 0.69314718f;
  p = p * f + 1.0f;
  uint32_t bits, power;
  std::memcpy(&bits, &p, 4);
  std::memcpy(&power, &shifted, 4);
  bits += power << 23;
  std::memcpy(&p, &bits, 4);
  return p;
}

} // namespace
} // namespace mezzotint::MEZZOTINT_ISA
