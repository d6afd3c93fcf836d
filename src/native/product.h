/** Products of many rows with a packed right factor, on all threads, with what follows them in a layer folded in. */
#pragma once
#include "epilogue.h"
#include "linear.h"

#if VITRINE_LEVEL >= 2
namespace vitrine {
namespace {

constexpr int64_t kBlockRows = 192;   // rows of x that stay in the cache while a panel passes
constexpr int64_t kBlockPairs = 2048; // of a panel: 512 KB, half of a core's cache

/** A left factor: bfloat16 rows of an even stride, zero where padded. */
struct Rows {
  const uint16_t* data = nullptr;
  int64_t count = 0, stride = 0;
};

/** x as bfloat16 rows of even length: its own memory where it already is that, else a copy in `scratch`. */
Rows rowsOf(const View& x, Scratch<uint16_t>& scratch) {
  const int64_t count = x.rows(), length = x.dim(-1), stride = (length + 1) / 2 * 2;
  if (x.dtype == kBfloat16 && stride == length) return {x.halves(), count, stride};
  uint16_t* to = scratch.take(count * stride);
  parallel(count, std::max<int64_t>(1, 65536 / std::max<int64_t>(1, length)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      if (x.dtype == kFloat32)
        narrow(x.floats() + i * length, length, to + i * stride);
      else
        std::memcpy(to + i * stride, x.halves() + i * length, 2 * length);
      if (stride > length) to[i * stride + length] = 0;
    }
  });
  return {to, count, stride};
}

/** A packed right factor. */
struct Packed {
  const uint16_t* data = nullptr;
  int64_t pairs = 0;
  const uint16_t* panel(int64_t p) const { return data + p * pairs * kPanel * 2; }
};

/** Part of a product: one panel for some rows of x. low · up is added to x · weight where it is given. */
void productBlock(const Rows& x, const Packed& weight, const Rows& low, const Packed& up, const Epilogue& finish, int64_t begin, int64_t end,
                  int64_t panel, int64_t outputs) {
  alignas(64) float sums[kBlockRows * kPanel];
  const int64_t columns = std::min(kPanel, outputs - panel * kPanel);
  for (int64_t first = 0; first == 0 || first < weight.pairs; first += kBlockPairs) {
    const int64_t pairs = std::min(kBlockPairs, weight.pairs - first);
    const bool once = weight.pairs <= kBlockPairs, last = first + kBlockPairs >= weight.pairs;
    for (int64_t i = begin; i < end; i += kTileRows) {
      const int64_t rows = std::min(kTileRows, end - i);
      float* to = once ? sums : sums + (i - begin) * kPanel;
      const uint16_t *left = x.data + i * x.stride + 2 * first, *right = weight.panel(panel) + first * kPanel * 2;
      if (first == 0)
        tileOf<false>(rows, columns, left, x.stride, right, pairs, to);
      else
        tileOf<true>(rows, columns, left, x.stride, right, pairs, to);
      if (!last) continue;
      if (low.data) tileOf<true>(rows, columns, low.data + i * low.stride, low.stride, up.panel(panel), up.pairs, to);
      finish(to, kPanel, rows, i, panel * kPanel, columns);
    }
  }
}

/** finish(x · weight + low · up) over all rows and panels, on all threads. */
void product(const Rows& x, const Packed& weight, const Rows& low, const Packed& up, const Epilogue& finish, int64_t outputs) {
  if (x.count == 0 || outputs == 0) return;
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  // At least four tasks a thread where there is work for them, and no block beyond kBlockRows.
  const int64_t wanted = std::min((x.count + 23) / 24, (4 * threads() + panels - 1) / panels);
  const int64_t blocks = std::max((x.count + kBlockRows - 1) / kBlockRows, wanted);
  const int64_t height = ((x.count + blocks - 1) / blocks + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t tasks = panels * ((x.count + height - 1) / height);
  const int64_t cost = (weight.pairs + 1) * std::min(height, x.count); // some 2 a nanosecond when few rows wait for memory
  parallel(tasks, std::clamp<int64_t>(16384 / cost, 1, std::max<int64_t>(1, tasks / (16 * threads()))), [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
      const int64_t begin = task / panels * height;
      productBlock(x, weight, low, up, finish, begin, std::min(x.count, begin + height), task % panels, outputs);
    }
  });
}

/** Packs a matrix [outputs, length], or [length, outputs] when `turned`, on all threads. */
void packMatrix(const View& from, bool turned, float scale, uint16_t* to) {
  const int64_t outputs = from.dim(turned ? 1 : 0), length = from.dim(turned ? 0 : 1), pairs = (length + 1) / 2;
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const auto pack = [&](const auto* data, int64_t p) {
    const int64_t columns = std::min(kPanel, outputs - p * kPanel);
    uint16_t* panel = to + p * pairs * kPanel * 2;
    if (turned)
      packColumns(data + p * kPanel, outputs, columns, length, scale, panel);
    else
      packRows(data + p * kPanel * length, length, columns, length, scale, panel);
  };
  parallel(panels, std::max<int64_t>(1, 512 / std::max<int64_t>(1, pairs)), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) from.dtype == kFloat32 ? pack(from.floats(), p) : pack(from.halves(), p);
  });
}

/** A small right factor, packed for this call. */
Packed packNow(const View& from, bool turned, float scale, Scratch<uint16_t>& scratch) {
  const int64_t outputs = from.dim(turned ? 1 : 0), pairs = (from.dim(turned ? 0 : 1) + 1) / 2;
  uint16_t* to = scratch.take((outputs + kPanel - 1) / kPanel * pairs * kPanel * 2);
  packMatrix(from, turned, scale, to);
  return {to, pairs};
}

enum Use { kLeft, kLow, kRight, kUses };

/** Memory of this thread for bfloat16 rows of x, for the small left factor, and for what is packed in a call. */
Scratch<uint16_t>& scratchFor(Use use) {
  static thread_local Scratch<uint16_t> memory[kUses];
  return memory[use];
}

float scaleOf(Call& call, size_t index) {
  const double scale = call.number(index);
  if (!(scale - scale == 0)) call.fail("number %zu, the scale, is %g", index, scale);
  return static_cast<float>(scale);
}

int outputDtype(Call& call, size_t index) {
  const int64_t dtype = call.integer(index);
  if (dtype != kFloat32 && dtype != kBfloat16) call.fail("number %zu, the output's dtype, is %lld; expected 1 or 14", index, (long long)dtype);
  return static_cast<int>(dtype);
}

/** Rows of numbers, [..., D]; `rows` and `columns` as expected, or -1. */
const View& rowsInput(Call& call, size_t index, int64_t rows, int64_t columns) {
  const View& view = call.input(index, {kFloat32, kBfloat16});
  if (view.dims.empty() || (rows >= 0 && view.rows() != rows) || (columns >= 0 && view.dim(-1) != columns))
    call.fail("input %zu is %s; expected %lld rows of %lld (-1: any)", index, describe(view).c_str(), (long long)rows, (long long)columns);
  return view;
}

/** The shape of x with another last axis. */
std::vector<int64_t> widened(const View& x, int64_t last) {
  std::vector<int64_t> dims = x.dims;
  dims.back() = last;
  return dims;
}

} // namespace
} // namespace vitrine
#endif
