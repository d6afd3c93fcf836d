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

/** One float32 as bfloat16, rounded to nearest even; NaN stays NaN. */
inline uint16_t toHalf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline uint16_t scaledHalf(float x, float scale) { return toHalf(x * scale); }
inline uint16_t scaledHalf(uint16_t x, float scale) {
  if (scale == 1.0f) return x;
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return toHalf(wide * scale);
}

/**
 * One panel from a matrix whose rows become its columns (a weight [out, in], summed over in).
 * from: first row, `columns` (<= 64) rows `stride` apart, each of `length` numbers -> packed [ceil(length / 2)][64][2]
 */
template <class T>
inline void packRows(const T* from, int64_t stride, int64_t columns, int64_t length, float scale, uint16_t* packed) {
  const int64_t pairs = (length + 1) / 2;
  for (int64_t first = 0; first < pairs; first += 16) { // 16 pairs: a cache line of every row
    const int64_t last = std::min(pairs, first + 16);
    for (int64_t j = 0; j < kPanel; j++) {
      for (int64_t q = first; q < last; q++) {
        uint16_t* to = packed + (q * kPanel + j) * 2;
        to[0] = j < columns ? scaledHalf(from[j * stride + 2 * q], scale) : 0;
        to[1] = j < columns && 2 * q + 1 < length ? scaledHalf(from[j * stride + 2 * q + 1], scale) : 0;
      }
    }
  }
}

/** One panel from columns as they stand. from: row 0, first column; `length` rows `stride` apart, `columns` (<= 64) numbers of each are taken. */
template <class T>
inline void packColumns(const T* from, int64_t stride, int64_t columns, int64_t length, float scale, uint16_t* packed) {
  const int64_t pairs = (length + 1) / 2;
  for (int64_t q = 0; q < pairs; q++) {
    const T* even = from + 2 * q * stride;
    const T* odd = even + stride;
    uint16_t* to = packed + q * kPanel * 2;
    const bool both = 2 * q + 1 < length;
    for (int64_t j = 0; j < columns; j++) {
      to[2 * j] = scaledHalf(even[j], scale);
      to[2 * j + 1] = both ? scaledHalf(odd[j], scale) : 0;
    }
    for (int64_t j = 2 * columns; j < 2 * kPanel; j++) to[j] = 0;
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
    const __mmask16 mask = count - i >= 16 ? 0xffff : (1u << (count - i)) - 1;
    _mm256_mask_storeu_epi16(to + i, mask, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + i)));
  }
}

} // namespace
} // namespace vitrine
#endif
