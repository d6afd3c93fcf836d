/** RoPE, cross-entropies, patches and pixel shuffle against plain double loops, at awkward sizes; built with sanitizers by sanitizer.test.ts. */
#include "harness.h"

using namespace check;

namespace {

const int kTypes[] = {kFloat32, kBfloat16};
double toleranceOf(int dtype) { return dtype == kFloat32 ? 4e-6 : 8e-3; }
std::string label(const char* name, int dtype, const Dims& dims) {
  std::string text = std::string(name) + (dtype == kFloat32 ? " float32" : " bfloat16");
  for (int64_t d : dims) text += " " + std::to_string(d);
  return text;
}

double half(double x) { return fromHalf(toHalf(static_cast<float>(x))); }

void rope(int dtype, int64_t B, int64_t N, int64_t H, int64_t width, int64_t R, bool shared) {
  const Tensor x = randomTensor(dtype, {B, N, H * width}), frequencies = randomTensor(kFloat32, {R / 2});
  Tensor positions(kInt32, {shared ? 1 : B, N});
  for (int64_t i = 0; i < positions.size(); i++) positions.set(i, i % 3 == 0 ? i : i % 3 == 1 ? 131071 - i : 2000000011 + i);
  for (int direction : {1, -1}) {
    const auto y = run("rope", {x, positions, frequencies}, {(double)H, 1.25, (double)direction, (double)dtype});
    expectClose(label("rope", dtype, {B, N, H, width, R}), y[0], [&](int64_t i) {
      const int64_t j = i % width, row = i / (H * width);
      if (j >= R) return x.at(i);
      const bool second = j >= R / 2;
      const float angle = static_cast<float>(positions.at(shared ? row % N : row)) * static_cast<float>(frequencies.at(j % (R / 2)));
      const double c = 1.25 * std::cos((double)angle), s = 1.25 * direction * std::sin((double)angle);
      return second ? x.at(i) * c + x.at(i - R / 2) * s : x.at(i) * c - x.at(i + R / 2) * s;
    }, toleranceOf(dtype));
  }
}

/** What a row of logits gives, in double. */
struct Row {
  double logarithm = 0, picked = 0, mean = 0;
};

using Logits = std::function<double(int64_t, int64_t)>;

Row rowOf(const Logits& logits, int64_t i, int64_t V, int64_t label) {
  Row row;
  double top = -INFINITY, total = 0;
  for (int64_t j = 0; j < V; j++) top = std::fmax(top, logits(i, j));
  for (int64_t j = 0; j < V; j++) total += std::exp(logits(i, j) - top);
  for (int64_t j = 0; j < V; j++) row.mean += logits(i, j) / static_cast<double>(V);
  row.logarithm = top + std::log(total);
  row.picked = logits(i, label);
  return row;
}

/** Every third row is ignored. */
Tensor labelsFor(int64_t N, int64_t V) {
  Tensor labels(kInt32, {N});
  for (int64_t i = 0; i < N; i++) labels.set(i, i % 3 == 1 ? -100 : (i * 37 + V - 1) % V);
  return labels;
}

/** rows [3, N] and the gradient to the logits that follow from them. */
std::vector<Row> rowsOf(const Logits& logits, int64_t N, int64_t V, const Tensor& labels) {
  std::vector<Row> rows(static_cast<size_t>(N));
  for (int64_t i = 0; i < N; i++)
    if (labels.at(i) >= 0) rows[static_cast<size_t>(i)] = rowOf(logits, i, V, static_cast<int64_t>(labels.at(i)));
  return rows;
}
double valueAt(const std::vector<Row>& rows, int64_t i) {
  const int64_t N = static_cast<int64_t>(rows.size());
  const Row& row = rows[static_cast<size_t>(i % N)];
  return i < N ? row.logarithm : i < 2 * N ? row.picked : row.mean;
}
Logits gradientOf(const Logits& logits, const std::vector<Row>& rows, int64_t V, const Tensor& labels, const Tensor& dy) {
  const int64_t N = static_cast<int64_t>(rows.size());
  return [=, &rows](int64_t i, int64_t j) {
    if (labels.at(i) < 0) return 0.0;
    const double softmax = std::exp(logits(i, j) - rows[static_cast<size_t>(i)].logarithm);
    return softmax * dy.at(i) + (labels.at(i) == j ? dy.at(N + i) : 0) + dy.at(2 * N + i) / static_cast<double>(V);
  };
}

void crossEntropy(int dtype, int64_t N, int64_t V) {
  const Tensor x = randomTensor(dtype, {N, V}, 8), labels = labelsFor(N, V), dy = randomTensor(kFloat32, {3, N});
  const Logits logits = [&](int64_t i, int64_t j) { return x.at(i * V + j); };
  const std::vector<Row> rows = rowsOf(logits, N, V, labels);
  const std::string what = label("crossEntropy", dtype, {N, V});
  const auto y = run("crossEntropy", {x, labels}, {-100});
  expectClose(what, y[0], [&](int64_t i) { return valueAt(rows, i); }, 4e-6);
  const Logits gradient = gradientOf(logits, rows, V, labels, dy);
  expectClose(what + " gradient", run("crossEntropyGradient", {dy, x, labels, y[0]}, {-100})[0],
              [&](int64_t i) { return gradient(i / V, i % V); }, 4e-6);
}

void head(int hiddenType, int weightType, bool packed, int64_t N, int64_t D, int64_t V) {
  const Tensor hidden = randomTensor(hiddenType, {N, D}), plain = randomTensor(weightType, {V, D}), labels = labelsFor(N, V);
  const Tensor weight = packed ? run("packWeight", {plain}, {})[0] : plain;
  const bool rounds = weightType == kBfloat16;
  const Logits logits = [&](int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += (rounds ? half(hidden.at(i * D + d)) : hidden.at(i * D + d)) * plain.at(j * D + d);
    return sum;
  };
  std::vector<double> all(static_cast<size_t>(N * V));
  for (int64_t i = 0; i < N * V; i++) all[static_cast<size_t>(i)] = logits(i / V, i % V);
  const Logits known = [&](int64_t i, int64_t j) { return all[static_cast<size_t>(i * V + j)]; };
  const std::vector<Row> rows = rowsOf(known, N, V, labels);
  const std::string what = label(packed ? "head, packed" : rounds ? "head, bfloat16 weight," : "head", hiddenType, {N, D, V});
  const auto y = run("crossEntropyHead", {hidden, weight, labels}, {(double)V, -100});
  expectClose(what, y[0], [&](int64_t i) { return valueAt(rows, i); }, 1e-5);
  const Tensor dy = randomTensor(kFloat32, {3, N});
  const Logits gradient = gradientOf(known, rows, V, labels, dy);
  const auto back = run("crossEntropyHeadGradient", {dy, hidden, weight, labels, y[0]}, {(double)V, -100, (double)hiddenType});
  expectClose(what + " gradient", back[0], [&](int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < V; j++) sum += gradient(i / D, j) * plain.at(j * D + i % D);
    return sum;
  }, rounds ? 1e-2 : hiddenType == kFloat32 ? 1e-5 : 8e-3);
}

void patchify(int64_t B, int64_t H, int64_t W, int64_t C, int64_t P) {
  const Tensor pixels = randomTensor(kFloat32, {B, H, W, C});
  const int64_t rows = H / P, columns = W / P, length = C * P * P;
  const auto pixelOf = [=](int64_t i) {
    const int64_t e = i % length, n = i / length % (rows * columns), b = i / length / (rows * columns);
    const int64_t c = e / (P * P), y = n / columns * P + e / P % P, x = n % columns * P + e % P;
    return ((b * H + y) * W + x) * C + c;
  };
  for (int dtype : kTypes) {
    const std::string what = label("patchify", dtype, {B, H, W, C, P});
    const auto out = run("patchify", {pixels}, {(double)P, (double)dtype});
    expectClose(what, out[0], [&](int64_t i) { return dtype == kFloat32 ? pixels.at(pixelOf(i)) : half(pixels.at(pixelOf(i))); }, 0);
    std::vector<double> want(static_cast<size_t>(pixels.size()));
    for (int64_t i = 0; i < out[0].size(); i++) want[static_cast<size_t>(pixelOf(i))] = out[0].at(i);
    const auto back = run("unpatchify", {out[0]}, {(double)P, (double)H, (double)W, (double)C});
    expectClose(what + " back", back[0], [&](int64_t i) { return want[static_cast<size_t>(i)]; }, 0);
  }
}

void pixelShuffle(int dtype, int64_t B, int64_t skip, int64_t h, int64_t w, int64_t s, int64_t D) {
  const Tensor x = randomTensor(dtype, {B, skip + h * w, D});
  for (int byColumn : {0, 1}) {
    const std::vector<double> numbers{(double)skip, (double)h, (double)w, (double)s, (double)byColumn};
    const auto from = [=](int64_t i) {
      const int64_t e = i % (s * s * D), group = i / (s * s * D) % (h / s * (w / s)), b = i / (s * s * D) / (h / s * (w / s));
      const int64_t row = byColumn ? group % (h / s) : group / (w / s), column = byColumn ? group / (h / s) : group % (w / s);
      const int64_t a = e / (s * D), c = e / D % s;
      return (b * (skip + h * w) + skip + (row * s + a) * w + column * s + c) * D + e % D;
    };
    const std::string what = label("pixelShuffle", dtype, {B, skip, h, w, s, D, byColumn});
    const auto y = run("pixelShuffle", {x}, numbers);
    expectClose(what, y[0], [&](int64_t i) { return x.at(from(i)); }, 0);
    const auto back = run("pixelUnshuffle", {y[0]}, numbers);
    expectClose(what + " back", back[0], [&](int64_t i) { return i / D % (skip + h * w) < skip ? 0 : x.at(i); }, 0);
  }
}

} // namespace

int main() {
  const bool packing = vitrine::findKernel("packWeight") != nullptr;
  for (int dtype : kTypes) {
    rope(dtype, 0, 3, 2, 8, 8, true);
    rope(dtype, 1, 1, 1, 2, 2, true);
    rope(dtype, 2, 5, 3, 7, 2, false);
    rope(dtype, 2, 3, 2, 80, 62, true);
    rope(dtype, 3, 67, 14, 64, 64, false);
    rope(dtype, 1, 2, 2, 5, 0, true);
    for (int64_t V : {1, 2, 17, 1000, 4099})
      for (int64_t N : {0, 1, 7}) crossEntropy(dtype, N, V);
    const int64_t sizes[][3] = {{0, 3, 5}, {1, 1, 1}, {4, 7, 65}, {7, 16, 64}, {3, 33, 515}, {101, 48, 130}, {13, 130, 1100}};
    for (const auto& s : sizes)
      for (int weight : kTypes) {
        head(dtype, weight, false, s[0], s[1], s[2]);
        if (packing && weight == kBfloat16) head(dtype, weight, true, s[0], s[1], s[2]);
      }
    for (int64_t D : {1, 5, 16, 48}) {
      pixelShuffle(dtype, 2, 1, 4, 6, 2, D);
      pixelShuffle(dtype, 1, 0, 3, 3, 3, D);
      pixelShuffle(dtype, 0, 0, 2, 2, 2, D);
      pixelShuffle(dtype, 3, 2, 16, 2, 1, D);
    }
  }
  for (int64_t C : {1, 2, 3, 4})
    for (int64_t P : {1, 3, 16}) {
      patchify(2, 48, 33, C, P);
      patchify(1, P, P, C, P);
      patchify(0, 5, 5, C, P);
      patchify(1, 2, 2, C, P);
    }
  if (failures) std::printf("%d failures\n", failures);
  else std::printf("all close\n");
  return failures ? 1 : 0;
}
