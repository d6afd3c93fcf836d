/** The small products of a LoRA pair: down to its rank, and the gradients of its two matrices. */
#include "product.h"

#if VITRINE_LEVEL >= 2

namespace vitrine {
namespace {

/** t = scale · x · aᵀ. Inputs: x [..., in], a [r, in]. Numbers: scale; 1: a is [in, r]; dtype of t -> [..., r] */
void lowRank(Call& call) {
  const View& x = rowsInput(call, 0, -1, -1);
  const int64_t length = x.dim(-1);
  const bool turned = call.integer(1, 0, 1);
  const View& a = call.input(1, {kFloat32, kBfloat16}, turned ? std::vector<int64_t>{length, -1} : std::vector<int64_t>{-1, length});
  const float scale = scaleOf(call, 0);
  const int64_t rank = a.dim(turned ? 1 : 0);
  Epilogue finish;
  finish.y = matrixOf(&call.output(outputDtype(call, 2), widened(x, rank)));
  product(rowsOf(x, scratchFor(kLeft)), packNow(a, turned, scale, scratchFor(kRight)), {}, {}, finish, rank);
}

/** g = scale · tᵀ · x, the gradient of a matrix of the low-rank pair. Inputs: t [..., r], x [..., n]. Number: scale -> float32 [r, n] */
void lowRankGradient(Call& call) {
  const View& t = rowsInput(call, 0, -1, -1);
  const View& x = rowsInput(call, 1, t.rows(), -1);
  const float scale = scaleOf(call, 0);
  const int64_t count = t.rows(), rank = t.dim(-1), columns = x.dim(-1), stride = (count + 1) / 2 * 2;
  Epilogue finish;
  finish.y = matrixOf(&call.output(kFloat32, {rank, columns}));
  uint16_t* turned = scratchFor(kLow).take(rank * stride); // tᵀ, scaled
  parallel(stride, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      for (int64_t r = 0; r < rank; r += 16) {
        uint32_t words[16] = {};
        if (i < count)
          _mm512_storeu_si512(words, t.dtype == kFloat32 ? halves(t.floats() + i * rank + r, rank - r, scale)
                                                         : halves(t.halves() + i * rank + r, rank - r, scale));
        for (int64_t k = 0; k < std::min<int64_t>(16, rank - r); k++) turned[(r + k) * stride + i] = static_cast<uint16_t>(words[k]);
      }
    }
  });
  const Rows left{turned, rank, stride};
  const int64_t panels = (columns + kPanel - 1) / kPanel;
  // Each panel of x is packed where it is used: it is read once.
  parallel(rank == 0 ? 0 : panels, 1, [&](int64_t begin, int64_t end) {
    uint16_t* packed = scratchFor(kRight).take(stride * kPanel);
    for (int64_t p = begin; p < end; p++) {
      const int64_t width = std::min(kPanel, columns - p * kPanel);
      if (x.dtype == kFloat32)
        packColumns(x.floats() + p * kPanel, columns, width, count, 1, packed);
      else
        packColumns(x.halves() + p * kPanel, columns, width, count, 1, packed);
      Epilogue shifted = finish;
      shifted.y.wide += p * kPanel;
      for (int64_t r = 0; r < rank; r += kBlockRows)
        productBlock(left, {packed, stride / 2}, {}, {}, shifted, r, std::min(rank, r + kBlockRows), 0, width);
    }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("lowRank", vitrine::lowRank)
VITRINE_KERNEL("lowRankGradient", vitrine::lowRankGradient)

#endif
