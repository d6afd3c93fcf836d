/**
 * AdamW over all tensors at once (Loshchilov & Hutter 2019; step for step torch.optim.AdamW), and the norm of all gradients.
 *
 *   adamW       n times parameter, gradient, first moment, second moment: float32, the gradient bfloat16 or float32, of one shape each;
 *               numbers learning rate, beta1, beta2, eps, step (from 1), share of the gradient that counts (1: no clipping), then the
 *               weight decay of each of the n. Changes parameters and moments where they are and makes no output: they must not share
 *               their memory with tensors that are to keep their values.
 *   globalNorm  gradients of any shapes -> float32 []: length of all of them taken as one vector
 */
#include <algorithm>

#include "values.h"

namespace vitrine {
namespace {

struct Rates {
  float learningRate, beta1, beta2, eps, share;
  float new1, new2; // 1 - beta, taken before either is rounded: 1 - 0.999 in float32 is off by 5e-5 of itself
  float firstShare, secondRoot; // learningRate / (1 - beta1^step), sqrt(1 - beta2^step)
};

struct State {
  float *parameter, *first, *second;
  Reader gradient;
  int64_t size;
  float kept; // 1 - learningRate · weightDecay
};

/** Elements begin to end of one tensor. */
void update(const State& s, const Rates& r, int64_t begin, int64_t end) {
  const Writer parameter{s.parameter, nullptr}, first{s.first, nullptr}, second{s.second, nullptr};
  const Reader before{s.parameter, nullptr}, firstBefore{s.first, nullptr}, secondBefore{s.second, nullptr};
  overLanes(begin, end, [&](int64_t i, auto part) {
    const Floats g = s.gradient(i, part) * r.share;
    const Floats m = firstBefore(i, part) * r.beta1 + g * r.new1;
    const Floats v = secondBefore(i, part) * r.beta2 + g * g * r.new2;
    const Floats spread = squareRoot(v) / r.secondRoot + r.eps;
    first(i, part, m);
    second(i, part, v);
    parameter(i, part, before(i, part) * s.kept - m / spread * r.firstShare);
  });
}

constexpr int64_t kPiece = 16384; // elements a thread takes at a time

/** Many tensors as one row of pieces, so that small and large ones are shared out evenly. */
class Pieces {
 public:
  void add(int64_t size) { starts_.push_back(starts_.back() + (size + kPiece - 1) / kPiece); }
  int64_t count() const { return starts_.back(); }
  /** body(tensor, begin, end) for the pieces from first to last. */
  template <class Body>
  void visit(int64_t first, int64_t last, const Body& body) const {
    size_t tensor = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), first) - starts_.begin()) - 1;
    for (int64_t i = first; i < last; i++) {
      while (i >= starts_[tensor + 1]) tensor++;
      const int64_t begin = (i - starts_[tensor]) * kPiece;
      body(tensor, begin, begin + kPiece);
    }
  }

 private:
  std::vector<int64_t> starts_{0};
};

Rates ratesOf(const Call& call) {
  const double learningRate = call.number(0), beta1 = call.number(1), beta2 = call.number(2);
  const double step = static_cast<double>(call.integer(4, 1));
  if (!(beta1 >= 0 && beta1 < 1) || !(beta2 >= 0 && beta2 < 1)) call.fail("betas are %g and %g; expected from 0 to below 1", beta1, beta2);
  Rates r;
  r.learningRate = static_cast<float>(learningRate);
  r.beta1 = static_cast<float>(beta1);
  r.beta2 = static_cast<float>(beta2);
  r.new1 = static_cast<float>(1 - beta1);
  r.new2 = static_cast<float>(1 - beta2);
  r.eps = static_cast<float>(call.number(3));
  r.share = static_cast<float>(call.number(5));
  r.firstShare = static_cast<float>(learningRate / (1 - std::pow(beta1, step)));
  r.secondRoot = static_cast<float>(std::sqrt(1 - std::pow(beta2, step)));
  return r;
}

void adamW(Call& call) {
  const size_t count = call.inputs() / 4;
  if (call.inputs() % 4) call.fail("%zu inputs; expected parameter, gradient, first and second moment of each tensor", call.inputs());
  if (call.numbers() != 6 + count) call.fail("%zu numbers; expected 6 and the weight decay of each of %zu tensors", call.numbers(), count);
  const Rates rates = ratesOf(call);
  std::vector<State> states(count);
  Pieces pieces;
  for (size_t i = 0; i < count; i++) {
    const View& parameter = call.input(4 * i, {kFloat32});
    const Reader gradient = reader(call.input(4 * i + 1, {kFloat32, kBfloat16}, parameter.dims));
    float* first = call.input(4 * i + 2, {kFloat32}, parameter.dims).floats();
    float* second = call.input(4 * i + 3, {kFloat32}, parameter.dims).floats();
    const float kept = static_cast<float>(1 - call.number(0) * call.number(6 + i));
    states[i] = {parameter.floats(), first, second, gradient, parameter.size(), kept};
    pieces.add(parameter.size());
  }
  parallel(pieces.count(), 1, [&](int64_t begin, int64_t end) {
    pieces.visit(begin, end, [&](size_t i, int64_t from, int64_t to) { update(states[i], rates, from, std::min(to, states[i].size)); });
  });
}

void globalNorm(Call& call) {
  std::vector<Reader> gradients;
  std::vector<int64_t> sizes;
  Pieces pieces;
  for (size_t i = 0; i < call.inputs(); i++) {
    const View& gradient = call.input(i, {kFloat32, kBfloat16});
    gradients.push_back(reader(gradient));
    sizes.push_back(gradient.size());
    pieces.add(sizes.back());
  }
  float* out = call.output(kFloat32, {}).floats();
  std::vector<double> squares(static_cast<size_t>(pieces.count()), 0.0);
  parallel(pieces.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; piece++)
      pieces.visit(piece, piece + 1, [&](size_t i, int64_t from, int64_t to) {
        Floats total = splat(0);
        const int64_t last = std::min(to, sizes[i]);
        overLanes(from, last, [&](int64_t j, auto part) {
          const Floats g = gradients[i](j, part);
          total += g * g;
        });
        squares[static_cast<size_t>(piece)] = sum(total);
      });
  });
  double total = 0; // piece by piece in one order, whatever the number of threads
  for (double part : squares) total += part;
  *out = static_cast<float>(std::sqrt(total));
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("adamW", vitrine::adamW)
VITRINE_KERNEL("globalNorm", vitrine::globalNorm)
