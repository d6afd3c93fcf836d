/**
 * Attention without the matrix of scores in memory, and its pattern for those who want to look. Inputs and numbers: attention.h.
 *
 *   attention         -> o [B, Nq, H·d] of q's dtype, and the logarithm of each row's sum, float32 [B, H, Nq], for the gradient
 *   attentionPattern  -> softmax of the scores, float32 [B, H, Nq, Nk]
 */
#include "attention.h"

namespace vitrine {
namespace {

/** Queries that one thread takes of one key head: all, or fewer where there are too few heads to keep the threads busy. */
int64_t queriesPerTask(const Attention& a) {
  const int64_t pieces = (4 * threads() + a.batch * a.groups - 1) / std::max<int64_t>(1, a.batch * a.groups);
  return std::max<int64_t>(16 * kRows, roundUp((a.queries + pieces - 1) / pieces, kRows));
}

/** The right factors of one key head: transposed keys and values, in this thread's memory. */
template <class Cell>
struct KeyPanels {
  const typename Cell::Type *keys, *values;
  int64_t depth; // cells of a head's width
  int64_t valueDepth; // cells of the keys' axis

  KeyPanels(const Attention& a, int64_t b, int64_t g, int64_t count, bool valuesToo) {
    using Type = typename Cell::Type;
    depth = a.width / Cell::kElements;
    valueDepth = (count + Cell::kElements - 1) / Cell::kElements;
    auto* rows = scratch<typename Cell::Element, 0>(count * a.width + kLanes * Cell::kElements);
    auto* keyPanels = scratch<Type, 1>(roundUp(count, kPanel) * depth);
    copyRows(reader(*a.kView).from(a.k.at(b, 0, g, a.width)), a.k.stride, count, a.width, rows);
    panelsOfRows<Cell>(cellsOf(rows), depth, count, depth, keyPanels);
    keys = keyPanels;
    auto* valuePanels = scratch<Type, 2>(valuesToo ? roundUp(a.width, kPanel) * valueDepth : 1);
    values = valuePanels;
    if (!valuesToo) return;
    copyRows(reader(*a.vView).from(a.v.at(b, 0, g, a.width)), a.v.stride, count, a.width, rows);
    panelsAlongRows<Cell>(rows, a.width, count, a.width, valuePanels);
  }
};

/**
 * Queries first to last of one head of one picture, kRows at a time: finish(query, rows, keys seen, sums) finds their weights in `weights`,
 * keys rounded up to kLanes apart.
 */
template <class Cell, class Finish>
void scoreRows(const Attention& a, const KeyPanels<Cell>& panels, int64_t b, int64_t head, int64_t first, int64_t last, const float* bias,
               typename Cell::Element* weights, const Finish& finish) {
  const int64_t count = last - first, stride = roundUp(a.keys, kLanes);
  auto* rows = scratch<typename Cell::Element, 3>(count * a.width + kLanes * Cell::kElements);
  float* scores = scratch<float, 4>(kRows * stride);
  copyRows(reader(*a.qView).from(a.q.at(b, first, head, a.width)), a.q.stride, count, a.width, rows);
  for (int64_t i = 0; i < count; i += kRows) {
    const int64_t m = std::min<int64_t>(kRows, count - i), seen = a.limit(first + i + m - 1), padded = roundUp(seen, kLanes);
    const Product<Cell> product{cellsOf(rows + i * a.width), panels.depth, m, panels.keys, panels.depth, panels.depth, seen};
    product.into(scores, stride, false);
    RowSum sums[kRows];
    for (int64_t r = 0; r < m; r++) {
      const RowMask mask = a.masked() ? maskOf(a, bias, b, head, first + i + r) : RowMask{};
      const int64_t limit = a.limit(first + i + r);
      sums[r] = softmaxRow(scores + r * stride, limit, padded, a.scale, a.masked() ? &mask : nullptr, weights + r * stride);
    }
    finish(first + i, m, seen, sums);
  }
}

template <class Cell>
void attendGroup(const Attention& a, int64_t b, int64_t g, int64_t first, int64_t last, Writer out, float* logarithms) {
  const int64_t shared = a.heads / a.groups, stride = roundUp(a.keys, kLanes);
  float* bias = scratch<float, 5>(stride);
  if (a.padding) readPadding(a, b, bias);
  const KeyPanels<Cell> panels(a, b, g, a.limit(last - 1), true);
  auto* weights = scratch<typename Cell::Element, 6>(kRows * stride);
  float* mixed = scratch<float, 7>(kRows * a.width);
  for (int64_t head = g * shared; head < (g + 1) * shared; head++)
    scoreRows<Cell>(a, panels, b, head, first, last, bias, weights, [&](int64_t query, int64_t m, int64_t seen, const RowSum* sums) {
      const int64_t depth = (seen + Cell::kElements - 1) / Cell::kElements;
      const Product<Cell> product{cellsOf(weights), stride / Cell::kElements, m, panels.values, panels.valueDepth, depth, a.width};
      product.into(mixed, a.width, false);
      for (int64_t r = 0; r < m; r++) {
        const Writer to = out.from(a.out.at(b, query + r, head, a.width));
        const float share = 1.0f / sums[r].sum;
        for (int64_t j = 0; j < a.width; j += kLanes) to(j, load(mixed + r * a.width + j) * share);
        logarithms[(b * a.heads + head) * a.queries + query + r] = sums[r].logarithm;
      }
    });
}

template <class Cell>
void patternGroup(const Attention& a, int64_t b, int64_t g, int64_t first, int64_t last, float* pattern) {
  const int64_t shared = a.heads / a.groups, stride = roundUp(a.keys, kLanes);
  float* bias = scratch<float, 5>(stride);
  if (a.padding) readPadding(a, b, bias);
  const KeyPanels<Cell> panels(a, b, g, a.limit(last - 1), false);
  float* weights = scratch<float, 7>(kRows * stride);
  for (int64_t head = g * shared; head < (g + 1) * shared; head++)
    scoreRows<Cell>(a, panels, b, head, first, last, bias, weights, [&](int64_t query, int64_t m, int64_t seen, const RowSum* sums) {
      for (int64_t r = 0; r < m; r++) {
        float* to = pattern + ((b * a.heads + head) * a.queries + query + r) * a.keys;
        for (int64_t j = 0; j < a.keys; j++) to[j] = j < seen ? weights[r * stride + j] / sums[r].sum : 0;
      }
    });
}

/** body(picture, key head, first query, last query) for all of them, on every thread. */
template <class Body>
void overTasks(const Attention& a, const Body& body) {
  const int64_t span = queriesPerTask(a), pieces = (a.queries + span - 1) / span;
  parallel(a.batch * a.groups * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t first = t % pieces * span;
      body(t / pieces / a.groups, t / pieces % a.groups, first, std::min(a.queries, first + span));
    }
  });
}

void attention(Call& call) {
  const Attention a = readAttention(call);
  const Writer out = writer(call.output(a.qView->dtype, {a.batch, a.queries, a.heads * a.width}));
  float* logarithms = call.output(kFloat32, {a.batch, a.heads, a.queries}).floats();
#if VITRINE_LEVEL == 2
  if (a.qView->dtype == kBfloat16)
    return overTasks(a, [&](int64_t b, int64_t g, int64_t i, int64_t end) { attendGroup<PairCell>(a, b, g, i, end, out, logarithms); });
#endif
  overTasks(a, [&](int64_t b, int64_t g, int64_t i, int64_t end) { attendGroup<FloatCell>(a, b, g, i, end, out, logarithms); });
}

void attentionPattern(Call& call) {
  const Attention a = readAttention(call);
  float* pattern = call.output(kFloat32, {a.batch, a.heads, a.queries, a.keys}).floats();
  overTasks(a, [&](int64_t b, int64_t g, int64_t i, int64_t end) { patternGroup<FloatCell>(a, b, g, i, end, pattern); });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("attention", vitrine::attention)
VITRINE_KERNEL("attentionPattern", vitrine::attentionPattern)
