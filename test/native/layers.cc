/** A layer's float32 product, layer scale, fused columns and the cache against plain double loops, at awkward sizes; built with sanitizers by sanitizer.test.ts. */
#include "harness.h"

using namespace check;

namespace {

const int kTypes[] = {kFloat32, kBfloat16};

std::string label(const char* name, int dtype, const Dims& dims) {
  std::string text = std::string(name) + (dtype == kFloat32 ? " float32" : " bfloat16");
  for (int64_t d : dims) text += " " + std::to_string(d);
  return text;
}

void linear(int dtype, int weightType, int64_t M, int64_t K, int64_t N, int64_t rank) {
  const Tensor x = randomTensor(dtype, {M, K}), weight = randomTensor(weightType, {N, K}), bias = randomTensor(kFloat32, {N});
  const Tensor residual = randomTensor(dtype, {M, N}), low = randomTensor(dtype, {M, rank}), up = randomTensor(kFloat32, {rank, N});
  const auto sum = [&](int64_t i) {
    double total = bias.at(i % N);
    for (int64_t k = 0; k < K; k++) total += x.at(i / N * K + k) * weight.at(i % N * K + k);
    for (int64_t r = 0; r < rank; r++) total += 0.5 * low.at(i / N * rank + r) * up.at(r * N + i % N);
    return total;
  };
  const std::string what = label("linearFloat", dtype, {weightType, M, K, N, rank});
  const auto out = run("linearFloat", {x, weight, bias, residual, low, up}, {0, 3, kFloat32, 1, 0.5, 1});
  expectClose(what + ", before", out[1], sum, 1e-5);
  expectClose(what, out[0], [&](int64_t i) { return sum(i) / (1 + std::exp(-sum(i))) + residual.at(i); }, 1e-5);
  const auto plain = run("linearFloat", {x, weight, bias, absent(), absent(), absent()}, {0, 0, kBfloat16, 0, 1, 0});
  expectClose(what + ", bare", plain[0], [&](int64_t i) {
    double total = bias.at(i % N);
    for (int64_t k = 0; k < K; k++) total += x.at(i / N * K + k) * weight.at(i % N * K + k);
    return total;
  }, 8e-3);
  const auto back = run("linearFloat", {residual, weight, absent(), absent(), absent(), absent()}, {1, 0, kFloat32, 0, 1, 0});
  expectClose(what + ", gradient", back[0], [&](int64_t i) {
    double total = 0;
    for (int64_t n = 0; n < N; n++) total += residual.at(i / K * N + n) * weight.at(n * K + i % K);
    return total;
  }, 1e-5);
}

void scale(int dtype, int64_t M, int64_t D) {
  const Tensor x = randomTensor(dtype, {M, D}), factors = randomTensor(kFloat32, {D}), onto = randomTensor(kFloat32, {M, D});
  const auto product = [&](int64_t i) { return x.at(i) * factors.at(i % D); };
  expectClose(label("scaleAdd", dtype, {M, D}), run("scaleAdd", {x, factors, onto}, {kFloat32})[0], [&](int64_t i) { return product(i) + onto.at(i); }, 1e-6);
  expectClose(label("scaleAdd, alone", dtype, {M, D}), run("scaleAdd", {x, factors, absent()}, {kBfloat16})[0], product, 8e-3);
}

void cache(int dtype, int64_t B, int64_t room, int64_t W, int64_t count, int64_t at) {
  const Tensor memory = randomTensor(dtype, {B, room, W}), rows = randomTensor(dtype, {B, count, W});
  std::vector<double> before;
  for (int64_t i = 0; i < memory.size(); i++) before.push_back(memory.at(i));
  run("writeRows", {memory, rows}, {static_cast<double>(at)});
  expectClose(label("writeRows", dtype, {B, room, W, count, at}), memory, [&](int64_t i) {
    const int64_t b = i / (room * W), row = i / W % room;
    return row >= at && row < at + count ? rows.at((b * count + row - at) * W + i % W) : before[static_cast<size_t>(i)];
  }, 0);
}

/** Sections of every part out of random rows, and back. */
void columns(int dtype, int64_t M, int64_t parts, const Dims& widths) {
  int64_t total = 0;
  for (int64_t width : widths) total += width;
  const Tensor x = randomTensor(dtype, {M, parts * total});
  std::vector<double> numbers{static_cast<double>(parts)};
  for (int64_t width : widths) numbers.push_back(static_cast<double>(width));
  std::vector<Tensor> sections = run("splitColumns", {x}, numbers);
  int64_t start = 0;
  for (size_t s = 0; s < widths.size(); s++) {
    const int64_t width = widths[s], from = start;
    const auto place = [&](int64_t i) { return i / (parts * width) * parts * total + i % (parts * width) / width * total + from + i % width; };
    expectClose(label("splitColumns", dtype, {M, parts, width}), sections[s], [&](int64_t i) { return x.at(place(i)); }, 0);
    start += width;
  }
  numbers.insert(numbers.begin(), dtype);
  expectClose(label("joinColumns", dtype, {M, parts, total}), run("joinColumns", sections, numbers)[0], [&](int64_t i) { return x.at(i); }, 0);
  if (widths.size() < 2) return;
  sections[0] = absent();
  const auto rest = [&](int64_t i) { return i % total < widths[0] ? 0 : x.at(i); };
  expectClose(label("joinColumns, one absent", dtype, {M, parts, total}), run("joinColumns", sections, numbers)[0], rest, 0);
}

} // namespace

int main() {
  const int64_t sizes[][4] = {{1, 1, 1, 1},   {1, 7, 65, 3},  {3, 33, 17, 1},  {4, 64, 130, 2}, {5, 1, 3, 4},    {6, 64, 64, 16},
                              {7, 63, 17, 5}, {49, 33, 130, 8}, {101, 50, 257, 3}, {2, 1030, 66, 2}, {50, 2051, 40, 7}, {0, 5, 7, 2}};
  for (int dtype : kTypes) {
    for (const auto& s : sizes)
      for (int weight : kTypes) linear(dtype, weight, s[0], s[1], s[2], s[3]);
    for (int64_t D : {1, 5, 16, 67}) {
      scale(dtype, 3, D);
      scale(dtype, 0, D);
      columns(dtype, 3, 2, {D, 1, D});
      columns(dtype, 1, 1, {D});
      columns(dtype, 0, 3, {D, 2});
      columns(dtype, 40, 1, {3 * D, 70, D});
      cache(dtype, 2, 7, D, 3, 4);
      cache(dtype, 1, 1, D, 1, 0);
      cache(dtype, 2, 5, D, 0, 5);
    }
  }
  if (failures) std::printf("%d failures\n", failures);
  else std::printf("all close\n");
  return failures ? 1 : 0;
}
