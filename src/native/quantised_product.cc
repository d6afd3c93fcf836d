/**
 * The product with a quantised weight, without the weight in any wider form in memory.
 *
 *   quantisedLinear  y = activation(x · Wᵀ + scale · low · upᵀ + bias) + residual, or with W itself in the place of Wᵀ: the gradient to the input
 *     Inputs: x [..., in] float32 or bfloat16; memory of the weight; bias float32 [out]; residual [..., out]; low [..., r]; up [out, r]. The last
 *     four may be absent. Numbers, the first six as for `linear`: out; activation; dtype of y; 1: also give what goes into the activation;
 *     scale; 1: up is [r, out]; kind of the weight; 1: the weight is [in, out] -> y [..., out]
 *
 * Few rows wait for memory: each byte of the weight is read once, and its numbers are multiplied in float32. For many rows a panel of 64 columns is
 * widened at a time, to bfloat16 where the processor multiplies that, else to float32, and goes through the tiles of tile.h.
 */
#include "quantised_rows.h"

namespace vitrine {
namespace {

#if VITRINE_LEVEL == 2
using Cell = PairCell;
#else
using Cell = FloatCell;
#endif
using Element = Cell::Element;
using CellType = Cell::Type;

constexpr int64_t kColumns = 64;     // of y in a task
constexpr int64_t kTaskRows = 512;   // of y in a task, at most
constexpr int64_t kDepth = 4096;     // numbers of a panel that are widened at a time: 512 KB of bfloat16, half of a core's cache
constexpr int64_t kStrip = 128;      // numbers of 64 rows that are widened before they are turned: 16 KB of bfloat16

/** Columns j to j + count of the right factor, numbers `first` to `last` (a multiple of 64) along the sum, as panels of `cells` each. */
void widenRows(const Task& p, int64_t j, int64_t count, int64_t first, int64_t last, CellType* panels, int64_t cells) {
  Element* strip = scratch<Element, kStripSlot>(kColumns * kStrip);
  for (int64_t k = first; k < last; k += kStrip) {
    const int64_t width = std::min(kStrip, last - k), depth = width / Cell::kElements;
    for (int64_t n = 0; n < count; n++)
      for (int64_t g = 0; g < width / kGroup; g++) {
        Floats v[kGroupVectors];
        p.weight.group(j + n, k / kGroup + g, v);
        for (int i = 0; i < kGroupVectors; i++) store(strip + n * width + g * kGroup + i * kLanes, v[i]);
      }
    for (int64_t n = 0; n < count; n += kPanel)
      transpose(cellsOf(strip + n * width), depth, std::min<int64_t>(kPanel, count - n), depth,
                panels + n * cells + (k - first) / Cell::kElements * kPanel, kPanel);
  }
}

/** The same with W itself: column j is a place in W's rows, and the sum goes over them. */
void widenColumns(const Task& p, int64_t j, int64_t first, int64_t last, CellType* panels, int64_t cells) {
  for (int64_t k = 0; k < cells; k++) {
    Floats v[Cell::kElements][kGroupVectors];
    for (int e = 0; e < Cell::kElements; e++) {
      const int64_t row = first + k * Cell::kElements + e;
      if (row < last) p.weight.group(row, j / kGroup, v[e]);
      else
        for (Floats& zero : v[e]) zero = splat(0);
    }
    for (int i = 0; i < kGroupVectors; i++) {
      Floats pair[Cell::kElements];
      for (int e = 0; e < Cell::kElements; e++) pair[e] = v[e][i];
      const int64_t column = i * kLanes;
      storeCells(panels + column / kPanel * cells * kPanel + k * kPanel + column % kPanel, Cell::pack(pair));
    }
  }
}

/** Columns j to j + count of upᵀ as panels; `width` is the rank rounded up to whole vectors of cells. */
void packUp(const Task& p, int64_t j, int64_t count, int64_t width, CellType* panels) {
  Element* rows = scratch<Element, kStripSlot>(kColumns * width);
  for (int64_t n = 0; n < count; n++)
    for (int64_t r = 0; r < width; r++) {
      const int64_t at = p.upTurned ? r * p.outputs + j + n : (j + n) * p.rank + r;
      const Floats v = r < p.rank ? p.up(at, Part{1}) : splat(0);
      Element lanes[kLanes];
      store(lanes, v);
      rows[n * width + r] = lanes[0];
    }
  const int64_t depth = width / Cell::kElements;
  for (int64_t n = 0; n < count; n += kPanel)
    transpose(cellsOf(rows + n * width), depth, std::min<int64_t>(kPanel, count - n), depth, panels + n * depth, kPanel);
}

/** A left factor as rows of elements, `stride` apart: the tensor's own memory where it is that already. */
const Element* leftRows(const Reader& from, int64_t rows, int64_t length, int64_t stride, float scale, Element* (*memory)(int64_t)) {
#if VITRINE_LEVEL == 2
  if (from.narrow && stride == length && scale == 1) return from.narrow;
#else
  if (from.wide && stride == length && scale == 1) return from.wide;
#endif
  Element* to = memory(rows * stride + kLanes);
  parallel(rows, rowsPerChunk(length, 65536), [&](int64_t begin, int64_t end) { copyPadded(from, length, begin, end, scale, to, stride); });
  return to;
}

void manyRows(const Task& p) {
  const int64_t stride = roundUp(p.length, kGroup), width = roundUp(p.rank, kLanes * Cell::kElements);
  const Element* x = leftRows(p.x, p.rows, p.length, stride, 1, scratch<Element, kLeftSlot>);
  const Element* low = p.rank ? leftRows(p.low, p.rows, p.rank, width, p.scale, scratch<Element, kLowSlot>) : nullptr;
  // A panel is widened once a task: so all rows are one task unless there are fewer panels than threads, or very many rows.
  const int64_t panels = (p.outputs + kColumns - 1) / kColumns;
  const int64_t pieces = std::max((p.rows + kTaskRows - 1) / kTaskRows, std::min((p.rows + 47) / 48, (2 * threads() + panels - 1) / panels));
  const int64_t height = roundUp((p.rows + pieces - 1) / pieces, kRows);
  parallel(panels * ((p.rows + height - 1) / height), 1, [&](int64_t task, int64_t end) {
    for (; task < end; task++) {
      const int64_t j = task % panels * kColumns, count = std::min(kColumns, p.outputs - j);
      const int64_t i = task / panels * height, rows = std::min(height, p.rows - i);
      float* sums = scratch<float, kSumsSlot>(rows * kColumns);
      CellType* right = scratch<CellType, kPanelSlot>(std::max(std::min(kDepth, stride), width) / Cell::kElements * kColumns);
      for (int64_t first = 0; first < stride; first += kDepth) {
        const int64_t last = std::min(first + kDepth, stride), cells = (last - first) / Cell::kElements;
        if (p.itself) widenColumns(p, j, first, std::min(last, p.length), right, cells);
        else widenRows(p, j, count, first, last, right, cells);
        Product<Cell>{cellsOf(x + i * stride + first), stride / Cell::kElements, rows, right, cells, cells, count}.into(sums, kColumns, first > 0);
      }
      if (stride == 0) std::memset(sums, 0, static_cast<size_t>(rows * kColumns) * sizeof(float));
      if (p.rank) {
        const int64_t cells = width / Cell::kElements;
        packUp(p, j, count, width, right);
        Product<Cell>{cellsOf(low + i * width), cells, rows, right, cells, cells, count}.into(sums, kColumns, true);
      }
      p.finish(sums, kColumns, rows, i, j, count);
    }
  });
}

/** Rows of numbers, [..., columns]; `rows` of them, or any number when negative. */
const View& rowsInput(const Call& call, size_t index, int64_t rows, int64_t columns) {
  const View& view = call.input(index, {kFloat32, kBfloat16});
  if (view.dims.empty() || (rows >= 0 && view.rows() != rows) || (columns >= 0 && view.dim(-1) != columns))
    call.fail("input %zu is %s; expected %lld rows of %lld (-1: any)", index, describe(view).c_str(), (long long)rows, (long long)columns);
  return view;
}

void quantisedLinear(Call& call) {
  const View& x = rowsInput(call, 0, -1, -1);
  const int64_t outputs = call.integer(0, 0, INT32_MAX), length = x.dim(-1), rows = x.rows(), kind = call.integer(6, 0, kKinds - 1);
  const bool keep = call.integer(3, 0, 1), upTurned = call.integer(5, 0, 1), itself = call.integer(7, 0, 1);
  const Layout layout = layoutOf(call, kind, itself ? length : outputs, itself ? outputs : length);
  const Quantised weight = quantisedInput(call, 1, layout);
  const View* bias = call.optional(2, {kFloat32}, {outputs});
  const View* residual = call.has(3) ? &rowsInput(call, 3, rows, outputs) : nullptr;
  if (call.has(4) != call.has(5)) call.fail("inputs 4 and 5, the low-rank pair, come together");
  const View* low = call.has(4) ? &rowsInput(call, 4, rows, -1) : nullptr;
  const int64_t rank = low ? low->dim(-1) : 0;
  const View* up = call.optional(5, {kFloat32, kBfloat16}, upTurned ? std::vector<int64_t>{rank, outputs} : std::vector<int64_t>{outputs, rank});
  const double scale = call.number(4);
  if (!std::isfinite(scale)) call.fail("number 4, the scale, is %g", scale);
  Epilogue finish;
  finish.bias = bias ? bias->floats() : nullptr;
  finish.residual = matrixOf(residual);
  finish.activation = static_cast<int>(call.integer(1, 0, kActivations - 1));
  std::vector<int64_t> dims = x.dims;
  dims.back() = outputs;
  const int dtype = dtypeNumber(call, 2);
  finish.y = matrixOf(&call.output(dtype, dims));
  if (keep) finish.before = matrixOf(&call.output(dtype, dims));
  if (rows == 0 || outputs == 0) return;
  const Task p{weight, itself, rows, length, outputs, reader(x), reader(low), reader(up), upTurned, rank, static_cast<float>(scale), finish};
  rows <= kFewRows && !itself ? fewRows(p) : manyRows(p);
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("quantisedLinear", vitrine::quantisedLinear)
