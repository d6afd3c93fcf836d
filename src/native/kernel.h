/**
 * What a kernel sees, and how it makes itself known. A kernel is a plain function over the memory of TensorFlow's tensors:
 *
 *   namespace {
 *   void square(Call& call) {
 *     const View& x = call.input(0, {kFloat32});                    // float32, any shape
 *     const View& y = call.output(kFloat32, x.dims);                // TensorFlow's memory, not cleared
 *     const float* from = x.floats();
 *     float* to = y.floats();
 *     parallel(x.size(), 16384, [=](int64_t begin, int64_t end) { // chunks of at most 16384, on every thread
 *       for (int64_t i = begin; i < end; i++) to[i] = from[i] * from[i];
 *     });
 *   }
 *   }
 *   VITRINE_KERNEL("square", square)
 *
 * Rules. Every source here is compiled once for each level of VITRINE_LEVEL that the machine's architecture has, and the best one that the
 * processor supports is taken when the module loads: so everything but the registration stands in an anonymous namespace, and no global
 * needs code to be initialised (its code might not run on this processor). Check dtypes and shapes before reading: an error is a message
 * in JavaScript, a wrong pointer is a crash. Memory is aligned to four bytes (two for bfloat16), not more; an empty tensor may have no memory.
 */
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "pool.h"

// The instruction sets that sources are compiled for: setup/binding.mjs gives the flags, level() in processor.cc asks the processor.
#if defined(__AVX512BF16__)
#define VITRINE_LEVEL 2 // AVX-512 F, BW, VL, DQ and BF16
#elif defined(__AVX2__)
#define VITRINE_LEVEL 1 // AVX2 and FMA
#else
#define VITRINE_LEVEL 0 // what every processor of the architecture has (SSE2, NEON)
#endif

// Registration runs when the module loads, on any processor: its code keeps to the baseline whatever the file's flags are.
#if defined(__x86_64__)
#define VITRINE_BASELINE __attribute__((target("no-avx")))
#else
#define VITRINE_BASELINE
#endif

namespace vitrine {

/** Codes of TensorFlow's DataType enum (tensorflow/core/framework/types.proto). */
enum Dtype : int { kFloat32 = 1, kInt32 = 3, kUint8 = 4, kInt8 = 6, kBool = 10, kBfloat16 = 14 };

/** "float32", "bfloat16", ... */
const char* dtypeName(int dtype);

/** Bytes of one element; 0 for a type that no kernel knows. */
int64_t dtypeSize(int dtype);

/** A tensor's memory, in C order. */
struct View {
  void* data = nullptr;
  int dtype = 0;
  std::vector<int64_t> dims;

  /** Number of elements. */
  int64_t size() const;
  /** Length of an axis; negative counts from the end. */
  int64_t dim(int axis) const;
  /** Elements before the last axis: the number of rows of [..., D]. 1 for a scalar. */
  int64_t rows() const;
  float* floats() const { return static_cast<float*>(data); }
  uint16_t* halves() const { return static_cast<uint16_t*>(data); } // bfloat16
  int32_t* ints() const { return static_cast<int32_t*>(data); }
  uint8_t* bytes() const { return static_cast<uint8_t*>(data); }
};

/** "float32 [2, 3]", for messages. */
std::string describe(const View& view);

/** Where a Call gets memory for its outputs: TensorFlow in the module, plain memory in a sanitizer's test. */
class Memory {
 public:
  virtual ~Memory() = default;
  /** Memory for a new tensor; throws std::exception when there is none. */
  virtual void* allocate(int dtype, const std::vector<int64_t>& dims, int64_t bytes) = 0;
};

/** One call from JavaScript: input tensors (some may be absent), numbers, and the outputs that the kernel makes, in order. */
class Call {
 public:
  Call(const char* name, Memory& memory, std::vector<View> inputs, std::vector<bool> present, std::vector<double> numbers);
  Call(const Call&) = delete;
  ~Call();

  size_t inputs() const { return inputs_.size(); }
  bool has(size_t index) const { return index < present_.size() && present_[index]; }
  /** A required input; fails when it is absent. */
  const View& input(size_t index) const;
  /** A required input of one of these dtypes. */
  const View& input(size_t index, std::initializer_list<int> dtypes) const;
  /** A required input of one of these dtypes and this shape; -1 stands for any length. */
  const View& input(size_t index, std::initializer_list<int> dtypes, const std::vector<int64_t>& dims) const;
  /** The same for an input that may be absent: nullptr then. */
  const View* optional(size_t index) const;
  const View* optional(size_t index, std::initializer_list<int> dtypes) const;
  const View* optional(size_t index, std::initializer_list<int> dtypes, const std::vector<int64_t>& dims) const;

  size_t numbers() const { return numbers_.size(); }
  /** A number; fails when fewer were given. */
  double number(size_t index) const;
  /** A whole number from low to high. */
  int64_t integer(size_t index, int64_t low = INT64_MIN, int64_t high = INT64_MAX) const;

  /** A new output tensor; its memory is not cleared. The reference stays valid while the call lasts. */
  const View& output(int dtype, const std::vector<int64_t>& dims);

  /** The outputs made so far, in order. */
  const std::vector<View*>& outputs() const { return outputs_; }

  /** Ends the call with an Error in JavaScript: "kernel NAME: message". printf-like. Not inside a body of parallel(). */
  [[noreturn]] void fail(const char* format, ...) const __attribute__((format(printf, 2, 3)));

 private:
  std::string name_;
  Memory& memory_;
  std::vector<View> inputs_;
  std::vector<bool> present_;
  std::vector<double> numbers_;
  std::vector<View*> outputs_; // pointers: references to them stay valid when the next one is made
};

using Kernel = void (*)(Call& call);

/** Records a kernel; of several of one name the highest level that the processor has is used. */
void registerKernel(const char* name, Kernel kernel, int level);

/** The kernel of that name for this processor, or nullptr. */
Kernel findKernel(const std::string& name);

/** Names of the kernels that this processor can run. */
std::vector<std::string> kernelNames();

} // namespace vitrine

#define VITRINE_JOIN_(a, b) a##b
#define VITRINE_JOIN(a, b) VITRINE_JOIN_(a, b)
/** Makes `function` known to JavaScript as `name`. One on a line. */
#define VITRINE_KERNEL(name, function)                                                                                              \
  namespace {                                                                                                                       \
  __attribute__((constructor)) VITRINE_BASELINE void VITRINE_JOIN(registerOnLine, __LINE__)() {                                     \
    vitrine::registerKernel(name, function, VITRINE_LEVEL);                                                                         \
  }                                                                                                                                 \
  }
