/**
 * Layer normalisation (Ba et al. 2016) and RMS normalisation (Zhang & Sennrich 2019) over the last axis, or over each part of it that is as
 * long as the weight (a head, where queries and keys are normalised head by head), with the residual addition in front of it. Statistics and sums are float32 whatever the tensors hold.
 *
 *   layerNorm          x [.., D], weight [D], bias? [D], residual? [.., D]; numbers eps, dtype of y
 *   rmsNorm            the same without a use for the bias
 *     -> y [.., D], statistics [rows or parts, 2] (mean, 1 / deviation; the mean is 0 for rmsNorm), and with a residual: x + residual, of its dtype
 *   layerNormGradient  dy [.., D], x [.., D] (what was normalised: the sum, if there was a residual), weight [D], statistics [rows, 2],
 *   rmsNormGradient      more? [.., D] (added to dx: the gradient along the residual); numbers dtype of dx, 1 for the parameters' too
 *     -> dx [.., D], and when asked: dweight [D], and dbias [D] for layerNormGradient; both float32
 */
#include <algorithm>

#include "values.h"

namespace vitrine {
namespace {

struct Statistics {
  float mean, inverse;
};

/** Two passes over a row that is in the cache by then: exact where E[x²] - E[x]² would cancel. */
template <bool kRms>
Statistics statisticsOf(Reader x, int64_t width, float eps) {
  float mean = 0;
  if constexpr (!kRms) {
    Floats total = splat(0);
    overLanes(0, width, [&](int64_t j, auto part) { total += x(j, part); });
    mean = sum(total) / static_cast<float>(width);
  }
  Floats squares = splat(0);
  overLanes(0, width, [&](int64_t j, auto part) {
    const Floats centred = x(j, part, mean) - mean;
    squares += centred * centred;
  });
  return {mean, 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps)};
}

struct Affine {
  Reader weight, bias; // bias: nothing to read where there is none
};

void normaliseRow(Reader x, Statistics s, Affine affine, int64_t width, Writer y) {
  overLanes(0, width, [&](int64_t j, auto part) {
    Floats v = (x(j, part) - s.mean) * s.inverse * affine.weight(j, part);
    if (given(affine.bias)) v += affine.bias(j, part);
    y(j, part, v);
  });
}

void addRow(Reader a, Reader b, int64_t width, Writer out) {
  overLanes(0, width, [&](int64_t j, auto part) { out(j, part, a(j, part) + b(j, part)); });
}

/** How many numbers are normalised together: the weight's length, where it divides the last axis; else that axis, which the weight then must fit. */
int64_t normalisedWidth(const View& x, const View& weight) {
  const int64_t last = x.dim(-1);
  const bool divides = weight.dims.size() == 1 && weight.dim(0) > 0 && last % weight.dim(0) == 0;
  return divides ? weight.dim(0) : last;
}

template <bool kRms>
void normForward(Call& call) {
  const View& x = call.input(0, {kFloat32, kBfloat16});
  if (x.dims.empty()) call.fail("x is a scalar; expected [..., D]");
  const int64_t width = normalisedWidth(x, call.input(1, {kFloat32, kBfloat16}));
  const int64_t rows = x.rows() * (width ? x.dim(-1) / width : 1);
  const View& weight = call.input(1, {kFloat32, kBfloat16}, {width});
  const View* bias = call.optional(2, {kFloat32, kBfloat16}, {width});
  if (kRms && bias) call.fail("an RMS norm has no bias");
  const View* residual = call.optional(3, {kFloat32, kBfloat16}, x.dims);
  const float eps = static_cast<float>(call.number(0));
  const View& y = call.output(dtypeNumber(call, 1), x.dims);
  const View& statistics = call.output(kFloat32, {rows, 2});
  const View* total = residual ? &call.output(residual->dtype, x.dims) : nullptr;

  const Reader from = reader(x), along = reader(residual);
  const Affine affine{reader(weight), reader(bias)};
  const Writer to = writer(y), sums = total ? writer(*total) : Writer{nullptr, nullptr};
  const Reader summed = total ? reader(*total) : from;
  float* kept = statistics.floats();
  parallel(rows, rowsPerChunk(width, 16384), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t at = i * width;
      if (total) addRow(from.from(at), along.from(at), width, sums.from(at));
      // The sum is read back as it was rounded, so that the gradient, which knows no other, sees the same numbers.
      const Statistics s = statisticsOf<kRms>(summed.from(at), width, eps);
      normaliseRow(summed.from(at), s, affine, width, to.from(at));
      kept[2 * i] = s.mean;
      kept[2 * i + 1] = s.inverse;
    }
  });
}

/** One row: dx = (g - mean(g) - x̂ mean(g x̂)) / deviation, where g = dy · weight; without the first mean for RMS. */
template <bool kRms>
void gradientRow(Reader dy, Reader x, Reader weight, Statistics s, Reader more, int64_t width, Writer dx) {
  Floats total = splat(0), matched = splat(0);
  overLanes(0, width, [&](int64_t j, auto part) {
    const Floats g = dy(j, part) * weight(j, part); // zero beyond a part
    if constexpr (!kRms) total += g;
    matched += g * ((x(j, part) - s.mean) * s.inverse);
  });
  const float mean = kRms ? 0 : sum(total) / static_cast<float>(width), slope = sum(matched) / static_cast<float>(width);
  overLanes(0, width, [&](int64_t j, auto part) {
    const Floats g = dy(j, part) * weight(j, part);
    const Floats normal = (x(j, part) - s.mean) * s.inverse;
    Floats v = (g - mean - normal * slope) * s.inverse;
    if (given(more)) v += more(j, part);
    dx(j, part, v);
  });
}

/** Adds a row's part of dweight and dbias. */
void addParameters(Reader dy, Reader x, Statistics s, int64_t width, Writer dweight, Writer dbias) {
  const Reader weightSoFar{dweight.wide, nullptr}, biasSoFar{dbias.wide, nullptr};
  overLanes(0, width, [&](int64_t j, auto part) {
    const Floats g = dy(j, part);
    dweight(j, part, weightSoFar(j, part) + g * ((x(j, part) - s.mean) * s.inverse));
    if (dbias.wide) dbias(j, part, biasSoFar(j, part) + g);
  });
}

// Rows whose parameter gradients are summed by one thread: fixed, so that any number of threads adds in the same order.
constexpr int64_t kBlock = 64;

template <bool kRms>
void normGradient(Call& call) {
  const View& x = call.input(1, {kFloat32, kBfloat16});
  if (x.dims.empty()) call.fail("x is a scalar; expected [..., D]");
  const int64_t width = normalisedWidth(x, call.input(2, {kFloat32, kBfloat16}));
  const int64_t rows = x.rows() * (width ? x.dim(-1) / width : 1), blocks = (rows + kBlock - 1) / kBlock;
  const View& dy = call.input(0, {kFloat32, kBfloat16}, x.dims);
  const View& weight = call.input(2, {kFloat32, kBfloat16}, {width});
  const float* kept = call.input(3, {kFloat32}, {rows, 2}).floats();
  const View* more = call.optional(4, {kFloat32, kBfloat16}, x.dims);
  const int dtype = dtypeNumber(call, 0);
  const bool parameters = call.integer(1, 0, 1) != 0;
  const View& dx = call.output(dtype, x.dims);

  const Reader g = reader(dy), from = reader(x), scale = reader(weight), extra = reader(more);
  const Writer to = writer(dx);
  const int64_t kinds = kRms ? 1 : 2;
  std::vector<float> partial(parameters ? static_cast<size_t>(blocks * kinds * width) : 0, 0.0f);
  const auto rowsOf = [&](int64_t begin, int64_t end, Writer dweight, Writer dbias) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t at = i * width;
      const Statistics s{kept[2 * i], kept[2 * i + 1]};
      gradientRow<kRms>(g.from(at), from.from(at), scale, s, extra.from(at), width, to.from(at));
      if (parameters) addParameters(g.from(at), from.from(at), s, width, dweight, dbias);
    }
  };
  parallel(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; b++) {
      float* sums = parameters ? partial.data() + b * kinds * width : nullptr;
      const Writer dbias{kRms || !parameters ? nullptr : sums + width, nullptr};
      rowsOf(b * kBlock, std::min(rows, (b + 1) * kBlock), Writer{sums, nullptr}, dbias);
    }
  });
  for (int64_t kind = 0; parameters && kind < kinds; kind++) {
    float* out = call.output(kFloat32, {width}).floats();
    for (int64_t j = 0; j < width; j++) out[j] = 0;
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t j = 0; j < width; j++) out[j] += partial[static_cast<size_t>((b * kinds + kind) * width + j)];
  }
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("layerNorm", vitrine::normForward<false>)
VITRINE_KERNEL("rmsNorm", vitrine::normForward<true>)
VITRINE_KERNEL("layerNormGradient", vitrine::normGradient<false>)
VITRINE_KERNEL("rmsNormGradient", vitrine::normGradient<true>)
