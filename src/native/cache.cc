/**
 * The keys and values of the tokens so far, for a decoder: room for all of them is made once, and each step writes its own rows.
 *
 *   writeRows  cache [B, room, W], rows [B, n, W], each float32 or bfloat16; number: the first place that is written
 *                changes the cache where it is and makes no output: it must share its memory with no tensor that is to keep its values
 */
#include "values.h"

namespace vitrine {
namespace {

void writeRows(Call& call) {
  const View& cache = call.input(0, {kFloat32, kBfloat16}, {-1, -1, -1});
  const int64_t batch = cache.dims[0], room = cache.dims[1], width = cache.dims[2];
  const View& rows = call.input(1, {kFloat32, kBfloat16}, {batch, -1, width});
  const int64_t count = rows.dims[1], at = call.integer(0, 0, room);
  if (at + count > room)
    call.fail("%lld rows from place %lld on do not fit a cache with room for %lld", (long long)count, (long long)at, (long long)room);
  const Reader from = reader(rows);
  const Writer to = writer(cache);
  for (int64_t b = 0; b < batch; b++) {
    const Reader source = from.from(b * count * width);
    const Writer target = to.from((b * room + at) * width);
    overLanes(0, count * width, [&](int64_t i, auto part) { target(i, part, source(i, part)); });
  }
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("writeRows", vitrine::writeRows)
