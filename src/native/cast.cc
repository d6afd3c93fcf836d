/** Numbers of one floating-point type as another's. */
#include "values.h"

namespace vitrine {
namespace {

/** x of any shape, float32 or bfloat16; number: dtype of y (1 float32, 14 bfloat16: rounded to nearest, ties to even) -> y */
void cast(Call& call) {
  const View& x = call.input(0, {kFloat32, kBfloat16});
  const View& y = call.output(dtypeNumber(call, 0), x.dims);
  const Reader from = reader(x);
  const Writer to = writer(y);
  parallel(x.size(), 1 << 16, [=](int64_t begin, int64_t end) {
    overLanes(begin, end, [=](int64_t i, auto part) { to(i, part, from(i, part)); });
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("cast", vitrine::cast)
