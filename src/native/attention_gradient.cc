/**
 * Gradient of attention, with the weights computed again in tiles from the saved logarithms (Dao et al. 2022, algorithm 4).
 *
 *   attentionGradient  the inputs and numbers of attention.h, then o [B, Nq, H·d], logarithms [B, H, Nq], do [B, Nq, H·d]
 *                        -> dq, dk, dv of the shapes and dtypes of q, k, v; or one gradient where the three came as one tensor
 *
 * Per head and tile of queries i and keys j, with P = e^(scale q·k + masks - logarithm), delta_i = o_i · do_i:
 *   dV += Pᵀ dO,  dS = scale P (dO Vᵀ - delta),  dK += dSᵀ Q,  dQ += dS K.
 * dK and dV are summed transposed, so that P and dS are right factors as they are; only they are turned, once, at the end.
 */
#include "attention.h"

namespace vitrine {
namespace {

constexpr int64_t kTile = 64; // queries and keys of a tile

/** Gradients on their way out: straight to dk and dv, or, where query heads share a key head, first to sums of each head. */
struct Gradients {
  Writer q, k, v;
  Rows kRows, vRows;
  float *kParts, *vParts; // [B, H, keys, d], or nullptr
};

struct Saved {
  Reader out, dout;
  const float* logarithms;
};

/** What the tiles of one head read again and again. */
template <class Cell>
struct QueryFactors {
  const typename Cell::Element *q, *dout; // rows
  const typename Cell::Type *qTurned, *doutTurned; // [d, cells of the queries' axis]
  int64_t stride; // of the turned ones: each tile of queries starts on a new vector
  float *delta, *dq;

  QueryFactors(const Attention& a, const Saved& saved, int64_t b, int64_t head) {
    using Element = typename Cell::Element;
    const int64_t size = a.queries * a.width, slack = kLanes * Cell::kElements;
    stride = roundUp(a.queries, kTile) / Cell::kElements;
    auto* qRows = scratch<Element, 0>(size + slack);
    auto* doutRows = scratch<Element, 1>(size + slack);
    auto* qTo = scratch<typename Cell::Type, 2>(a.width * stride);
    auto* doutTo = scratch<typename Cell::Type, 3>(a.width * stride);
    delta = scratch<float, 4>(a.queries);
    dq = scratch<float, 5>(size);
    const Reader slope = saved.dout.from(a.out.at(b, 0, head, a.width)), out = saved.out.from(a.out.at(b, 0, head, a.width));
    copyRows(reader(*a.qView).from(a.q.at(b, 0, head, a.width)), a.q.stride, a.queries, a.width, qRows);
    copyRows(slope, a.out.stride, a.queries, a.width, doutRows);
    transposeToRows<Cell>(qRows, a.width, a.queries, a.width, qTo, stride);
    transposeToRows<Cell>(doutRows, a.width, a.queries, a.width, doutTo, stride);
    for (int64_t i = 0; i < a.queries; i++) {
      Floats total = splat(0);
      for (int64_t j = 0; j < a.width; j += kLanes) total += slope(i * a.out.stride + j) * out(i * a.out.stride + j);
      delta[i] = sum(total);
    }
    std::fill(dq, dq + size, 0.0f);
    q = qRows;
    dout = doutRows;
    qTurned = qTo;
    doutTurned = doutTo;
  }
};

/** The right factors of one tile of keys. */
template <class Cell>
struct KeyFactors {
  typename Cell::Type *keys, *values; // transposed: cells of d by keys
  typename Cell::Type* keysAlong; // cells of the keys' axis by d

  KeyFactors(const Attention& a, int64_t b, int64_t g, int64_t first, int64_t count) {
    const int64_t depth = a.width / Cell::kElements;
    auto* rows = scratch<typename Cell::Element, 6>(kTile * a.width + kLanes * Cell::kElements);
    keys = scratch<typename Cell::Type, 7>(roundUp(kTile, kPanel) * depth);
    values = scratch<typename Cell::Type, 8>(roundUp(kTile, kPanel) * depth);
    keysAlong = scratch<typename Cell::Type, 9>(roundUp(a.width, kPanel) * kTile);
    copyRows(reader(*a.vView).from(a.v.at(b, first, g, a.width)), a.v.stride, count, a.width, rows);
    panelsOfRows<Cell>(cellsOf(rows), depth, count, depth, values);
    copyRows(reader(*a.kView).from(a.k.at(b, first, g, a.width)), a.k.stride, count, a.width, rows);
    panelsOfRows<Cell>(cellsOf(rows), depth, count, depth, keys);
    panelsAlongRows<Cell>(rows, a.width, count, a.width, keysAlong);
  }
};

/** A tile's scores and products, and what becomes of them. */
template <class Cell>
struct Tile {
  float scores[kTile * kTile], products[kTile * kTile]; // q·k; do·v
  typename Cell::Type weights[kTile * kTile], slopes[kTile * kTile]; // P and dS as right factors, cells along the queries
  typename Cell::Element slopeRows[kTile * kTile]; // dS as a left factor
};

/** Where a tile stands: m queries from i, n keys from j. */
struct Place {
  int64_t b, head, i, m, j, n;
};

/** P and dS of one vector of keys of a query. */
struct Softmaxed {
  Floats weight, slope;
};

inline Softmaxed differentiate(const Attention& a, const RowMask* mask, float logarithm, float delta, Floats score, Floats product,
                               int64_t key, int64_t limit) {
  const bool nowhere = mask && logarithm <= kHidden / 2;
  const Floats s = mask ? mask->apply(score, a.scale, key, limit) : score * a.scale;
  const Floats p = firstLanes(nowhere ? splat(1.0f / static_cast<float>(limit)) : exponential(s - logarithm), limit - key, 0);
  return {p, firstLanes(p * (product - delta) * a.scale, limit - key, 0)};
}

/** Turns scores and products into the three factors. Rows are taken as many at a time as a cell holds. */
template <class Cell>
void differentiateTile(const Attention& a, const Saved& saved, const float* delta, const float* bias, Place at, Tile<Cell>& tile) {
  const int64_t depth = (at.m + Cell::kElements - 1) / Cell::kElements;
  for (int64_t cell = 0; cell < depth; cell++)
    for (int64_t c = 0; c < at.n; c += kLanes) {
      Floats weights[Cell::kElements], slopes[Cell::kElements];
      for (int e = 0; e < Cell::kElements; e++) {
        const int64_t r = cell * Cell::kElements + e, query = at.i + r;
        weights[e] = slopes[e] = splat(0);
        if (r >= at.m) continue;
        const RowMask mask = a.masked() ? maskOf(a, bias, at.b, at.head, query) : RowMask{};
        const float logarithm = saved.logarithms[(at.b * a.heads + at.head) * a.queries + query];
        const Softmaxed s = differentiate(a, a.masked() ? &mask : nullptr, logarithm, delta[query], load(tile.scores + r * kTile + c),
                                          load(tile.products + r * kTile + c), at.j + c, a.limit(query));
        weights[e] = s.weight;
        slopes[e] = s.slope;
        store(tile.slopeRows + r * kTile + c, s.slope);
      }
      const int64_t to = (c / kPanel * depth + cell) * kPanel + c % kPanel;
      storeCells(tile.weights + to, Cell::pack(weights));
      storeCells(tile.slopes + to, Cell::pack(slopes));
    }
}

/** Rows of a transposed sum [d, kTile], turned and written: keys from at.j of dk or dv. */
inline void writeTurned(const Attention& a, const float* turned, Place at, float* parts, Writer to, Rows rows) {
  float* straight = scratch<float, 12>(kTile * roundUp(a.width, kLanes));
  transpose(turned, kTile, a.width, at.n, straight, a.width);
  for (int64_t r = 0; r < at.n; r++) {
    const int64_t part = ((at.b * a.heads + at.head) * a.keys + at.j + r) * a.width;
    const Writer row = parts ? Writer{parts + part, nullptr} : to.from(rows.at(at.b, at.j + r, a.group(at.head), a.width));
    for (int64_t c = 0; c < a.width; c += kLanes) row(c, load(straight + r * a.width + c));
  }
}

/** All tiles of one tile's keys: dk and dv of these keys, and their part of dq. */
template <class Cell>
void keysOfHead(const Attention& a, const Saved& saved, const QueryFactors<Cell>& f, const float* bias, Place at, const Gradients& to) {
  const KeyFactors<Cell> right(a, at.b, a.group(at.head), at.j, at.n);
  Tile<Cell>& tile = *scratch<Tile<Cell>, 13>(1);
  float* dk = scratch<float, 10>(a.width * kTile);
  float* dv = scratch<float, 11>(a.width * kTile);
  const int64_t depth = a.width / Cell::kElements, keyCells = (at.n + Cell::kElements - 1) / Cell::kElements;
  bool add = false;
  for (at.i = 0; at.i < a.queries; at.i += kTile) {
    at.m = std::min(kTile, a.queries - at.i);
    if (a.limit(at.i + at.m - 1) <= at.j) continue; // causal: none of these queries sees these keys
    const int64_t cells = (at.m + Cell::kElements - 1) / Cell::kElements, turned = at.i / Cell::kElements;
    Product<Cell>{cellsOf(f.q + at.i * a.width), depth, at.m, right.keys, depth, depth, at.n}.into(tile.scores, kTile, false);
    Product<Cell>{cellsOf(f.dout + at.i * a.width), depth, at.m, right.values, depth, depth, at.n}.into(tile.products, kTile, false);
    differentiateTile<Cell>(a, saved, f.delta, bias, at, tile);
    Product<Cell>{f.doutTurned + turned, f.stride, a.width, tile.weights, cells, cells, at.n}.into(dv, kTile, add);
    Product<Cell>{f.qTurned + turned, f.stride, a.width, tile.slopes, cells, cells, at.n}.into(dk, kTile, add);
    Product<Cell>{cellsOf(tile.slopeRows), kTile / Cell::kElements, at.m, right.keysAlong, keyCells, keyCells, a.width}.into(
        f.dq + at.i * a.width, a.width, true);
    add = true;
  }
  if (!add) {
    std::fill(dk, dk + a.width * kTile, 0.0f);
    std::fill(dv, dv + a.width * kTile, 0.0f);
  }
  writeTurned(a, dk, at, to.kParts, to.k, to.kRows);
  writeTurned(a, dv, at, to.vParts, to.v, to.vRows);
}

template <class Cell>
void gradientOfHead(const Attention& a, const Saved& saved, int64_t b, int64_t head, const Gradients& to) {
  float* bias = scratch<float, 14>(roundUp(a.keys, kTile));
  if (a.padding) readPadding(a, b, bias);
  const QueryFactors<Cell> factors(a, saved, b, head);
  for (int64_t j = 0; j < a.keys; j += kTile)
    keysOfHead<Cell>(a, saved, factors, bias, {b, head, 0, 0, j, std::min(kTile, a.keys - j)}, to);
  for (int64_t i = 0; i < a.queries; i++) {
    const Writer row = to.q.from(a.q.at(b, i, head, a.width));
    for (int64_t c = 0; c < a.width; c += kLanes) row(c, load(factors.dq + i * a.width + c));
  }
}

/** Sums the parts of the query heads that share a key head, in their order. */
void addParts(const Attention& a, const float* parts, Writer to, Rows rows) {
  const int64_t shared = a.heads / a.groups, span = a.keys * a.width;
  parallel(a.batch * a.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++)
      for (int64_t i = 0; i < a.keys; i++)
        for (int64_t c = 0; c < a.width; c += kLanes) {
          Floats total = splat(0);
          for (int64_t s = 0; s < shared; s++) total += load(parts + (t * shared + s) * span + i * a.width + c);
          to(rows.at(t / a.groups, i, t % a.groups, a.width) + c, total);
        }
  });
}

template <class Cell>
void gradientOfAll(const Attention& a, const Saved& saved, Gradients to) {
  std::vector<float> parts;
  if (a.groups < a.heads) {
    const int64_t size = a.batch * a.heads * a.keys * a.width;
    parts.resize(static_cast<size_t>(2 * size));
    to.kParts = parts.data();
    to.vParts = parts.data() + size;
  }
  parallel(a.batch * a.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) gradientOfHead<Cell>(a, saved, t / a.heads, t % a.heads, to);
  });
  if (parts.empty()) return;
  addParts(a, to.kParts, to.k, to.kRows);
  addParts(a, to.vParts, to.v, to.vRows);
}

void attentionGradient(Call& call) {
  const Attention a = readAttention(call);
  if (a.keys != a.k.tokens) call.fail("number 4 must be 0: a cache with room to spare has no gradient");
  const std::vector<int64_t> outDims{a.batch, a.queries, a.heads * a.width};
  const Reader out = reader(call.input(kMaskInputs, {a.qView->dtype}, outDims));
  const float* logarithms = call.input(kMaskInputs + 1, {kFloat32}, {a.batch, a.heads, a.queries}).floats();
  const Reader dout = reader(call.input(kMaskInputs + 2, {a.qView->dtype}, outDims));
  const Writer dq = writer(call.output(a.qView->dtype, a.qView->dims));
  const Writer dk = a.fused ? dq : writer(call.output(a.qView->dtype, a.kView->dims));
  const Writer dv = a.fused ? dq : writer(call.output(a.qView->dtype, a.vView->dims));
  const Saved saved{out, dout, logarithms};
  const Gradients to{dq, dk, dv, a.k, a.v, nullptr, nullptr};
#if VITRINE_LEVEL == 2
  if (a.qView->dtype == kBfloat16) return gradientOfAll<PairCell>(a, saved, to);
#endif
  gradientOfAll<FloatCell>(a, saved, to);
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("attentionGradient", vitrine::attentionGradient)
