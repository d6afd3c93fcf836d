/**
 * Short vectors of float32 from one source: the compiler's vector extensions (GCC, clang) become AVX-512, AVX2, SSE2 or NEON by the flags
 * the file is compiled with. bfloat16 is read and written as uint16_t, rounded to nearest even. Functions keep to IEEE rules: NaN stays
 * NaN, infinities are handled (so no -ffast-math); only a subnormal number may be written as a bfloat16 zero. Pointers need the alignment
 * of one element only.
 */
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Each level of instructions is a set of functions of its own: nothing here may be shared between them.
namespace vitrine {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

/** The same number in every lane (the broadcast keeps infinities and NaN, a sum with zero would lose the sign of -0). */
inline Floats splat(float x) {
  Floats v;
  for (int i = 0; i < kLanes; i++) v[i] = x;
  return v;
}

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load(const uint16_t* p) {
#if defined(__AVX512F__) // one instruction, which GCC 12 does not find by itself
  __m256i h;
  std::memcpy(&h, p, sizeof h);
  return (Floats)((Words)_mm512_cvtepu16_epi32(h) << 16);
#elif defined(__AVX2__)
  __m128i h;
  std::memcpy(&h, p, sizeof h);
  return (Floats)((Words)_mm256_cvtepu16_epi32(h) << 16);
#else
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return (Floats)(__builtin_convertvector(h, Words) << 16);
#endif
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

/** The upper 16 bits of each float32 after rounding, in the low half of a word. */
inline Words roundToHalf(Floats v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return v == v ? rounded : ((bits >> 16) | 0x40); // rounding could turn a NaN into an infinity
}

inline void store(uint16_t* p, Floats v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#elif defined(__AVX512F__)
  const __m256i h = _mm512_cvtepi32_epi16((__m512i)roundToHalf(v));
#else
  const Halves h = __builtin_convertvector(roundToHalf(v), Halves);
#endif
  std::memcpy(p, &h, sizeof h);
}

/** The first n (< kLanes; none when negative) lanes from memory, `fill` in the others. */
template <class T>
inline Floats loadPart(const T* p, int64_t n, float fill = 0) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  const __mmask16 first = static_cast<__mmask16>(n > 0 ? (1u << n) - 1 : 0);
  if constexpr (sizeof(T) == sizeof(float)) return (Floats)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), first, p);
  const __m512i words = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first, p)), 16);
  return (Floats)_mm512_mask_mov_ps(_mm512_set1_ps(fill), first, (__m512)words);
#else
  T lanes[kLanes];
  store(lanes, splat(fill));
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}

/** The first n (< kLanes) lanes to memory. */
template <class T>
inline void storePart(T* p, int64_t n, Floats v) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  const __mmask16 first = static_cast<__mmask16>(n > 0 ? (1u << n) - 1 : 0);
  if constexpr (sizeof(T) == sizeof(float)) return _mm512_mask_storeu_ps(p, first, (__m512)v);
  uint16_t lanes[kLanes];
  store(lanes, v);
  _mm256_mask_storeu_epi16(p, first, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
#else
  T lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

/** The first n lanes of v (all when n >= kLanes, none when n <= 0), `fill` in the others. */
inline Floats firstLanes(Floats v, int64_t n, float fill) {
  if (n >= kLanes) return v;
  Ints lane;
  for (int i = 0; i < kLanes; i++) lane[i] = i;
  return lane < static_cast<int32_t>(n) ? v : splat(fill);
}

/** Lane by lane; the second where either is NaN. (GCC makes two instructions of the plain comparison.) */
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

#if defined(__clang__)
#define VITRINE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VITRINE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

/** Lanes of a (0 to kLanes - 1) and b (kLanes on), in the order that Order::at(lane) gives. */
template <class Order, class V, size_t... I>
inline V shuffle(V a, V b, std::index_sequence<I...>) {
  return VITRINE_SHUFFLE(a, b, Order::at(static_cast<int>(I))...);
}
template <class Order, class V>
inline V shuffle(V a, V b) {
  return shuffle<Order>(a, b, std::make_index_sequence<kLanes>{});
}

template <int By>
struct Rotated {
  static constexpr int at(int lane) { return (lane + By) % kLanes; }
};

/** Sum of all lanes, by halves. */
inline float sum(Floats v) {
  if constexpr (kLanes > 8) v += shuffle<Rotated<8>>(v, v);
  if constexpr (kLanes > 4) v += shuffle<Rotated<4>>(v, v);
  v += shuffle<Rotated<2>>(v, v);
  v += shuffle<Rotated<1>>(v, v);
  return v[0];
}

/** Largest lane; NaN lanes may be passed over. */
inline float largest(Floats v) {
  if constexpr (kLanes > 8) v = larger(v, shuffle<Rotated<8>>(v, v));
  if constexpr (kLanes > 4) v = larger(v, shuffle<Rotated<4>>(v, v));
  v = larger(v, shuffle<Rotated<2>>(v, v));
  v = larger(v, shuffle<Rotated<1>>(v, v));
  return v[0];
}

inline Floats squareRoot(Floats v) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX__)
  return (Floats)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
  return (Floats)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
  return (Floats)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < kLanes; i++) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

/** p · 2^n for a whole n from -151 to 128 and p near 1, through to subnormal numbers and infinity. */
inline Floats scaleByPower(Floats p, Floats n) {
#if defined(__AVX512F__)
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Ints whole = __builtin_convertvector(n, Ints);
  const Ints half = whole >> 1; // in two steps, for neither 2^128 nor 2^-150 is a normal float32
  return p * (Floats)((half + 127) << 23) * (Floats)((whole - half + 127) << 23);
#endif
}

/** e^x within 1e-7 of itself. Range reduction to |r| <= ln 2 / 2; the polynomial of degree 6 is our own least-maximum fit. */
inline Floats exponential(Floats x) {
  const Floats y = smaller(splat(89), larger(splat(-104), x)); // beyond, the result is 0 or infinity; NaN stays
  const Floats shift = splat(12582912.0f); // 1.5 · 2^23: adding it rounds to a whole number
  Floats n = y * 1.44269504f + shift;
  n -= shift;
  Floats r = y - n * 0.693359375f; // ln 2 in two parts, the first exact in 10 bits
  r = r + n * 2.12194440e-4f;
  Floats p = r * 1.3901286847e-3f + 8.3631449255e-3f;
  p = p * r + 4.1666853404e-2f;
  p = p * r + 1.6666577293e-1f;
  p = p * r + 4.9999999553e-1f;
  p = p * (r * r) + (r + 1.0f);
#if !defined(__AVX512F__)
  n = x == x ? n : splat(0); // a NaN has no whole number
#endif
  return scaleByPower(p, n);
}

/** erf(x) within 4e-7 of itself, and exactly 1 where float32 holds no more: x P(x²) / Q(x²), our own least-maximum fit on [0, 3.925]. */
inline Floats errorFunction(Floats x) {
  constexpr int kTerms = 6;
  constexpr float p[kTerms] = {1.1283791458f, 0.19059416374f, 0.05276934846f, 3.7725668627e-3f, 2.8484381207e-4f, 2.0460229392e-6f};
  constexpr float q[kTerms] = {1.0f, 0.50224241013f, 0.11418288712f, 0.014983231108f, 1.1638616698e-3f, 3.8047743160e-5f};
  const Floats t = x * x;
  Floats above = splat(p[kTerms - 1]), below = splat(q[kTerms - 1]);
#pragma GCC unroll 8
  for (int i = kTerms - 2; i >= 0; i--) {
    above = above * t + p[i];
    below = below * t + q[i];
  }
  Floats y = x * above / below;
  y = x > 3.925f ? splat(1) : y; // NaN fails both comparisons and stays
  return x < -3.925f ? splat(-1) : y;
}

/** 1 / (1 + e^-x), small values too. */
inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

/** σ(x) and 1 - σ(x), each exact to its own last digits. */
struct Sigmoid {
  Floats value, rest;
};

inline Sigmoid bothSigmoids(Floats x) {
  const Floats e = exponential(-x), value = 1.0f / (1.0f + e);
  return {value, e > 1e30f ? splat(1) : e * value}; // infinity times zero would be NaN
}

/** Memory that a thread keeps from call to call: its pages are already there. Grows, never shrinks. */
template <class T>
class Scratch {
 public:
  ~Scratch() { ::operator delete(memory_, std::align_val_t{64}); }
  /** `count` elements on a cache line, holding anything; what was there before may be gone. */
  T* take(int64_t count) {
    if (count > size_) {
      ::operator delete(memory_, std::align_val_t{64});
      memory_ = nullptr;
      size_ = 0;
      memory_ = static_cast<T*>(::operator new(sizeof(T) * static_cast<size_t>(count), std::align_val_t{64}));
      size_ = count;
    }
    return memory_;
  }

 private:
  T* memory_ = nullptr;
  int64_t size_ = 0;
};

/** The Scratch of this thread for one use; Slot tells uses apart. */
template <class T, int Slot>
inline T* scratch(int64_t count) {
  static thread_local Scratch<T> memory;
  return memory.take(count);
}

} // namespace
} // namespace vitrine
