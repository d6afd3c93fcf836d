/** For the C++ checks of kernels: tensors with exactly as much memory as they need, so that a sanitizer sees every step beyond it. */
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../src/native/kernel.h"

namespace check {

using vitrine::kBfloat16;
using vitrine::kFloat32;
using vitrine::kInt32;
using Dims = std::vector<int64_t>;

inline int64_t sizeOf(const Dims& dims) {
  int64_t size = 1;
  for (int64_t length : dims) size *= length;
  return size;
}

inline uint16_t toHalf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float fromHalf(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

/** A tensor on the heap: its memory ends where its last element ends. */
struct Tensor {
  int dtype = kFloat32;
  Dims dims;
  std::shared_ptr<void> memory;

  Tensor() = default;
  Tensor(int type, const Dims& shape) : dtype(type), dims(shape) {
    const int64_t bytes = sizeOf(dims) * vitrine::dtypeSize(dtype);
    if (bytes) memory = std::shared_ptr<void>(std::malloc(static_cast<size_t>(bytes)), std::free);
  }
  int64_t size() const { return sizeOf(dims); }
  double at(int64_t i) const {
    if (dtype == kFloat32) return static_cast<float*>(memory.get())[i];
    if (dtype == kInt32) return static_cast<int32_t*>(memory.get())[i];
    return fromHalf(static_cast<uint16_t*>(memory.get())[i]);
  }
  void set(int64_t i, double x) {
    if (dtype == kFloat32) static_cast<float*>(memory.get())[i] = static_cast<float>(x);
    else if (dtype == kInt32) static_cast<int32_t*>(memory.get())[i] = static_cast<int32_t>(x);
    else static_cast<uint16_t*>(memory.get())[i] = toHalf(static_cast<float>(x));
  }
};

/** Numbers from -1 to 1 that are the same in every run. */
inline double uniform() {
  static uint64_t state = 88172645463325252ull;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<double>(state >> 11) / 4503599627370496.0 - 1;
}

inline Tensor randomTensor(int dtype, const Dims& dims, double scale = 1) {
  Tensor t(dtype, dims);
  for (int64_t i = 0; i < t.size(); i++) t.set(i, uniform() * scale);
  return t;
}

class Heap : public vitrine::Memory {
 public:
  std::vector<Tensor> made;
  void* allocate(int dtype, const Dims& dims, int64_t) override {
    made.emplace_back(dtype, dims);
    return made.back().memory.get();
  }
};

/** Runs a kernel; an input without dims and memory (Tensor{}) counts as absent when `dtype` is 0. */
inline std::vector<Tensor> run(const char* name, const std::vector<Tensor>& inputs, const std::vector<double>& numbers) {
  const vitrine::Kernel kernel = vitrine::findKernel(name);
  if (!kernel) {
    std::printf("no kernel %s\n", name);
    std::exit(1);
  }
  std::vector<vitrine::View> views;
  std::vector<bool> present;
  for (const Tensor& t : inputs) {
    vitrine::View view;
    view.data = t.memory.get();
    view.dtype = t.dtype;
    view.dims = t.dims;
    views.push_back(view);
    present.push_back(t.dtype != 0);
  }
  Heap heap;
  heap.made.reserve(16);
  vitrine::Call call(name, heap, views, present, numbers);
  kernel(call);
  return heap.made;
}

inline Tensor absent() {
  Tensor t;
  t.dtype = 0;
  return t;
}

inline int failures = 0;

/** Compares with numbers of a plain double computation, by the largest distance over the scale of the tensor. */
inline void expectClose(const std::string& what, const Tensor& got, const std::function<double(int64_t)>& want, double tolerance) {
  double worst = 0, scale = 1e-30;
  for (int64_t i = 0; i < got.size(); i++) {
    const double w = want(i), g = got.at(i);
    if (std::isnan(w) != std::isnan(g)) worst = INFINITY;
    if (std::isnan(w)) continue;
    worst = std::fmax(worst, std::fabs(g - w));
    scale = std::fmax(scale, std::fabs(w));
  }
  if (worst <= tolerance * std::fmax(scale, 0.1)) return; // a tensor of tiny numbers: their size is not the scale of the computation
  std::printf("%s: off by %g at scale %g, allowed %g of it\n", what.c_str(), worst, scale, tolerance);
  failures++;
}

} // namespace check
