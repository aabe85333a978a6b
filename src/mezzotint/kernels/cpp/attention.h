// What ops.cpp asks of the attention kernels. No torch here: the objects behind are compiled for a newer processor than
// the rest, and an inline function of torch's headers compiled for it could be linked into the rest.
#pragma once
#include <cstdint>

namespace mezzotint {

constexpr int LANES = 16;      // queries per vector
constexpr int GROUP = 8;       // keys, or channels, per register tile
constexpr int MAX_VECTORS = 3; // vectors of queries per register tile

// A strided [b l heads d] of 16-bit floats, d contiguous.
struct Strided {
  const uint16_t *data;
  int64_t batch, position, head;
};

struct Shape {
  int64_t batch, heads, queries, keys, width;
  int64_t key_groups() const { return (keys + GROUP - 1) / GROUP; }
  int64_t query_vectors() const { return (queries + LANES - 1) / LANES; }
  int64_t query_blocks() const { return (query_vectors() + MAX_VECTORS - 1) / MAX_VECTORS; }
  int64_t packed() const { return key_groups() * GROUP * width; } // 16-bit values per head, of keys and of values
};

namespace avx512bf16 {

// Keys of one head as [groups][width/2][8 keys][2] and its values as [width/8][groups*4][8 channels][2 keys]: the order
// in which the kernel reads them. Groups [begin, end).
void pack_keys(const Shape &, const uint16_t *k, int64_t stride, uint16_t *packed, int64_t begin, int64_t end);
void pack_values(const Shape &, const uint16_t *v, int64_t stride, uint16_t *packed, int64_t begin, int64_t end);

// 32-bit values of memory that `attend` works in.
int64_t workspace(const Shape &);

// One block of queries of one head; `out` is a contiguous [b l heads d], at its head and first batch row.
void attend(const Shape &, const uint16_t *q, int64_t q_stride, const uint16_t *keys, const uint16_t *values,
            uint16_t *out, int64_t out_stride, float scale, int64_t block, float *work);

// The same for processors that multiply whole tiles (AMX): what lies between the two matrix products, which are
// oneDNN's. A block is [first, first + count) of the queries, `row` lanes wide; `scores` are [keys][row].

// Queries as [width/2][row][2], zeros behind the last.
void pack_queries(const Shape &, const uint16_t *q, int64_t stride, int64_t first, int64_t row, uint16_t *packed);
// Values of one head as [width][stride], zeros behind the last key. Channels [begin, end).
void transpose_values(const Shape &, const uint16_t *v, int64_t from, uint16_t *packed, int64_t stride, int64_t begin,
                      int64_t end);
// Running maximum and sum per query join those of `keys` more scores, which become probabilities [keys/2][row][2], keys
// rounded up to a pair; what was accumulated, [width][row], is rescaled to the new maximum.
void weigh(const float *scores, int64_t keys, int64_t row, float scale, float *top, float *sum, float *accumulated,
           int64_t width, uint16_t *probabilities);
void write(const Shape &, const float *accumulated, const float *sum, int64_t first, int64_t row, uint16_t *out,
           int64_t out_stride);

} // namespace avx512bf16
} // namespace mezzotint
