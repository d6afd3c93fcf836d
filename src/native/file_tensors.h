/**
 * Tensors from an open file, without a copy of their bytes on the JavaScript side. Only binding.cc includes this.
 *
 *   tensorFromFile(fd, offset, dtype, shape, map)                    the bytes as they are -> { id, shape, dtype }
 *   kernelFromFile(name, numbers, fd, offset, dtype, shape, rows)    a kernel's outputs for the tensor in the file -> [{ id, shape, dtype }]
 */
#pragma once
#include <cstdlib>
#include <mutex>

#include "file.h"
#include "tensors.h"

namespace {

/** TensorFlow takes memory that begins at a multiple of this as it is, and copies any other. */
constexpr int64_t kAlignment = 64;
/** Bytes of a file that a kernel gets at once: they are still in the processor's cache when it does. */
constexpr int64_t kSlice = 4 << 20;

/** A tensor in a file. */
struct Part {
  int fd;
  int64_t offset;
  int dtype;
  std::vector<int64_t> dims;
  int64_t bytes;
};

/** fd, offset, dtype and shape from four arguments. */
Part partOf(napi_env env, const std::string& who, const napi_value* args) {
  double numbers[3];
  for (int i = 0; i < 3; i++) ensure(napi_get_value_double(env, args[i], &numbers[i]), (who + ": fd, offset and dtype are numbers").c_str());
  Part part{wholeOf(numbers[0], (who + ": fd is not a whole number").c_str()), 0, wholeOf(numbers[2], (who + ": the dtype is not a whole number").c_str()), {}, 0};
  if (!(numbers[1] >= 0 && numbers[1] <= 9007199254740991.0) || numbers[1] != static_cast<double>(static_cast<int64_t>(numbers[1])))
    throw std::invalid_argument(who + ": the offset is not a whole number of 0 or more");
  part.offset = static_cast<int64_t>(numbers[1]);
  part.bytes = vitrine::dtypeSize(part.dtype);
  if (part.bytes == 0) throw std::invalid_argument(who + ": dtype " + std::to_string(part.dtype) + " of TensorFlow is not taken");
  for (double length : numbersOf(env, args[3], (who + ": the shape is not an array of numbers").c_str())) {
    part.dims.push_back(wholeOf(length, (who + ": the shape is not of whole numbers").c_str()));
    if (part.dims.back() < 0 || __builtin_mul_overflow(part.bytes, part.dims.back(), &part.bytes)) throw std::invalid_argument(who + ": impossible shape");
  }
  return part;
}

napi_value tensorFromFile(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  const Part part = partOf(env, "tensorFromFile", args.data());
  bool map = false;
  ensure(napi_get_value_bool(env, args[4], &map), "tensorFromFile: map is not true or false");
  TensorMemory memory;
  if (map && part.bytes > 0 && part.offset % kAlignment == 0) {
    auto mapping = std::make_unique<vitrine::Mapping>(part.fd, part.offset, part.bytes);
    memory.take(part.dtype, part.dims, part.bytes, std::move(mapping));
  } else {
    vitrine::readFile(part.fd, part.offset, part.bytes, memory.allocate(part.dtype, part.dims, part.bytes));
  }
  napi_value info;
  ensure(napi_get_element(env, memory.infos(env, backend), 0, &info), "no element");
  return info;
}

/** Outputs for slices of an input, one after the other in whole tensors: `rows` rows of the input give one of each output. */
class SlicedMemory : public vitrine::Memory {
 public:
  SlicedMemory(TensorMemory& whole, int64_t total, int64_t rows) : whole_(whole), total_(total), rows_(rows) {}

  /** What the next call is about. */
  void slice(int64_t begin, int64_t end) { begin_ = begin, end_ = end, next_ = 0; }

  void* allocate(int dtype, const std::vector<int64_t>& dims, int64_t bytes) override {
    if (dims.empty() || dims[0] != outputs(end_ - begin_)) throw std::invalid_argument("kernelFromFile: the kernel's output does not go by slices of rows");
    if (next_ == made_.size()) {
      std::vector<int64_t> full = dims;
      full[0] = outputs(total_);
      const int64_t width = dims[0] ? bytes / dims[0] : 0;
      made_.push_back({static_cast<char*>(whole_.allocate(dtype, full, width * full[0])), width});
    }
    const auto& [data, width] = made_[next_++];
    return data + begin_ / rows_ * width;
  }

 private:
  int64_t outputs(int64_t rows) const { return (rows + rows_ - 1) / rows_; }

  TensorMemory& whole_;
  const int64_t total_, rows_;
  int64_t begin_ = 0, end_ = 0;
  size_t next_ = 0;
  struct Output {
    char* data;
    int64_t width; // bytes of a row
  };
  std::vector<Output> made_;
};

/** Memory for slices, kept: fresh memory for each tensor would cost more than the kernels. One call at a time has it. */
struct Scratch {
  std::mutex mutex;
  void* data = nullptr;
  int64_t size = 0;

  void* hold(int64_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = 0;
      data = nullptr;
      if (posix_memalign(&data, kAlignment, static_cast<size_t>(bytes)) != 0) throw std::runtime_error("no memory for a slice of a file");
      size = bytes;
    }
    return data;
  }
};

napi_value kernelFromFile(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  static Scratch scratch;
  const std::string name = textOf(env, args[0], "kernelFromFile: the name is not a string");
  const std::vector<double> numbers = numbersOf(env, args[1], "kernelFromFile: parameters are not an array of numbers");
  const Part part = partOf(env, "kernelFromFile", args.data() + 2);
  double unit = 0;
  ensure(napi_get_value_double(env, args[6], &unit), "kernelFromFile: rows is not a number");
  const int64_t rows = wholeOf(unit, "kernelFromFile: rows is not a whole number");
  if (rows < 1) throw std::invalid_argument("kernelFromFile: rows is not 1 or more");
  const vitrine::Kernel kernel = kernelOf(name);
  const bool scalar = part.dims.empty();
  const int64_t total = scalar ? 1 : part.dims[0], width = total ? part.bytes / total : 0;
  const int64_t step = std::max<int64_t>(1, kSlice / std::max<int64_t>(1, width * rows)) * rows;
  TensorMemory memory;
  SlicedMemory sliced(memory, total, rows);
  std::lock_guard<std::mutex> alone(scratch.mutex);
  int64_t begin = 0;
  do {
    const int64_t end = std::min(total, begin + step), bytes = (end - begin) * width;
    View view{scratch.hold(bytes), part.dtype, part.dims};
    if (!scalar) view.dims[0] = end - begin;
    vitrine::readFile(part.fd, part.offset + begin * width, bytes, view.data);
    sliced.slice(begin, end);
    vitrine::Call call(name.c_str(), scalar ? static_cast<vitrine::Memory&>(memory) : sliced, {view}, {true}, numbers);
    kernel(call);
    begin = end;
  } while (begin < total);
  return memory.infos(env, backend);
}

} // namespace
