/**
 * Layer scale (Touvron et al. 2021): a sum whose second part is scaled channel by channel.
 *
 *   scaleAdd  x [.., D], scale [D], onto? [.., D]; number: dtype of y  -> y [.., D] = x · scale + onto
 */
#include "values.h"

namespace vitrine {
namespace {

void scaleAdd(Call& call) {
  const View& x = call.input(0, {kFloat32, kBfloat16});
  if (x.dims.empty()) call.fail("x is a scalar; expected [..., D]");
  const int64_t width = x.dim(-1), rows = x.rows();
  const Reader from = reader(x), scale = reader(call.input(1, {kFloat32}, {width}));
  const Reader onto = reader(call.optional(2, {kFloat32, kBfloat16}, x.dims));
  const Writer to = writer(call.output(dtypeNumber(call, 0), x.dims));
  parallel(rows, rowsPerChunk(width, 16384), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const Reader row = from.from(i * width), along = onto.from(i * width);
      const Writer out = to.from(i * width);
      overLanes(0, width, [&](int64_t j, auto part) {
        Floats v = row(j, part) * scale(j, part);
        if (given(onto)) v += along(j, part);
        out(j, part, v);
      });
    }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("scaleAdd", vitrine::scaleAdd)
