// A merged chain's shape as compile-time constants, and the memory layout of its parts.
//
// Matrix i of a chain belongs to stage i, the last one to the output. A stage's projections and features come in blocks
// of m values (projection after projection, order after order). For tensor cores each block is padded to a multiple of
// 16. The padding contains zeros and stays zero.
#pragma once
#include "phi.h"
#include "simt.cuh"

namespace eugen {

enum { MAX_STAGES = 8 };
enum { ROW_PADDING = 8 };  // halves after each row in shared memory: rows start in different banks

struct Epsilons {
  float value[MAX_STAGES];  // of each stage's norm
};

// Spec::numbers is packing.PackedChain.spec. If the chain's inputs and outputs are rows in global memory, an input row
// begins Spec::in_row numbers after the one before; 0 if they are in shared memory.
template <class Spec>
struct Chain {
  static constexpr int stages = Spec::numbers[0];
  static constexpr int matrices = stages + 1;

  static constexpr int number(int stage, int what) { return Spec::numbers[1 + 7 * stage + what]; }
  static constexpr int features(int stage) { return number(stage, 1); }
  static constexpr int order(int stage) { return number(stage, 2); }
  static constexpr bool is_shared(int stage) { return number(stage, 3) != 0; }
  static constexpr Phi phi(int stage) { return Phi(number(stage, 4)); }
  static constexpr int projections(int stage) {
    return is_shared(stage) ? order(stage) : order(stage) * (order(stage) + 1) / 2;
  }
  static constexpr int in = Spec::numbers[3 + 7 * stages];
  static constexpr int out = Spec::numbers[1 + 7 * stages];

  // Matrix i: blocks and their lengths on both sides.
  static constexpr int in_blocks(int i) { return i == 0 ? 1 : order(i - 1); }
  static constexpr int in_block(int i) { return i == 0 ? in : features(i - 1); }
  static constexpr int out_blocks(int i) { return i == stages ? 1 : projections(i); }
  static constexpr int out_block(int i) { return i == stages ? out : features(i); }
  static constexpr bool has_offsets(int i) {
    return i == stages ? Spec::numbers[2 + 7 * stages] != 0 : number(i, 5) != 0;
  }
  static constexpr bool has_norm(int i) { return i < stages && number(i, 6) != 0; }
  // r if the norm is that of the r values R x + c, which are r additional outputs of the stage's matrix; 0 if it is the
  // norm of the stage's input.
  static constexpr int norm_rows(int i) { return i < stages && number(i, 6) > 1 ? number(i, 6) - 1 : 0; }

  static constexpr int padded(int n) { return (n + 15) / 16 * 16; }
  static constexpr int in_padded(int i) { return padded(in_block(i)); }
  static constexpr int out_padded(int i) { return padded(out_block(i)); }
  static constexpr int k(int i) { return in_blocks(i) * in_padded(i); }
  static constexpr int projected(int i) { return out_blocks(i) * out_padded(i); }
  static constexpr int n(int i) { return projected(i) + padded(norm_rows(i)); }

  // Rows in memory that begin at multiples of four numbers are accessed four numbers at a time. A lane's four numbers of
  // a tile (network_mma.cuh) then have to be neighbors in memory, so tiles have the columns of these rows in another
  // order. There are at most three numbers between the end of a row and the next row.
  static constexpr int in_row = Spec::in_row;
  static constexpr bool in_fours = in_row > 0 && in_row % 4 == 0;
  static constexpr bool out_fours = in_row > 0 && out % 4 == 0;
  // The column in memory of padded column c = 16 i + 8 h + 2 t + q: 16 i + 4 t + 2 h + q.
  static EUGEN_MEMBER int column_in_fours(int c) { return (c & ~15) + (c >> 1 & 3) * 4 + (c >> 3 & 1) * 2 + (c & 1); }

  // Layout of the packed parameters: projections, offsets, norm column, R and c of each matrix.
  static constexpr int columns(int i) { return in_blocks(i) * in_block(i); }
  static constexpr int rows(int i) { return out_blocks(i) * out_block(i); }
  static constexpr int offsets_at(int i) { return parameters_before(i) + rows(i) * columns(i); }
  static constexpr int norm_at(int i) { return offsets_at(i) + (has_offsets(i) ? rows(i) : 0); }
  static constexpr int form_at(int i) { return norm_at(i) + (has_norm(i) ? rows(i) : 0); }
  static constexpr int form_offsets_at(int i) { return form_at(i) + norm_rows(i) * columns(i); }
  static constexpr int parameters_before(int i) {
    int sum = 0;
    for (int j = 0; j < i; j++) {
      sum += rows(j) * (columns(j) + (has_offsets(j) ? 1 : 0) + (has_norm(j) ? 1 : 0));
      sum += norm_rows(j) * (columns(j) + 1);
    }
    return sum;
  }
  // Whether columns 2 c and 2 c + 1 of matrix i are always neighbors at a multiple of 8 bytes, or both in the padding.
  static constexpr bool has_pairs(int i) {
    return in_block(i) % 2 == 0 && parameters_before(i) % 2 == 0 && (norm_rows(i) == 0 || form_at(i) % 2 == 0);
  }

  // Index in the packed parameters of the element in padded row r and column c of matrix I; -1 in the padding.
  template <int I>
  static EUGEN_MEMBER int weight_place(int r, int c) {
    constexpr int OUT = out_block(I), IN = in_block(I), COLUMNS = columns(I);
    constexpr uint32 OUT_PADDED = out_padded(I), IN_PADDED = in_padded(I);
    int feature = int(uint32(r) % OUT_PADDED), in_feature = int(uint32(c) % IN_PADDED);
    if constexpr (I == 0 && in_fours) in_feature = column_in_fours(in_feature);
    if constexpr (I == stages && out_fours) feature = column_in_fours(feature);
    const int column = int(uint32(c) / IN_PADDED) * IN + in_feature;
    if (in_feature >= IN) return -1;
    if constexpr (norm_rows(I) != 0)
      if (r >= projected(I)) return r - projected(I) < norm_rows(I) ? form_at(I) + (r - projected(I)) * COLUMNS + column : -1;
    return feature < OUT ? parameters_before(I) + (int(uint32(r) / OUT_PADDED) * OUT + feature) * COLUMNS + column : -1;
  }
  // The same for padded row r's offset, and for its element of the norm column.
  template <int I>
  static EUGEN_MEMBER int offset_place(int r) {
    if constexpr (norm_rows(I) != 0)
      if (r >= projected(I)) return r - projected(I) < norm_rows(I) ? form_offsets_at(I) + r - projected(I) : -1;
    return has_offsets(I) ? vector_place<I>(offsets_at(I), r) : -1;
  }
  template <int I>
  static EUGEN_MEMBER int norm_place(int r) {
    return has_norm(I) && r < projected(I) ? vector_place<I>(norm_at(I), r) : -1;
  }
  template <int I>
  static EUGEN_MEMBER int vector_place(int at, int r) {
    int feature = r % out_padded(I);
    if constexpr (I == stages && out_fours) feature = column_in_fours(feature);
    return feature < out_block(I) ? at + r / out_padded(I) * out_block(I) + feature : -1;
  }

  // Layout of shared memory: floats [n] of offsets and [n] of norm columns, then halves [n][row(i)] of weights.
  static constexpr int vectors_before(int i) {
    int sum = 0;
    for (int j = 0; j < i; j++) sum += n(j) * (1 + (has_norm(j) ? 1 : 0));
    return sum;
  }
  static constexpr int row(int i) { return k(i) + ROW_PADDING; }
  static constexpr int weights_before(int i) {
    int sum = 0;
    for (int j = 0; j < i; j++) sum += n(j) * row(j);
    return sum;
  }
  static constexpr int vector_bytes = 4 * vectors_before(stages + 1);
  static constexpr int weight_bytes = 2 * weights_before(stages + 1);

  static constexpr int largest(int a, int b) { return a > b ? a : b; }
  static constexpr int widest_out() {  // over all matrices
    int width = 0;
    for (int i = 0; i <= stages; i++) width = largest(width, n(i));
    return width;
  }
};

// The parameter at an index, or zero in the padding.
EUGEN_FUNCTION float parameter_at(const float* parameters, int place) { return place < 0 ? 0.f : parameters[place]; }

}  // namespace eugen
