// Gradients as torch sees them: of GroupNorm with SiLU, and GEGLU both ways. What autograd calls is in gradients.py.
#include <ATen/ops/empty_like.h>

#include <vector>

#include "gradients.h"
#include "ops.h"

namespace {

// Gradients of x, weight [channels], bias [channels] and shift [batch channels], the latter three in float32.
template <typename T>
void unnormalise(const Tensor &g, const Tensor &x, const Tensor &dx, int64_t groups, const float *weight,
                 const float *shift, bool silu, const Told &told, float *dweight, float *dbias, float *dshift) {
  using Slopes = void (*)(const T *, const T *, int64_t, int64_t, const float *, const float *, const float *, bool, float *);
  using Undo = void (*)(const T *, const T *, T *, int64_t, int64_t, const float *, const float *, const float *,
                        const float *, bool);
  const Slopes slopes = has_avx512() ? Slopes{avx512::slopes} : Slopes{avx2::slopes};
  const Undo undo = has_avx512() ? Undo{avx512::undo} : Undo{avx2::undo};
  const Picture picture(x);
  const int64_t channels = picture.channels, width = channels / groups, chunks = picture.chunks();
  const int64_t values = picture.batch * channels;
  const Tensor memory = buffer(values * (3 * chunks + 3), at::kFloat, x);
  float *centre = memory.mutable_data_ptr<float>(), *slope = centre + values, *level = slope + values;
  float *sums = level + values; // [batch chunks 3 channels]
  const auto *from = reinterpret_cast<const T *>(x.const_data_ptr());
  const auto *above = reinterpret_cast<const T *>(g.const_data_ptr());
  auto *to = reinterpret_cast<T *>(dx.mutable_data_ptr());
  for (int64_t i = 0; i < values; i++)
    centre[i] = told.centre[i / channels * groups + i % channels / width] - (shift ? shift[i] : 0);
  at::parallel_for(0, picture.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / chunks * channels;
      const int64_t first = (i / chunks * picture.positions + i % chunks * CHUNK) * channels;
      slopes(from + first, above + first, picture.size(i % chunks), channels, told.scale + b, told.offset + b,
             centre + b, silu, sums + i * 3 * channels);
    }
  });
  std::fill_n(dweight, channels, 0.0f);
  std::fill_n(dbias, channels, 0.0f);
  const double count = (double)(picture.positions * width);
  std::vector<double> total(3 * channels);
  for (int64_t b = 0; b < picture.batch; b++) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t i = 0; i < chunks; i++)
      for (int64_t c = 0; c < 3 * channels; c++) total[c] += sums[(b * chunks + i) * 3 * channels + c];
    for (int64_t group = 0; group < groups; group++) {
      const double inverse = told.inverse[b * groups + group];
      double plain = 0, along = 0; // of all of the group: gradient, and gradient times normalised x
      for (int64_t c = group * width; c < (group + 1) * width; c++) {
        plain += (weight ? weight[c] : 1) * total[c];
        along += (weight ? weight[c] : 1) * total[channels + c] * inverse;
      }
      const double tilt = -inverse * inverse * along / count, base = -inverse * plain / count;
      for (int64_t c = group * width; c < (group + 1) * width; c++) {
        const int64_t i = b * channels + c;
        slope[i] = (float)tilt;
        level[i] = (float)(base - tilt * centre[i]);
        dbias[c] += (float)total[c];
        dweight[c] += (float)(total[channels + c] * inverse);
        if (dshift)
          dshift[i] = (float)(told.scale[i] * total[c] + tilt * total[2 * channels + c] + (double)picture.positions * base);
      }
    }
  }
  at::parallel_for(0, picture.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / chunks * channels;
      const int64_t first = (i / chunks * picture.positions + i % chunks * CHUNK) * channels;
      undo(from + first, above + first, to + first, picture.size(i % chunks), channels, told.scale + b,
           told.offset + b, slope + b, level + b, silu);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_backward(const Tensor &g, const Tensor &x, int64_t groups,
                                                               const std::optional<Tensor> &weight,
                                                               const std::optional<Tensor> &shift, bool silu,
                                                               const Tensor &told) {
  check_picture("group_norm_backward", x);
  check_picture("group_norm_backward", g);
  const int64_t batch = x.size(0), channels = x.size(1);
  TORCH_CHECK(g.sizes() == x.sizes() && g.scalar_type() == x.scalar_type(), "group_norm_backward: ", g.sizes(), " of ",
              x.sizes());
  TORCH_CHECK(groups > 0 && channels % groups == 0 && told.numel() == Told::size(batch, channels, groups),
              "group_norm_backward: told of another shape");
  const Tensor w = floats(weight, channels), s = floats(shift, batch * channels);
  Tensor dx = at::empty_like(x), dw = buffer(channels, at::kFloat, x), db = at::empty_like(dw);
  Tensor ds = shift.has_value() ? at::empty({batch, channels}, dw.options()) : Tensor();
  float *values = told.mutable_data_ptr<float>();
  const auto run = x.scalar_type() == at::kFloat ? unnormalise<float> : unnormalise<bfloat16>;
  run(g, x, dx, groups, data(w), data(s), silu, Told(values, batch, channels, groups), dw.mutable_data_ptr<float>(),
      db.mutable_data_ptr<float>(), ds.defined() ? ds.mutable_data_ptr<float>() : nullptr);
  return {dx, dw, db, ds};
}

constexpr int64_t ROWS = 16; // of a GEGLU per piece

void check_rows(const char *name, const Tensor &x) {
  TORCH_CHECK(has_avx2(), name, ": this processor has no AVX2");
  TORCH_CHECK(x.is_contiguous() && x.dim() > 0 && x.size(-1) % 2 == 0 &&
                  (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              name, ": contiguous float32 or bfloat16 of even width, not ", x.sizes());
}

// Pieces of rows, in threads: call(first, count).
template <typename F> void in_pieces(int64_t rows, const F &call) {
  at::parallel_for(0, (rows + ROWS - 1) / ROWS, 8, [&](int64_t begin, int64_t end) {
    call(begin * ROWS, std::min(end * ROWS, rows) - begin * ROWS);
  });
}

template <typename T> void gated(const Tensor &x, const Tensor &y, int64_t rows, int64_t width) {
  using Run = void (*)(const T *, T *, int64_t, int64_t);
  const Run run = has_avx512() ? Run{avx512::geglu} : Run{avx2::geglu};
  const auto *from = reinterpret_cast<const T *>(x.const_data_ptr());
  auto *to = reinterpret_cast<T *>(y.mutable_data_ptr());
  in_pieces(rows, [&](int64_t at, int64_t count) { run(from + at * 2 * width, to + at * width, count, width); });
}

Tensor geglu(const Tensor &x) {
  check_rows("geglu", x);
  const int64_t width = x.size(-1) / 2, rows = width ? x.numel() / (2 * width) : 0;
  auto shape = x.sizes().vec();
  shape.back() = width;
  Tensor y = at::empty(shape, x.options());
  x.scalar_type() == at::kFloat ? gated<float>(x, y, rows, width) : gated<bfloat16>(x, y, rows, width);
  return y;
}

template <typename T> void ungated(const Tensor &g, const Tensor &x, const Tensor &dx, int64_t rows, int64_t width) {
  using Run = void (*)(const T *, const T *, T *, int64_t, int64_t);
  const Run run = has_avx512() ? Run{avx512::geglu_backward} : Run{avx2::geglu_backward};
  const auto *from = reinterpret_cast<const T *>(x.const_data_ptr());
  const auto *above = reinterpret_cast<const T *>(g.const_data_ptr());
  auto *to = reinterpret_cast<T *>(dx.mutable_data_ptr());
  in_pieces(rows, [&](int64_t at, int64_t count) {
    run(from + at * 2 * width, above + at * width, to + at * 2 * width, count, width);
  });
}

Tensor geglu_backward(const Tensor &g, const Tensor &x) {
  check_rows("geglu_backward", x);
  const int64_t width = x.size(-1) / 2, rows = width ? x.numel() / (2 * width) : 0;
  TORCH_CHECK(g.is_contiguous() && g.scalar_type() == x.scalar_type() && g.numel() == rows * width,
              "geglu_backward: ", g.sizes(), " of ", x.sizes());
  Tensor dx = at::empty_like(x);
  x.scalar_type() == at::kFloat ? ungated<float>(g, x, dx, rows, width) : ungated<bfloat16>(g, x, dx, rows, width);
  return dx;
}

} // namespace

TORCH_LIBRARY_FRAGMENT(mezzotint, m) {
  m.def("group_norm_backward(Tensor g, Tensor x, int groups, Tensor? weight, Tensor? shift, bool silu, Tensor told) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("geglu(Tensor x) -> Tensor");
  m.def("geglu_backward(Tensor g, Tensor x) -> Tensor");
}

TORCH_LIBRARY_IMPL(mezzotint, CPU, m) {
  m.impl("group_norm_backward", group_norm_backward);
  m.impl("geglu", geglu);
  m.impl("geglu_backward", geglu_backward);
}
