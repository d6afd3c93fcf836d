/** What the cross-entropies share: labels that are checked, and the logarithm of a sum of exponentials taken piece by piece. */
#pragma once
#include <cmath>

#include "values.h"

namespace vitrine {
namespace {

/** Class numbers of rows; `ignored` marks a row that does not count. */
struct Labels {
  const int32_t* data;
  int64_t count, ignored;
  bool counts(int64_t row) const { return data[row] != ignored; }
};

/** Input `index`, int32, one for each row of x; every label is a class or the number that is ignored. */
inline Labels labelsOf(const Call& call, size_t index, const View& x, int64_t classes, size_t ignored) {
  std::vector<int64_t> dims = x.dims;
  dims.pop_back();
  const View& labels = call.input(index, {kInt32}, dims);
  const Labels found{labels.ints(), labels.size(), call.integer(ignored, INT32_MIN, INT32_MAX)};
  for (int64_t i = 0; i < found.count; i++) {
    const int32_t label = found.data[i];
    if (found.counts(i) && (label < 0 || label >= classes))
      call.fail("label %lld is %d; expected 0 to %lld, or %lld, which is ignored", static_cast<long long>(i), label,
                static_cast<long long>(classes - 1), static_cast<long long>(found.ignored));
  }
  return found;
}

/** Over the numbers of a row so far: the largest, the sum of their exponentials relative to it, and their sum. */
struct Running {
  float top = -INFINITY, total = 0;
  double sum = 0;

  /** Where nothing is above -infinity, exponentials are relative to 0: a difference of infinities would be NaN. */
  float shift() const { return top == -INFINITY ? 0 : top; }

  void raise(float to) {
    if (!(to > top)) return;
    total *= std::exp(top - to);
    top = to;
  }

  /** Takes `count` numbers more. NaN and +infinity make the logarithm NaN, as they do in PyTorch. */
  void add(Reader x, int64_t count) {
    Floats most = splat(-INFINITY);
    overLanes(0, count, [&](int64_t j, auto part) { most = larger(most, x(j, part, -INFINITY)); });
    raise(largest(most));
    const float by = shift();
    Floats powers = splat(0), plain = splat(0);
    overLanes(0, count, [&](int64_t j, auto part) {
      powers += exponential(x(j, part, -INFINITY) - by);
      plain += x(j, part);
    });
    total += vitrine::sum(powers);
    sum += vitrine::sum(plain);
  }

  void add(const Running& other) {
    raise(other.top);
    total += other.top == -INFINITY ? other.total : other.total * std::exp(other.top - shift());
    sum += other.sum;
  }

  float logarithm() const { return top + std::log(total); }
};

/** Rows of a result [3, N]: the logarithm of the sum of a row's exponentials, the label's logit, and the mean logit. */
struct RowValues {
  float *logarithm, *picked, *mean;
  RowValues(const View& view, int64_t rows) : logarithm(view.floats()), picked(logarithm + rows), mean(picked + rows) {}
  void set(int64_t row, float log, float label, float middle) const {
    logarithm[row] = log;
    picked[row] = label;
    mean[row] = middle;
  }
};

} // namespace
} // namespace vitrine
