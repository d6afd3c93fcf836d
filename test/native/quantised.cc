/** Quantised weights and their products against plain double loops, at awkward sizes; built with sanitizers by quantised.test.ts. */
#include "harness.h"

using namespace check;

namespace {

const int kTypes[] = {kFloat32, kBfloat16};
const char* const kKinds[] = {"int8", "nf4", "nf4 double"};

double half(double x) { return fromHalf(toHalf(static_cast<float>(x))); }

std::string label(const char* name, int kind, int dtype, int64_t M, int64_t K, int64_t N) {
  return std::string(name) + " " + kKinds[kind] + (dtype == kFloat32 ? " float32 " : " bfloat16 ") + std::to_string(M) + " " + std::to_string(K) + " " + std::to_string(N);
}

/** Any sorted map from -1 to 1. */
Tensor mapOf() {
  Tensor map(kFloat32, {256});
  for (int64_t i = 0; i < 256; i++) map.set(i, std::copysign(std::pow(std::fabs(i / 127.5 - 1), 3), i - 127.5));
  return map;
}

/** A weight's memory, made in one call or in slices of 64 rows. */
Tensor quantised(const Tensor& weight, int kind, int64_t slice) {
  const int64_t N = weight.dims[0], K = weight.dims[1];
  const double format = kind == 0 ? 0 : 1;
  Tensor memory = absent();
  for (int64_t first = 0; first == 0 || first < N; first += slice) {
    Tensor rows(weight.dtype, {std::min(slice, N - first), K});
    for (int64_t i = 0; i < rows.size(); i++) rows.set(i, weight.at(first * K + i));
    if (first == 0 && slice < N) { // room for the whole weight, from a weight of zeros
      Tensor zeros(weight.dtype, weight.dims);
      for (int64_t i = 0; i < zeros.size(); i++) zeros.set(i, 0);
      memory = run("quantise", {zeros, absent()}, {format, (double)N, 0})[0];
    }
    const auto made = run("quantise", {rows, memory}, {format, (double)N, (double)first});
    if (!made.empty()) memory = made[0];
  }
  return kind == 2 ? run("quantiseScales", {memory, mapOf()}, {(double)N, (double)K})[0] : memory;
}

void product(int kind, int dtype, int64_t M, int64_t K, int64_t N, int64_t rank) {
  const Tensor x = randomTensor(dtype, {M, K}), weight = randomTensor(dtype, {N, K}), bias = randomTensor(kFloat32, {N});
  const Tensor residual = randomTensor(dtype, {M, N}), low = randomTensor(dtype, {M, rank}), up = randomTensor(kFloat32, {N, rank}), down = randomTensor(kBfloat16, {rank, K});
  const Tensor memory = quantised(weight, kind, N), sliced = quantised(weight, kind, 64);
  if (memory.size() && std::memcmp(memory.memory.get(), sliced.memory.get(), memory.size() * 4) != 0) {
    std::printf("%s: slices differ\n", label("quantise", kind, dtype, M, K, N).c_str());
    failures++;
  }
  const Tensor w = run("dequantise", {memory}, {(double)kind, (double)N, (double)K, kFloat32})[0];
  // Half a step of int8 at 1 (and of its scale's bfloat16); half the widest gap between NF4's levels; a step of the scale where that is in 8 bits too.
  const double error = kind == 0 ? 0.0045 : kind == 1 ? 0.16 : 0.25;
  for (int64_t i = 0; i < w.size(); i++)
    if (!(std::fabs(w.at(i) - weight.at(i)) <= error)) {
      std::printf("%s: %g became %g\n", label("dequantise", kind, dtype, M, K, N).c_str(), weight.at(i), w.at(i));
      failures++;
      break;
    }
  const Tensor narrow = run("dequantise", {memory}, {(double)kind, (double)N, (double)K, kBfloat16})[0];
  expectClose(label("dequantise", kind, dtype, M, K, N), narrow, [&](int64_t i) { return half(w.at(i)); }, 0);
  const bool widened = vitrine::findKernel("linear") != nullptr; // many rows are multiplied in bfloat16 then
  const bool few = M <= 8 || !widened;
  const auto given = [few](double v) { return few ? v : half(v); };
  const auto sum = [&](int64_t i) {
    double total = bias.at(i % N);
    for (int64_t k = 0; k < K; k++) total += given(x.at(i / N * K + k)) * given(w.at(i % N * K + k));
    for (int64_t r = 0; r < rank; r++) total += given(low.at(i / N * rank + r) * 0.5) * given(up.at(i % N * rank + r));
    return total;
  };
  const std::vector<double> numbers = {(double)N, 3, kFloat32, 1, 0.5, 0, (double)kind, 0};
  const auto out = run("quantisedLinear", {x, memory, bias, residual, low, up}, numbers);
  expectClose(label("before", kind, dtype, M, K, N), out[1], sum, 1e-5);
  expectClose(label("quantisedLinear", kind, dtype, M, K, N), out[0], [&](int64_t i) { return sum(i) / (1 + std::exp(-sum(i))) + residual.at(i); }, 1e-5);
  const auto gradient = run("quantisedLinear", {residual, memory, absent(), absent(), low, down}, {(double)K, 0, kFloat32, 0, 2, 1, (double)kind, 1});
  const auto wide = [widened](double v) { return widened ? half(v) : v; };
  expectClose(label("gradient", kind, dtype, M, K, N), gradient[0], [&](int64_t i) {
    double total = 0;
    for (int64_t n = 0; n < N; n++) total += wide(residual.at(i / K * N + n)) * wide(w.at(n * K + i % K));
    for (int64_t r = 0; r < rank; r++) total += wide(low.at(i / K * rank + r) * 2) * wide(down.at(r * K + i % K));
    return total;
  }, 1e-5);
}

} // namespace

int main() {
  const int64_t sizes[][4] = {{0, 3, 4, 1},     {1, 1, 1, 1},   {2, 7, 65, 2},    {3, 64, 5, 8},    {4, 128, 130, 3}, {5, 192, 33, 1}, {6, 130, 67, 4},  {7, 31, 129, 17},
                              {8, 320, 17, 40}, {9, 64, 70, 8}, {33, 129, 66, 2}, {50, 33, 131, 5}, {600, 66, 9, 1},  {9, 4224, 65, 1}, {11, 5, 4161, 0}, {4, 0, 3, 0}, {12, 0, 3, 2}};
  for (int kind = 0; kind < 3; kind++)
    for (int dtype : kTypes)
      for (const auto& s : sizes) product(kind, dtype, s[0], s[1], s[2], s[3]);
  if (failures) std::printf("%d failures\n", failures);
  else std::printf("all close\n");
  return failures ? 1 : 0;
}
