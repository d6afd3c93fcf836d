/**
 * What the attention kernels share: the tensors of a call, its masks, and the softmax of a row of scores.
 *
 * Every kernel starts with the inputs q [B, Nq, H·d], k and v [B, Nk, G·d] (token-major, as linear layers give them; G key heads, each
 * for H / G neighbouring query heads), padding? [B, Nk] (int32, uint8 or bool; 0 where there is no token), and mask?
 * [B or 1, H or 1, Nq or 1, Nk] (float32 or bfloat16, added to the scores). Without k and v, q is [B, N, (H + 2 G)·d], the three side by
 * side. Numbers: H, G, 1 for causal (query i sees keys up to i + Nk - Nq), scale of the scores, and how many rows of k and v count (0: all;
 * a cache may have room for more). d is a multiple of 16 up to 128.
 *
 * A key is hidden by adding kHidden, as the formula does. A row that may look nowhere looks at all its (causal) keys evenly: finite.
 */
#pragma once
#include <cmath>

#include "tile.h"
#include "values.h"

namespace vitrine {
namespace {

constexpr float kHidden = -1e30f;
constexpr size_t kMaskInputs = 5; // q, k, v, padding, mask
constexpr size_t kShapeNumbers = 5;

/** Token-major rows of one of q, k, v: head h of token i of picture b starts at ((b · tokens + i) · stride + first + h · width). */
struct Rows {
  int64_t tokens, stride, first;
  int64_t at(int64_t b, int64_t i, int64_t head, int64_t width) const { return (b * tokens + i) * stride + first + head * width; }
};

struct Attention {
  int64_t batch, heads, groups, queries, keys, width;
  bool causal, fused;
  float scale;
  const View *qView, *kView, *vView;
  Rows q, k, v, out;
  const View *padding, *mask;
  Reader maskValues;
  int64_t maskStride[3]; // of picture, head and query; 0 where all share

  bool masked() const { return padding || mask; }
  /** Keys that query i may look at, masks apart. */
  int64_t limit(int64_t i) const { return causal ? keys - queries + i + 1 : keys; }
  int64_t group(int64_t head) const { return head / (heads / groups); }
};

inline void readMasks(const Call& call, Attention& a) {
  a.padding = call.optional(3, {kInt32, kUint8, kBool}, {a.batch, a.keys});
  a.mask = call.optional(4, {kFloat32, kBfloat16}, {-1, -1, -1, a.keys});
  a.maskValues = reader(a.mask);
  if (!a.mask) return;
  const int64_t full[] = {a.batch, a.heads, a.queries};
  int64_t stride = a.keys;
  for (int axis = 2; axis >= 0; axis--) {
    const int64_t length = a.mask->dims[static_cast<size_t>(axis)];
    if (length != 1 && length != full[axis])
      call.fail("mask is %s; expected [%lld or 1, %lld or 1, %lld or 1, %lld]", describe(*a.mask).c_str(), static_cast<long long>(full[0]),
                static_cast<long long>(full[1]), static_cast<long long>(full[2]), static_cast<long long>(a.keys));
    a.maskStride[axis] = length == 1 ? 0 : stride;
    stride *= length;
  }
}

/** Reads and checks q, k, v, the masks and the numbers. */
inline Attention readAttention(const Call& call) {
  Attention a{};
  a.qView = &call.input(0, {kFloat32, kBfloat16}, {-1, -1, -1});
  a.heads = call.integer(0, 1, 1 << 20);
  a.groups = call.integer(1, 1, 1 << 20);
  a.causal = call.integer(2, 0, 1) != 0;
  a.scale = static_cast<float>(call.number(3));
  a.fused = !call.has(1) && !call.has(2);
  a.batch = a.qView->dims[0];
  a.queries = a.qView->dims[1];
  const int64_t all = a.qView->dims[2], shares = a.fused ? a.heads + 2 * a.groups : a.heads;
  a.width = all / shares;
  if (a.heads % a.groups) call.fail("%lld heads do not divide among %lld key heads", (long long)a.heads, (long long)a.groups);
  if (all % shares || a.width % 16 || a.width < 16 || a.width > 128)
    call.fail("q is %s: %lld heads of width %lld%s; the width of a head must be 16, 32, ... 128", describe(*a.qView).c_str(),
              (long long)shares, (long long)a.width, all % shares ? " and a rest" : "");
  if (!(a.scale > 0) || std::isinf(a.scale)) call.fail("scale is %g; expected a positive number", call.number(3));
  const int64_t narrow = a.groups * a.width;
  a.kView = a.fused ? a.qView : &call.input(1, {a.qView->dtype}, {a.batch, -1, narrow});
  a.vView = a.fused ? a.qView : &call.input(2, {a.qView->dtype}, {a.batch, a.kView->dims[1], narrow});
  const int64_t room = a.kView->dims[1], used = call.integer(4, 0, room);
  a.keys = used ? used : room;
  if (a.fused && a.keys != a.queries) call.fail("q, k and v in one tensor have as many keys as queries: number 4 must be 0");
  if (a.queries && a.batch && !a.keys) call.fail("k is %s: no key to look at", describe(*a.kView).c_str());
  if (a.causal && a.keys < a.queries)
    call.fail("causal, but %lld queries and only %lld keys", (long long)a.queries, (long long)a.keys);
  a.q = {a.queries, all, 0};
  a.k = {room, a.fused ? all : narrow, a.fused ? a.heads * a.width : 0};
  a.v = {room, a.fused ? all : narrow, a.fused ? (a.heads + a.groups) * a.width : 0};
  a.out = {a.queries, a.heads * a.width, 0};
  readMasks(call, a);
  return a;
}

/** 0 for a token of picture b, kHidden for padding; filled up to a multiple of kLanes. */
inline void readPadding(const Attention& a, int64_t b, float* bias) {
  for (int64_t j = 0; j < a.keys; j++) {
    const int64_t at = b * a.keys + j;
    bias[j] = (a.padding->dtype == kInt32 ? a.padding->ints()[at] != 0 : a.padding->bytes()[at] != 0) ? 0.0f : kHidden;
  }
  for (int64_t j = a.keys; j < roundUp(a.keys, kLanes); j++) bias[j] = 0;
}

/** The masks of one query, as numbers to add to its scores. */
struct RowMask {
  const float* bias; // nullptr without padding
  Reader values; // nothing without a mask

  /** Scores j on (of `limit`) times scale, with the masks added; not below kHidden, so that -Infinity does not become NaN. */
  Floats apply(Floats scores, float scale, int64_t j, int64_t limit) const {
    Floats s = scores * scale;
    if (bias) s += load(bias + j);
    if (given(values)) s += j + kLanes <= limit ? values(j) : values(j, Part{limit - j});
    return larger(splat(kHidden), s);
  }
};

inline RowMask maskOf(const Attention& a, const float* bias, int64_t b, int64_t head, int64_t query) {
  return {a.padding ? bias : nullptr, a.maskValues.from(b * a.maskStride[0] + head * a.maskStride[1] + query * a.maskStride[2])};
}

struct RowSum {
  float sum; // of the weights
  float logarithm; // of the sum of e^score: kHidden for a row that may look nowhere
};

/**
 * Softmax without its last division. scores: `limit` products of a query with keys, not yet scaled -> weights e^(score - largest), then
 * zeros up to `padded`, a multiple of kLanes.
 */
template <class Element>
inline RowSum softmaxRow(float* scores, int64_t limit, int64_t padded, float scale, const RowMask* mask, Element* weights) {
  constexpr float kNone = -INFINITY;
  Floats top = splat(kNone);
  for (int64_t j = 0; j < limit; j += kLanes) {
    Floats s = load(scores + j);
    if (mask) s = mask->apply(s, scale, j, limit);
    if (j + kLanes > limit) s = firstLanes(s, limit - j, kNone);
    if (mask || j + kLanes > limit) store(scores + j, s);
    top = larger(top, s);
  }
  const float factor = mask ? 1 : scale, most = largest(top) * factor;
  const bool nowhere = mask && most <= kHidden / 2;
  Floats total = splat(0);
  for (int64_t j = 0; j < limit; j += kLanes) {
    const Floats e = nowhere ? firstLanes(splat(1), limit - j, 0) : exponential(load(scores + j) * factor - most);
    store(weights + j, e);
    total += e;
  }
  for (int64_t j = roundUp(limit, kLanes); j < padded; j += kLanes) store(weights + j, splat(0));
  const float all = sum(total);
  return {all, nowhere ? kHidden : most + std::log(all)};
}

} // namespace
} // namespace vitrine
