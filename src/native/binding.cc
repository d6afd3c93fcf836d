/**
 * The module that node loads: the binding of @tensorflow/tfjs-node-gpu, included from where npm put it, with these functions added.
 *
 *   runKernel(name, inputIds, numbers)    one of our kernels on tensors (id -1: absent) -> [{ id, shape, dtype }]
 *   runProgram(names, code)               several kernels in one call -> what the last one makes
 *   kernelNames()                         the kernels that this processor can run
 *   kernelLevel()                         the instruction set that is used: "base", "avx2" or "avx512bf16"
 *   kernelThreads()                       threads that work on a kernel
 *   tensorFromBytes(dtype, shape, bytes)  a tensor of any fixed-size dtype, copied -> { id, shape, dtype }
 *   tensorBytes(id)                       a tensor's memory, copied, of any fixed-size dtype -> Uint8Array
 *   tensorFromFile, kernelFromFile        tensors from an open file: see file_tensors.h
 *   releaseLibraryPages()                 gives back what start-up touched of TensorFlow's libraries -> bytes of address space
 *   cutMappings()                         mapped files that were found cut off, since the start
 *   watchInterrupts()                     begins to count Ctrl-C, where somebody listens for it -> the count so far
 *   interrupts()                          the count, also while JavaScript is busy
 *   addFunction(bytes)                    adds a serialised FunctionDef, to be run by its name with executeOp
 *   removeFunction(name)                  takes it away again
 *   opDefinitions()                       TensorFlow's ops, a serialised OpList (tensorflow/core/framework/op_def.proto) -> Uint8Array
 */
#include <node_api.h>
#undef NAPI_MODULE
#define NAPI_MODULE(name, init) // the package's entry; ours is at the end of this file
#include "tfjs_backend.cc"
#include "tfjs_binding.cc"

#include <dlfcn.h>

#include "file_tensors.h"
#include "interrupt.h"

namespace {

napi_value runKernel(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  const std::string name = textOf(env, args[0], "runKernel: the name is not a string");
  const std::vector<double> ids = numbersOf(env, args[1], "runKernel: input ids are not an array of numbers");
  const vitrine::Kernel kernel = kernelOf(name);
  std::vector<Tensor> tensors; // hold the inputs' memory while the kernel runs
  std::vector<View> views(ids.size());
  std::vector<bool> present(ids.size());
  for (size_t i = 0; i < ids.size(); i++) {
    const int32_t id = wholeOf(ids[i], "runKernel: an input id is not a whole number");
    if (id == -1) continue;
    tensors.push_back(tensorOf(handleOf(backend, id), id));
    views[i] = viewOf(tensors.back().get(), id);
    present[i] = true;
  }
  TensorMemory memory;
  vitrine::Call call(name.c_str(), memory, std::move(views), std::move(present),
                     numbersOf(env, args[2], "runKernel: parameters are not an array of numbers"));
  kernel(call);
  return memory.infos(env, backend);
}

/** The numbers of a Float64Array, one after the other. */
class Code {
 public:
  Code(napi_env env, napi_value value) {
    napi_typedarray_type type = napi_int8_array;
    void* data = nullptr;
    size_t length = 0;
    if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok || type != napi_float64_array)
      throw std::invalid_argument("runProgram: the code is not a Float64Array");
    at_ = static_cast<const double*>(data);
    end_ = at_ + length;
  }
  double next() {
    if (at_ == end_) throw std::invalid_argument("runProgram: the code ends too soon");
    return *at_++;
  }
  int32_t whole() { return wholeOf(next(), "runProgram: the code holds a number that is not whole"); }
  size_t count() {
    const int32_t count = whole();
    if (count < 0 || count > end_ - at_) throw std::invalid_argument("runProgram: the code holds an impossible count");
    return static_cast<size_t>(count);
  }

 private:
  const double *at_, *end_;
};

/**
 * Kernels one after the other; only what the last one makes becomes tensors of JavaScript. The code holds for each: how many inputs, the inputs
 * (a tensor's id, -1 where one is absent, or -2 - n: output n, counted from the first kernel on), how many numbers, the numbers.
 */
napi_value runProgram(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  uint32_t count = 0;
  ensure(napi_get_array_length(env, args[0], &count), "runProgram: the names are not an array");
  Code code(env, args[1]);
  TensorMemory memory;
  std::vector<Tensor> tensors; // hold the inputs' memory while kernels run
  std::vector<View> made;
  size_t first = 0; // of the last kernel's outputs
  for (uint32_t c = 0; c < count; c++) {
    napi_value element;
    ensure(napi_get_element(env, args[0], c, &element), "runProgram: no name");
    const std::string name = textOf(env, element, "runProgram: a name is not a string");
    std::vector<View> views(code.count());
    std::vector<bool> present(views.size());
    for (size_t i = 0; i < views.size(); i++) {
      const int32_t id = code.whole();
      if (id == -1) continue;
      present[i] = true;
      if (id < 0 && static_cast<size_t>(-2 - id) >= made.size()) throw std::invalid_argument("runProgram: an input is not made yet");
      if (id < 0) {
        views[i] = made[static_cast<size_t>(-2 - id)];
      } else {
        tensors.push_back(tensorOf(handleOf(backend, id), id));
        views[i] = viewOf(tensors.back().get(), id);
      }
    }
    std::vector<double> numbers(code.count());
    for (double& number : numbers) number = code.next();
    vitrine::Call call(name.c_str(), memory, std::move(views), std::move(present), std::move(numbers));
    first = made.size();
    kernelOf(name)(call);
    for (const View* view : call.outputs()) made.push_back(*view);
  }
  return memory.infos(env, backend, first);
}

napi_value kernelNames(napi_env env, TFJSBackend&, const std::vector<napi_value>&) {
  napi_value list, text;
  ensure(napi_create_array(env, &list), "no array");
  uint32_t i = 0;
  for (const std::string& name : vitrine::kernelNames()) {
    ensure(napi_create_string_utf8(env, name.c_str(), name.size(), &text), "no string");
    ensure(napi_set_element(env, list, i++, text), "no element");
  }
  return list;
}

napi_value kernelLevel(napi_env env, TFJSBackend&, const std::vector<napi_value>&) {
  napi_value text;
  ensure(napi_create_string_utf8(env, vitrine::levelName(vitrine::level()), NAPI_AUTO_LENGTH, &text), "no string");
  return text;
}

napi_value kernelThreads(napi_env env, TFJSBackend&, const std::vector<napi_value>&) {
  napi_value count;
  ensure(napi_create_int32(env, vitrine::threads(), &count), "no number");
  return count;
}

napi_value tensorFromBytes(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  double dtype = 0;
  ensure(napi_get_value_double(env, args[0], &dtype), "tensorFromBytes: the dtype is not a number");
  const int code = wholeOf(dtype, "tensorFromBytes: the dtype is not a whole number");
  int64_t bytes = vitrine::dtypeSize(code);
  if (bytes == 0) throw std::invalid_argument("tensorFromBytes: dtype " + std::to_string(code) + " of TensorFlow is not taken");
  std::vector<int64_t> dims;
  for (double length : numbersOf(env, args[1], "tensorFromBytes: the shape is not an array of numbers")) {
    dims.push_back(wholeOf(length, "tensorFromBytes: the shape is not of whole numbers"));
    if (dims.back() < 0 || __builtin_mul_overflow(bytes, dims.back(), &bytes)) throw std::invalid_argument("tensorFromBytes: impossible shape");
  }
  const auto [data, length] = bytesOf(env, args[2], "tensorFromBytes: the data is not a Uint8Array");
  if (static_cast<size_t>(bytes) != length)
    throw std::invalid_argument("tensorFromBytes: " + std::to_string(length) + " bytes, expected " + std::to_string(bytes));
  TensorMemory memory;
  void* to = memory.allocate(code, dims, bytes);
  if (bytes > 0) std::memcpy(to, data, length);
  napi_value info;
  ensure(napi_get_element(env, memory.infos(env, backend), 0, &info), "no element");
  return info;
}

/** A Uint8Array with a copy of some memory. */
napi_value copyOf(napi_env env, const void* from, size_t length) {
  void* to = nullptr;
  napi_value buffer, bytes;
  ensure(napi_create_arraybuffer(env, length, &to, &buffer), "no memory for the bytes");
  if (length > 0) std::memcpy(to, from, length);
  ensure(napi_create_typedarray(env, napi_uint8_array, length, buffer, 0, &bytes), "no array");
  return bytes;
}

napi_value tensorBytes(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  double number = 0;
  ensure(napi_get_value_double(env, args[0], &number), "tensorBytes: the id is not a number");
  const int32_t id = wholeOf(number, "tensorBytes: the id is not a whole number");
  tfnodejs::TF_AutoStatus status;
  const Tensor tensor(TFE_TensorHandleResolve(handleOf(backend, id), status.status)); // copies from a GPU where the tensor is there
  ensure(status);
  const View view = viewOf(tensor.get(), id);
  return copyOf(env, view.data, TF_TensorByteSize(tensor.get()));
}

napi_value releaseLibraries(napi_env env, TFJSBackend&, const std::vector<napi_value>&) {
  napi_value bytes;
  ensure(napi_create_double(env, static_cast<double>(vitrine::releaseLibraryPages("libtensorflow")), &bytes), "no number");
  return bytes;
}

template <int64_t (*counted)()>
napi_value countOf(napi_env env, TFJSBackend&, const std::vector<napi_value>&) {
  napi_value count;
  ensure(napi_create_double(env, static_cast<double>(counted()), &count), "no number");
  return count;
}

napi_value addFunction(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  const auto [data, length] = bytesOf(env, args[0], "addFunction: the definition is not a Uint8Array");
  tfnodejs::TF_AutoStatus status;
  TFE_ContextAddFunctionDef(contextOf(backend), data, length, status.status);
  ensure(status);
  return nullptr;
}

napi_value removeFunction(napi_env env, TFJSBackend& backend, const std::vector<napi_value>& args) {
  const std::string name = textOf(env, args[0], "removeFunction: the name is not a string");
  tfnodejs::TF_AutoStatus status;
  TFE_ContextRemoveFunction(contextOf(backend), name.c_str(), status.status);
  ensure(status);
  return nullptr;
}

struct DeleteBuffer {
  void operator()(TF_Buffer* buffer) const { TF_DeleteBuffer(buffer); }
};

napi_value opDefinitions(napi_env env, TFJSBackend&, const std::vector<napi_value>&) {
  const std::unique_ptr<TF_Buffer, DeleteBuffer> list(TF_GetAllOpList());
  return copyOf(env, list->data, list->length);
}

using Function = napi_value (*)(napi_env, TFJSBackend&, const std::vector<napi_value>&);

/** Calls a function with exactly `count` arguments and the binding's own state; a C++ exception becomes an Error. */
template <Function function, size_t count>
napi_value entry(napi_env env, napi_callback_info info) {
  std::string message;
  try {
    std::vector<napi_value> args(count);
    size_t given = count;
    ensure(napi_get_cb_info(env, info, &given, args.data(), nullptr, nullptr), "no arguments");
    if (given < count) throw std::invalid_argument("expected " + std::to_string(count) + " arguments, " + std::to_string(given) + " came");
    void* backend = nullptr;
    ensure(napi_get_instance_data(env, &backend), "no instance data");
    if (!backend) throw std::runtime_error("the binding did not start");
    return function(env, *static_cast<TFJSBackend*>(backend), args);
  } catch (const std::exception& error) {
    message = error.what();
  }
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (!pending) napi_throw_error(env, nullptr, message.c_str());
  return nullptr;
}

/** Keeps this module in memory: when the last worker that uses it ends, node unloads it, and the pool's threads would run on nothing. */
void stayLoaded() {
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&stayLoaded), &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

napi_value start(napi_env env, napi_value exports) {
  stayLoaded();
  exports = tfnodejs::InitTFNodeJSBinding(env, exports);
  const std::pair<const char*, napi_callback> added[] = {
      {"runProgram", entry<runProgram, 2>},
      {"runKernel", entry<runKernel, 3>},           {"kernelNames", entry<kernelNames, 0>}, {"kernelLevel", entry<kernelLevel, 0>},
      {"kernelThreads", entry<kernelThreads, 0>},   {"tensorBytes", entry<tensorBytes, 1>}, {"addFunction", entry<addFunction, 1>},
      {"tensorFromBytes", entry<tensorFromBytes, 3>}, {"tensorFromFile", entry<tensorFromFile, 5>}, {"kernelFromFile", entry<kernelFromFile, 7>},
      {"releaseLibraryPages", entry<releaseLibraries, 0>}, {"cutMappings", entry<countOf<vitrine::cutMappings>, 0>}, {"removeFunction", entry<removeFunction, 1>},
      {"opDefinitions", entry<opDefinitions, 0>},   {"watchInterrupts", entry<countOf<vitrine::watchInterrupts>, 0>},
      {"interrupts", entry<countOf<vitrine::interrupts>, 0>},
  };
  for (const auto& [name, callback] : added) {
    napi_value function;
    if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) != napi_ok) return nullptr;
    if (napi_set_named_property(env, exports, name, function) != napi_ok) return nullptr;
  }
  return exports;
}

} // namespace

NAPI_MODULE_INIT() { return start(env, exports); }
