/**
 * Softmax cross-entropy of hidden · Wᵀ over a large vocabulary. Neither the logits nor the probabilities are ever whole in memory: a slice of
 * the vocabulary is computed, used and forgotten, in the gradient once more. Rows whose label is ignored cost nothing.
 *
 *   crossEntropyHead          hidden [.., D] float32 or bfloat16, W, labels int32 [..]; numbers: V, the label that is ignored
 *                               -> rows [3, N] as crossEntropy's
 *   crossEntropyHeadGradient  drows [3, N], hidden, W, labels, rows [3, N]; numbers: V, the label that is ignored, dtype of dhidden
 *                               -> dhidden [.., D]
 *
 * W is float32 or bfloat16 [V, D], or a packed weight of `packWeight`. With a bfloat16 W the hidden numbers, and in the gradient those of the
 * logits, are rounded to bfloat16; sums are float32.
 */
#include "cross_entropy.h"
#include "tile.h"

namespace vitrine {
namespace {

constexpr int64_t kSlice = 512;     // of the vocabulary
constexpr int64_t kBlockRows = 96;  // of hidden, beside one panel of W
static_assert(kSlice % kPanel == 0 && kBlockRows % kRows == 0, "slices are whole panels");

/** Uses of a thread's scratch memory: the first four of the thread that calls, the others inside parallel(). */
enum Use { kHidden, kGradients, kAcross, kAlong, kSums, kRowsOfPanel, kOnePanel };

/** What both kernels are given. */
struct Head {
  const View& hidden;
  const View& weight;
  int64_t V, D;
  Labels labels;
  std::vector<int64_t> counted; // rows whose label is not ignored
  bool packed;

  Head(const Call& call, size_t first)
      : hidden(call.input(first, {kFloat32, kBfloat16})), weight(call.input(first + 1, {kFloat32, kBfloat16})),
        V(call.integer(0, 0, INT32_MAX)) {
    if (hidden.dims.empty()) call.fail("hidden is a scalar; expected [..., D]");
    D = hidden.dim(-1);
    packed = weight.dims.size() == 4;
    if (packed && VITRINE_LEVEL < 2) call.fail("a packed weight needs the instructions that it is packed for");
    if (packed) call.input(first + 1, {kBfloat16}, {(V + 63) / 64, (D + 1) / 2, 64, 2});
    else call.input(first + 1, {kFloat32, kBfloat16}, {V, D});
    labels = labelsOf(call, first + 2, hidden, V, 1);
    for (int64_t i = 0; i < labels.count; i++)
      if (labels.counts(i)) counted.push_back(i);
  }
  int64_t rows() const { return static_cast<int64_t>(counted.size()); }
  int64_t slices() const { return (V + kSlice - 1) / kSlice; }
};

/** A head whose products are computed in cells of one kind. */
template <class Cell>
class Products {
 public:
  using Type = typename Cell::Type;
  using Element = typename Cell::Element;

  const Head& head;
  const int64_t cells; // of a row of hidden or of W

  explicit Products(const Head& h) : head(h), cells((h.D + Cell::kElements - 1) / Cell::kElements) {
    const int64_t stride = cells * Cell::kElements;
    Element* to = scratch<Element, kHidden>(head.rows() * stride);
    parallel(head.rows(), rowsPerChunk(head.D, 65536), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        copyRow(reader(head.hidden).from(head.counted[static_cast<size_t>(i)] * head.D), to + i * stride, stride);
    });
    hidden_ = to;
  }

  /** The columns of Wᵀ from j on as one panel: W's own memory where it is packed, else a copy in `room`. */
  const Type* panel(int64_t j, Type* room) const {
    if constexpr (Cell::kElements == 2)
      if (head.packed) return cellsOf(head.weight.halves()) + j * cells;
    const int64_t columns = std::min<int64_t>(kPanel, head.V - j), stride = roundUp(cells, kLanes) * Cell::kElements;
    Element* rows = scratch<Element, kRowsOfPanel>(kPanel * stride);
    for (int64_t i = 0; i < columns; i++) copyRow(reader(head.weight).from((j + i) * head.D), rows + i * stride, stride);
    panelsOfRows<Cell>(cellsOf(rows), stride / Cell::kElements, columns, cells, room);
    return room;
  }

  /** Logits of `rows` (at most kBlockRows) counted rows from i on, for a panel of `columns` -> [rows, kPanel] */
  void logits(int64_t i, int64_t rows, const Type* panel, int64_t columns, float* to) const {
    const Product<Cell> product{cellsOf(hidden_) + i * cells, cells, rows, panel, cells, cells, columns};
    product.into(to, kPanel, false);
  }

  /**
   * kLanes columns of W from d on, for `count` rows from `first` on, as a part of the panels of a right factor [count, D] with cells along the
   * vocabulary; `depth` cells.
   */
  void along(int64_t first, int64_t count, int64_t d, int64_t depth, Type* panels) const {
    Type* to = panels + d / kPanel * kPanel * depth + d % kPanel;
    if constexpr (Cell::kElements == 2)
      if (head.packed) return alongPacked(first, d, depth, to);
    const Reader from = reader(head.weight);
    for (int64_t k = 0; k < depth; k++) {
      Floats pair[Cell::kElements];
      for (int e = 0; e < Cell::kElements; e++) {
        const int64_t row = k * Cell::kElements + e, at = (first + row) * head.D + d;
        if (row >= count) pair[e] = splat(0);
        else pair[e] = head.D - d >= kLanes ? from(at, Whole{}) : from(at, Part{head.D - d});
      }
      storeCells(to + k * kPanel, Cell::pack(pair));
    }
  }

 private:
  const Element* hidden_;

  /** D numbers, and zeros up to the stride; rounded to bfloat16 where W is that. */
  void copyRow(Reader from, Element* to, int64_t stride) const {
    const bool round = head.weight.dtype == kBfloat16;
    const Writer out = writerOf(to);
    overLanes(0, head.D, [&](int64_t j, auto part) {
      const Floats v = from(j, part);
      out(j, part, round ? (Floats)(roundToHalf(v) << 16) : v);
    });
    std::fill(to + head.D, to + stride, Element{0});
  }
  static Writer writerOf(float* p) { return {p, nullptr}; }
  static Writer writerOf(uint16_t* p) { return {nullptr, p}; }

#if VITRINE_LEVEL == 2
  /** Pairs along D become pairs along the vocabulary: those of one number of D first, which are then turned. */
  void alongPacked(int64_t first, int64_t d, int64_t depth, uint32_t* to) const {
    typedef int16_t Places __attribute__((vector_size(64)));
    const Places even = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                         32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
    const int64_t width = kSlice / 2;
    alignas(64) uint32_t rows[kLanes * width];
    for (int64_t q = 0; q < kLanes / 2; q++)
      for (int64_t k = 0; k < depth; k += kLanes) { // 16 pairs along the vocabulary: half a row of a packed panel
        __m512i low = _mm512_setzero_si512(), high = low;
        if (d / 2 + q < cells) {
          const uint32_t* from = cellsOf(head.weight.halves()) + (first + 2 * k) / 64 * 64 * cells + (d / 2 + q) * 64 + 2 * k % 64;
          const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + kLanes);
          low = _mm512_permutex2var_epi16(a, (__m512i)even, b);
          high = _mm512_permutex2var_epi16(a, (__m512i)(even + 1), b);
        }
        _mm512_storeu_si512(rows + 2 * q * width + k, low);
        _mm512_storeu_si512(rows + (2 * q + 1) * width + k, high);
      }
    transpose(rows, width, kLanes, depth, to, kPanel);
  }
#endif
};

/** body(Products<Cell>) with the cells that W is multiplied in. */
template <class Body>
void withCells(const Head& head, const Body& body) {
#if VITRINE_LEVEL == 2
  if (head.weight.dtype == kBfloat16) return body(Products<PairCell>(head));
#endif
  body(Products<FloatCell>(head));
}

template <class Cell>
void sumRows(const Products<Cell>& products, const RowValues& out) {
  const Head& head = products.head;
  const int64_t n = head.rows(), slices = head.slices();
  std::vector<Running> running(static_cast<size_t>(n * slices));
  parallel(slices, 1, [&](int64_t begin, int64_t end) {
    float tile[kBlockRows * kPanel];
    typename Cell::Type* room = scratch<typename Cell::Type, kOnePanel>(kPanel * products.cells);
    for (int64_t j = begin * kSlice; j < std::min(head.V, end * kSlice); j += kPanel) {
      Running* slice = running.data() + j / kSlice * n;
      const typename Cell::Type* panel = products.panel(j, room);
      const int64_t columns = std::min<int64_t>(kPanel, head.V - j);
      for (int64_t i = 0; i < n; i += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, n - i);
        products.logits(i, rows, panel, columns, tile);
        for (int64_t r = 0; r < rows; r++) {
          slice[i + r].add(Reader{tile + r * kPanel, nullptr}, columns);
          const int64_t row = head.counted[static_cast<size_t>(i + r)], label = head.labels.data[row] - j;
          if (label >= 0 && label < columns) out.picked[row] = tile[r * kPanel + label];
        }
      }
    }
  });
  for (int64_t i = 0; i < n; i++) {
    Running all;
    for (int64_t s = 0; s < slices; s++) all.add(running[static_cast<size_t>(s * n + i)]);
    const int64_t row = head.counted[static_cast<size_t>(i)];
    out.set(row, all.logarithm(), out.picked[row], static_cast<float>(all.sum / static_cast<double>(head.V)));
  }
}

void crossEntropyHead(Call& call) {
  const Head head(call, 0);
  const View& rows = call.output(kFloat32, {3, head.labels.count});
  std::fill(rows.floats(), rows.floats() + rows.size(), 0.0f);
  if (head.rows() > 0) withCells(head, [&](const auto& products) { sumRows(products, RowValues(rows, head.labels.count)); });
}

/** The gradient to `rows` logits [rows, kPanel] in their place, and from there to `to`, `stride` apart. */
template <class Element>
void gradientOfLogits(const Head& head, const RowValues& given, const RowValues& values, int64_t i, int64_t rows, int64_t j, float* tile,
                      Element* to, int64_t stride) {
  const int64_t columns = std::min<int64_t>(kPanel, head.V - j);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t row = head.counted[static_cast<size_t>(i + r)], label = head.labels.data[row] - j;
    float* logits = tile + r * kPanel;
    const float share = given.logarithm[row], logarithm = values.logarithm[row], even = given.mean[row] / static_cast<float>(head.V);
    for (int64_t k = 0; k < columns; k += kLanes) {
      const Floats v = exponential(load(logits + k) - logarithm) * share + even;
      store(logits + k, firstLanes(v, columns - k, 0));
    }
    if (label >= 0 && label < columns) logits[label] += given.picked[row];
    for (int64_t k = 0; k < kPanel; k += kLanes) store(to + r * stride + k, k < columns ? load(logits + k) : splat(0));
  }
}

/** dhidden of the counted rows, [rows, D rounded up to kLanes]: slice by slice, each in steps that all threads share. */
template <class Cell>
void sumGradient(const Products<Cell>& products, const RowValues& given, const RowValues& values, float* sums) {
  using Type = typename Cell::Type;
  using Element = typename Cell::Element;
  const Head& head = products.head;
  const int64_t n = head.rows(), blocks = (n + kBlockRows - 1) / kBlockRows, width = roundUp(head.D, kLanes);
  const int64_t units = width / kLanes, panels = (head.D + kPanel - 1) / kPanel;
  Element* gradients = scratch<Element, kGradients>(n * kSlice);
  Type* along = scratch<Type, kAlong>(panels * kPanel * kSlice / Cell::kElements);
  Type* across = scratch<Type, kAcross>(kSlice * products.cells);
  for (int64_t first = 0; first < head.V; first += kSlice) {
    const int64_t count = std::min(kSlice, head.V - first), depth = (count + Cell::kElements - 1) / Cell::kElements;
    const int64_t columns = (count + kPanel - 1) / kPanel;
    const Type* right[kSlice / kPanel];
    parallel(columns + units, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        if (t < columns) right[t] = products.panel(first + t * kPanel, across + t * kPanel * products.cells);
        else products.along(first, count, (t - columns) * kLanes, depth, along);
      }
    });
    parallel(columns * blocks, 1, [&](int64_t begin, int64_t end) {
      float tile[kBlockRows * kPanel];
      for (int64_t t = begin; t < end; t++) {
        const int64_t p = t % columns, i = t / columns * kBlockRows, rows = std::min(kBlockRows, n - i), j = first + p * kPanel;
        products.logits(i, rows, right[p], std::min<int64_t>(kPanel, head.V - j), tile);
        gradientOfLogits(head, given, values, i, rows, j, tile, gradients + i * kSlice + p * kPanel, kSlice);
      }
    });
    parallel(panels * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t d = t % panels * kPanel, i = t / panels * kBlockRows, stride = kSlice / Cell::kElements;
        const Product<Cell> product{cellsOf(gradients) + i * stride, stride, std::min(kBlockRows, n - i), along + d * depth, depth, depth,
                                    std::min<int64_t>(kPanel, head.D - d)};
        product.into(sums + i * width + d, width, first > 0);
      }
    });
  }
}

void crossEntropyHeadGradient(Call& call) {
  const Head head(call, 1);
  const int64_t N = head.labels.count, n = head.rows(), width = roundUp(head.D, kLanes);
  const RowValues given(call.input(0, {kFloat32}, {3, N}), N), values(call.input(4, {kFloat32}, {3, N}), N);
  const View& out = call.output(dtypeNumber(call, 2), head.hidden.dims);
  float* sums = scratch<float, kSums>(n * width);
  if (n > 0 && head.D > 0) withCells(head, [&](const auto& products) { sumGradient(products, given, values, sums); });
  const Writer to = writer(out);
  for (int64_t row = 0, i = 0; row < N; row++) {
    const bool counts = head.labels.counts(row);
    const Reader from{sums + i * width, nullptr};
    overLanes(0, head.D, [&](int64_t j, auto part) { to(row * head.D + j, part, counts ? from(j, part) : splat(0)); });
    if (counts) i++;
  }
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("crossEntropyHead", vitrine::crossEntropyHead)
VITRINE_KERNEL("crossEntropyHeadGradient", vitrine::crossEntropyHeadGradient)
