/**
 * Small matrix products in the caches, the inside of attention. Numbers are held in "cells": a float32, or, where the processor multiplies
 * bfloat16 (VITRINE_LEVEL 2), two bfloat16 neighbours along the axis that is summed over, in one 32-bit word. Both kinds then move and
 * multiply alike: C[m, n] += sum over cells of A[m, cell] · B[cell, n], with float32 sums.
 *
 * A left factor is rows of cells. A right factor is panels: [panel][cell][kPanel columns], the last panel filled up with zeros.
 */
#pragma once
#include <algorithm>

#include "values.h"

namespace vitrine {
namespace {

// What fits the registers: kRows x kWide accumulators beside a row of the right factor.
constexpr int kRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
constexpr int kPanel = kWide * kLanes;

constexpr int64_t roundUp(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/** Cells of one float32. */
struct FloatCell {
  using Type = float;
  using Element = float;
  static constexpr int kElements = 1;
  static Floats multiplyAdd(Floats sum, const float* a, Floats b) { return sum + *a * b; }
  /** One row of elements as one row of cells. */
  static Floats pack(const Floats* rows) { return rows[0]; }
};

#if VITRINE_LEVEL == 2
/** Cells of two bfloat16, the earlier one in the lower half. */
struct PairCell {
  using Type = uint32_t;
  using Element = uint16_t;
  static constexpr int kElements = 2;
  static Floats multiplyAdd(Floats sum, const uint32_t* a, Floats b) {
    int pair;
    std::memcpy(&pair, a, sizeof pair); // the cells were written as bfloat16
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
  }
  /** Two rows of float32 as one row of cells, rounded to nearest even. */
  static Floats pack(const Floats* rows) {
    typedef int16_t Places __attribute__((vector_size(64)));
    const Places zip = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Floats)_mm512_permutexvar_epi16((__m512i)zip, (__m512i)_mm512_cvtne2ps_pbh((__m512)rows[1], (__m512)rows[0]));
  }
};
#endif

inline Floats loadCells(const float* p) { return load(p); }
inline Floats loadCells(const uint32_t* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void storeCells(float* p, Floats v) { store(p, v); }
inline void storeCells(uint32_t* p, Floats v) { std::memcpy(p, &v, sizeof v); }

/** kM rows by kN vectors of C, all in registers. */
template <class Cell, int kM, int kN>
inline void block(const typename Cell::Type* a, int64_t strideA, const typename Cell::Type* b, int64_t depth, float* c, int64_t strideC,
                  bool add) {
  Floats sums[kM][kN];
#pragma GCC unroll 8
  for (int i = 0; i < kM; i++)
#pragma GCC unroll 8
    for (int j = 0; j < kN; j++) sums[i][j] = add ? load(c + i * strideC + j * kLanes) : splat(0);
  for (int64_t k = 0; k < depth; k++, b += kPanel) {
    Floats right[kN];
#pragma GCC unroll 8
    for (int j = 0; j < kN; j++) right[j] = loadCells(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kM; i++)
#pragma GCC unroll 8
      for (int j = 0; j < kN; j++) sums[i][j] = Cell::multiplyAdd(sums[i][j], a + i * strideA + k, right[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; i++)
#pragma GCC unroll 8
    for (int j = 0; j < kN; j++) store(c + i * strideC + j * kLanes, sums[i][j]);
}

template <class Cell, int kN>
inline void blockOfRows(int64_t rows, const typename Cell::Type* a, int64_t strideA, const typename Cell::Type* b, int64_t depth, float* c,
                        int64_t strideC, bool add) {
  switch (rows) {
    case 1: return block<Cell, 1, kN>(a, strideA, b, depth, c, strideC, add);
    case 2: return block<Cell, 2, kN>(a, strideA, b, depth, c, strideC, add);
    case 3: return block<Cell, 3, kN>(a, strideA, b, depth, c, strideC, add);
    case 4: return block<Cell, 4, kN>(a, strideA, b, depth, c, strideC, add);
    case 5: return block<Cell, 5, kN>(a, strideA, b, depth, c, strideC, add);
    default: return block<Cell, kRows, kN>(a, strideA, b, depth, c, strideC, add);
  }
}

/** A left factor [rows, depth cells], a right factor of `panels`, and C whose rows have room for columns rounded up to kLanes. */
template <class Cell>
struct Product {
  const typename Cell::Type* left;
  int64_t strideLeft, rows;
  const typename Cell::Type* panels; // each kPanel · strideDepth cells from the one before
  int64_t strideDepth, depth, columns;

  /** C = A B, or C += A B. */
  void into(float* c, int64_t strideC, bool add) const {
    for (int64_t j = 0; j < columns; j += kPanel) {
      const typename Cell::Type* b = panels + j * strideDepth;
      const int64_t vectors = std::min<int64_t>(kWide, (columns - j + kLanes - 1) / kLanes);
      for (int64_t i = 0; i < rows; i += kRows) {
        const int64_t m = std::min<int64_t>(kRows, rows - i);
        const typename Cell::Type* a = left + i * strideLeft;
        float* to = c + i * strideC + j;
        if (vectors == kWide) blockOfRows<Cell, kWide>(m, a, strideLeft, b, depth, to, strideC, add);
        else if (vectors == 1) blockOfRows<Cell, 1>(m, a, strideLeft, b, depth, to, strideC, add);
        else if (vectors == 2) blockOfRows<Cell, 2>(m, a, strideLeft, b, depth, to, strideC, add);
        else blockOfRows<Cell, 3>(m, a, strideLeft, b, depth, to, strideC, add);
      }
    }
  }
};

/** Lanes for one step of a transposition: of each pair of rows `By` apart, blocks of `By` lanes change places. */
template <int By, bool kSecond>
struct Exchanged {
  static constexpr int at(int lane) {
    const bool odd = (lane / By) % 2 != 0;
    return kSecond ? (odd ? kLanes + lane : lane + By) : (odd ? kLanes + lane - By : lane);
  }
};

template <int By>
inline void exchange(Floats (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) {
    if (i & By) continue;
    const Floats first = shuffle<Exchanged<By, false>>(rows[i], rows[i + By]);
    rows[i + By] = shuffle<Exchanged<By, true>>(rows[i], rows[i + By]);
    rows[i] = first;
  }
}

/** Transposes a square of kLanes by kLanes in registers. */
inline void transposeSquare(Floats (&rows)[kLanes]) {
  if constexpr (kLanes > 8) exchange<8>(rows);
  if constexpr (kLanes > 4) exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

/**
 * from: [rows, columns], `strideFrom` apart -> to: [columns, rows filled up with zeros to a multiple of kLanes], `strideTo` apart.
 * `columns` need not be a multiple of kLanes; rows of `from` must be readable up to the next one.
 */
template <class T>
inline void transpose(const T* from, int64_t strideFrom, int64_t rows, int64_t columns, T* to, int64_t strideTo) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      Floats square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++) square[r] = i + r < rows ? loadCells(from + (i + r) * strideFrom + j) : splat(0);
      transposeSquare(square);
      const int64_t last = std::min<int64_t>(kLanes, columns - j);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; r++)
        if (r < last) storeCells(to + (j + r) * strideTo + i, square[r]);
    }
}

/** Rows [columns, depth cells] as the panels of their transpose, depth cells by `columns`. Rows: readable to a multiple of kLanes. */
template <class Cell>
inline void panelsOfRows(const typename Cell::Type* rows, int64_t stride, int64_t columns, int64_t depth, typename Cell::Type* panels) {
  for (int64_t j = 0; j < columns; j += kPanel)
    transpose(rows + j * stride, stride, std::min<int64_t>(kPanel, columns - j), depth, panels + j * depth, kPanel);
}

/** A row of elements as float32. */
inline Floats widened(const float* p) { return load(p); }
inline Floats widened(const uint16_t* p) { return load(p); }

/** Rows of elements [count, width], width a multiple of 16, as panels with cells along the rows' axis: ceil(count / kElements) by width. */
template <class Cell>
inline void panelsAlongRows(const typename Cell::Element* rows, int64_t stride, int64_t count, int64_t width, typename Cell::Type* panels) {
  const int64_t depth = (count + Cell::kElements - 1) / Cell::kElements;
  for (int64_t k = 0; k < depth; k++)
    for (int64_t j = 0; j < width; j += kLanes) {
      Floats pair[Cell::kElements];
      for (int e = 0; e < Cell::kElements; e++) {
        const int64_t row = k * Cell::kElements + e;
        pair[e] = row < count ? widened(rows + row * stride + j) : splat(0);
      }
      storeCells(panels + (j / kPanel * depth + k) * kPanel + j % kPanel, Cell::pack(pair));
    }
}

/** Rows of elements [count, width] as their transpose in rows of cells: [width, ceil(count / kElements)], `stride` cells apart. */
template <class Cell>
inline void transposeToRows(const typename Cell::Element* rows, int64_t strideFrom, int64_t count, int64_t width, typename Cell::Type* to,
                            int64_t stride) {
  typename Cell::Type strip[kLanes * 128]; // kLanes cells of every column
  for (int64_t first = 0; first < count; first += kLanes * Cell::kElements) {
    const int64_t cells = std::min<int64_t>(kLanes, (count - first + Cell::kElements - 1) / Cell::kElements);
    for (int64_t k = 0; k < cells; k++)
      for (int64_t j = 0; j < width; j += kLanes) {
        Floats pair[Cell::kElements];
        for (int e = 0; e < Cell::kElements; e++) {
          const int64_t row = first + k * Cell::kElements + e;
          pair[e] = row < count ? widened(rows + row * strideFrom + j) : splat(0);
        }
        storeCells(strip + k * width + j, Cell::pack(pair));
      }
    transpose(strip, width, cells, width, to + first / Cell::kElements, stride);
  }
}

/** Rows of a tensor, `strideFrom` apart, as rows of elements one behind the other: the same bits, or bfloat16 widened to float32. */
inline void copyRows(Reader from, int64_t strideFrom, int64_t rows, int64_t width, float* to) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < width; j += kLanes) store(to + i * width + j, from(i * strideFrom + j));
}
inline void copyRows(Reader from, int64_t strideFrom, int64_t rows, int64_t width, uint16_t* to) {
  for (int64_t i = 0; i < rows; i++) std::memcpy(to + i * width, from.narrow + i * strideFrom, static_cast<size_t>(width) * 2);
}

/** Rows of elements seen as rows of cells. */
inline const float* cellsOf(const float* rows) { return rows; }
inline const uint32_t* cellsOf(const uint16_t* rows) { return reinterpret_cast<const uint32_t*>(rows); }

} // namespace
} // namespace vitrine
