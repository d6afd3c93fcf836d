/** What follows the sums of a linear layer on their way to memory, at every level of instructions. */
#pragma once
#include "values.h"

namespace vitrine {
namespace {

enum Activation : int { kNone, kGelu, kQuickGelu, kSilu, kGeluTanh, kActivations };

inline Floats activated(int activation, Floats x) {
  switch (activation) {
    case kGelu: return x * (0.5f + 0.5f * errorFunction(x * 0.70710678f));
    case kQuickGelu: return x * sigmoid(1.702f * x);
    case kSilu: return x * sigmoid(x);
    case kGeluTanh: return x * sigmoid(1.5957691f * (x + 0.044715f * x * x * x)); // (1 + tanh u) / 2 is the sigmoid of 2u
    default: return x;
  }
}

/** y = activation(sums + bias) + residual, and what went into the activation where it is kept. */
struct Finish {
  Reader bias{}, residual{}; // not given: nothing to add
  int activation = kNone;
  Writer y{}, before{};
  bool keep = false;
  int64_t columns = 0; // of y

  /** sums: float32, rows `stride` apart, readable to a multiple of kLanes -> rows `i` on, `count` columns from `j` on. */
  void operator()(const float* sums, int64_t stride, int64_t rows, int64_t i, int64_t j, int64_t count) const {
    for (int64_t row = 0; row < rows; row++) {
      const int64_t at = (i + row) * columns + j;
      overLanes(0, count, [&](int64_t k, auto part) {
        Floats v = load(sums + row * stride + k);
        if (given(bias)) v += bias(j + k, part);
        if (keep) before(at + k, part, v);
        if (activation != kNone) v = activated(activation, v);
        if (given(residual)) v += residual(at + k, part);
        y(at + k, part, v);
      });
    }
  }
};

} // namespace
} // namespace vitrine
