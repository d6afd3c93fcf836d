/**
 * Softmax cross-entropy from logits, without the probabilities in memory.
 *
 *   crossEntropy          logits [.., V] float32 or bfloat16, labels int32 [..]; number: the label that is ignored
 *                           -> rows [3, N]: for each row log Σ exp, the label's logit, and the mean logit; zeros where the row is ignored
 *   crossEntropyGradient  drows [3, N], logits, labels, rows [3, N]; number: the label that is ignored
 *                           -> dlogits float32 [.., V] = softmax · drows[0] + onehot · drows[1] + drows[2] / V; zeros where ignored
 *
 * So a row's loss is rows[0] - rows[1], and with the share s of smoothing rows[0] - (1 - s) rows[1] - s rows[2].
 */
#include "cross_entropy.h"

#include <algorithm>

namespace vitrine {
namespace {

constexpr int64_t kPiece = 4096; // stays in the nearest cache between the two passes

const View& logitsInput(const Call& call, size_t index) {
  const View& logits = call.input(index, {kFloat32, kBfloat16});
  if (logits.dims.empty()) call.fail("the logits are a scalar; expected [..., V]");
  return logits;
}

void crossEntropy(Call& call) {
  const View& logits = logitsInput(call, 0);
  const int64_t classes = logits.dim(-1);
  const Labels labels = labelsOf(call, 1, logits, classes, 0);
  const RowValues out(call.output(kFloat32, {3, labels.count}), labels.count);
  const Reader from = reader(logits);
  parallel(labels.count, rowsPerChunk(classes, 16384), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      if (!labels.counts(i)) {
        out.set(i, 0, 0, 0);
        continue;
      }
      const Reader row = from.from(i * classes);
      Running running;
      for (int64_t j = 0; j < classes; j += kPiece) running.add(row.from(j), std::min(kPiece, classes - j));
      const float label = row.from(labels.data[i])(0, Part{1})[0];
      out.set(i, running.logarithm(), label, static_cast<float>(running.sum / static_cast<double>(classes)));
    }
  });
}

void crossEntropyGradient(Call& call) {
  const View& logits = logitsInput(call, 1);
  const int64_t classes = logits.dim(-1);
  const Labels labels = labelsOf(call, 2, logits, classes, 0);
  const int64_t rows = labels.count;
  const RowValues given(call.input(0, {kFloat32}, {3, rows}), rows), values(call.input(3, {kFloat32}, {3, rows}), rows);
  float* out = call.output(kFloat32, logits.dims).floats();
  const Reader from = reader(logits);
  parallel(rows, rowsPerChunk(classes, 16384), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* to = out + i * classes;
      if (!labels.counts(i)) {
        std::fill(to, to + classes, 0.0f);
        continue;
      }
      const Reader row = from.from(i * classes);
      const Writer gradient{to, nullptr};
      const float share = given.logarithm[i], logarithm = values.logarithm[i], even = given.mean[i] / static_cast<float>(classes);
      overLanes(0, classes, [&](int64_t j, auto part) { gradient(j, part, exponential(row(j, part) - logarithm) * share + even); });
      to[labels.data[i]] += given.picked[i];
    }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("crossEntropy", vitrine::crossEntropy)
VITRINE_KERNEL("crossEntropyGradient", vitrine::crossEntropyGradient)
