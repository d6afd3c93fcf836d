/** Tensors of float32 or bfloat16 as Readers and Writers, for kernels that take either. */
#pragma once
#include "kernel.h"
#include "vector.h"

namespace vitrine {
namespace {

/** What overLanes() hands to its body: all lanes, or the first n of them. */
struct Whole {};
struct Part {
  int64_t n;
};

/** body(i, Whole{}) for i = begin, begin + kLanes, ...; body(i, Part{n}) for a rest of n < kLanes. Two loops: the first one is bare. */
template <class Body>
inline void overLanes(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, Whole{});
  if (i < end) body(i, Part{end - i});
}

/** Numbers to read, float32 or bfloat16. The branch goes the same way all through a loop, so that it is taken out of it. */
struct Reader {
  const float* wide;
  const uint16_t* narrow;
  Floats operator()(int64_t i, Whole = {}, float = 0) const { return wide ? load(wide + i) : load(narrow + i); }
  /** The lanes beyond the part hold `fill`. */
  Floats operator()(int64_t i, Part part, float fill = 0) const {
    return wide ? loadPart(wide + i, part.n, fill) : loadPart(narrow + i, part.n, fill);
  }
  Reader from(int64_t i) const { return {wide ? wide + i : nullptr, narrow ? narrow + i : nullptr}; }
};

/** Numbers to write, float32 or bfloat16. */
struct Writer {
  float* wide;
  uint16_t* narrow;
  void operator()(int64_t i, Floats v) const { (*this)(i, Whole{}, v); }
  void operator()(int64_t i, Whole, Floats v) const { wide ? store(wide + i, v) : store(narrow + i, v); }
  void operator()(int64_t i, Part part, Floats v) const { wide ? storePart(wide + i, part.n, v) : storePart(narrow + i, part.n, v); }
  Writer from(int64_t i) const { return {wide ? wide + i : nullptr, narrow ? narrow + i : nullptr}; }
};

inline Reader reader(const View& view) {
  return view.dtype == kBfloat16 ? Reader{nullptr, view.halves()} : Reader{view.floats(), nullptr};
}

/** Nothing to read where the tensor is absent: test `given` first. */
inline Reader reader(const View* view) { return view ? reader(*view) : Reader{nullptr, nullptr}; }

inline Writer writer(const View& view) {
  return view.dtype == kBfloat16 ? Writer{nullptr, view.halves()} : Writer{view.floats(), nullptr};
}

inline bool given(Reader values) { return values.wide || values.narrow; }

/** The dtype that number `index` names: 1 float32, 14 bfloat16. */
inline int dtypeNumber(const Call& call, size_t index) {
  const int64_t dtype = call.integer(index, kFloat32, kBfloat16);
  if (dtype != kFloat32 && dtype != kBfloat16)
    call.fail("number %zu is dtype %lld; expected 1 (float32) or 14 (bfloat16)", index, static_cast<long long>(dtype));
  return static_cast<int>(dtype);
}

/** Rows a chunk so that it is about `elements` of work. */
inline int64_t rowsPerChunk(int64_t width, int64_t elements) { return width >= elements ? 1 : elements / (width > 0 ? width : 1); }

} // namespace
} // namespace vitrine
