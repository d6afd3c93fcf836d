/** Arguments of the module's functions as C++ values. Only binding.cc includes this; what does not fit is an exception. */
#pragma once
#include <node_api.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

/** An error for JavaScript: what node answered. */
void ensure(napi_status status, const char* what) {
  if (status != napi_ok) throw std::invalid_argument(what);
}

std::string textOf(napi_env env, napi_value value, const char* what) {
  char text[256];
  size_t length = 0;
  ensure(napi_get_value_string_utf8(env, value, text, sizeof text, &length), what);
  return std::string(text, length);
}

/** The numbers of an array. */
std::vector<double> numbersOf(napi_env env, napi_value value, const char* what) {
  uint32_t length = 0;
  ensure(napi_get_array_length(env, value, &length), what);
  std::vector<double> numbers(length);
  for (uint32_t i = 0; i < length; i++) {
    napi_value element;
    ensure(napi_get_element(env, value, i, &element), what);
    ensure(napi_get_value_double(env, element, &numbers[i]), what);
  }
  return numbers;
}

/** A whole number of 32 bits. */
int32_t wholeOf(double number, const char* what) {
  if (!(number >= INT32_MIN && number <= INT32_MAX) || number != static_cast<int32_t>(number)) throw std::invalid_argument(what);
  return static_cast<int32_t>(number);
}

/** A Uint8Array's bytes. */
std::pair<const char*, size_t> bytesOf(napi_env env, napi_value value, const char* what) {
  bool typed = false;
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  ensure(napi_is_typedarray(env, value, &typed), what);
  if (!typed) throw std::invalid_argument(what);
  ensure(napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr), what);
  if (type != napi_uint8_array) throw std::invalid_argument(what);
  return {static_cast<const char*>(data), length};
}

} // namespace
