/**
 * Products in bfloat16 with float32 sums, by the instruction that multiplies pairs (vdpbf16ps). The right factor is packed: columns in panels
 * of 64, each panel [pairs][64][2], where a pair is two neighbours along the axis that is summed over, so that one load feeds 16 columns.
 * An odd length is padded with zeros, as are the columns of the last panel.
 */
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernel.h"

#if VITRINE_LEVEL >= 2
#include <immintrin.h>

#include "vector.h"

namespace vitrine {
namespace {

constexpr int64_t kPanel = 64; // columns that are computed together: four registers of 16
constexpr int64_t kTileRows = 6; // rows: 6 x 4 sums, 4 columns and 1 row fill the 32 registers

/** The lowest `count` of 16 lanes; none when negative. */
inline __mmask16 firstOf16(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1); }
inline __mmask32 firstOf32(int64_t count) { return count >= 32 ? 0xffffffff : count <= 0 ? 0 : static_cast<__mmask32>((1ull << count) - 1); }

/** Up to 16 numbers, scaled, as bfloat16 in the lower half of words; zero beyond `count`. */
inline __m512i halves(const float* from, int64_t count, float scale) {
  const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(firstOf16(count), from), _mm512_set1_ps(scale));
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v));
}
inline __m512i halves(const uint16_t* from, int64_t count, float scale) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(firstOf16(count), from));
  if (scale == 1.0f) return words;
  const __m512 v = _mm512_mul_ps((__m512)_mm512_slli_epi32(words, 16), _mm512_set1_ps(scale));
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v));
}

/** Up to 32 neighbours as 16 pairs, scaled; zero beyond `count`. */
inline __m512i pairs(const float* from, int64_t count, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 low = _mm512_mul_ps(_mm512_maskz_loadu_ps(firstOf16(count), from), factor);
  const __m512 high = _mm512_mul_ps(_mm512_maskz_loadu_ps(firstOf16(count - 16), from + 16), factor);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
inline __m512i pairs(const uint16_t* from, int64_t count, float scale) {
  const __m512i words = _mm512_maskz_loadu_epi16(firstOf32(count), from);
  if (scale == 1.0f) return words;
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 low = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)), 16);
  const __m512 high = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1)), 16);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, factor), _mm512_mul_ps(low, factor));
}

/** Turns 16 rows of 16 words into 16 columns. */
inline void transpose(__m512i (&rows)[16]) {
  __m512i turned[16];
  for (int i = 0; i < 16; i += 4) { // within each quarter of a register: 4 x 4 words of four rows
    const __m512i a = _mm512_unpacklo_epi32(rows[i], rows[i + 1]), b = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]), d = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
    turned[i] = _mm512_unpacklo_epi64(a, c);
    turned[i + 1] = _mm512_unpackhi_epi64(a, c);
    turned[i + 2] = _mm512_unpacklo_epi64(b, d);
    turned[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  for (int i = 0; i < 4; i++) { // then the quarters themselves, 4 x 4
    const __m512i a = _mm512_shuffle_i32x4(turned[i], turned[i + 4], 0x88), b = _mm512_shuffle_i32x4(turned[i], turned[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(turned[i + 8], turned[i + 12], 0x88), d = _mm512_shuffle_i32x4(turned[i + 8], turned[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    rows[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    rows[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

/**
 * One panel from a matrix whose rows become its columns (a weight [out, in], summed over in).
 * from: first row, `columns` (<= 64) rows `stride` apart, each of `length` numbers -> packed [ceil(length / 2)][64][2]
 */
template <class T>
inline void packRows(const T* from, int64_t stride, int64_t columns, int64_t length, float scale, uint16_t* packed) {
  const int64_t count = (length + 1) / 2;
  for (int64_t first = 0; first < count; first += 16) {
    for (int64_t j = 0; j < kPanel; j += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; i++)
        block[i] = j + i < columns ? pairs(from + (j + i) * stride + 2 * first, length - 2 * first, scale) : _mm512_setzero_si512();
      transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(16, count - first); i++) _mm512_storeu_si512(packed + ((first + i) * kPanel + j) * 2, block[i]);
    }
  }
}

/** packRows() backwards, without a scale. */
inline void unpackRows(const uint16_t* packed, int64_t stride, int64_t columns, int64_t length, uint16_t* to) {
  const int64_t count = (length + 1) / 2;
  for (int64_t first = 0; first < count; first += 16) {
    for (int64_t j = 0; j < columns; j += 16) {
      __m512i block[16];
      for (int64_t i = 0; i < 16; i++)
        block[i] = first + i < count ? _mm512_loadu_si512(packed + ((first + i) * kPanel + j) * 2) : _mm512_setzero_si512();
      transpose(block);
      const __mmask32 mask = firstOf32(length - 2 * first);
      for (int64_t i = 0; i < std::min<int64_t>(16, columns - j); i++) _mm512_mask_storeu_epi16(to + (j + i) * stride + 2 * first, mask, block[i]);
    }
  }
}

/** One panel from columns as they stand. from: row 0, first column; `length` rows `stride` apart, `columns` (<= 64) numbers of each are taken. */
template <class T>
inline void packColumns(const T* from, int64_t stride, int64_t columns, int64_t length, float scale, uint16_t* packed) {
  for (int64_t k = 0; k < length; k += 2, packed += 2 * kPanel) {
    for (int64_t j = 0; j < kPanel; j += 16) {
      const int64_t rest = columns - j;
      __m512i words = _mm512_setzero_si512();
      if (rest > 0) {
        words = halves(from + k * stride + j, rest, scale);
        if (k + 1 < length) words = _mm512_or_si512(words, _mm512_slli_epi32(halves(from + (k + 1) * stride + j, rest, scale), 16));
      }
      _mm512_storeu_si512(packed + 2 * j, words);
    }
  }
}

/**
 * sums[i][j] (+)= rows of x times the first 16 · Columns columns of a panel. x: bfloat16, rows `stride` apart, of 2 · pairs numbers;
 * sums: float32 [Rows][64]. Add: on top of what is there.
 */
template <int Rows, int Columns, bool Add>
inline void tile(const uint16_t* x, int64_t stride, const uint16_t* packed, int64_t pairs, float* sums) {
  __m512 sum[Rows][Columns];
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < Columns; j++) sum[i][j] = Add ? _mm512_loadu_ps(sums + i * kPanel + j * 16) : _mm512_setzero_ps();
  for (int64_t q = 0; q < pairs; q++, packed += 2 * kPanel) {
    __m512bh column[Columns];
    for (int j = 0; j < Columns; j++) column[j] = (__m512bh)_mm512_loadu_si512(packed + j * 32);
    for (int i = 0; i < Rows; i++) {
      int32_t pair;
      std::memcpy(&pair, x + i * stride + 2 * q, sizeof pair);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
      for (int j = 0; j < Columns; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], row, column[j]);
    }
  }
  for (int i = 0; i < Rows; i++)
    for (int j = 0; j < Columns; j++) _mm512_storeu_ps(sums + i * kPanel + j * 16, sum[i][j]);
}

template <int Columns, bool Add>
inline void tileOf(int64_t rows, const uint16_t* x, int64_t stride, const uint16_t* packed, int64_t pairs, float* sums) {
  switch (rows) {
    case 1: return tile<1, Columns, Add>(x, stride, packed, pairs, sums);
    case 2: return tile<2, Columns, Add>(x, stride, packed, pairs, sums);
    case 3: return tile<3, Columns, Add>(x, stride, packed, pairs, sums);
    case 4: return tile<4, Columns, Add>(x, stride, packed, pairs, sums);
    case 5: return tile<5, Columns, Add>(x, stride, packed, pairs, sums);
    default: return tile<6, Columns, Add>(x, stride, packed, pairs, sums);
  }
}

/** tile() for 1 to 6 rows and the first `columns` (1 to 64) columns of a panel; few columns do not pay for 64. */
template <bool Add>
inline void tileOf(int64_t rows, int64_t columns, const uint16_t* x, int64_t stride, const uint16_t* packed, int64_t pairs, float* sums) {
  if (columns > 32) return tileOf<4, Add>(rows, x, stride, packed, pairs, sums);
  if (columns > 16) return tileOf<2, Add>(rows, x, stride, packed, pairs, sums);
  return tileOf<1, Add>(rows, x, stride, packed, pairs, sums);
}

/** `count` float32 as bfloat16, rounded to nearest even. */
inline void narrow(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = firstOf16(count - i);
    _mm256_mask_storeu_epi16(to + i, mask, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + i)));
  }
}

} // namespace
} // namespace vitrine
#endif
