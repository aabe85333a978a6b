// An exponential, and pairs of bfloat16, for processors that multiply these (vdpbf16ps).
#pragma once
#include <immintrin.h>

namespace mezzotint::avx512bf16 {
namespace { // each object has its own: none may be linked into what an older processor runs

// 2^x to 8e-5, a twenty-fifth of what rounding to bfloat16 loses; 0 for -inf, inf from 128 on.
inline __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); // [0, 1)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.07802452f), f, _mm512_set1_ps(0.22606716f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69583353f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992522f));
  return _mm512_scalef_ps(p, x);
}

// Two vectors of float32 as one of 16-bit pairs: lane i holds (even[i], odd[i]).
inline __m512i paired(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

} // namespace
} // namespace mezzotint::avx512bf16
