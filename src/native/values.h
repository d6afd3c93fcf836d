/** Tensors of float32 or bfloat16 as Readers and Writers, for kernels that take either. */
#pragma once
#include "kernel.h"
#include "vector.h"

namespace vitrine {
namespace {

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
