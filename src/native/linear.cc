/** The packed bfloat16 product of a frozen weight. */
#include "product.h"

#if VITRINE_LEVEL >= 2

namespace vitrine {
namespace {

const View& matrix(Call& call, size_t index) { return call.input(index, {kFloat32, kBfloat16}, {-1, -1}); }

/** weight [out, in]; number: 1 packs its transpose, for the gradient to the input -> packed [panels, pairs, 64, 2] */
void packWeight(Call& call) {
  const View& weight = matrix(call, 0);
  const bool turned = call.integer(0, 0, 1);
  const int64_t outputs = weight.dim(turned ? 1 : 0), length = weight.dim(turned ? 0 : 1);
  const View& packed = call.output(kBfloat16, {(outputs + kPanel - 1) / kPanel, (length + 1) / 2, kPanel, 2});
  packMatrix(weight, turned, 1, packed.halves());
}

const View& packedWeight(Call& call, size_t index, int64_t outputs, int64_t length) {
  return call.input(index, {kBfloat16}, {(outputs + kPanel - 1) / kPanel, (length + 1) / 2, kPanel, 2});
}

/** packed; numbers: out, in -> weight [out, in], bfloat16 */
void unpackWeight(Call& call) {
  const int64_t outputs = call.integer(0, 0, INT32_MAX), length = call.integer(1, 0, INT32_MAX), pairs = (length + 1) / 2;
  const uint16_t* packed = packedWeight(call, 0, outputs, length).halves();
  uint16_t* weight = call.output(kBfloat16, {outputs, length}).halves();
  parallel((outputs + kPanel - 1) / kPanel, std::max<int64_t>(1, 512 / std::max<int64_t>(1, pairs)), [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      unpackRows(packed + p * pairs * kPanel * 2, length, std::min(kPanel, outputs - p * kPanel), length, weight + p * kPanel * length);
    }
  });
}

/**
 * y = activation(x · weightᵀ + scale · low · upᵀ + bias) + residual.
 * Inputs: x [..., in] float32 or bfloat16; packed weight; bias float32 [out]; residual [..., out]; low [..., r]; up [out, r]. The last four may
 * be absent.
 * Numbers: out; activation; dtype of y; 1: also give what goes into the activation; scale; 1: up is [r, out].
 */
void linear(Call& call) {
  const View& x = rowsInput(call, 0, -1, -1);
  const int64_t outputs = call.integer(0, 0, INT32_MAX), length = x.dim(-1);
  const View& weight = packedWeight(call, 1, outputs, length);
  const View* bias = call.optional(2, {kFloat32}, {outputs});
  const View* residual = call.has(3) ? &rowsInput(call, 3, x.rows(), outputs) : nullptr;
  if (call.has(4) != call.has(5)) call.fail("inputs 4 and 5, the low-rank pair, come together");
  const View* left = call.has(4) ? &rowsInput(call, 4, x.rows(), -1) : nullptr;
  const bool keep = call.integer(3, 0, 1), turned = call.integer(5, 0, 1);
  const float scale = scaleOf(call, 4);
  Rows low;
  Packed up;
  if (left && left->size() > 0) {
    const int64_t rank = left->dim(-1);
    const View& right = call.input(5, {kFloat32, kBfloat16}, turned ? std::vector{rank, outputs} : std::vector{outputs, rank});
    low = rowsOf(*left, scratchFor(kLow));
    up = packNow(right, turned, scale, scratchFor(kRight));
  }
  Epilogue finish;
  finish.bias = bias ? bias->floats() : nullptr;
  finish.activation = static_cast<int>(call.integer(1, 0, kActivations - 1));
  finish.residual = matrixOf(residual);
  const int dtype = outputDtype(call, 2);
  finish.y = matrixOf(&call.output(dtype, widened(x, outputs)));
  if (keep) finish.before = matrixOf(&call.output(dtype, widened(x, outputs)));
  product(rowsOf(x, scratchFor(kLeft)), {weight.halves(), (length + 1) / 2}, low, up, finish, outputs);
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("packWeight", vitrine::packWeight)
VITRINE_KERNEL("unpackWeight", vitrine::unpackWeight)
VITRINE_KERNEL("linear", vitrine::linear)

#endif
