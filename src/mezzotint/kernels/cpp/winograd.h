// What ops_convolution.cpp asks of convolutions of few multiplications and their gradients; compiled for one instruction
// set, without torch (see attention.h).
#pragma once
#include <cstdint>
#include <vector>

namespace mezzotint {

// A 3x3 convolution of a channels_last map [rows columns channels] with a border of zeros; through scale, offset and
// SiLU before if they are there. Doubled: behind a nearest upsampling, so that the result has twice the rows and columns.
struct Convolution {
  int64_t channels, rows, columns, out_channels;
  const float *scale, *offset; // of every channel of x, or null
  const void *weights;         // of each 32 channels of y, see below
  const float *bias;           // of every channel of y
  const uint16_t *added;       // a map like y, perhaps y itself; or null
  const float *steps;          // of every channel of y, what weights of 8 bits are multiples of; null if they have 16
};

// A tile is what makes 2x2 of the output: [first_row, last_row) x [first_column, last_column) of them.
struct Tiles {
  int64_t first_row, last_row, first_column, last_column;
  int64_t rows() const { return last_row - first_row; }
  int64_t columns() const { return last_column - first_column; }
};

// Several blocks of tiles, bands of a picture or whole pictures, that are multiplied together.
struct Blocks {
  struct Block {
    Tiles tiles;
    int64_t picture, first; // first of its tiles among all
  };
  std::vector<Block> each;
  int64_t tiles; // in whole groups
};

// Where the weights [o c 3 3], of 16 or 8 bits, are: how far apart outputs, channels and taps are.
struct Weights {
  const void *data;
  bool is_byte;
  int64_t channels, out_channels, out_step, step, tap_step;
};

namespace avx512bf16 {
// Weights are kept for each 32 channels o, and of these for each 256 channels c, as matrices [c / 2][32][2]: arranged, the
// nine taps or, doubled, weights of the nine products; transformed, weights of all sixteen products. What the last 32 lack
// is zeros.
void arrange(const Weights &, int64_t channel, bool is_doubled, void *arranged);
void transform(const uint16_t *arranged, int64_t channels, uint16_t *transformed);

// Block by block, with weights of all products. 32-bit values of memory that it works in.
int64_t convolution_workspace(const Convolution &, const Tiles &, bool is_doubled);
void convolve(const Convolution &, const Tiles &, bool is_doubled, const uint16_t *x, uint16_t *y, float *work);

// All blocks at once, with arranged weights, which become those of the products on the way: channels [first, last) of the
// results, `first` a multiple of 64. 32-bit values of memory that it works in.
int64_t together_workspace(const Convolution &, const Blocks &, bool is_doubled);
void convolve_together(const Convolution &, const Blocks &, int64_t first, int64_t last, bool is_doubled,
                       const uint16_t *x, uint16_t *y, float *work);

// Gradients of weights [o c 3 3] from a map of c channels and those above, of o: first what some blocks, each of which
// begins at an even tile, add to the sums over tiles of all products, for channels [first, last) above, in `work` of so
// many 32-bit values; then, of an output channel, what the sums say of the taps.
int64_t gradient_workspace(const Convolution &, const Blocks &, int64_t out_channels);
void add_gradient(const Convolution &, const Blocks &, int64_t first, int64_t last, const uint16_t *x,
                  const uint16_t *above, bool is_first, float *sums, float *work);
int64_t sums_size(const Convolution &);
void finish_gradient(const Convolution &, int64_t out_channel, const float *sums, uint16_t *gradient);
} // namespace avx512bf16
} // namespace mezzotint
