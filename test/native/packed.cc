/** The packed product and the low-rank products against plain double loops, at awkward sizes; built with sanitizers by sanitizer.test.ts. */
#include "harness.h"

using namespace check;

namespace {

const int kTypes[] = {kFloat32, kBfloat16};

/** What the kernel multiplies with. */
double half(double x) { return fromHalf(toHalf(static_cast<float>(x))); }

std::string label(const char* name, int dtype, int64_t M, int64_t K, int64_t N) {
  return std::string(name) + (dtype == kFloat32 ? " float32 " : " bfloat16 ") + std::to_string(M) + " " + std::to_string(K) + " " + std::to_string(N);
}

/** sum over k of a(i, k) b(k, j) */
using Entry = std::function<double(int64_t, int64_t)>;
double dot(int64_t length, const Entry& a, const Entry& b, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < length; k++) sum += a(i, k) * b(k, j);
  return sum;
}

void linear(int dtype, int64_t M, int64_t K, int64_t N, int64_t rank) {
  const Tensor x = randomTensor(dtype, {M, K}), weight = randomTensor(dtype, {N, K}), bias = randomTensor(kFloat32, {N});
  const Tensor residual = randomTensor(dtype, {M, N}), low = randomTensor(dtype, {M, rank}), up = randomTensor(kFloat32, {N, rank});
  const Tensor packed = run("packWeight", {weight}, {})[0];
  expectClose(label("unpackWeight", dtype, M, K, N), run("unpackWeight", {packed}, {(double)N, (double)K})[0], [&](int64_t i) { return half(weight.at(i)); }, 0);
  const auto sum = [&](int64_t i) {
    const auto from = [&](int64_t row, int64_t k) { return half(x.at(row * K + k)); };
    const auto lower = [&](int64_t row, int64_t r) { return half(low.at(row * rank + r)); };
    const auto by = [&](int64_t k, int64_t n) { return half(weight.at(n * K + k)); };
    const auto upper = [&](int64_t r, int64_t n) { return half(up.at(n * rank + r) * 0.5); };
    return dot(K, from, by, i / N, i % N) + dot(rank, lower, upper, i / N, i % N) + bias.at(i % N);
  };
  const auto out = run("linear", {x, packed, bias, residual, low, up}, {(double)N, 3, kFloat32, 1, 0.5, 0});
  expectClose(label("linear, before", dtype, M, K, N), out[1], sum, 1e-5);
  expectClose(label("linear", dtype, M, K, N), out[0], [&](int64_t i) { return sum(i) / (1 + std::exp(-sum(i))) + residual.at(i); }, 1e-5);
  const Tensor back = randomTensor(kFloat32, {rank, K});
  const auto gradient = run("linearBack", {residual, packed, x, low, back}, {(double)K, kFloat32, 0.5});
  expectClose(label("linearBack", dtype, M, K, N), gradient[0], [&](int64_t i) {
    const auto along = [&](int64_t row, int64_t n) { return half(residual.at(row * N + n)); };
    const auto lower = [&](int64_t row, int64_t r) { return half(low.at(row * rank + r)); };
    return dot(N, along, [&](int64_t n, int64_t k) { return half(weight.at(n * K + k)); }, i / K, i % K) +
           dot(rank, lower, [&](int64_t r, int64_t k) { return half(back.at(r * K + k) * 0.5); }, i / K, i % K) + x.at(i);
  }, 1e-5);
  const auto t = run("lowRank", {x, weight}, {1, 0, kFloat32});
  expectClose(label("lowRank", dtype, M, K, N), t[0], [&](int64_t i) {
    return dot(K, [&](int64_t row, int64_t k) { return half(x.at(row * K + k)); }, [&](int64_t k, int64_t n) { return half(weight.at(n * K + k)); }, i / N, i % N);
  }, 1e-5);
  const auto g = run("lowRankGradient", {low, x}, {1});
  expectClose(label("lowRankGradient", dtype, M, K, rank), g[0], [&](int64_t i) {
    return dot(M, [&](int64_t r, int64_t row) { return half(low.at(row * rank + r)); }, [&](int64_t row, int64_t k) { return half(x.at(row * K + k)); }, i / K, i % K);
  }, 1e-5);
}

} // namespace

int main() {
  if (!vitrine::findKernel("linear")) {
    std::printf("all close: no packed product at this level\n");
    return 0;
  }
  const int64_t sizes[][4] = {{0, 3, 4, 1}, {1, 1, 1, 1}, {3, 7, 65, 2}, {6, 64, 64, 8}, {13, 33, 130, 17}, {199, 5, 3, 3}, {2, 4101, 9, 1}, {4, 0, 3, 0}};
  for (int dtype : kTypes)
    for (const auto& s : sizes) linear(dtype, s[0], s[1], s[2], s[3]);
  if (failures) std::printf("%d failures\n", failures);
  else std::printf("all close\n");
  return failures ? 1 : 0;
}
