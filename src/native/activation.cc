/**
 * Activations of a feed-forward layer with the bias in front of them, and gated ones. Computed in float32 whatever the tensors hold.
 *
 *   activation          x [.., D], bias? [D]; numbers kind, dtype of y        -> y [.., D] = f(x + bias)
 *   activationGradient  dy [.., D], x [.., D], bias? [D]; numbers kind, dtype of dx, 1 for the bias's too
 *                         -> dx [.., D], and when asked: dbias [D], float32
 *   gated               gate [.., D], up [.., D]; numbers kind, dtype of y    -> y [.., D] = f(gate) · up (Shazeer 2020)
 *   gatedGradient       dy, gate, up; numbers kind, dtype of the results      -> dgate, dup
 *
 * Kinds, numbered as linear's: 1 gelu, x Φ(x) (Hendrycks & Gimpel 2016); 2 quick gelu, x σ(1.702 x) (CLIP's model.py); 3 silu, x σ(x);
 * 4 the tanh form of gelu; 5 relu, max(x, 0), with slope 0 at 0.
 */
#include <algorithm>

#include "values.h"

namespace vitrine {
namespace {

constexpr float kRootHalf = 0.70710678118654752f;
constexpr float kDensity = 0.39894228040143268f; // 1 / sqrt(2 π)
constexpr float kTanhSlope = 1.5957691216057308f; // 2 sqrt(2 / π)
constexpr float kCubic = 0.044715f;

struct Slope {
  Floats value, derivative; // f(x) and f'(x)
};

/** x where it matters to a slope: far from 0 that is 0 or 1, and its terms shall stay finite. NaN stays. */
inline Floats held(Floats x) { return smaller(splat(1e6f), larger(splat(-1e6f), x)); }

struct Gelu {
  static Floats value(Floats x) { return x * (0.5f + 0.5f * errorFunction(x * kRootHalf)); }
  static Slope slope(Floats x) {
    const Floats phi = 0.5f + 0.5f * errorFunction(x * kRootHalf);
    return {x * phi, phi + x * kDensity * exponential(x * x * -0.5f)};
  }
};

/** 1 + tanh(u) = 2 σ(2 u): no digits are lost where tanh is near -1 or 1. */
struct GeluTanh {
  static Floats value(Floats x) { return x * sigmoid(kTanhSlope * (x + kCubic * x * x * x)); }
  static Slope slope(Floats x) {
    const Floats near = held(x);
    const Sigmoid s = bothSigmoids(kTanhSlope * (near + kCubic * near * near * near));
    return {x * s.value, s.value + near * s.value * s.rest * (kTanhSlope + kTanhSlope * 3.0f * kCubic * near * near)};
  }
};

template <int kThousandths>
struct Sigmoidal {
  static constexpr float kScale = kThousandths / 1000.0f;
  static Floats value(Floats x) { return x * sigmoid(x * kScale); }
  static Slope slope(Floats x) {
    const Floats near = held(x) * kScale;
    const Sigmoid s = bothSigmoids(near);
    return {x * s.value, s.value + near * s.value * s.rest};
  }
};

struct Relu {
  static Floats value(Floats x) { return larger(splat(0), x); }
  static Slope slope(Floats x) { return {value(x), x <= splat(0) ? splat(0) : x > splat(0) ? splat(1) : x}; }
};

/** Calls body(Kind{}) with the type of the kind that the number names. */
template <class Body>
void withKind(const Call& call, size_t index, const Body& body) {
  switch (call.integer(index, 1, 5)) {
    case 1: return body(Gelu{});
    case 2: return body(Sigmoidal<1702>{});
    case 3: return body(Sigmoidal<1000>{});
    case 4: return body(GeluTanh{});
    default: return body(Relu{});
  }
}

constexpr int64_t kChunk = 16384; // elements, some 20 us of work

/** x [.., D] and a bias [D], or any shape where there is none. */
struct Biased {
  const View& x;
  const View* bias;
  int64_t width, rows;

  Biased(const Call& call, size_t index)
      : x(call.input(index, {kFloat32, kBfloat16})), bias(call.optional(index + 1, {kFloat32, kBfloat16})), width(x.size()), rows(1) {
    if (!bias) return;
    if (x.dims.empty()) call.fail("x is a scalar; with a bias it must be [..., D]");
    width = x.dim(-1);
    rows = x.rows();
    call.input(index + 1, {kFloat32, kBfloat16}, {width});
  }
};

/** Chunks of columns of each row, so that one long row without a bias is shared among the threads too. */
template <class Body>
void overRows(const Biased& t, const Body& body) {
  const int64_t pieces = std::max<int64_t>(1, (t.width + kChunk - 1) / kChunk);
  parallel(t.rows * pieces, rowsPerChunk(std::min(t.width, kChunk), kChunk), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i % pieces * kChunk;
      body(i / pieces * t.width, first, std::min(t.width, first + kChunk));
    }
  });
}

void activation(Call& call) {
  const Biased t(call, 0);
  const View& y = call.output(dtypeNumber(call, 1), t.x.dims);
  const Reader x = reader(t.x), bias = reader(t.bias);
  const Writer to = writer(y);
  withKind(call, 0, [&](auto kind) {
    overRows(t, [&](int64_t row, int64_t first, int64_t last) {
      const Reader rowOfX = x.from(row);
      const Writer rowOfY = to.from(row);
      overLanes(first, last, [=](int64_t j, auto part) {
        Floats v = rowOfX(j, part);
        if (given(bias)) v += bias(j, part);
        rowOfY(j, part, kind.value(v));
      });
    });
  });
}

/** Sums of the columns of dx [rows, D]; each thread takes columns, so that any number of threads adds in the same order. */
void sumColumns(Reader dx, int64_t rows, int64_t width, float* out) {
  constexpr int64_t kColumns = 8 * kLanes;
  const Writer to{out, nullptr};
  parallel((width + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
    overLanes(begin * kColumns, std::min(width, end * kColumns), [&](int64_t j, auto part) {
      Floats total = splat(0);
      for (int64_t i = 0; i < rows; i++) total += dx(i * width + j, part);
      to(j, part, total);
    });
  });
}

void activationGradient(Call& call) {
  const Biased t(call, 1);
  const Reader dy = reader(call.input(0, {kFloat32, kBfloat16}, t.x.dims)), x = reader(t.x), bias = reader(t.bias);
  const bool biasToo = call.integer(2, 0, 1) != 0;
  if (biasToo && !t.bias) call.fail("number 2 asks for the bias's gradient, but there is no bias (input 2)");
  const View& dx = call.output(dtypeNumber(call, 1), t.x.dims);
  const Writer to = writer(dx);
  withKind(call, 0, [&](auto kind) {
    overRows(t, [&](int64_t row, int64_t first, int64_t last) {
      const Reader rowOfX = x.from(row), rowOfDy = dy.from(row);
      const Writer rowOfDx = to.from(row);
      overLanes(first, last, [=](int64_t j, auto part) {
        Floats v = rowOfX(j, part);
        if (given(bias)) v += bias(j, part);
        rowOfDx(j, part, rowOfDy(j, part) * kind.slope(v).derivative);
      });
    });
  });
  if (biasToo) sumColumns(reader(dx), t.rows, t.width, call.output(kFloat32, {t.width}).floats());
}

void gated(Call& call) {
  const View& gate = call.input(0, {kFloat32, kBfloat16});
  const View& up = call.input(1, {kFloat32, kBfloat16}, gate.dims);
  const View& y = call.output(dtypeNumber(call, 1), gate.dims);
  const Reader g = reader(gate), u = reader(up);
  const Writer to = writer(y);
  withKind(call, 0, [&](auto kind) {
    parallel(gate.size(), kChunk, [&](int64_t begin, int64_t end) {
      overLanes(begin, end, [&](int64_t i, auto part) { to(i, part, kind.value(g(i, part)) * u(i, part)); });
    });
  });
}

void gatedGradient(Call& call) {
  const View& gate = call.input(1, {kFloat32, kBfloat16});
  const Reader dy = reader(call.input(0, {kFloat32, kBfloat16}, gate.dims)), g = reader(gate);
  const Reader u = reader(call.input(2, {kFloat32, kBfloat16}, gate.dims));
  const int dtype = dtypeNumber(call, 1);
  const Writer dgate = writer(call.output(dtype, gate.dims)), dup = writer(call.output(dtype, gate.dims));
  withKind(call, 0, [&](auto kind) {
    parallel(gate.size(), kChunk, [&](int64_t begin, int64_t end) {
      overLanes(begin, end, [&](int64_t i, auto part) {
        const Floats d = dy(i, part);
        const Slope s = kind.slope(g(i, part));
        dgate(i, part, d * u(i, part) * s.derivative);
        dup(i, part, d * s.value);
      });
    });
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("activation", vitrine::activation)
VITRINE_KERNEL("activationGradient", vitrine::activationGradient)
VITRINE_KERNEL("gated", vitrine::gated)
VITRINE_KERNEL("gatedGradient", vitrine::gatedGradient)
