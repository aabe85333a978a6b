// Attention as torch sees it, and its gradients. What autograd calls is in gradients.py.
#include <cmath>
#include <limits>
#include <type_traits>

#include "attention.h"
#include "ops.h"

namespace {

template <typename T> Strided<T> strided(const Tensor &x) {
  return {reinterpret_cast<const T *>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

Shape checked(const Tensor &q, const Tensor &k, const Tensor &v, double scale) {
  const at::ScalarType type = q.scalar_type();
  for (const Tensor &x : {q, k, v}) {
    TORCH_CHECK(x.dim() == 4 && x.scalar_type() == type && x.stride(3) == 1 &&
                    (type == at::kBFloat16 || type == at::kFloat),
                "attention: q, k and v are bfloat16 or float32 [b l heads d], contiguous in d");
  }
  TORCH_CHECK(type == at::kFloat ? has_avx2() : has_bf16_pairs(), "attention: this processor has no instructions for ",
              type);
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3),
              "attention: q ", q.sizes(), ", k ", k.sizes(), ", v ", v.sizes());
  const Shape shape{q.size(0), q.size(2), q.size(1), k.size(1), q.size(3)};
  TORCH_CHECK(shape.width % GROUP == 0 && shape.keys > 0 && scale > 0,
              "attention: width ", shape.width, " is no multiple of 8, or no keys, or scale ", scale, " not above 0");
  return shape;
}

// Attention with both products by oneDNN, which uses tiles (AMX) where the processor has them.
Tensor attention_by_tiles(const Tensor &q, const Tensor &k, const Tensor &v, double scale) {
  constexpr int64_t BLOCK = 256, ROW = 48; // keys and queries at once
  const Shape shape = checked(q, k, v, scale);
  TORCH_CHECK(q.scalar_type() == at::kBFloat16, "attention_by_tiles: bfloat16");
  Tensor out = at::empty({shape.batch, shape.queries, shape.heads, shape.width}, q.options());
  if (out.numel() == 0) return out;

  const auto qs = strided<uint16_t>(q), ks = strided<uint16_t>(k), vs = strided<uint16_t>(v);
  const int64_t heads = shape.batch * shape.heads, stride = (shape.keys + 31) / 32 * 32, width = shape.width;
  const int64_t blocks = (shape.queries + ROW - 1) / ROW;
  const Tensor packed = buffer(heads * width * stride, at::kBFloat16, q);
  auto *values = reinterpret_cast<uint16_t *>(packed.mutable_data_ptr());
  at::parallel_for(0, heads * width, 16, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t head = at / width, first = at % width, last = std::min(width, first + end - at);
      const uint16_t *from = vs.data + head / shape.heads * vs.batch + head % shape.heads * vs.head;
      avx512bf16::transpose_values(shape, from, vs.position, values + head * width * stride, stride, first, last);
      at += last - first;
    }
  });
  auto *result = reinterpret_cast<uint16_t *>(out.mutable_data_ptr());
  at::parallel_for(0, heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const Tensor memory = buffer(ROW * (width / 2 + width + BLOCK + BLOCK / 2 + 2), at::kFloat, q);
    float *scores = memory.mutable_data_ptr<float>(), *o = scores + BLOCK * ROW, *top = o + width * ROW;
    float *sum = top + ROW;
    auto *queries = reinterpret_cast<at::BFloat16 *>(sum + ROW), *weights = queries + width * ROW;
    for (int64_t at = begin; at < end; at++) {
      const int64_t head = at / blocks, b = head / shape.heads, h = head % shape.heads, first = at % blocks * ROW;
      const auto *keys = reinterpret_cast<const at::BFloat16 *>(ks.data + b * ks.batch + h * ks.head);
      const auto *turned = reinterpret_cast<const at::BFloat16 *>(values + head * width * stride);
      avx512bf16::pack_queries(shape, qs.data + b * qs.batch + h * qs.head, qs.position, first, ROW,
                               reinterpret_cast<uint16_t *>(queries));
      std::fill_n(o, width * ROW, 0.0f);
      std::fill_n(sum, ROW, 0.0f);
      std::fill_n(top, ROW, -std::numeric_limits<float>::infinity());
      for (int64_t key = 0; key < shape.keys; key += BLOCK) {
        const int64_t count = std::min(BLOCK, shape.keys - key);
        at::native::cpublas::brgemm(count, ROW, width, ks.position, ROW, ROW, false, keys + key * ks.position, queries,
                                    scores);
        avx512bf16::weigh(scores, count, ROW, (float)scale, top, sum, o, width,
                          reinterpret_cast<uint16_t *>(weights));
        at::native::cpublas::brgemm(width, ROW, (count + 1) / 2 * 2, stride, ROW, ROW, true, turned + key, weights, o);
      }
      avx512bf16::write(shape, o, sum, first, ROW,
                        result + (b * shape.queries * shape.heads + h) * width, shape.heads * width);
    }
    at::native::cpublas::brgemm_release();
  });
  return out;
}

// The functions of one instruction set for one type.
template <typename T> struct Kernel {
  decltype(&avx512bf16::workspace) workspace;
  void (*pack_keys)(const Shape &, const T *, int64_t, T *, int64_t, int64_t);
  void (*pack_values)(const Shape &, const T *, int64_t, T *, int64_t, int64_t);
  std::conditional_t<std::is_same_v<T, float>, decltype(&avx2::attend), decltype(&avx512bf16::attend)> attend;
};

// `log_sum` [b heads l], in bfloat16, if it is wanted.
template <typename T>
Tensor attended(const Shape &shape, const Kernel<T> &kernel, const Tensor &q, const Tensor &k, const Tensor &v,
                double scale, float *log_sum = nullptr) {
  Tensor out = at::empty({shape.batch, shape.queries, shape.heads, shape.width}, q.options());
  if (out.numel() == 0) return out;

  const auto qs = strided<T>(q), ks = strided<T>(k), vs = strided<T>(v);
  const int64_t heads = shape.batch * shape.heads, groups = shape.key_groups(), blocks = shape.query_blocks();
  const Tensor packed = buffer(2 * heads * shape.packed(), q.scalar_type(), q);
  auto *keys = reinterpret_cast<T *>(packed.mutable_data_ptr()), *values = keys + heads * shape.packed();
  at::parallel_for(0, heads * groups, 16, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t head = at / groups, first = at % groups, last = std::min(groups, first + end - at);
      const int64_t b = head / shape.heads, h = head % shape.heads, to = head * shape.packed();
      kernel.pack_keys(shape, ks.data + b * ks.batch + h * ks.head, ks.position, keys + to, first, last);
      kernel.pack_values(shape, vs.data + b * vs.batch + h * vs.head, vs.position, values + to, first, last);
      at += last - first;
    }
  });
  auto *result = reinterpret_cast<T *>(out.mutable_data_ptr());
  at::parallel_for(0, heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const Tensor work = buffer(kernel.workspace(shape), at::kFloat, q);
    for (int64_t at = begin; at < end; at++) {
      const int64_t head = at / blocks, b = head / shape.heads, h = head % shape.heads;
      const auto attend = [&](auto... told) {
        kernel.attend(shape, qs.data + b * qs.batch + h * qs.head, qs.position, keys + head * shape.packed(),
                      values + head * shape.packed(), result + (b * shape.queries * shape.heads + h) * shape.width,
                      shape.heads * shape.width, (float)scale, at % blocks, work.mutable_data_ptr<float>(), told...);
      };
      if constexpr (std::is_same_v<T, float>)
        attend();
      else
        attend(log_sum ? log_sum + head * shape.queries : nullptr);
    }
  });
  return out;
}

#define KERNEL(isa, T) Kernel<T>{isa::workspace, isa::pack_keys, isa::pack_values, isa::attend}

Tensor attention_by(const Tensor &q, const Tensor &k, const Tensor &v, double scale, bool is_wide) {
  Shape shape = checked(q, k, v, scale);
  if (q.scalar_type() == at::kBFloat16) return attended(shape, KERNEL(avx512bf16, uint16_t), q, k, v, scale);
  TORCH_CHECK(!is_wide || has_avx512(), "attention: this processor has no AVX-512");
  shape.lanes = is_wide ? avx512::lanes() : avx2::lanes();
  return attended(shape, is_wide ? KERNEL(avx512, float) : KERNEL(avx2, float), q, k, v, scale);
}

Tensor attention(const Tensor &q, const Tensor &k, const Tensor &v, double scale) {
  if (q.scalar_type() == at::kBFloat16 && has_tiles()) return attention_by_tiles(q, k, v, scale);
  return attention_by(q, k, v, scale, has_avx512());
}

// The result, and the logarithm of each query's sum of exponentials [b heads l], which its gradient needs.
std::tuple<Tensor, Tensor> attention_forward(const Tensor &q, const Tensor &k, const Tensor &v, double scale) {
  const Shape shape = checked(q, k, v, scale);
  TORCH_CHECK(q.scalar_type() == at::kBFloat16, "attention_forward: bfloat16");
  Tensor log_sum = at::empty({shape.batch, shape.heads, shape.queries}, q.options().dtype(at::kFloat));
  Tensor o = attended(shape, KERNEL(avx512bf16, uint16_t), q, k, v, scale, log_sum.mutable_data_ptr<float>());
  return {o, log_sum};
}

// The gradients of q, k and v, written into dq, dk and dv, which may be views of one fused gradient.
void attention_backward(const Tensor &g, const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &o,
                        const Tensor &log_sum, double scale, const Tensor &dq, const Tensor &dk, const Tensor &dv) {
  constexpr int64_t ITEMS = 8, LEAST = 128; // of work per picture, where its heads are fewer; keys of one
  const Shape shape = checked(q, k, v, scale);
  checked(dq, dk, dv, scale);
  checked(g, k, v, scale);
  checked(o, k, v, scale);
  TORCH_CHECK(q.scalar_type() == at::kBFloat16 && log_sum.scalar_type() == at::kFloat && log_sum.is_contiguous() &&
                  log_sum.numel() == shape.batch * shape.heads * shape.queries && g.sizes() == q.sizes() &&
                  o.sizes() == q.sizes() && dq.sizes() == q.sizes() && dk.sizes() == k.sizes(),
              "attention_backward: g ", g.sizes(), ", o ", o.sizes(), ", log_sum ", log_sum.sizes(), " of q ",
              q.sizes(), ", k ", k.sizes());
  if (q.numel() == 0) {
    dk.zero_();
    dv.zero_();
    return;
  }
  const auto head_at = [&](int64_t head) {
    const auto rows = [&](const Tensor &x) {
      const int64_t at = head / shape.heads * x.stride(0) + head % shape.heads * x.stride(2);
      return Rows<uint16_t>{static_cast<uint16_t *>(x.data_ptr()) + at, x.stride(1)};
    };
    const auto read = [&](const Tensor &x) { return Rows<const uint16_t>{rows(x).data, x.stride(1)}; };
    const float *sums = log_sum.const_data_ptr<float>() + head * shape.queries;
    return avx512bf16::Head{read(g), read(o), read(q), read(k), read(v), sums, rows(dq), rows(dk), rows(dv)};
  };
  // Few heads are parted by their keys. How, depends on the shape alone, and parts are added in their order.
  const int64_t wanted = (shape.keys + LEAST - 1) / LEAST, parts = std::clamp(ITEMS / shape.heads, (int64_t)1, wanted);
  const int64_t heads = shape.batch * shape.heads, size = avx512bf16::gradient_of_queries(shape);
  const Tensor contributions = buffer(parts > 1 ? heads * parts * size : 0, at::kFloat, q);
  at::parallel_for(0, heads * parts, 1, [&](int64_t begin, int64_t end) {
    const Tensor work = buffer(avx512bf16::gradient_workspace(shape), at::kFloat, q);
    const Tensor own = buffer(parts > 1 ? 0 : size, at::kFloat, q);
    for (int64_t at = begin; at < end; at++) {
      const avx512bf16::Head head = head_at(at / parts);
      const int64_t first = at % parts * wanted / parts * LEAST, last = (at % parts + 1) * wanted / parts * LEAST;
      float *dq = parts > 1 ? contributions.mutable_data_ptr<float>() + at * size : own.mutable_data_ptr<float>();
      avx512bf16::differentiate(shape, head, (float)scale, first, std::min(last, shape.keys), dq,
                                work.mutable_data_ptr<float>());
      if (parts == 1) avx512bf16::write_queries(shape, head, (float)scale, 1, dq);
    }
  });
  if (parts == 1) return;
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; head++)
      avx512bf16::write_queries(shape, head_at(head), (float)scale, parts,
                                contributions.mutable_data_ptr<float>() + head * parts * size);
  });
}

} // namespace

TORCH_LIBRARY_FRAGMENT(mezzotint, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor");
  m.def("attention_by(Tensor q, Tensor k, Tensor v, float scale, bool is_wide) -> Tensor");
  m.def("attention_by_tiles(Tensor q, Tensor k, Tensor v, float scale) -> Tensor");
  m.def("attention_forward(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)");
  m.def("attention_backward(Tensor g, Tensor q, Tensor k, Tensor v, Tensor o, Tensor log_sum, float scale, "
        "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()");
}

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) {
  m.impl("attention", attention);
  m.impl("attention_by", attention_by);
  m.impl("attention_by_tiles", attention_by_tiles);
  m.impl("attention_forward", attention_forward);
  m.impl("attention_backward", attention_backward);
}
