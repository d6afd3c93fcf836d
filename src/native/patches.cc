/**
 * Pictures as rows of patches, and groups of neighbouring patches as one token, each in one pass over the memory.
 *
 *   patchify      pixels float32 [B, H, W, C]; numbers P, dtype of the rows
 *                   -> rows [B, (H / P)(W / P), C·P·P] in the order of a convolution's weight (channel, row, column); what is left of a
 *                   picture at the right and the bottom is cut off
 *   unpatchify    rows [B, (H / P)(W / P), C·P·P]; numbers P, H, W, C -> pixels float32 [B, H, W, C], 0 where they were cut off
 *   pixelShuffle  x [B, skip + h·w, D]; numbers skip, h, w, s, 1: the groups are given column by column, as InternVL's first version does
 *                   -> [B, (h / s)(w / s), s·s·D]: each group of s x s tokens, row by row, becomes one
 *   pixelUnshuffle  y [B, (h / s)(w / s), s·s·D]; the same numbers -> x [B, skip + h·w, D], 0 in the tokens that were skipped
 */
#include <algorithm>
#include <cstring>

#include "values.h"

namespace vitrine {
namespace {

struct Grid {
  int64_t B, H, W, C, P;
  int64_t rows() const { return H / P; }
  int64_t columns() const { return W / P; }
  int64_t length() const { return C * P * P; }
};

constexpr int64_t kMost = 1 << 20; // of anything that a number counts

/** One row of pixels, channels apart: from [W, C] to planes [C, W]. A known number of channels becomes vector code. */
template <int kChannels>
void split(const float* from, int64_t width, int64_t channels, float* to) {
  const int64_t count = kChannels ? kChannels : channels;
  if constexpr (kChannels > 1) {
    for (int64_t x = 0; x < width; x++)
#pragma GCC unroll 4
      for (int c = 0; c < kChannels; c++) to[c * width + x] = from[x * kChannels + c];
    return;
  }
  for (int64_t c = 0; c < count; c++)
    for (int64_t x = 0; x < width; x++) to[c * width + x] = from[x * count + c];
}

void splitChannels(const float* from, int64_t width, int64_t channels, float* to) {
  if (channels == 3) return split<3>(from, width, channels, to);
  if (channels == 4) return split<4>(from, width, channels, to);
  split<0>(from, width, channels, to);
}

void narrowed(const float* from, int64_t count, uint16_t* to) {
  const Reader wide{from, nullptr};
  const Writer narrow{nullptr, to};
  overLanes(0, count, [=](int64_t i, auto part) { narrow(i, part, wide(i, part)); });
}

/** Planes [C, columns · P] of picture row y of a patch into the patches, `length` elements apart. */
template <class T>
void deal(const T* planes, const Grid& g, int64_t y, T* patches) {
  const size_t bytes = static_cast<size_t>(g.P) * sizeof(T);
  for (int64_t c = 0; c < g.C; c++)
    for (int64_t j = 0; j < g.columns(); j++)
      std::memcpy(patches + j * g.length() + (c * g.P + y) * g.P, planes + (c * g.columns() + j) * g.P, bytes);
}

void patchify(Call& call) {
  const View& pixels = call.input(0, {kFloat32}, {-1, -1, -1, -1});
  const Grid g{pixels.dims[0], pixels.dims[1], pixels.dims[2], pixels.dims[3], call.integer(0, 1, kMost)};
  const View& out = call.output(dtypeNumber(call, 1), {g.B, g.rows() * g.columns(), g.length()});
  if (out.size() == 0) return;
  const int64_t width = g.columns() * g.P, planes = g.C * width;
  const int64_t perRow = g.columns() * g.length(); // elements of one row of patches
  parallel(g.B * g.rows(), rowsPerChunk(perRow, 32768), [&](int64_t begin, int64_t end) {
    float* wide = scratch<float, 0>(planes);
    uint16_t* narrow = out.dtype == kBfloat16 ? scratch<uint16_t, 0>(planes) : nullptr;
    for (int64_t i = begin; i < end; i++)
      for (int64_t y = 0; y < g.P; y++) {
        const int64_t row = i / g.rows() * g.H + i % g.rows() * g.P + y;
        splitChannels(pixels.floats() + row * g.W * g.C, width, g.C, wide);
        if (!narrow) {
          deal(wide, g, y, out.floats() + i * perRow);
          continue;
        }
        narrowed(wide, planes, narrow);
        deal(narrow, g, y, out.halves() + i * perRow);
      }
  });
}

/** One number, widened. */
float numberAt(Reader from, int64_t i) {
  if (from.wide) return from.wide[i];
  const uint32_t bits = static_cast<uint32_t>(from.narrow[i]) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void unpatchify(Call& call) {
  const View& rows = call.input(0, {kFloat32, kBfloat16}, {-1, -1, -1});
  const Grid g{rows.dims[0], call.integer(1, 0, kMost), call.integer(2, 0, kMost), call.integer(3, 0, kMost), call.integer(0, 1, kMost)};
  const Reader from = reader(call.input(0, {kFloat32, kBfloat16}, {g.B, g.rows() * g.columns(), g.length()}));
  const View& pixels = call.output(kFloat32, {g.B, g.H, g.W, g.C});
  const int64_t width = g.columns() * g.P, line = g.W * g.C;
  parallel(g.B * g.H, rowsPerChunk(line, 32768), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float* to = pixels.floats() + i * line;
      const int64_t b = i / g.H, y = i % g.H;
      const bool inside = y < g.rows() * g.P;
      std::fill(to + (inside ? width * g.C : 0), to + line, 0.0f);
      if (!inside) continue;
      const int64_t first = (b * g.rows() + y / g.P) * g.columns();
      for (int64_t j = 0; j < g.columns(); j++)
        for (int64_t c = 0; c < g.C; c++) {
          const Reader piece = from.from((first + j) * g.length() + (c * g.P + y % g.P) * g.P);
          for (int64_t x = 0; x < g.P; x++) to[(j * g.P + x) * g.C + c] = numberAt(piece, x);
        }
    }
  });
}

struct Shuffle {
  int64_t skip, h, w, s;
  bool byColumn;
  int64_t tokens() const { return skip + h * w; }
  int64_t groups() const { return (h / s) * (w / s); }
};

Shuffle shuffleOf(const Call& call) {
  const Shuffle f{call.integer(0, 0, kMost), call.integer(1, 0, kMost), call.integer(2, 0, kMost), call.integer(3, 1, 1024),
                  call.integer(4, 0, 1) != 0};
  if (f.h % f.s || f.w % f.s)
    call.fail("a grid of %lld x %lld tokens does not divide into groups of %lld x %lld", static_cast<long long>(f.h),
              static_cast<long long>(f.w), static_cast<long long>(f.s), static_cast<long long>(f.s));
  return f;
}

/** Copies between tokens and groups, whichever way: the s tokens of a row of a group lie one behind the other on both sides. */
template <bool kBack>
void moveGroups(const Shuffle& f, int64_t B, int64_t bytesOfToken, char* tokens, char* groups) {
  const int64_t across = f.w / f.s, down = f.h / f.s, piece = f.s * bytesOfToken;
  const size_t count = static_cast<size_t>(piece);
  parallel(B * f.groups(), rowsPerChunk(f.s * piece, 131072), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / f.groups(), group = i % f.groups();
      const int64_t row = f.byColumn ? group % down : group / across, column = f.byColumn ? group / down : group % across;
      for (int64_t a = 0; a < f.s; a++) {
        char* token = tokens + (b * f.tokens() + f.skip + (row * f.s + a) * f.w + column * f.s) * bytesOfToken;
        char* part = groups + (i * f.s + a) * piece;
        kBack ? std::memcpy(token, part, count) : std::memcpy(part, token, count);
      }
    }
  });
}

void pixelShuffle(Call& call) {
  const Shuffle f = shuffleOf(call);
  const View& x = call.input(0, {kFloat32, kBfloat16}, {-1, f.tokens(), -1});
  const int64_t B = x.dims[0], D = x.dims[2];
  const View& y = call.output(x.dtype, {B, f.groups(), f.s * f.s * D});
  if (y.size()) moveGroups<false>(f, B, D * dtypeSize(x.dtype), static_cast<char*>(x.data), static_cast<char*>(y.data));
}

void pixelUnshuffle(Call& call) {
  const Shuffle f = shuffleOf(call);
  const View& y = call.input(0, {kFloat32, kBfloat16}, {-1, f.groups(), -1});
  const int64_t B = y.dims[0], D = y.dims[2] / (f.s * f.s);
  call.input(0, {kFloat32, kBfloat16}, {B, f.groups(), f.s * f.s * D});
  const View& x = call.output(y.dtype, {B, f.tokens(), D});
  const int64_t token = D * dtypeSize(y.dtype);
  for (int64_t b = 0; b < B && f.skip > 0 && token > 0; b++)
    std::memset(static_cast<char*>(x.data) + b * f.tokens() * token, 0, static_cast<size_t>(f.skip * token));
  if (y.size()) moveGroups<true>(f, B, token, static_cast<char*>(x.data), static_cast<char*>(y.data));
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("patchify", vitrine::patchify)
VITRINE_KERNEL("unpatchify", vitrine::unpatchify)
VITRINE_KERNEL("pixelShuffle", vitrine::pixelShuffle)
VITRINE_KERNEL("pixelUnshuffle", vitrine::pixelUnshuffle)
