/**
 * The product of few rows with a quantised weight, which waits for memory: each byte of the weight is read once, and its numbers are multiplied in
 * float32.
 */
#pragma once
#include "epilogue.h"
#include "quantised.h"

namespace vitrine {
namespace {

constexpr int64_t kFewRows = 8;

enum Slot { kLeftSlot, kLowSlot, kSumsSlot, kPanelSlot, kStripSlot, kScalesSlot };

/** What a call multiplies. */
struct Task {
  Quantised weight;
  bool itself; // W and not its transpose
  int64_t rows, length, outputs;
  Reader x, low, up;
  bool upTurned;
  int64_t rank; // 0: no low-rank pair
  float scale;
  Epilogue finish;
};

/** Rows of a tensor, one behind the other, `stride` apart and zero beyond their length. */
template <class T>
inline void copyPadded(const Reader& from, int64_t length, int64_t begin, int64_t end, float scale, T* to, int64_t stride) {
  for (int64_t i = begin; i < end; i++) {
    T* row = to + i * stride;
    overLanes(0, length, [&](int64_t k, auto part) {
      const Floats v = from(i * length + k, part) * scale;
      store(row + k, v); // the stride leaves room for a whole vector
    });
    for (int64_t k = roundUp(length, kLanes); k < stride; k++) row[k] = 0;
  }
}

/** sums[m][n] += low[m] · up[n], in float32, for few rows. low: float32 [M][rank], scaled */
void addLowRank(const Task& p, const float* low, int64_t j, int64_t count, float* sums, int64_t stride) {
  const auto up = [&](int64_t i) {
    if (p.up.wide) return p.up.wide[i];
    const uint32_t bits = static_cast<uint32_t>(p.up.narrow[i]) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  };
  for (int64_t n = 0; n < count; n++)
    for (int64_t r = 0; r < p.rank; r++) {
      const float factor = up(p.upTurned ? r * p.outputs + j + n : (j + n) * p.rank + r);
      for (int64_t m = 0; m < p.rows; m++) sums[m * stride + n] += low[m * p.rank + r] * factor;
    }
}

/** sums[m][n] = x[m] · weight[first + n] for M rows of x, float32 in the order of Codes::read(), a whole number of groups long. */
template <class Codes, int M>
void dotRows(const Quantised& w, const float* x, int64_t length, int64_t first, int64_t count, float* sums, int64_t stride) {
  const int64_t groups = w.groupsOfRow();
  constexpr int64_t kBatch = 16; // rows whose scales are read together: whole vectors of them
  float* batch = scratch<float, kScalesSlot>(kBatch * groups);
  for (int64_t n = 0; n < count; n++) {
    const int64_t group = (first + n) * groups;
    const uint8_t* codes = w.data + group * Codes::kBytes;
    if (n % kBatch == 0) w.scalesOf(group, std::min(kBatch, count - n) * groups, batch);
    const float* scales = batch + n % kBatch * groups;
    Floats total[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) total[m] = splat(0);
    for (int64_t g = 0; g < groups; g++, codes += Codes::kBytes) {
      __builtin_prefetch(codes + 2048);
      Floats part[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) part[m] = splat(0);
#pragma GCC unroll 8
      for (int i = 0; i < kGroupVectors; i += 2) {
        Floats a, b;
        Codes::read(codes + i / 2 * Codes::kStep, a, b);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const float* from = x + m * length + g * kGroup + i * kLanes;
          part[m] += load(from) * a;
          part[m] += load(from + kLanes) * b;
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) total[m] += part[m] * scales[g];
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sums[m * stride + n] = sum(total[m]);
  }
}

template <class Codes>
void dotRows(int64_t rows, const Quantised& w, const float* x, int64_t length, int64_t first, int64_t count, float* sums, int64_t stride) {
  switch (rows) {
    case 1: return dotRows<Codes, 1>(w, x, length, first, count, sums, stride);
    case 2: return dotRows<Codes, 2>(w, x, length, first, count, sums, stride);
    case 3: return dotRows<Codes, 3>(w, x, length, first, count, sums, stride);
    case 4: return dotRows<Codes, 4>(w, x, length, first, count, sums, stride);
    case 5: return dotRows<Codes, 5>(w, x, length, first, count, sums, stride);
    case 6: return dotRows<Codes, 6>(w, x, length, first, count, sums, stride);
    case 7: return dotRows<Codes, 7>(w, x, length, first, count, sums, stride);
    default: return dotRows<Codes, kFewRows>(w, x, length, first, count, sums, stride);
  }
}

/** The same where groups of scales reach from row to row: each group is widened first. */
void dotSplit(int64_t rows, const Quantised& w, const float* x, int64_t length, int64_t first, int64_t count, float* sums, int64_t stride) {
  for (int64_t n = 0; n < count; n++) {
    Floats total[kFewRows];
    for (int64_t m = 0; m < rows; m++) total[m] = splat(0);
    for (int64_t g = 0; g < w.groupsOfRow(); g++) {
      Floats v[kGroupVectors];
      w.group(first + n, g, v);
      for (int64_t m = 0; m < rows; m++)
        for (int i = 0; i < kGroupVectors; i++) total[m] += load(x + m * length + g * kGroup + i * kLanes) * v[i];
    }
    for (int64_t m = 0; m < rows; m++) sums[m * stride + n] = sum(total[m]);
  }
}

/** x of few rows as float32 in the order in which Codes::read() gives the weight. */
template <class Codes>
void arrange(float* x, int64_t size) {
  for (int64_t i = 0; i < size; i += 2 * kLanes) {
    Floats first = load(x + i), second = load(x + i + kLanes);
    Codes::arrange(first, second);
    store(x + i, first);
    store(x + i + kLanes, second);
  }
}

void fewRows(const Task& p) {
  const int64_t length = roundUp(p.length, kGroup);
  float* x = scratch<float, kLeftSlot>(p.rows * length + 1);
  copyPadded(p.x, p.length, 0, p.rows, 1, x, length);
  float* low = scratch<float, kLowSlot>(p.rows * p.rank + kLanes);
  for (int64_t m = 0; m < p.rows && p.rank; m++) overLanes(0, p.rank, [&](int64_t k, auto part) {
    const Floats v = p.low(m * p.rank + k, part) * p.scale;
    store(low + m * p.rank + k, v); // what is too much is overwritten by the next row
  });
  const bool whole = p.weight.rowsAreWhole(), nf4 = p.weight.kind != kInt8Kind;
  if (whole && nf4) arrange<Nf4Codes>(x, p.rows * length);
  // Some 64 KB of codes a chunk.
  const int64_t chunk = std::clamp<int64_t>(65536 * (nf4 ? 2 : 1) / (length + 1) / 16 * 16, 16, 1024);
  parallel(p.outputs, chunk, [&](int64_t begin, int64_t end) {
    const int64_t count = end - begin, stride = roundUp(count, kLanes);
    float* sums = scratch<float, kSumsSlot>(p.rows * stride);
    if (!whole) dotSplit(p.rows, p.weight, x, length, begin, count, sums, stride);
    else if (nf4) dotRows<Nf4Codes>(p.rows, p.weight, x, length, begin, count, sums, stride);
    else dotRows<Int8Codes>(p.rows, p.weight, x, length, begin, count, sums, stride);
    if (p.rank) addLowRank(p, low, begin, count, sums, stride);
    p.finish(sums, stride, p.rows, 0, begin, count);
  });
}

} // namespace
} // namespace vitrine
