/** The packed bfloat16 product of a frozen weight. */
#include "product.h"

#if VITRINE_LEVEL >= 2

namespace vitrine {
namespace {

const View& matrix(Call& call, size_t index) { return call.input(index, {kFloat32, kBfloat16}, {-1, -1}); }

/** weight [out, in] -> packed [panels, pairs, 64, 2] */
void packWeight(Call& call) {
  const View& weight = matrix(call, 0);
  const View& packed = call.output(kBfloat16, {(weight.dim(0) + kPanel - 1) / kPanel, (weight.dim(1) + 1) / 2, kPanel, 2});
  packMatrix(weight, false, 1, packed.halves());
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

/** Words of 16 pairs (k) by 16 columns (n) -> for each two columns the 32 numbers of k beside each other, paired along n. to: 8 rows kPanel words apart. */
inline void turnSquare(__m512i (&words)[16], uint16_t* to) {
  const __m512i even = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i odd = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  transpose(words);
  for (int j = 0; j < 8; j++) {
    const __m512i a = words[2 * j], b = words[2 * j + 1];
    const __m512i low = _mm512_or_si512(_mm512_and_si512(a, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(b, 16));
    const __m512i high = _mm512_or_si512(_mm512_srli_epi32(a, 16), _mm512_and_si512(b, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    _mm512_storeu_si512(to + j * 2 * kPanel, _mm512_permutex2var_epi32(low, even, high));
    _mm512_storeu_si512(to + j * 2 * kPanel + 32, _mm512_permutex2var_epi32(low, odd, high));
  }
}

/** Panel `wanted` of the transpose of a packed weight [outputs, ..]: 64 numbers k of every output, as [outputs / 2][64][2]. Room: a multiple of 64 outputs. */
void turnPanel(const Packed& weight, int64_t outputs, int64_t wanted, uint16_t* to) {
  const int64_t first = wanted * kPanel / 2, count = std::min<int64_t>(kPanel / 2, weight.pairs - first);
  for (int64_t p = 0; p * kPanel < outputs; p++) {
    const uint16_t* from = weight.panel(p) + first * kPanel * 2;
    for (int64_t n = 0; n < kPanel; n += 16)
      for (int64_t q = 0; q < kPanel / 2; q += 16) {
        __m512i words[16];
        for (int64_t r = 0; r < 16; r++)
          words[r] = q + r < count ? _mm512_loadu_si512(from + ((q + r) * kPanel + n) * 2) : _mm512_setzero_si512();
        turnSquare(words, to + ((p * kPanel + n) / 2 * kPanel + 2 * q) * 2);
      }
  }
}

/** Rows for which a panel is turned once: then that costs some two hundredths of the product. */
constexpr int64_t kTurnedRows = 9 * kBlockRows;

/**
 * dx = dy · weight + scale · low · up + residual: the gradient to the input, with the packed weight as it is. Each panel of its transpose is made where
 * all rows pass over it.
 * Inputs: dy [..., out] float32 or bfloat16; packed weight; residual [..., in]; low [..., r]; up [r, in]. The last three may be absent.
 * Numbers: in; dtype of dx; scale.
 */
void linearBack(Call& call) {
  const View& dy = rowsInput(call, 0, -1, -1);
  const int64_t outputs = dy.dim(-1), length = call.integer(0, 0, INT32_MAX), count = dy.rows();
  const Packed weight{packedWeight(call, 1, outputs, length).halves(), (length + 1) / 2};
  const View* residual = call.has(2) ? &rowsInput(call, 2, count, length) : nullptr;
  if (call.has(3) != call.has(4)) call.fail("inputs 3 and 4, the low-rank pair, come together");
  const View* left = call.has(3) ? &rowsInput(call, 3, count, -1) : nullptr;
  const float scale = scaleOf(call, 2);
  Rows low;
  Packed up;
  if (left && left->size() > 0) {
    const View& right = call.input(4, {kFloat32, kBfloat16}, {left->dim(-1), length});
    low = rowsOf(*left, scratchFor(kLow));
    up = packNow(right, true, scale, scratchFor(kRight));
  }
  Epilogue finish;
  finish.residual = matrixOf(residual);
  finish.y = matrixOf(&call.output(outputDtype(call, 1), widened(dy, length)));
  if (count == 0 || length == 0) return;
  const Rows rows = rowsOf(dy, scratchFor(kLeft));
  const int64_t panels = (length + kPanel - 1) / kPanel, depth = (outputs + kPanel - 1) / kPanel * kPanel;
  const int64_t wanted = std::min((count + kBlockRows - 1) / kBlockRows, (3 * threads() + panels - 1) / panels);
  const int64_t pieces = std::max((count + kTurnedRows - 1) / kTurnedRows, wanted);
  const int64_t height = ((count + pieces - 1) / pieces + kTileRows - 1) / kTileRows * kTileRows;
  parallel(panels * ((count + height - 1) / height), 1, [&](int64_t first, int64_t last) {
    uint16_t* turned = scratch<uint16_t, 31>(depth * kPanel);
    for (int64_t task = first; task < last; task++) {
      const int64_t p = task % panels, end = std::min(count, task / panels * height + height);
      turnPanel(weight, outputs, p, turned);
      Epilogue here = finish;
      here.y = finish.y.from(p * kPanel);
      if (residual) here.residual = finish.residual.from(p * kPanel);
      const Packed upHere{low.data ? up.panel(p) : nullptr, up.pairs};
      for (int64_t i = task / panels * height; i < end; i += kBlockRows)
        productBlock(rows, {turned, (outputs + 1) / 2}, low, upHere, here, i, std::min(end, i + kBlockRows), 0, std::min(kPanel, length - p * kPanel));
    }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("packWeight", vitrine::packWeight)
VITRINE_KERNEL("unpackWeight", vitrine::unpackWeight)
VITRINE_KERNEL("linear", vitrine::linear)
VITRINE_KERNEL("linearBack", vitrine::linearBack)

#endif
