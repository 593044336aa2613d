// The hash grid on a GPU. Constants set with -D: EUGEN_FEATURES (features per vertex: 1, 2, 4 or 8) and
// EUGEN_HALF_TABLE (table rows are IEEE halves).
#pragma once
#include "hashgrid.h"
#include "simt.cuh"

namespace eugen {

enum { MAX_LEVELS = 32 };

// Filled by cuda.py.
struct GridLevels {
  int count;
  uint32 mask;   // table size - 1 of a hashed level
  uint32 dense;  // bit l: every vertex of level l has a row of its own
  int resolution[MAX_LEVELS];
  uint32 offset[MAX_LEVELS];

  EUGEN_MEMBER HashLevel level(int l) const {
    return HashLevel{resolution[l], mask, offset[l], (dense >> l & 1) != 0};
  }
};

#if EUGEN_HALF_TABLE && EUGEN_BF16
#error "halves of a table are fp16"
#endif
#if EUGEN_HALF_TABLE
typedef uint16 TableValue;
#else
typedef float TableValue;
#endif

// Loads a vertex's features.
template <int F>
EUGEN_FUNCTION void load_row(const float* table, uint32 row, float (&v)[F]) {
  const float* p = table + size_t(row) * F;
  if constexpr (F % 4 == 0) {
    for (int f = 0; f < F; f += 4) {
      float four[4];
      load_four(p + f, four);
      for (int i = 0; i < 4; i++) v[f + i] = four[i];
    }
  } else if constexpr (F == 2) {
    load_pair(p, v[0], v[1]);
  } else {
    v[0] = p[0];
  }
}
template <int F>
EUGEN_FUNCTION void load_row(const uint16* table, uint32 row, float (&v)[F]) {
  const uint16* p = table + size_t(row) * F;
  if constexpr (F % 2 == 0) {
    for (int f = 0; f < F; f += 2) {
      const uint32 word = load_halves(p + f);
      v[f] = low_half(word), v[f + 1] = high_half(word);
    }
  } else {
    v[0] = to_float(p[0]);
  }
}

// Trilinear interpolation in one level.
template <int F>
EUGEN_FUNCTION void interpolate(Vec3 unit, const HashLevel& level, const TableValue* table, float (&sum)[F]) {
  const HashCell cell = hash_cell(unit, level);
  float weights[8];
  corner_weights(cell, weights);
#pragma unroll
  for (int f = 0; f < F; f++) sum[f] = 0.f;
#pragma unroll
  for (int c = 0; c < 8; c++) {
    float row[F];
    load_row<F>(table, cell.rows[c], row);
#pragma unroll
    for (int f = 0; f < F; f++) sum[f] += weights[c] * row[f];
  }
}

}  // namespace eugen
