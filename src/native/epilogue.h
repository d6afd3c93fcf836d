/** What follows a product in a layer, done to its sums on their way to memory: bias, activation, residual. For products of every kind and level. */
#pragma once
#include "values.h"

namespace vitrine {
namespace {

enum Activation : int { kNone, kGelu, kQuickGelu, kSilu, kGeluTanh, kRelu, kActivations };

inline Floats activate(int activation, Floats x) {
  switch (activation) {
    case kGelu: return 0.5f * x * (1.0f + errorFunction(x * 0.70710678f));
    case kQuickGelu: return x * sigmoid(1.702f * x);
    case kSilu: return x * sigmoid(x);
    case kGeluTanh: return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x)); // (1 + tanh u) / 2 is the sigmoid of 2u
    case kRelu: return larger(splat(0), x);
    default: return x;
  }
}

/** A matrix in memory, float32 or bfloat16; null where there is none. */
struct Matrix {
  float* wide = nullptr;
  uint16_t* narrow = nullptr;
  int64_t columns = 0;
  explicit operator bool() const { return wide || narrow; }
  Reader reader(int64_t i, int64_t j) const { return Reader{wide, narrow}.from(i * columns + j); }
  Writer writer(int64_t i, int64_t j) const { return Writer{wide, narrow}.from(i * columns + j); }
  /** The columns from j on. */
  Matrix from(int64_t j) const { return {wide ? wide + j : nullptr, narrow ? narrow + j : nullptr, columns}; }
};

inline Matrix matrixOf(const View* view) {
  if (!view || view->size() == 0) return {};
  if (view->dtype == kFloat32) return {view->floats(), nullptr, view->dim(-1)};
  return {nullptr, view->halves(), view->dim(-1)};
}

struct Epilogue {
  const float* bias = nullptr;
  int activation = kNone;
  Matrix before; // receives what goes into the activation
  Matrix residual;
  Matrix y;

  /** sums: float32 [rows], `stride` apart -> rows `i` on, `columns` columns from `j` on. Whole vectors of sums must be readable. */
  void operator()(const float* sums, int64_t stride, int64_t rows, int64_t i, int64_t j, int64_t columns) const {
    const bool bare = !bias && !before && !residual && activation == kNone;
    for (int64_t row = 0; row < rows; row++) {
      const float* from = sums + row * stride;
      const Writer to = y.writer(i + row, j);
      if (bare) {
        overLanes(0, columns, [&](int64_t k, auto part) { to(k, part, load(from + k)); });
        continue;
      }
      const Reader shift{bias ? bias + j : nullptr, nullptr}, along = residual.reader(i + row, j);
      const Writer kept = before.writer(i + row, j);
      overLanes(0, columns, [&](int64_t k, auto part) {
        Floats v = load(from + k);
        if (bias) v += shift(k, part);
        if (before) kept(k, part, v);
        v = activate(activation, v);
        if (residual) v += along(k, part);
        to(k, part, v);
      });
    }
  }
};

} // namespace
} // namespace vitrine
