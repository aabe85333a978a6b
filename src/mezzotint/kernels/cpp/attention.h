// What ops_attention.cpp asks of the attention kernels. No torch here: the objects behind are compiled for a newer processor than
// the rest, and an inline function of torch's headers compiled for it could be linked into the rest.
#pragma once
#include <cstdint>

namespace mezzotint {

constexpr int LANES = 16;      // 32-bit values per vector of AVX-512
constexpr int GROUP = 8;       // keys, or channels, that are packed together
constexpr int MAX_VECTORS = 3; // vectors of queries per register tile

// A strided [b l heads d], d contiguous.
template <typename T> struct Strided {
  const T *data;
  int64_t batch, position, head;
};

struct Shape {
  int64_t batch, heads, queries, keys, width;
  int64_t lanes = LANES; // queries per vector
  int64_t key_groups() const { return (keys + GROUP - 1) / GROUP; }
  int64_t packed() const { return key_groups() * GROUP * width; } // values per head, of keys and of values
  int64_t query_vectors() const { return (queries + lanes - 1) / lanes; }
  int64_t query_blocks() const { return (query_vectors() + MAX_VECTORS - 1) / MAX_VECTORS; }

  struct Block {
    int64_t first, vectors, count; // queries
  };
  // The vectors are dealt evenly: 4 of them are 2 + 2, not 3 + 1.
  Block queries_of(int64_t block) const {
    const int64_t first = block * query_vectors() / query_blocks(), last = (block + 1) * query_vectors() / query_blocks();
    return {first * lanes, last - first, (last * lanes < queries ? last * lanes : queries) - first * lanes};
  }
};

// Rows of one head, `stride` apart.
template <typename T> struct Rows {
  T *data;
  int64_t stride;
};

// Keys of one head as [groups][width][8 keys] and its values as [width/8][groups*8][8 channels]; 16-bit values in pairs:
// [groups][width/2][8][2] and [width/8][groups*4][8][2]. This is the order in which the kernels read them. Groups
// [begin, end). `workspace` is how many 32-bit values of memory `attend` works in; it computes one block of queries of
// one head, `out` is a contiguous [b l heads d] at that head. In bfloat16 it also says the logarithm of each query's sum
// of exponentials, of scaled scores, if there is a place for it.
#define MEZZOTINT_ATTENTION(T, ...)                                                                                         \
  void pack_keys(const Shape &, const T *k, int64_t stride, T *packed, int64_t begin, int64_t end);                    \
  void pack_values(const Shape &, const T *v, int64_t stride, T *packed, int64_t begin, int64_t end);                  \
  int64_t workspace(const Shape &);                                                                                    \
  void attend(const Shape &, const T *q, int64_t q_stride, const T *keys, const T *values, T *out, int64_t out_stride, \
              float scale, int64_t block, float *work __VA_OPT__(,) __VA_ARGS__);

namespace avx2 {
int64_t lanes();
MEZZOTINT_ATTENTION(float)
} // namespace avx2
namespace avx512 {
int64_t lanes();
MEZZOTINT_ATTENTION(float)
} // namespace avx512
namespace avx512bf16 {
MEZZOTINT_ATTENTION(uint16_t, float *log_sum)

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
void write(const Shape &, const float *accumulated, float *sum, int64_t first, int64_t row, uint16_t *out,
           int64_t out_stride);

// Gradients of one head: what is above the result o, what the result was made of, and what is to be written.
struct Head {
  Rows<const uint16_t> g, o, q, k, v;
  const float *log_sum; // [queries], as `attend` says it
  Rows<uint16_t> dq, dk, dv;
};
// How many 32-bit values `differentiate` works in, and how many it makes of the gradient of one head's queries.
int64_t gradient_workspace(const Shape &);
int64_t gradient_of_queries(const Shape &);
// Gradients of the keys and values from `begin` (a multiple of 8) to `end`, written; what these keys contribute to the
// gradient of the queries, [blocks of queries][width][lanes] and without the scale, in `dq`.
void differentiate(const Shape &, const Head &, float scale, int64_t begin, int64_t end, float *dq, float *work);
// Write the sum of the contributions of `parts` ranges of keys, which lie one after the other.
void write_queries(const Shape &, const Head &, float scale, int64_t parts, float *dq);

} // namespace avx512bf16
} // namespace mezzotint
