/** TensorFlow's tensors as kernels see them. Only binding.cc includes this, after the npm package's sources. */
#pragma once
#include "arguments.h"
#include "device.h"
#include "file.h"
#include "kernel.h"
#include "pages.h"
#include "processor.h"

namespace {

using tfnodejs::TFJSBackend;
using vitrine::View;
using Handles = std::unordered_map<int32_t, TFE_TensorHandle*>;

// Explicit instantiation may name private members: so the class is used as it is, without a change to its header.
Handles& handlesOf(TFJSBackend& backend);
TFE_Context* contextOf(TFJSBackend& backend);
napi_value adopt(TFJSBackend& backend, napi_env env, TFE_TensorHandle* handle);

template <auto Map, auto Context, auto Info>
struct Reveal {
  friend Handles& handlesOf(TFJSBackend& backend) { return backend.*Map; }
  friend TFE_Context* contextOf(TFJSBackend& backend) { return backend.*Context; }
  friend napi_value adopt(TFJSBackend& backend, napi_env env, TFE_TensorHandle* handle) { return (backend.*Info)(env, handle); }
};
template struct Reveal<&TFJSBackend::tfe_handle_map_, &TFJSBackend::tfe_context_, &TFJSBackend::GenerateOutputTensorInfo>;

struct DeleteTensor {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, DeleteTensor>;

void ensure(const tfnodejs::TF_AutoStatus& status) {
  if (TF_GetCode(status.status) != TF_OK) throw std::runtime_error(TF_Message(status.status));
}

TFE_TensorHandle* handleOf(TFJSBackend& backend, int32_t id) {
  const auto found = handlesOf(backend).find(id);
  if (found == handlesOf(backend).end()) throw std::invalid_argument("no tensor has the id " + std::to_string(id) + "; was it disposed?");
  return found->second;
}

/** The tensor behind a handle, sharing its memory; the handle must stand on the CPU. */
Tensor tensorOf(TFE_TensorHandle* handle, int32_t id) {
  tfnodejs::TF_AutoStatus status;
  const char* device = TFE_TensorHandleBackingDeviceName(handle, status.status);
  ensure(status);
  if (!vitrine::inHostMemory(device))
    throw std::invalid_argument("tensor " + std::to_string(id) + " is on " + (device ? device : "no device") + "; kernels work on the CPU only");
  Tensor tensor(TFE_TensorHandleResolve(handle, status.status));
  ensure(status);
  return tensor;
}

View viewOf(TF_Tensor* tensor, int32_t id) {
  View view{TF_TensorData(tensor), TF_TensorType(tensor), {}};
  for (int i = 0; i < TF_NumDims(tensor); i++) view.dims.push_back(TF_Dim(tensor, i));
  const int64_t width = vitrine::dtypeSize(view.dtype);
  if (width == 0 || static_cast<size_t>(view.size() * width) != TF_TensorByteSize(tensor))
    throw std::invalid_argument("tensor " + std::to_string(id) + " has dtype " + std::to_string(view.dtype) + " of TensorFlow, which no kernel takes");
  return view;
}

/** The kernel of that name; throws when this processor has none. */
vitrine::Kernel kernelOf(const std::string& name) {
  const vitrine::Kernel kernel = vitrine::findKernel(name);
  if (!kernel) throw std::invalid_argument("kernel " + name + " is not there on this processor (level " + vitrine::levelName(vitrine::level()) + ")");
  return kernel;
}

/** Outputs of one call, in TensorFlow's memory. */
class TensorMemory : public vitrine::Memory {
 public:
  void* allocate(int dtype, const std::vector<int64_t>& dims, int64_t bytes) override {
    tensors_.emplace_back(TF_AllocateTensor(static_cast<TF_DataType>(dtype), dims.data(), static_cast<int>(dims.size()), bytes));
    void* data = tensors_.back() ? TF_TensorData(tensors_.back().get()) : nullptr;
    if (!data && bytes > 0) throw std::runtime_error("no memory for a tensor of " + std::to_string(bytes) + " bytes");
    vitrine::adviseLargePages(data, bytes);
    return data;
  }

  /** A tensor that is a mapped file: the mapping lives as long as TensorFlow uses it. */
  void take(int dtype, const std::vector<int64_t>& dims, int64_t bytes, std::unique_ptr<vitrine::Mapping> mapping) {
    const auto end = [](void*, size_t, void* mapping) { delete static_cast<vitrine::Mapping*>(mapping); };
    void* data = mapping->data();
    tensors_.emplace_back(TF_NewTensor(static_cast<TF_DataType>(dtype), dims.data(), static_cast<int>(dims.size()), data, bytes, end, mapping.release()));
    if (!tensors_.back()) throw std::runtime_error("no tensor around a mapped file");
  }

  /** The outputs from `first` on as [{ id, shape, dtype }]. */
  napi_value infos(napi_env env, TFJSBackend& backend, size_t first = 0) const {
    napi_value list;
    ensure(napi_create_array_with_length(env, tensors_.size() - first, &list), "no array");
    for (size_t i = first; i < tensors_.size(); i++) {
      tfnodejs::TF_AutoStatus status;
      TFE_TensorHandle* handle = TFE_NewTensorHandle(tensors_[i].get(), status.status);
      ensure(status);
      ensure(napi_set_element(env, list, i - first, adopt(backend, env, handle)), "no element");
    }
    return list;
  }

 private:
  std::vector<Tensor> tensors_;
};

} // namespace
