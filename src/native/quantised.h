/**
 * Weights [out, in] kept as small codes and scales, in one piece of memory (an int32 tensor, so that every backend can hold it). Parts stand one
 * behind the other, each at a multiple of 64 bytes:
 *
 *   kInt8       codes int8 [out, in rounded up to 64], scales bfloat16 [out, groups of 64]: weight = code · scale
 *   kNf4        codes of 4 bits over the flattened weight, the earlier of two in the upper half of a byte; absmax float32, one for 64 numbers:
 *               weight = level[code] · absmax (Dettmers et al. 2023, "QLoRA"; the layout of bitsandbytes)
 *   kNf4Double  the same codes; absmax as 8-bit codes, largest float32 of each 256 of them, map float32 [256], offset float32:
 *               absmax = map[code] · largest + offset
 *
 * src/engine/quantised-format.ts holds the same layout and the formulas.
 */
#pragma once
#include "tile.h"

namespace vitrine {
namespace {

enum Kind : int { kInt8Kind, kNf4Kind, kNf4DoubleKind, kKinds };

constexpr int64_t kGroup = 64; // numbers that share a scale
constexpr int64_t kNested = 256; // scales that share a scale
constexpr int64_t kMap = 256;
constexpr int kGroupVectors = kGroup / kLanes;

/** NormalFloat4's levels (QLoRA, appendix E). */
alignas(64) constexpr float kLevels[16] = {
    -1.0f,          -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f,          0.07958029955625534f, 0.16093020141124725f,  0.24611230194568634f,  0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

/** Where the parts of a weight stand, in bytes. */
struct Layout {
  int kind;
  int64_t out, in;

  int64_t size() const { return out * in; }
  int64_t groupsOfRow() const { return (in + kGroup - 1) / kGroup; }
  int64_t groups() const { return kind == kInt8Kind ? out * groupsOfRow() : (size() + kGroup - 1) / kGroup; }
  int64_t scales() const { return roundUp(kind == kInt8Kind ? groups() * kGroup : (size() + 1) / 2, 64); }
  int64_t nested() const { return scales() + roundUp(groups() * (kind == kInt8Kind ? 2 : kind == kNf4Kind ? 4 : 1), 64); }
  int64_t map() const { return nested() + roundUp((groups() + kNested - 1) / kNested * 4, 64); }
  int64_t offset() const { return map() + kMap * 4; }
  int64_t bytes() const { return kind == kNf4DoubleKind ? offset() + 64 : nested(); }
  /** Whether no group of scales reaches from one row into the next: then groups of a row are whole, and decode reads them as they stand. */
  bool rowsAreWhole() const { return kind == kInt8Kind || in % kGroup == 0; }
};

/** The layout that a kernel's numbers name; sizes are bounded so that bytes fit. */
inline Layout layoutOf(const Call& call, int64_t kind, int64_t out, int64_t in) {
  if (out > 0 && in > INT64_MAX / 32 / out) call.fail("a weight [%lld, %lld] is too large", (long long)out, (long long)in);
  return {static_cast<int>(kind), out, in};
}

/** x, rounded: what follows is not fused with the operation that made x, so that every processor gives the same bits. */
template <class V>
inline V apart(V x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  volatile V kept = x;
  x = kept;
#endif
  return x;
}

/** kLanes codes as numbers. */
inline Floats signedCodes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
  Floats v;
  for (int i = 0; i < kLanes; i++) v[i] = static_cast<int8_t>(p[i]);
  return v;
#endif
}

/** kLanes bytes. */
inline Words bytesOf(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  Words v;
  for (int i = 0; i < kLanes; i++) v[i] = p[i];
  return v;
#endif
}

/** The level of the lowest four bits of each word. */
inline Floats levelOf(Words index) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(kLevels));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(kLevels), (__m256i)index);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(kLevels + 8), (__m256i)index);
  return (Floats)_mm256_blendv_ps(low, high, (__m256)_mm256_slli_epi32((__m256i)index, 28)); // by bit 3
#else
  Floats v;
  for (int i = 0; i < kLanes; i++) v[i] = kLevels[index[i] & 15];
  return v;
#endif
}

/** Lanes of two vectors in turn: the first half of them, or the second. */
template <bool kSecond>
struct Zipped {
  static constexpr int at(int lane) { return (lane % 2 ? kLanes : 0) + lane / 2 + (kSecond ? kLanes / 2 : 0); }
};

/** kInt8 codes of a group, as they stand. */
struct Int8Codes {
  static constexpr int64_t kBytes = kGroup;
  /** Two vectors of 2 · kLanes codes. */
  static void read(const uint8_t* p, Floats& first, Floats& second) {
    first = signedCodes(p);
    second = signedCodes(p + kLanes);
  }
  static constexpr int64_t kStep = 2 * kLanes; // bytes that read() takes
  /** What read() gives, in the weight's order. */
  static void order(Floats&, Floats&) {}
  /** 2 · kLanes numbers in the order of read(). */
  static void arrange(Floats&, Floats&) {}
};

/** Codes of 4 bits: read() gives the upper halves of kLanes bytes, which are the numbers at even places, then the lower. */
struct Nf4Codes {
  static constexpr int64_t kBytes = kGroup / 2;
  static constexpr int64_t kStep = kLanes;
  static void read(const uint8_t* p, Floats& even, Floats& odd) {
    const Words both = bytesOf(p);
    even = levelOf(both >> 4);
    odd = levelOf(both);
  }
  static void order(Floats& even, Floats& odd) {
    const Floats first = shuffle<Zipped<false>>(even, odd);
    odd = shuffle<Zipped<true>>(even, odd);
    even = first;
  }
  struct Even {
    static constexpr int at(int lane) { return 2 * lane; }
  };
  struct Odd {
    static constexpr int at(int lane) { return 2 * lane + 1; }
  };
  static void arrange(Floats& first, Floats& second) {
    const Floats even = shuffle<Even>(first, second);
    second = shuffle<Odd>(first, second);
    first = even;
  }
};

/** A weight in memory. */
struct Quantised : Layout {
  const uint8_t* data;

  Quantised(const Layout& layout, const View& view) : Layout(layout), data(static_cast<const uint8_t*>(view.data)) {}

  const float* floats(int64_t at) const { return reinterpret_cast<const float*>(data + at); }

  /** Scales of `count` groups from the `first` on. */
  void scalesOf(int64_t first, int64_t count, float* to) const {
    if (count == 0) return;
    if (kind == kNf4Kind) return void(std::memcpy(to, floats(scales()) + first, static_cast<size_t>(count) * 4));
    if (kind == kInt8Kind) {
      const uint16_t* from = reinterpret_cast<const uint16_t*>(data + scales()) + first;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
      for (; i < count; i++) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
        std::memcpy(to + i, &bits, 4);
      }
      return;
    }
    const uint8_t* codes = data + scales() + first;
    const float *largest = floats(nested()), *table = floats(map()), shift = *floats(offset());
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16) {
      const int64_t lower = (first + i) / kNested, upper = (first + i + 15) / kNested; // two where a block of 256 ends among them
      const int64_t early = upper > lower ? upper * kNested - first - i : 16;
      const __m512 factor = _mm512_mask_blend_ps(static_cast<__mmask16>((1u << early) - 1), _mm512_set1_ps(largest[upper]), _mm512_set1_ps(largest[lower]));
      const __m512 value = _mm512_i32gather_ps((__m512i)bytesOf(codes + i), table, 4);
      store(to + i, apart((Floats)_mm512_mul_ps(value, factor)) + shift);
    }
#endif
    for (; i < count; i++) to[i] = apart(table[codes[i]] * largest[(first + i) / kNested]) + shift;
  }

  /** Numbers `group` · 64 on of a row, scaled; zero beyond its end. */
  void group(int64_t row, int64_t group, Floats (&to)[kGroupVectors]) const {
    float scale;
    if (!rowsAreWhole()) return split(row, group, to);
    scalesOf(row * groupsOfRow() + group, 1, &scale);
    const uint8_t* codes = data + (row * groupsOfRow() + group) * (kind == kInt8Kind ? Int8Codes::kBytes : Nf4Codes::kBytes);
    if (kind == kInt8Kind) whole<Int8Codes>(codes, scale, to);
    else whole<Nf4Codes>(codes, scale, to);
  }

 private:
  template <class Codes>
  static void whole(const uint8_t* codes, float scale, Floats (&to)[kGroupVectors]) {
#pragma GCC unroll 8
    for (int i = 0; i < kGroupVectors; i += 2) {
      Codes::read(codes + i / 2 * Codes::kStep, to[i], to[i + 1]);
      Codes::order(to[i], to[i + 1]);
      to[i] *= scale;
      to[i + 1] *= scale;
    }
  }

  /** The same where rows do not begin with a group of scales. */
  void split(int64_t row, int64_t group, Floats (&to)[kGroupVectors]) const {
    float values[kGroup] = {}, scale[2];
    const int64_t begin = row * in + group * kGroup, end = std::min(begin + kGroup, (row + 1) * in);
    scalesOf(begin / kGroup, (end - 1) / kGroup - begin / kGroup + 1, scale);
    for (int64_t i = begin; i < end; i++)
      values[i - begin] = kLevels[i % 2 ? data[i / 2] & 15 : data[i / 2] >> 4] * scale[i / kGroup - begin / kGroup];
    for (int i = 0; i < kGroupVectors; i++) to[i] = load(values + i * kLanes);
  }
};

/** The quantised weight at an input; checks that its memory is exactly what the layout needs. */
inline Quantised quantisedInput(const Call& call, size_t index, const Layout& layout) {
  return Quantised(layout, call.input(index, {kInt32}, {layout.bytes() / 4}));
}

} // namespace
} // namespace vitrine
