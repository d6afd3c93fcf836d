#include "kernel.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <iterator>
#include <map>
#include <stdexcept>

#include "processor.h"

// Kernels for newer processors use lists of lengths too, and what the linker keeps of the library's code must run on every processor: it is here, and first.
template class std::vector<int64_t>;

namespace vitrine {

const char* dtypeName(int dtype) {
  switch (dtype) {
    case kFloat32: return "float32";
    case kInt32: return "int32";
    case kUint8: return "uint8";
    case kInt8: return "int8";
    case kBool: return "bool";
    case kBfloat16: return "bfloat16";
    default: return "a type that no kernel takes";
  }
}

int64_t dtypeSize(int dtype) {
  switch (dtype) {
    case kFloat32:
    case kInt32: return 4;
    case kBfloat16: return 2;
    case kUint8:
    case kInt8:
    case kBool: return 1;
    default: return 0;
  }
}

int64_t View::size() const {
  int64_t count = 1;
  for (int64_t length : dims) count *= length;
  return count;
}

int64_t View::dim(int axis) const { return dims.at(axis < 0 ? dims.size() + axis : axis); }

int64_t View::rows() const {
  int64_t count = 1;
  for (size_t i = 0; i + 1 < dims.size(); i++) count *= dims[i];
  return count;
}

namespace {

std::string shapeText(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); i++) text += (i ? ", " : "") + (dims[i] < 0 ? std::string("any") : std::to_string(dims[i]));
  return text + "]";
}

bool fits(const std::vector<int64_t>& dims, const std::vector<int64_t>& wanted) {
  if (dims.size() != wanted.size()) return false;
  for (size_t i = 0; i < dims.size(); i++)
    if (wanted[i] >= 0 && wanted[i] != dims[i]) return false;
  return true;
}

void checkDtype(const Call& call, size_t index, const View& view, std::initializer_list<int> dtypes) {
  std::string names;
  for (int dtype : dtypes) {
    if (dtype == view.dtype) return;
    names += (names.empty() ? "" : " or ") + std::string(dtypeName(dtype));
  }
  call.fail("input %zu is %s; expected %s", index, describe(view).c_str(), names.c_str());
}

void checkShape(const Call& call, size_t index, const View& view, const std::vector<int64_t>& dims) {
  if (!fits(view.dims, dims)) call.fail("input %zu is %s; expected shape %s", index, describe(view).c_str(), shapeText(dims).c_str());
}

} // namespace

std::string describe(const View& view) { return dtypeName(view.dtype) + (" " + shapeText(view.dims)); }

Call::Call(const char* name, Memory& memory, std::vector<View> inputs, std::vector<bool> present, std::vector<double> numbers)
    : name_(name), memory_(memory), inputs_(std::move(inputs)), present_(std::move(present)), numbers_(std::move(numbers)) {}

Call::~Call() {
  for (View* view : outputs_) delete view;
}

const View& Call::input(size_t index) const {
  if (!has(index)) fail("input %zu is missing", index);
  return inputs_[index];
}

const View& Call::input(size_t index, std::initializer_list<int> dtypes) const {
  const View& view = input(index);
  checkDtype(*this, index, view, dtypes);
  return view;
}

const View& Call::input(size_t index, std::initializer_list<int> dtypes, const std::vector<int64_t>& dims) const {
  const View& view = input(index, dtypes);
  checkShape(*this, index, view, dims);
  return view;
}

const View* Call::optional(size_t index) const { return has(index) ? &inputs_[index] : nullptr; }

const View* Call::optional(size_t index, std::initializer_list<int> dtypes) const {
  return has(index) ? &input(index, dtypes) : nullptr;
}

const View* Call::optional(size_t index, std::initializer_list<int> dtypes, const std::vector<int64_t>& dims) const {
  return has(index) ? &input(index, dtypes, dims) : nullptr;
}

double Call::number(size_t index) const {
  if (index >= numbers_.size()) fail("number %zu is missing (%zu given)", index, numbers_.size());
  return numbers_[index];
}

int64_t Call::integer(size_t index, int64_t low, int64_t high) const {
  const double value = number(index);
  // 2^53: above it a double does not hold every whole number.
  if (!(std::fabs(value) <= 9007199254740992.0) || value != std::floor(value)) fail("number %zu is %g; expected a whole number", index, value);
  const int64_t whole = static_cast<int64_t>(value);
  if (whole < low || whole > high) {
    fail("number %zu is %lld; expected %lld to %lld", index, static_cast<long long>(whole), static_cast<long long>(low),
         static_cast<long long>(high));
  }
  return whole;
}

const View& Call::output(int dtype, const std::vector<int64_t>& dims) {
  int64_t bytes = dtypeSize(dtype);
  if (bytes == 0) fail("makes an output of dtype %d, which is not known", dtype);
  for (int64_t length : dims) {
    if (length < 0 || __builtin_mul_overflow(bytes, length, &bytes)) fail("makes an output of shape %s", shapeText(dims).c_str());
  }
  outputs_.push_back(new View{memory_.allocate(dtype, dims, bytes), dtype, dims});
  return *outputs_.back();
}

void Call::fail(const char* format, ...) const {
  char text[512];
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof text, format, list);
  va_end(list);
  throw std::invalid_argument("kernel " + name_ + ": " + text);
}

namespace {

/** By name, then level. Filled while the module loads, before anything reads it. */
std::map<std::string, std::map<int, Kernel>>& registry() {
  static auto* entries = new std::map<std::string, std::map<int, Kernel>>;
  return *entries;
}

} // namespace

void registerKernel(const char* name, Kernel kernel, int level) { registry()[name][level] = kernel; }

Kernel findKernel(const std::string& name) {
  const auto found = registry().find(name);
  if (found == registry().end()) return nullptr;
  const auto above = found->second.upper_bound(level());
  return above == found->second.begin() ? nullptr : std::prev(above)->second;
}

std::vector<std::string> kernelNames() {
  std::vector<std::string> names;
  for (const auto& [name, levels] : registry())
    if (levels.begin()->first <= level()) names.push_back(name);
  return names;
}

} // namespace vitrine
