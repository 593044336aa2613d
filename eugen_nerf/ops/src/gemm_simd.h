// Small matrix products in vector registers, for tiles of a few dozen rows.
#pragma once
#include "common.h"

namespace eugen {

#if defined(__AVX512F__)
enum { LANES = 16, COLUMNS = 4, REGISTERS = 24 };  // floats per vector, maximum vectors per strip, accumulators
#elif defined(__AVX__)
enum { LANES = 8, COLUMNS = 2, REGISTERS = 12 };
#else
enum { LANES = 4, COLUMNS = 2, REGISTERS = 12 };
#endif
enum { MOST_ROWS = 12 };

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4)));

EUGEN_FUNCTION int padded(int n) { return (n + LANES - 1) / LANES * LANES; }
EUGEN_FUNCTION Vector load(const float* p) { return *(const Vector*)p; }
EUGEN_FUNCTION void store(float* p, Vector v) { *(Vector*)p = v; }

// The initial value of a product, and the operation applied to its result.
enum Start { ZERO, ACCUMULATE, ROW };  // ROW: the same row of offsets for all rows
enum Finish { PLAIN, RELU, WHERE_POSITIVE };  // WHERE_POSITIVE: zero where a mask of C's shape is not positive

// A strided matrix A. B and C have contiguous rows whose length is a whole number of vectors.
struct Strided {
  const float* data;
  int row, column;
};

template <int N>
struct Count {
  enum { value = N };
};

template <int M, int V>
EUGEN_FUNCTION void block(float* c, int ldc, Strided a, const float* b, int ldb, int k, Start start, const float* row,
                          Finish finish, const float* mask) {
  Vector sum[M][V];
  for (int v = 0; v < V; v++) {
    const Vector offset = start == ROW ? load(row + v * LANES) : Vector{};
    for (int m = 0; m < M; m++) sum[m][v] = start == ACCUMULATE ? load(c + m * ldc + v * LANES) : offset;
  }
  for (int i = 0; i < k; i++) {
    Vector right[V];
    for (int v = 0; v < V; v++) right[v] = load(b + i * ldb + v * LANES);
    for (int m = 0; m < M; m++) {
      const float left = a.data[m * a.row + i * a.column];
      for (int v = 0; v < V; v++) sum[m][v] += left * right[v];
    }
  }
  for (int m = 0; m < M; m++)
    for (int v = 0; v < V; v++) {
      Vector s = sum[m][v];
      if (finish == RELU) s = s < 0.f ? Vector{} : s;
      if (finish == WHERE_POSITIVE) s = load(mask + m * ldc + v * LANES) <= 0.f ? Vector{} : s;
      store(c + m * ldc + v * LANES, s);
    }
}

template <int V>
static void strip(float* c, int ldc, Strided a, const float* b, int ldb, int m, int k, Start start, const float* row,
                  Finish finish, const float* mask) {
  // Narrow strips take more rows, so that there are enough independent sums to hide the latency of the multipliers.
  constexpr int ROWS = REGISTERS / V < MOST_ROWS ? REGISTERS / V : MOST_ROWS;
  int i = 0;
  const auto rows = [&](auto count) {
    constexpr int M = decltype(count)::value;
    for (; i + M <= m; i += M, a.data += M * a.row)
      block<M, V>(c + i * ldc, ldc, a, b, ldb, k, start, row, finish, mask + (mask ? i * ldc : 0));
  };
  rows(Count<ROWS>{});
  rows(Count<4>{});
  rows(Count<2>{});
  rows(Count<1>{});
}

// C [m, n] = start + A [m, k] B [k, n]; n a multiple of LANES.
static inline void gemm(float* c, int ldc, Strided a, const float* b, int ldb, int m, int n, int k, Start start,
                        const float* row = nullptr, Finish finish = PLAIN, const float* mask = nullptr) {
  int j = 0;
  const auto columns = [&](auto count) {
    constexpr int V = decltype(count)::value;
    for (; j + V * LANES <= n; j += V * LANES)
      strip<V>(c + j, ldc, a, b + j, ldb, m, k, start, row + (row ? j : 0), finish, mask + (mask ? j : 0));
  };
  columns(Count<COLUMNS>{});
  columns(Count<2>{});
  columns(Count<1>{});
}

}  // namespace eugen
