/** Norms, activations, attention and AdamW against plain double loops, at awkward sizes; built with sanitizers by sanitizer.test.ts. */
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

struct NormRow {
  double mean = 0, inverse = 0;
};

NormRow normRow(const Tensor& x, int64_t row, int64_t width, double eps, bool rms) {
  NormRow r;
  for (int64_t j = 0; j < width && !rms; j++) r.mean += x.at(row * width + j) / static_cast<double>(width);
  double square = 0;
  for (int64_t j = 0; j < width; j++) square += std::pow(x.at(row * width + j) - r.mean, 2) / static_cast<double>(width);
  r.inverse = 1 / std::sqrt(square + eps);
  return r;
}

void norm(int dtype, int64_t rows, int64_t width, bool rms, bool residual) {
  const Tensor x = randomTensor(dtype, {rows, width}, 3), along = randomTensor(kFloat32, {rows, width}, 3);
  const Tensor weight = randomTensor(kFloat32, {width}), bias = randomTensor(kFloat32, {width}), dy = randomTensor(dtype, {rows, width});
  const Tensor shift = rms ? absent() : bias, more = residual ? along : absent();
  const auto out = run(rms ? "rmsNorm" : "layerNorm", {x, weight, shift, more}, {1e-5, (double)dtype});
  const std::string what = label(rms ? "rmsNorm" : "layerNorm", dtype, {rows, width});
  const Tensor& input = residual ? out[2] : x;
  if (residual) expectClose(what + " sum", out[2], [&](int64_t i) { return x.at(i) + along.at(i); }, 1e-6);
  const auto normal = [&](int64_t i) {
    const NormRow r = normRow(input, i / width, width, 1e-5, rms);
    return (input.at(i) - r.mean) * r.inverse;
  };
  const auto want = [&](int64_t i) { return normal(i) * weight.at(i % width) + (rms ? 0 : bias.at(i % width)); };
  expectClose(what, out[0], want, toleranceOf(dtype));
  const auto back = run(rms ? "rmsNormGradient" : "layerNormGradient", {dy, input, weight, out[1], more}, {(double)dtype, 1});
  expectClose(what + " dx", back[0], [&](int64_t i) {
    const int64_t first = i / width * width;
    double mean = 0, slope = 0;
    const NormRow r = normRow(input, i / width, width, 1e-5, rms);
    for (int64_t j = 0; j < width; j++) {
      const double g = dy.at(first + j) * weight.at(j);
      mean += rms ? 0 : g / static_cast<double>(width);
      slope += g * (input.at(first + j) - r.mean) * r.inverse / static_cast<double>(width);
    }
    const double g = dy.at(i) * weight.at(i % width);
    return (g - mean - (input.at(i) - r.mean) * r.inverse * slope) * r.inverse + (residual ? along.at(i) : 0);
  }, 4 * toleranceOf(dtype));
  const auto column = [&](const std::function<double(int64_t)>& f) {
    return [&, f](int64_t j) {
      double total = 0;
      for (int64_t i = 0; i < rows; i++) total += f(i * width + j);
      return total;
    };
  };
  expectClose(what + " dweight", back[1], column([&](int64_t i) { return dy.at(i) * normal(i); }), 4e-5);
  if (!rms) expectClose(what + " dbias", back[2], column([&](int64_t i) { return dy.at(i); }), 4e-5);
}

double activate(int kind, double x) {
  if (kind == 1) return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
  if (kind == 4) return x * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  return x / (1 + std::exp(-x * (kind == 2 ? 1.702 : 1)));
}
double slopeOf(int kind, double x) { return (activate(kind, x + 1e-5) - activate(kind, x - 1e-5)) / 2e-5; }

void activations(int dtype, int64_t rows, int64_t width, int kind) {
  const Tensor x = randomTensor(dtype, {rows, width}, 6), bias = randomTensor(kFloat32, {width}), dy = randomTensor(dtype, {rows, width});
  const std::string what = label("activation", dtype, {rows, width, kind});
  const double code = dtype, k = kind;
  const auto in = [&](int64_t i) { return x.at(i) + bias.at(i % width); };
  expectClose(what, run("activation", {x, bias}, {k, code})[0], [&](int64_t i) { return activate(kind, in(i)); }, toleranceOf(dtype));
  const auto back = run("activationGradient", {dy, x, bias}, {k, code, 1});
  expectClose(what + " dx", back[0], [&](int64_t i) { return dy.at(i) * slopeOf(kind, in(i)); }, toleranceOf(dtype));
  expectClose(what + " dbias", back[1], [&](int64_t j) {
    double total = 0;
    for (int64_t i = 0; i < rows; i++) total += back[0].at(i * width + j);
    return total;
  }, 4e-5);
  const Tensor up = randomTensor(dtype, {rows, width});
  const auto product = [&](int64_t i) { return activate(kind, x.at(i)) * up.at(i); };
  expectClose(what + " gated", run("gated", {x, up}, {k, code})[0], product, toleranceOf(dtype));
  const auto parts = run("gatedGradient", {dy, x, up}, {k, code});
  expectClose(what + " dgate", parts[0], [&](int64_t i) { return dy.at(i) * up.at(i) * slopeOf(kind, x.at(i)); }, toleranceOf(dtype));
  expectClose(what + " dup", parts[1], [&](int64_t i) { return dy.at(i) * activate(kind, x.at(i)); }, toleranceOf(dtype));
}

struct Case {
  int64_t B, H, G, queries, keys, d;
  bool causal, padding, mask, fused;
};

/** Attention and its gradient in double, with the whole matrix. */
void attend(int dtype, const Case& c) {
  const double scale = 1 / std::sqrt(static_cast<double>(c.d));
  const int64_t wide = c.H * c.d, narrow = c.G * c.d, all = wide + 2 * narrow;
  const Tensor fused = randomTensor(dtype, {c.B, c.queries, all}, 2);
  Tensor q = randomTensor(dtype, {c.B, c.queries, wide}, 2), k = randomTensor(dtype, {c.B, c.keys, narrow}, 2);
  Tensor v = randomTensor(dtype, {c.B, c.keys, narrow}, 2);
  if (c.fused)
    for (int64_t r = 0; r < c.B * c.queries; r++)
      for (int64_t j = 0; j < all; j++) {
        if (j < wide) q.set(r * wide + j, fused.at(r * all + j));
        else if (j < wide + narrow) k.set(r * narrow + j - wide, fused.at(r * all + j));
        else v.set(r * narrow + j - wide - narrow, fused.at(r * all + j));
      }
  Tensor padding(kInt32, {c.B, c.keys}), mask = randomTensor(dtype, {c.B, 1, c.queries, c.keys}, 2);
  // The first of several pictures is nothing but padding.
  for (int64_t i = 0; i < padding.size(); i++) padding.set(i, c.B > 1 && i < c.keys ? 0 : i % 3 != 1);
  const Tensor dout = randomTensor(dtype, {c.B, c.queries, wide});
  std::vector<Tensor> inputs = c.fused ? std::vector<Tensor>{fused, absent(), absent()} : std::vector<Tensor>{q, k, v};
  inputs.push_back(c.padding ? padding : absent());
  inputs.push_back(c.mask ? mask : absent());
  const std::vector<double> numbers{(double)c.H, (double)c.G, c.causal ? 1.0 : 0.0, scale, 0};
  const auto out = run("attention", inputs, numbers);
  const auto pattern = run("attentionPattern", inputs, numbers)[0];
  inputs.push_back(out[0]);
  inputs.push_back(out[1]);
  inputs.push_back(dout);
  const auto back = run("attentionGradient", inputs, numbers);

  const int64_t matrix = c.queries * c.keys, shared = c.H / c.G;
  std::vector<double> P(static_cast<size_t>(c.B * c.H * matrix)), o(static_cast<size_t>(q.size())), dq(o.size());
  std::vector<double> dk(static_cast<size_t>(k.size())), dv(dk.size());
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t h = 0; h < c.H; h++)
      for (int64_t i = 0; i < c.queries; i++) {
        double* p = &P[static_cast<size_t>((b * c.H + h) * matrix + i * c.keys)];
        const auto qAt = [&](int64_t e) { return (b * c.queries + i) * wide + h * c.d + e; };
        const auto kAt = [&](int64_t j, int64_t e) { return (b * c.keys + j) * narrow + h / shared * c.d + e; };
        double top = -INFINITY, total = 0, delta = 0;
        for (int64_t j = 0; j < c.keys; j++) {
          double s = 0;
          for (int64_t e = 0; e < c.d; e++) s += q.at(qAt(e)) * k.at(kAt(j, e));
          s = s * scale + (c.mask ? mask.at(b * matrix + i * c.keys + j) : 0);
          const bool hidden = c.padding && padding.at(b * c.keys + j) == 0, later = c.causal && j > i + c.keys - c.queries;
          p[j] = later ? -INFINITY : hidden ? -1e30 : s;
          top = std::fmax(top, p[j]);
        }
        for (int64_t j = 0; j < c.keys; j++) total += p[j] = std::exp(p[j] - top);
        std::vector<double> dP(static_cast<size_t>(c.keys));
        for (int64_t j = 0; j < c.keys; j++) {
          p[j] /= total;
          for (int64_t e = 0; e < c.d; e++) {
            o[static_cast<size_t>(qAt(e))] += p[j] * v.at(kAt(j, e));
            dv[static_cast<size_t>(kAt(j, e))] += p[j] * dout.at(qAt(e));
            dP[static_cast<size_t>(j)] += dout.at(qAt(e)) * v.at(kAt(j, e));
          }
          delta += p[j] * dP[static_cast<size_t>(j)];
        }
        for (int64_t j = 0; j < c.keys; j++) {
          const double ds = p[j] * (dP[static_cast<size_t>(j)] - delta) * scale;
          for (int64_t e = 0; e < c.d; e++) {
            dq[static_cast<size_t>(qAt(e))] += ds * k.at(kAt(j, e));
            dk[static_cast<size_t>(kAt(j, e))] += ds * q.at(qAt(e));
          }
        }
      }
  const std::string what = label("attention", dtype, {c.B, c.H, c.G, c.queries, c.keys, c.d, c.causal, c.padding, c.mask, c.fused});
  const double tolerance = dtype == kFloat32 ? 1e-5 : 2e-2;
  const auto of = [](const std::vector<double>& x) { return [&x](int64_t i) { return x[static_cast<size_t>(i)]; }; };
  expectClose(what + " o", out[0], of(o), tolerance);
  expectClose(what + " pattern", pattern, of(P), 1e-5);
  if (c.fused) {
    expectClose(what + " dqkv", back[0], [&](int64_t i) {
      const int64_t r = i / all, j = i % all;
      if (j < wide) return dq[static_cast<size_t>(r * wide + j)];
      const std::vector<double>& keysOrValues = j < wide + narrow ? dk : dv;
      return keysOrValues[static_cast<size_t>(r * narrow + (j - wide) % narrow)];
    }, 2 * tolerance);
    return;
  }
  expectClose(what + " dq", back[0], of(dq), 2 * tolerance);
  expectClose(what + " dk", back[1], of(dk), 2 * tolerance);
  expectClose(what + " dv", back[2], of(dv), 2 * tolerance);
}

void adamW(int64_t size) {
  Tensor p = randomTensor(kFloat32, {size}), g = randomTensor(kFloat32, {size}), m = randomTensor(kFloat32, {size}), v(kFloat32, {size});
  for (int64_t i = 0; i < size; i++) v.set(i, std::fabs(uniform()));
  std::vector<double> want;
  for (int64_t i = 0; i < size; i++) {
    const double m1 = 0.9 * m.at(i) + 0.1 * g.at(i) * 0.5, v1 = 0.99 * v.at(i) + 0.01 * g.at(i) * g.at(i) * 0.25;
    want.push_back(p.at(i) * (1 - 0.1 * 0.01) - 0.1 / (1 - std::pow(0.9, 3)) * m1 / (std::sqrt(v1) / std::sqrt(1 - std::pow(0.99, 3)) + 1e-8));
  }
  run("adamW", {p, g, m, v}, {0.1, 0.9, 0.99, 1e-8, 3, 0.5, 0.01});
  expectClose(label("adamW", kFloat32, {size}), p, [&](int64_t i) { return want[static_cast<size_t>(i)]; }, 2e-6);
  double squares = 0;
  for (int64_t i = 0; i < size; i++) squares += g.at(i) * g.at(i);
  expectClose("globalNorm", run("globalNorm", {g, g}, {}).back(), [&](int64_t) { return std::sqrt(2 * squares); }, 1e-5);
}

} // namespace

int main() {
  const int64_t sizes[][2] = {{0, 5}, {1, 1}, {3, 7}, {5, 16}, {130, 31}, {67, 48}};
  for (int dtype : kTypes)
    for (const auto& s : sizes) {
      for (int flags = 0; flags < 4; flags++) norm(dtype, s[0], s[1], flags & 1, flags & 2);
      for (int kind = 1; kind <= 4; kind++) activations(dtype, s[0], s[1], kind);
    }
  const Case cases[] = {
      {0, 2, 2, 3, 3, 16, false, false, false, false}, {1, 1, 1, 1, 1, 16, false, false, false, false},
      {2, 3, 3, 7, 7, 32, true, false, false, false},  {1, 2, 2, 50, 50, 64, false, false, false, true},
      {2, 4, 2, 13, 29, 48, true, true, false, false}, {2, 6, 2, 77, 77, 80, true, true, true, true},
      {2, 2, 1, 5, 131, 128, false, true, true, false}, {1, 3, 1, 131, 131, 16, true, false, true, false},
      {2, 1, 1, 65, 64, 112, false, true, false, false},
  };
  for (int dtype : kTypes)
    for (const Case& c : cases) attend(dtype, c);
  for (int64_t size : {0, 1, 17, 40001}) adamW(size);
  if (failures) std::printf("%d failures\n", failures);
  else std::printf("all close\n");
  return failures ? 1 : 0;
}
