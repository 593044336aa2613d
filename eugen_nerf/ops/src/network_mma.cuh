// Forward evaluation of a merged chain of EUGen and dense layers on tensor cores; computes the same as
// reference.network.
//
// A warp carries TILES * 16 rows through all layers. Activations stay in its registers as A fragments of mma.m16n8k16;
// weights are in shared memory as halves. Sums, offsets and norms are float32. With
//   g = lane / 4, t = lane % 4
// a lane holds four words of a tile of 16 x 16 halves, each with two neighboring columns:
//   word i: row g + 8 (i % 2), columns 8 (i / 2) + 2 t and the next,
// and the following elements of a product's 16 x 16 sums:
//   c[half][q]: row g + 8 (q / 2), column 8 half + 2 t + q % 2.
// So word i of the next layer's fragment is c[i / 2][2 (i % 2)] and its right neighbor: no data moves between lanes.
#pragma once
#include "chain.cuh"

namespace eugen {

struct LanePlace {
  int row, column;  // g and 2 t as defined above

  EUGEN_MEMBER LanePlace() : row(lane_index() >> 2), column((lane_index() & 3) * 2) {}
};

// The address that a lane supplies to load a tile of 16 x 16 halves that begins at `tile`, with rows `ld` halves apart.
// With load_matrices: B operands, two words for outputs 0 to 7 and two for outputs 8 to 15, of a tile with one row per
// output. With load_matrices_transposed: an A operand of a tile with one column per row of A.
EUGEN_FUNCTION const uint16* by_output(const uint16* tile, int ld) {
  const int lane = lane_index();
  return tile + ((lane & 7) + (lane >> 4 << 3)) * ld + (lane >> 3 & 1) * 8;
}
// With load_matrices_transposed: B operands as above, of a tile with one column per output. With load_matrices: an A
// operand of a tile with one row per row of A.
EUGEN_FUNCTION const uint16* by_input(const uint16* tile, int ld) {
  const int lane = lane_index();
  return tile + ((lane & 7) + (lane >> 3 & 1) * 8) * ld + (lane >> 4 << 3);
}

// Writes matrices I and later as halves in the layout of shared memory. Each of `threads` threads calls it with its
// index `thread`.
template <class C, int I = 0>
EUGEN_FUNCTION void round_matrices(uint16* to, const float* parameters, int thread, int threads) {
  if constexpr (I <= C::stages) {
    constexpr int WORDS = C::k(I) / 2;
    for (int i = thread; i < C::n(I) * WORDS; i += threads) {
      // Unsigned division takes half of the instructions and allows twice as many loads in flight.
      const int r = int(uint32(i) / WORDS), c = int(uint32(i) % WORDS * 2);
      const float low = parameter_at(parameters, C::template weight_place<I>(r, c));
      const float high = parameter_at(parameters, C::template weight_place<I>(r, c + 1));
      store_halves(to + C::weights_before(I) + r * C::row(I) + c, pack(low, high));
    }
    round_matrices<C, I + 1>(to, parameters, thread, threads);
  }
}

// The weights of a chain in shared memory: all of them or, if the network is too wide for that (STREAMED), the part in
// use while the next one is copied. All threads of the block copy the parts and therefore go through the network in
// step. The source is `rounded`, the output of round_matrices.
template <class C, bool STREAMED, int THREADS>
struct Weights {
  // Rows of `length` halves.
  struct Part {
    const uint16* from;
    int rows, length, from_ld, to_ld;
  };

  const uint16* rounded;
  float* vectors;
  uint16* halves;
  uint16* spare;
  bool on_its_way = false;

  static constexpr int columns_row = 16 + ROW_PADDING;
  static constexpr int part() {
    int most = 0;
    for (int i = 0; i <= C::stages; i++)
      most = C::largest(most, C::largest(C::out_blocks(i) * 16 * C::row(i), C::n(i) * columns_row));
    return most;
  }
  static constexpr int bytes = C::vector_bytes + (STREAMED ? 2 * 2 * part() : C::weight_bytes);

  EUGEN_MEMBER Weights(const float* parameters, const uint16* rounded, unsigned char* shared)
      : rounded(rounded),
        vectors(reinterpret_cast<float*>(shared)),
        halves(reinterpret_cast<uint16*>(shared + C::vector_bytes)),
        spare(halves + (STREAMED ? part() : 0)) {
    load_vectors<0>(parameters);
    if constexpr (!STREAMED) round_matrices<C>(halves, parameters, int(threadIdx.x), THREADS);
    sync_block();
  }

  // Offsets of matrix I's outputs, and its norm column, as floats.
  template <int I> EUGEN_MEMBER float* offsets() const { return vectors + C::vectors_before(I); }
  template <int I> EUGEN_MEMBER float* norm_column() const { return offsets<I>() + C::n(I); }

  template <int I>
  EUGEN_MEMBER void load_vectors(const float* parameters) {
    if constexpr (I <= C::stages) {
      for (int r = int(threadIdx.x); r < C::n(I); r += THREADS) {
        offsets<I>()[r] = parameter_at(parameters, C::template offset_place<I>(r));
        if constexpr (C::has_norm(I)) norm_column<I>()[r] = parameter_at(parameters, C::template norm_place<I>(r));
      }
      load_vectors<I + 1>(parameters);
    }
  }

  // The parts that the functions `rows`, `norm_rows` and `columns` read: the rows of feature tile `tile` in every block
  // of matrix I's outputs, the rows of tile `tile` of the values whose norm is taken, and the columns of tile `tile`.
  // And the empty part.
  template <int I>
  EUGEN_MEMBER Part rows_part(int tile) const {
    constexpr int LD = C::row(I);
    return {rounded + C::weights_before(I) + tile * 16 * LD, C::out_blocks(I), 16 * LD, C::out_padded(I) * LD, 16 * LD};
  }
  template <int I>
  EUGEN_MEMBER Part norm_part(int tile) const {
    return {rounded + C::weights_before(I) + (C::projected(I) + tile * 16) * C::row(I), 1, 16 * C::row(I), 0, 0};
  }
  template <int I>
  EUGEN_MEMBER Part columns_part(int tile) const {
    return {rounded + C::weights_before(I) + tile * 16, C::n(I), 16, C::row(I), columns_row};
  }
  static EUGEN_MEMBER Part nothing() { return {nullptr, 0, 8, 0, 0}; }

  // Makes a part available. `next` is the part that will be needed next, if known.
  EUGEN_MEMBER void need(const Part& part, const Part& next) {
    if constexpr (STREAMED) {
      if (!on_its_way) fetch(part);
      wait_for_copies();
      sync_block();  // everybody's copies are there, and nobody reads the part before any longer
      uint16* const before = halves;
      halves = spare;
      spare = before;
      on_its_way = next.rows > 0;
      if (on_its_way) fetch(next);
    }
  }
  EUGEN_MEMBER void fetch(const Part& part) {
    const int chunks = part.length / 8;
    for (int i = int(threadIdx.x); i < part.rows * chunks; i += THREADS) {
      const int r = i / chunks, c = i % chunks * 8;
      copy_async(spare + r * part.to_ld + c, part.from + r * part.from_ld + c);
    }
  }

  template <int I>
  EUGEN_MEMBER const uint16* rows(int block, int tile) const {
    if constexpr (STREAMED) return halves + block * 16 * C::row(I);
    return halves + C::weights_before(I) + (block * C::out_padded(I) + tile * 16) * C::row(I);
  }
  template <int I>
  EUGEN_MEMBER const uint16* norm_rows(int tile) const {
    return STREAMED ? halves : halves + C::weights_before(I) + (C::projected(I) + tile * 16) * C::row(I);
  }
  // The rows of `columns` are columns_ld halves apart.
  template <int I>
  EUGEN_MEMBER const uint16* columns(int tile) const {
    return STREAMED ? halves : halves + C::weights_before(I) + tile * 16;
  }
  template <int I> static constexpr int columns_ld() { return STREAMED ? columns_row : C::row(I); }
};

// Where a lane's numbers of rows [first, first + 16 TILES) of a [n, WIDTH] array lie, whose rows begin ROW numbers apart.
// FOURS: with the columns in the order of Chain::column_in_fours.
template <bool FOURS, int TILES, int WIDTH, int ROW>
struct RowPlaces {
  int64 rows;   // from the lane's first row on
  int column;   // the lane's first column
  int64 start;  // index of the number there

  EUGEN_MEMBER RowPlaces(int64 first, int64 n) {
    const LanePlace place;
    rows = n - first - place.row;  // as a 32-bit number, which takes more instructions, it makes some kernels spill
    column = FOURS ? 2 * place.column : place.column;
    start = (first + place.row) * ROW + column;
  }
  EUGEN_MEMBER bool has_row(int m, int half) const { return m * 16 + half * 8 < rows; }
  EUGEN_MEMBER bool has_column(int c) const { return c + column < WIDTH; }
  // Whether the row ends after the lane's four numbers from column c on, or further.
  EUGEN_MEMBER bool has_four(int c) const { return c + column + 4 <= WIDTH; }
  static constexpr int offset(int m, int half, int c) { return (m * 16 + half * 8) * ROW + c; }
};

// A lane's four numbers of a row and a tile: as floats, and in memory as floats or halves. The members with an index h
// access two neighbors, those with an index e one number; p is where number 0 or number 2 h or number e lies.
template <class Io> struct FourNumbers;
template <>
struct FourNumbers<float> {
  float v[4] = {};

  EUGEN_MEMBER void load(const float* p) { load_four(p, v); }
  EUGEN_MEMBER void load(const float* p, int h) { load_pair(p, v[2 * h], v[2 * h + 1]); }
  EUGEN_MEMBER void load_one(const float* p, int e) { v[e] = *p; }
  template <int FIRST> EUGEN_MEMBER void clear_from() {
#pragma unroll
    for (int e = FIRST; e < 4; e++) v[e] = 0.f;
  }
  template <bool FOURS> EUGEN_MEMBER uint32 word(int h, float scale) const {
    return pack_bounded(v[2 * h] * scale, v[2 * h + 1] * scale);
  }

  EUGEN_MEMBER void set(int h, float low, float high) { v[2 * h] = low, v[2 * h + 1] = high; }
  EUGEN_MEMBER void store(float* p) const { store_four(p, v); }
  EUGEN_MEMBER void store(float* p, int h) const { store_pair(p, v[2 * h], v[2 * h + 1]); }
  EUGEN_MEMBER void store_one(float* p, int e) const { *p = v[e]; }
};
template <>
struct FourNumbers<uint16> {
  uint32 words[2] = {};

  EUGEN_MEMBER void load(const uint16* p) { load_four_halves(p, words); }
  EUGEN_MEMBER void load(const uint16* p, int h) { words[h] = load_halves(p); }
  EUGEN_MEMBER void load_one(const uint16* p, int e) { words[e >> 1] |= uint32(*p) << (e & 1) * 16; }
  template <int FIRST> EUGEN_MEMBER void clear_from() {
#pragma unroll
    for (int e = FIRST; e < 4; e++) words[e >> 1] &= e & 1 ? 0xffffu : 0u;
  }
  template <bool FOURS> EUGEN_MEMBER uint32 word(int h, float scale) const {
    if (scale != 1.f) return pack_bounded(low_half(words[h]) * scale, high_half(words[h]) * scale);
    // Words that are loaded together get neighboring registers, but are not neighbors in a fragment. ptxas would copy
    // them before each of their products.
    return FOURS ? words[h] ^ hidden_zero() : words[h];
  }

  EUGEN_MEMBER void set(int h, float low, float high) { words[h] = pack(low, high); }
  EUGEN_MEMBER void store(uint16* p) const { store_four_halves(p, words); }
  EUGEN_MEMBER void store(uint16* p, int h) const { store_halves(p, words[h]); }
  EUGEN_MEMBER void store_one(uint16* p, int e) const { *p = uint16(words[e >> 1] >> (e & 1) * 16 & 0xffff); }
};

// Loads rows as fragments, with zeros outside of the array.
template <bool FOURS, int TILES, int IN, int ROW, int K, class Io>
EUGEN_FUNCTION void load_rows(uint32 (&a)[TILES][K / 16][4], const Io* x, int64 first, int64 n, float scale = 1.f) {
  const RowPlaces<FOURS, TILES, IN, ROW> places(first, n);
  x += places.start;
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int k = 0; k < K / 16; k++) {
        FourNumbers<Io> numbers;
        if (places.has_row(m, half)) {
          const Io* p = x + places.offset(m, half, k * 16);
          if constexpr (FOURS) {
            if (places.has_column(k * 16)) numbers.load(p);
            if (IN % 4 != 0 && IN < k * 16 + 16)
              if (!places.has_four(k * 16)) numbers.template clear_from<IN % 4>();
          } else {
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const int c = k * 16 + h * 8;
              if (IN % 2 == 0) {
                if (places.has_column(c)) numbers.load(p + h * 8, h);
              } else {
                if (places.has_column(c)) numbers.load_one(p + h * 8, 2 * h);
                if (places.has_column(c + 1)) numbers.load_one(p + h * 8 + 1, 2 * h + 1);
              }
            }
          }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) a[m][k][half + 2 * h] = numbers.template word<FOURS>(h, scale);
      }
}

// Stores the 16 columns of sums of tile `tile`. May store what belongs to the padding after the end of a row, too.
template <bool FOURS, int TILES, int OUT, int ROW, class Io>
EUGEN_FUNCTION void store_sums(const float (&c)[TILES][2][4], int tile, Io* y, int64 first, int64 n, float scale) {
  const RowPlaces<FOURS, TILES, OUT, ROW> places(first, n);
  y += places.start;
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      FourNumbers<Io> numbers;
#pragma unroll
      for (int h = 0; h < 2; h++) numbers.set(h, c[m][h][2 * half] * scale, c[m][h][2 * half + 1] * scale);
      if (!places.has_row(m, half)) continue;
      Io* p = y + places.offset(m, half, tile * 16);
      if constexpr (FOURS) {
        if (places.has_column(tile * 16)) numbers.store(p);
      } else {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int column = tile * 16 + h * 8;
          if (OUT % 2 == 0) {
            if (places.has_column(column)) numbers.store(p + h * 8, h);
          } else {
            if (places.has_column(column)) numbers.store_one(p + h * 8, 2 * h);
            if (places.has_column(column + 1)) numbers.store_one(p + h * 8 + 1, 2 * h + 1);
          }
        }
      }
    }
}

// The sum over the four lanes that hold a row.
EUGEN_FUNCTION float sum_of_row(float mine) {
  mine += shuffle_xor(mine, 1);
  mine += shuffle_xor(mine, 2);
  return mine;
}

// sqrt(|x|^2 + eps) of the rows that a lane holds: [tile][row g or g + 8].
template <int TILES, int K>
EUGEN_FUNCTION void row_norms(const uint32 (&a)[TILES][K / 16][4], float eps, float (&norms)[TILES][2]) {
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = 0.f;
#pragma unroll
      for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int i = half; i < 4; i += 2) {
          const float low = low_half(a[m][k][i]), high = high_half(a[m][k][i]);
          sum += low * low + high * high;
        }
      norms[m][half] = sqrt(sum_of_row(sum) + eps);
    }
}

// Sums c of 16 outputs of matrix I for all rows: a rows^T, plus offsets (if OFFSETS), plus norm * column (if NORM).
template <class C, int I, int TILES, bool OFFSETS = C::has_offsets(I), bool NORM = C::has_norm(I)>
EUGEN_FUNCTION void project(float (&c)[TILES][2][4], const uint32 (&a)[TILES][C::k(I) / 16][4], const uint16* rows,
                            const float* offsets, const float* norm_column, const float (&norms)[TILES][2]) {
  const LanePlace place;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int column = half * 8 + place.column + (q & 1);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        c[m][half][q] = OFFSETS ? offsets[column] : 0.f;
        if constexpr (NORM) c[m][half][q] += norms[m][q >> 1] * norm_column[column];
      }
    }
  const uint16* p = by_output(rows, C::row(I));
#pragma unroll
  for (int k = 0; k < C::k(I) / 16; k++) {
    uint32 b[4];
    load_matrices(b, p + k * 16);
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      multiply_add(c[m][0], a[m][k], b[0], b[1]);
      multiply_add(c[m][1], a[m][k], b[2], b[3]);
    }
  }
}

// The norms that stage I needs, from its inputs a: the norms of a, or of R a + c. The latter values are passed to
// `visit` tile by tile.
template <class C, int I, int TILES, class W, class Visit>
EUGEN_FUNCTION void stage_norms(const uint32 (&a)[TILES][C::k(I) / 16][4], W& weights, float eps,
                                float (&norms)[TILES][2], const Visit& visit) {
  if constexpr (C::norm_rows(I) == 0) {
    row_norms<TILES, C::k(I)>(a, eps, norms);
  } else {
    float sums[TILES][2] = {};
    constexpr int NORM_TILES = C::padded(C::norm_rows(I)) / 16;
#pragma unroll
    for (int tile = 0; tile < NORM_TILES; tile++) {
      weights.need(weights.template norm_part<I>(tile),
                   tile + 1 < NORM_TILES ? weights.template norm_part<I>(tile + 1) : W::nothing());
      float c[TILES][2][4];
      const float* offsets = weights.template offsets<I>() + C::projected(I) + tile * 16;
      project<C, I, TILES, true, false>(c, a, weights.template norm_rows<I>(tile), offsets, nullptr, norms);
#pragma unroll
      for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int e = 0; e < 8; e++) sums[m][e >> 1 & 1] += c[m][e >> 2][e & 3] * c[m][e >> 2][e & 3];
      visit(c, tile);
    }
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) norms[m][half] = sqrt(sum_of_row(sums[m][half]) + eps);
  }
}
template <class C, int I, int TILES, class W>
EUGEN_FUNCTION void stage_norms(const uint32 (&a)[TILES][C::k(I) / 16][4], W& weights, float eps,
                                float (&norms)[TILES][2]) {
  stage_norms<C, I, TILES>(a, weights, eps, norms, [](const float (&)[TILES][2][4], int) {});
}

// Word i of the fragment made of phi of a tile's sums. `tile` and FEATURES determine where the padding begins. There
// softplus, which is log 2 at 0, would not preserve the zeros.
template <Phi PHI = IDENTITY_PHI, int FEATURES = 0>
EUGEN_FUNCTION uint32 pack_word(const float (&c)[2][4], int i, int tile = 0) {
  float low = c[i >> 1][2 * (i & 1)], high = c[i >> 1][2 * (i & 1) + 1];
  if constexpr (PHI == RELU_PHI) return pack_relu(low, high);
  low = apply(PHI, low), high = apply(PHI, high);
  if constexpr (PHI == SOFTPLUS_PHI && FEATURES % 16 != 0) {
    const LanePlace place;
    const int column = tile * 16 + (i >> 1) * 8 + place.column;
    low = column < FEATURES ? low : 0.f;
    high = column + 1 < FEATURES ? high : 0.f;
  }
  return pack_bounded(low, high);
}

// Features f of stage I from its inputs a.
template <class C, int I, int TILES, class W>
EUGEN_FUNCTION void stage_features(const uint32 (&a)[TILES][C::k(I) / 16][4],
                                   uint32 (&f)[TILES][C::k(I + 1) / 16][4], W& weights, const float (&norms)[TILES][2]) {
  constexpr int BLOCK = C::out_padded(I), BLOCK_TILES = BLOCK / 16;
  constexpr Phi PHI = C::phi(I);
  static_assert(C::order(I) == 1 || C::order(I) == 2, "orders above 2 have no code");
  const auto block = [&](float (&c)[TILES][2][4], int b, int tile) {
    const int at = b * BLOCK + tile * 16;
    const float* column = C::has_norm(I) ? weights.template norm_column<I>() + at : nullptr;
    project<C, I, TILES>(c, a, weights.template rows<I>(b, tile), weights.template offsets<I>() + at, column, norms);
  };
#pragma unroll
  for (int tile = 0; tile < BLOCK_TILES; tile++) {
    weights.need(weights.template rows_part<I>(tile),
                 tile + 1 < BLOCK_TILES ? weights.template rows_part<I>(tile + 1) : W::nothing());
    float first[TILES][2][4];
    block(first, 0, tile);
    if constexpr (C::order(I) == 2) {
      float left[TILES][2][4], right[TILES][2][4];
      if constexpr (!C::is_shared(I)) block(left, 1, tile);
      block(right, C::is_shared(I) ? 1 : 2, tile);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        float product[2][4];
#pragma unroll
        for (int e = 0; e < 8; e++) {
          const float l = C::is_shared(I) ? first[m][e >> 2][e & 3] : left[m][e >> 2][e & 3];
          product[e >> 2][e & 3] = l * right[m][e >> 2][e & 3];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) f[m][BLOCK_TILES + tile][i] = pack_word<PHI, C::features(I)>(product, i, tile);
      }
    }
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) f[m][tile][i] = pack_word<PHI, C::features(I)>(first[m], i, tile);
  }
}

// Evaluates matrices I and later on a. `visit` receives the inputs of each matrix with the norms of their rows, and
// each tile of outputs if it asks for them (OUTPUTS).
template <class C, int I, int TILES, class W, class Visitor>
EUGEN_FUNCTION void evaluate(const uint32 (&a)[TILES][C::k(I) / 16][4], W& weights, const Epsilons& eps, Visitor& visit) {
  float norms[TILES][2];
  if constexpr (C::has_norm(I)) stage_norms<C, I, TILES>(a, weights, eps.value[I], norms);
  visit.template inputs<I>(a, norms);
  if constexpr (I < C::stages) {
    uint32 f[TILES][C::k(I + 1) / 16][4];
    stage_features<C, I, TILES>(a, f, weights, norms);
    evaluate<C, I + 1, TILES>(f, weights, eps, visit);
  } else if constexpr (Visitor::OUTPUTS) {
    constexpr int OUT_TILES = C::n(I) / 16;
#pragma unroll
    for (int tile = 0; tile < OUT_TILES; tile++) {
      weights.need(weights.template rows_part<I>(tile),
                   tile + 1 < OUT_TILES ? weights.template rows_part<I>(tile + 1) : W::nothing());
      float c[TILES][2][4];
      project<C, I, TILES>(c, a, weights.template rows<I>(0, tile), weights.template offsets<I>() + tile * 16, nullptr,
                           norms);
      visit.output(c, tile);
    }
  }
}

}  // namespace eugen
