/**
 * The parts of a fused product: rows [parts x (a, b, ..)], such as the queries, keys and values of one weight, taken apart and put together.
 *
 *   splitColumns  x [.., parts · (a + b + ..)]; numbers: parts, a, b, ..          -> [.., parts · a], [.., parts · b], .., of x's dtype
 *   joinColumns   [.., parts · a]?, [.., parts · b]?, ..; numbers: dtype, parts, a, b, ..
 *                                                                                 -> [.., parts · (a + b + ..)], zeros where one is absent
 */
#include "values.h"

namespace vitrine {
namespace {

constexpr int64_t kChunk = 16384; // elements, some 10 us of work
constexpr int64_t kMost = INT32_MAX;

struct Sections {
  int64_t parts, total = 0;
  std::vector<int64_t> widths;

  /** Numbers from `first` on: parts, then a width for each section. */
  Sections(const Call& call, size_t first) : parts(call.integer(first, 1, kMost)) {
    for (size_t i = first + 1; i < call.numbers(); i++) widths.push_back(call.integer(i, 0, kMost));
    if (widths.empty()) call.fail("no widths of sections");
    for (int64_t width : widths) total += width;
  }

  std::vector<int64_t> dims(const std::vector<int64_t>& like, int64_t width) const {
    std::vector<int64_t> out(like);
    out.back() = parts * width;
    return out;
  }
};

/** Copies a block of `width` columns of every part: number i of them begins at i · toStride and i · fromStride. */
void copy(Writer to, int64_t toStride, Reader from, int64_t fromStride, int64_t count, int64_t width) {
  parallel(count, rowsPerChunk(width, kChunk), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const Reader source = from.from(i * fromStride);
      const Writer target = to.from(i * toStride);
      overLanes(0, width, [&](int64_t j, auto part) { target(j, part, source(j, part)); });
    }
  });
}

void zero(Writer to, int64_t stride, int64_t count, int64_t width) {
  parallel(count, rowsPerChunk(width, kChunk), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      overLanes(0, width, [&](int64_t j, auto part) { to.from(i * stride)(j, part, splat(0)); });
  });
}

void splitColumns(Call& call) {
  const View& x = call.input(0, {kFloat32, kBfloat16});
  const Sections s(call, 0);
  if (x.dims.empty() || x.dim(-1) != s.parts * s.total)
    call.fail("x is %s; %lld parts of %lld columns are %lld", describe(x).c_str(), (long long)s.parts, (long long)s.total, (long long)(s.parts * s.total));
  int64_t at = 0;
  for (int64_t width : s.widths) {
    const View& y = call.output(x.dtype, s.dims(x.dims, width));
    copy(writer(y), width, reader(x).from(at), s.total, x.rows() * s.parts, width);
    at += width;
  }
}

void joinColumns(Call& call) {
  const Sections s(call, 1);
  if (call.inputs() != s.widths.size()) call.fail("%zu inputs for %zu sections", call.inputs(), s.widths.size());
  const View* like = nullptr;
  for (size_t i = 0; i < s.widths.size(); i++) {
    const View* x = call.optional(i, {kFloat32, kBfloat16});
    if (!x) continue;
    if (x->dims.empty()) call.fail("input %zu is a scalar; expected [.., %lld]", i, (long long)(s.parts * s.widths[i]));
    call.input(i, {kFloat32, kBfloat16}, s.dims(like ? like->dims : x->dims, s.widths[i]));
    if (!like) like = x;
  }
  if (!like) call.fail("every input is absent");
  const View& y = call.output(dtypeNumber(call, 0), s.dims(like->dims, s.total));
  const int64_t count = like->rows() * s.parts;
  int64_t at = 0;
  for (size_t i = 0; i < s.widths.size(); i++) {
    const int64_t width = s.widths[i];
    const Writer to = writer(y).from(at);
    if (call.has(i)) copy(to, s.total, reader(call.input(i)), width, count, width);
    else zero(to, s.total, count, width);
    at += width;
  }
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("splitColumns", vitrine::splitColumns)
VITRINE_KERNEL("joinColumns", vitrine::joinColumns)
