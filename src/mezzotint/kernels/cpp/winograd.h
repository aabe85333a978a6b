// What ops.cpp asks of the convolution of few multiplications; compiled for one instruction set, without torch (see
// attention.h).
#pragma once
#include <cstdint>

namespace mezzotint {

// A 3x3 convolution of a channels_last map [rows columns channels] with a border of zeros; through scale, offset and
// SiLU before if they are there. Doubled: behind a nearest upsampling, so that the result has twice the rows and columns.
struct Convolution {
  int64_t channels, rows, columns, out_channels;
  const float *scale, *offset; // of every channel of x, or null
  const uint16_t *weights;     // transformed: [out_channels / 32][products][channels / 2][32][2]
  const float *bias;           // of every channel of y
  bool is_added;               // to what y holds
};

// A tile is what makes 2x2 of the output: [first_row, last_row) x [first_column, last_column) of them.
struct Tiles {
  int64_t first_row, last_row, first_column, last_column;
  int64_t rows() const { return last_row - first_row; }
  int64_t columns() const { return last_column - first_column; }
};

namespace avx512bf16 {
// 32-bit values of memory that `convolve` works in.
int64_t convolution_workspace(const Convolution &, const Tiles &, bool is_doubled);
void convolve(const Convolution &, const Tiles &, bool is_doubled, const uint16_t *x, uint16_t *y, float *work);
} // namespace avx512bf16
} // namespace mezzotint
