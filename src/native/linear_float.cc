/**
 * A layer's product in float32, on any processor, with what follows it folded in. The weight stays in the file's order: a part of it is brought into
 * the order that the tiles read (tile.h) just before all rows pass over it, which costs little beside them, and no second copy.
 *
 *   linearFloat  x [.., in] float32 or bfloat16; weight [out, in], float32 or bfloat16; bias? [out]; residual? [.., out]; low? [.., r] and up? [out, r]
 *                numbers as linear's, but the first: 1 where weight is [in, out] (the gradient to the input)
 *                  -> y = activation(x·weightᵀ + scale·low·upᵀ + bias) + residual, and when asked what goes into the activation
 */
#include "epilogue.h"
#include "tile.h"

namespace vitrine {
namespace {

constexpr int64_t kGroup = 2 * kPanel;  // columns of the result that a task makes
constexpr int64_t kDepth = 1024;        // of the sum at a time: a group's part of the weight then fits a core's second cache
constexpr int64_t kTaskRows = 1664;     // rows for which the weight is ordered once
constexpr int64_t kBlock = 8 * kRows;   // rows that pass over both panels while they are in the first cache
constexpr int64_t kFew = 4;             // rows up to which ordering the weight costs more than it saves

/** A matrix [out, in], or [in, out] when turned: what the sum runs along is `length`. */
struct Right {
  Reader values;
  int64_t outputs, length;
  bool turned;
};

Right rightOf(const Call& call, const View& view, bool turned) {
  (void)call;
  return {reader(view), view.dim(turned ? 1 : 0), view.dim(turned ? 0 : 1), turned};
}

/** Columns j on (`columns` of them, at most kGroup) of depths k on (`depth` of them), times scale, as panels. */
void order(const Right& right, int64_t j, int64_t columns, int64_t k, int64_t depth, float scale, float* panels) {
  for (int64_t c = 0; c < columns; c += kPanel) {
    float* panel = panels + c * depth;
    const int64_t width = std::min<int64_t>(kPanel, columns - c);
    if (right.turned) {
      for (int64_t d = 0; d < depth; d++)
        for (int64_t v = 0; v < kPanel; v += kLanes) {
          const Reader from = right.values.from((k + d) * right.outputs + j + c + v);
          const int64_t rest = width - v;
          store(panel + d * kPanel + v, (rest >= kLanes ? from(0) : rest > 0 ? from(0, Part{rest}) : splat(0)) * scale);
        }
      continue;
    }
    for (int64_t v = 0; v < kPanel; v += kLanes)
      for (int64_t d = 0; d < depth; d += kLanes) {
        Floats square[kLanes];
        const int64_t rest = depth - d;
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; r++) {
          if (v + r >= width) {
            square[r] = splat(0);
            continue;
          }
          const Reader from = right.values.from((j + c + v + r) * right.length + k + d);
          square[r] = (rest >= kLanes ? from(0) : from(0, Part{rest})) * scale;
        }
        transposeSquare(square);
        for (int r = 0; r < kLanes && d + r < depth; r++) store(panel + (d + r) * kPanel + v, square[r]);
      }
  }
}

/** Rows i on of x, from column k on, as float32: where they stand, or widened into this thread's memory. */
const float* rowsAt(const View& x, int64_t i, int64_t rows, int64_t k, int64_t depth, int64_t* stride) {
  const int64_t length = x.dim(-1);
  if (x.dtype == kFloat32) {
    *stride = length;
    return x.floats() + i * length + k;
  }
  float* to = scratch<float, 21>(kBlock * roundUp(kDepth, kLanes));
  *stride = roundUp(depth, kLanes);
  for (int64_t r = 0; r < rows; r++) {
    const Reader from = reader(x).from((i + r) * length + k);
    const Writer row{to + r * *stride, nullptr};
    overLanes(0, depth, [&](int64_t d, auto part) { row(d, part, from(d, part)); });
  }
  return to;
}

struct Linear {
  const View* x;
  Right weight;
  const View* low;
  Right up;
  float scale;
  Epilogue finish;

  /** Rows begin to end of the group of columns at j. */
  void task(int64_t begin, int64_t end, int64_t j) const {
    const int64_t columns = std::min(kGroup, weight.outputs - j), length = weight.length;
    const bool once = length <= kDepth && !low;
    float* panels = scratch<float, 22>(kGroup * kDepth);
    float* sums = scratch<float, 23>((once ? kBlock : end - begin) * kGroup);
    for (int64_t k = 0; k == 0 || k < length; k += kDepth) {
      const int64_t depth = std::min(kDepth, length - k);
      order(weight, j, columns, k, depth, 1, panels);
      for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t rows = std::min(kBlock, end - i);
        float* to = once ? sums : sums + (i - begin) * kGroup;
        pass(*x, i, rows, k, depth, panels, columns, k > 0, to);
        if (once) finish(to, kGroup, rows, i, j, columns);
      }
    }
    if (once) return;
    if (low) order(up, j, columns, 0, up.length, scale, panels);
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t rows = std::min(kBlock, end - i);
      float* to = sums + (i - begin) * kGroup;
      if (low) pass(*low, i, rows, 0, up.length, panels, columns, true, to);
      finish(to, kGroup, rows, i, j, columns);
    }
  }

  static void pass(const View& x, int64_t i, int64_t rows, int64_t k, int64_t depth, const float* panels, int64_t columns, bool add, float* sums) {
    int64_t stride;
    const float* left = rowsAt(x, i, rows, k, depth, &stride);
    Product<FloatCell>{left, stride, rows, panels, depth, depth, columns}.into(sums, kGroup, add);
  }

  /** Outputs begin to end for at most kFew rows, each row of the weight [out, in] read once where it stands. */
  void few(int64_t begin, int64_t end) const {
    const int64_t rows = x->rows(), length = weight.length;
    const float* left = wideRows();
    float sums[kFew * kLanes];
    for (int64_t j = begin; j < end; j += kLanes) {
      const int64_t columns = std::min<int64_t>(kLanes, end - j);
      for (int64_t c = 0; c < columns; c++) {
        const Reader w = weight.values.from((j + c) * length);
        for (int64_t i = 0; i < rows; i++) {
          const float* from = left + i * length;
          const float total = w.wide ? dot(from, w.wide, length) : dot(from, w.narrow, length);
          sums[i * kLanes + c] = total + lowSum(i, j + c);
        }
      }
      for (int64_t i = 0; i < rows; i++) finish(sums + i * kLanes, kLanes, 1, i, j, columns);
    }
  }

  /** The rows of x as float32: where they stand, or widened into this thread's memory. */
  const float* wideRows() const {
    if (x->dtype == kFloat32) return x->floats();
    float* to = scratch<float, 24>(x->size());
    const Reader from = reader(*x);
    const Writer row{to, nullptr};
    overLanes(0, x->size(), [&](int64_t k, auto part) { row(k, part, from(k, part)); });
    return to;
  }

  /** Rows of a weight follow each other in memory: what the next ones hold is asked for while this one is added up. */
  template <class T>
  static float dot(const float* x, const T* w, int64_t length) {
    constexpr int kSums = 4; // one sum would wait for itself
    constexpr int64_t kAhead = 4096 / sizeof(T), kLine = 64 / sizeof(T);
    Floats total[kSums] = {};
    int64_t k = 0;
    for (; k + kSums * kLanes <= length; k += kSums * kLanes) {
      for (int64_t line = 0; line < kSums * kLanes; line += kLine) __builtin_prefetch(w + k + kAhead + line);
#pragma GCC unroll 8
      for (int s = 0; s < kSums; s++) total[s] += load(w + k + s * kLanes) * load(x + k + s * kLanes);
    }
    overLanes(k, length, [&](int64_t i, auto part) {
      const Reader a{x, nullptr};
      total[0] += a(i, part) * readerOf(w)(i, part);
    });
    return sum((total[0] + total[1]) + (total[2] + total[3]));
  }
  static Reader readerOf(const float* w) { return {w, nullptr}; }
  static Reader readerOf(const uint16_t* w) { return {nullptr, w}; }

  float lowSum(int64_t row, int64_t column) const {
    if (!low) return 0;
    const Reader l = reader(*low);
    float total = 0;
    for (int64_t r = 0; r < up.length; r++) {
      const int64_t at = up.turned ? r * up.outputs + column : column * up.length + r;
      total += l(row * up.length + r, Part{1})[0] * up.values(at, Part{1})[0];
    }
    return total * scale;
  }
};

const View& rowsInput(const Call& call, size_t index, int64_t rows, int64_t columns) {
  const View& view = call.input(index, {kFloat32, kBfloat16});
  if (view.dims.empty() || (rows >= 0 && view.rows() != rows) || (columns >= 0 && view.dim(-1) != columns))
    call.fail("input %zu is %s; expected %lld rows of %lld (-1: any)", index, describe(view).c_str(), (long long)rows, (long long)columns);
  return view;
}

void linearFloat(Call& call) {
  Linear l{};
  l.x = &rowsInput(call, 0, -1, -1);
  const bool turned = call.integer(0, 0, 1), keep = call.integer(3, 0, 1), upTurned = call.integer(5, 0, 1);
  const int64_t length = l.x->dim(-1), count = l.x->rows();
  const View& weight = call.input(1, {kFloat32, kBfloat16}, turned ? std::vector<int64_t>{length, -1} : std::vector<int64_t>{-1, length});
  l.weight = rightOf(call, weight, turned);
  const int64_t outputs = l.weight.outputs;
  const View* bias = call.optional(2, {kFloat32}, {outputs});
  const View* residual = call.has(3) ? &rowsInput(call, 3, count, outputs) : nullptr;
  if (call.has(4) != call.has(5)) call.fail("inputs 4 and 5, the low-rank pair, come together");
  l.scale = static_cast<float>(call.number(4));
  if (!(l.scale - l.scale == 0)) call.fail("number 4, the scale, is %g", call.number(4));
  if (call.has(4)) {
    l.low = &rowsInput(call, 4, count, -1);
    const int64_t rank = l.low->dim(-1);
    const View& up = call.input(5, {kFloat32, kBfloat16}, upTurned ? std::vector<int64_t>{rank, outputs} : std::vector<int64_t>{outputs, rank});
    if (rank > kDepth) call.fail("the low-rank pair has rank %lld; the most is %lld", (long long)rank, (long long)kDepth);
    l.up = rightOf(call, up, upTurned);
    if (rank == 0) l.low = nullptr;
  }
  std::vector<int64_t> dims = l.x->dims;
  dims.back() = outputs;
  l.finish.bias = bias ? bias->floats() : nullptr;
  l.finish.activation = static_cast<int>(call.integer(1, 0, kActivations - 1));
  l.finish.residual = matrixOf(residual);
  l.finish.y = matrixOf(&call.output(dtypeNumber(call, 2), dims));
  if (keep) l.finish.before = matrixOf(&call.output(dtypeNumber(call, 2), dims));
  if (count == 0 || outputs == 0) return;
  if (count <= kFew && !turned) {
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, length * kLanes)) * kLanes;
    return parallel((outputs + kLanes - 1) / kLanes, grain / kLanes, [&](int64_t begin, int64_t end) {
      l.few(begin * kLanes, std::min(outputs, end * kLanes));
    });
  }
  const int64_t groups = (outputs + kGroup - 1) / kGroup;
  // At least three tasks a thread where there are rows for them, and no task beyond kTaskRows.
  const int64_t wanted = std::min((count + kBlock - 1) / kBlock, (3 * threads() + groups - 1) / groups);
  const int64_t pieces = std::max((count + kTaskRows - 1) / kTaskRows, wanted);
  const int64_t height = roundUp((count + pieces - 1) / pieces, kRows), across = (count + height - 1) / height;
  parallel(groups * across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t first = t / groups * height;
      l.task(first, std::min(count, first + height), t % groups * kGroup);
    }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("linearFloat", vitrine::linearFloat)
