/**
 * Weights to small codes and back; quantised.h has the formats.
 *
 *   quantise        weight [rows, in] float32 or bfloat16, and the memory to write into where these are some of its rows; numbers: kind
 *                   (0 int8, 1 NF4), out, first row -> the memory, int32, where none was given. A first row must begin a group of scales.
 *   quantiseScales  memory of kind 1, map float32 [256]; numbers: out, in -> memory of kind 2
 *   dequantise      memory; numbers: kind, out, in, dtype -> weight [out, in]
 */
#include <atomic>
#include <limits>

#include "quantised.h"

namespace vitrine {
namespace {

/** float32 -> bfloat16, to the nearest, ties to even. */
inline uint16_t halfOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float wideOf(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

/** Up to 64 numbers; zero beyond. `finite` turns NaN where one of them is no finite number. */
struct Numbers {
  Floats v[kGroupVectors];
  float largest = 0, finite = 0;

  Numbers(const Reader& from, int64_t begin, int64_t count) {
    Floats top = splat(0), check = splat(0);
    for (int i = 0; i < kGroupVectors; i++) {
      const int64_t rest = count - i * kLanes;
      v[i] = rest >= kLanes ? from(begin + i * kLanes) : rest > 0 ? from(begin + i * kLanes, Part{rest}) : splat(0);
      top = larger(top, (Floats)((Words)v[i] & 0x7fffffff));
      check += v[i] - v[i];
    }
    largest = vitrine::largest(top);
    finite = sum(check);
  }
};

/** Codes from -127 to 127 and a scale that bfloat16 holds. */
inline uint16_t toInt8(const Numbers& x, uint8_t* codes) {
  const uint16_t half = halfOf(x.largest / 127.0f);
  const float scale = wideOf(half);
  const bool tiny = !(scale > 1e-30f); // its inverse would be no number
  const float inverse = tiny ? 0.0f : 1.0f / scale;
  const Floats shift = splat(12582912.0f); // 1.5 · 2^23: adding it rounds to a whole number
  for (int i = 0; i < kGroupVectors; i++) {
    const Floats whole = apart(apart(x.v[i] * inverse) + shift) - shift;
    const Ints code = __builtin_convertvector(smaller(splat(127), larger(splat(-127), whole)), Ints);
    for (int lane = 0; lane < kLanes; lane++) codes[i * kLanes + lane] = static_cast<uint8_t>(code[lane]);
  }
  return tiny ? 0 : half;
}

/** The code of the nearest level, the lower one of two as near; `count` numbers in ceil(count / 2) bytes. */
inline void toNf4(const Numbers& x, int64_t count, uint8_t* codes) {
  const float inverse = 1.0f / (x.largest == 0 ? 1.0f : x.largest);
  uint8_t index[kGroup];
  for (int i = 0; i < kGroupVectors; i++) {
    const Floats v = apart(x.v[i] * inverse);
    Ints code = {};
    for (int level = 0; level < 15; level++) code -= v > splat((kLevels[level] + kLevels[level + 1]) / 2);
    for (int lane = 0; lane < kLanes; lane++) index[i * kLanes + lane] = static_cast<uint8_t>(code[lane]);
  }
  for (int64_t i = 0; i < count; i += 2) codes[i / 2] = static_cast<uint8_t>(index[i] << 4 | index[i + 1]); // beyond the end: 7, the code of 0
}

void quantise(Call& call) {
  const View& weight = call.input(0, {kFloat32, kBfloat16}, {-1, -1});
  const Layout layout = layoutOf(call, call.integer(0, kInt8Kind, kNf4Kind), call.integer(1, 0, INT32_MAX), weight.dim(1));
  const int64_t rows = weight.dim(0), first = call.integer(2, 0, std::max<int64_t>(0, layout.out - rows));
  if (rows > layout.out) call.fail("input 0 has %lld rows of %lld", (long long)rows, (long long)layout.out);
  if (!layout.rowsAreWhole() && first * layout.in % kGroup != 0) call.fail("number 2, the first row, is %lld: it does not begin a group of %lld", (long long)first, (long long)kGroup);
  if (!layout.rowsAreWhole() && first + rows < layout.out && rows * layout.in % kGroup != 0) call.fail("input 0 has %lld rows, which do not end a group of %lld", (long long)rows, (long long)kGroup);
  const View* given = call.optional(1, {kInt32}, {layout.bytes() / 4});
  uint8_t* to = (given ? *given : call.output(kInt32, {layout.bytes() / 4})).bytes();
  if (!given && layout.bytes() > 0) std::memset(to, 0, static_cast<size_t>(layout.bytes()));
  const Reader from = reader(weight);
  const bool rowwise = layout.kind == kInt8Kind;
  const int64_t ofRow = layout.groupsOfRow(), begin = rowwise ? first * ofRow : first * layout.in / kGroup;
  const int64_t count = rowwise ? rows * ofRow : (rows * layout.in + kGroup - 1) / kGroup;
  std::atomic<bool> finite{true};
  parallel(count, 512, [&](int64_t a, int64_t b) {
    for (int64_t i = a; i < b; i++) {
      const int64_t at = rowwise ? i / ofRow * layout.in + i % ofRow * kGroup : i * kGroup;
      const int64_t length = std::min(kGroup, rowwise ? layout.in - i % ofRow * kGroup : rows * layout.in - at);
      const Numbers x(from, at, length);
      if (x.finite != 0) finite = false;
      const int64_t group = begin + i;
      if (rowwise) reinterpret_cast<uint16_t*>(to + layout.scales())[group] = toInt8(x, to + group * kGroup);
      else {
        toNf4(x, length, to + group * kGroup / 2);
        reinterpret_cast<float*>(to + layout.scales())[group] = x.largest;
      }
    }
  });
  if (!finite) call.fail("the weight holds NaN or infinity: it has no scale");
}

void quantiseScales(Call& call) {
  const int64_t out = call.integer(0, 0, INT32_MAX), in = call.integer(1, 0, INT32_MAX);
  const Layout plain = layoutOf(call, kNf4Kind, out, in), layout = layoutOf(call, kNf4DoubleKind, out, in);
  const uint8_t* from = quantisedInput(call, 0, plain).data;
  const float* map = call.input(1, {kFloat32}, {kMap}).floats();
  uint8_t* to = call.output(kInt32, {layout.bytes() / 4}).bytes();
  std::memset(to, 0, static_cast<size_t>(layout.bytes()));
  if (from) std::memcpy(to, from, static_cast<size_t>((layout.size() + 1) / 2));
  const float* absmax = reinterpret_cast<const float*>(from + plain.scales());
  const int64_t count = layout.groups();
  double total = 0;
  for (int64_t i = 0; i < count; i++) total += absmax[i];
  const float offset = count ? static_cast<float>(total / static_cast<double>(count)) : 0.0f;
  float edges[kMap - 1];
  for (int i = 0; i < kMap - 1; i++) edges[i] = (map[i] + map[i + 1]) / 2;
  parallel((count + kNested - 1) / kNested, 8, [=, &edges](int64_t a, int64_t b) {
    for (int64_t block = a; block < b; block++) {
      const int64_t end = std::min(count, (block + 1) * kNested);
      float largest = 0;
      for (int64_t i = block * kNested; i < end; i++) largest = std::max(largest, std::fabs(absmax[i] - offset));
      reinterpret_cast<float*>(to + layout.nested())[block] = largest;
      const float inverse = 1.0f / (largest == 0 ? 1.0f : largest);
      for (int64_t i = block * kNested; i < end; i++) {
        const float scaled = apart((absmax[i] - offset) * inverse);
        to[layout.scales() + i] = static_cast<uint8_t>(std::lower_bound(edges, edges + kMap - 1, scaled) - edges);
      }
    }
  });
  std::memcpy(to + layout.map(), map, kMap * 4);
  std::memcpy(to + layout.offset(), &offset, 4);
}

void dequantise(Call& call) {
  const Layout layout = layoutOf(call, call.integer(0, 0, kKinds - 1), call.integer(1, 0, INT32_MAX), call.integer(2, 0, INT32_MAX));
  const Quantised weight = quantisedInput(call, 0, layout);
  const Writer to = writer(call.output(dtypeNumber(call, 3), {layout.out, layout.in}));
  parallel(layout.out, rowsPerChunk(layout.in, 32768), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t group = 0; group < layout.groupsOfRow(); group++) {
        Floats v[kGroupVectors];
        weight.group(row, group, v);
        const int64_t at = row * layout.in + group * kGroup, count = std::min(kGroup, layout.in - group * kGroup);
        for (int i = 0; i < kGroupVectors; i++) {
          const int64_t rest = count - i * kLanes;
          if (rest >= kLanes) to(at + i * kLanes, v[i]);
          else if (rest > 0) to(at + i * kLanes, Part{rest}, v[i]);
        }
      }
  });
}

} // namespace
} // namespace vitrine

VITRINE_KERNEL("quantise", vitrine::quantise)
VITRINE_KERNEL("quantiseScales", vitrine::quantiseScales)
VITRINE_KERNEL("dequantise", vitrine::dequantise)
