// Gradients of a merged chain on tensor cores.
//
// Nothing is stored by the forward pass: a block recomputes its rows' activations and keeps them in shared memory.
// Then, for each matrix from last to first, all warps together add gradient^T x activations over the block's rows to
// the gradient of the weights, and each warp propagates the gradient of its own rows to the matrix's inputs.
//
// The activations of each row are followed by a 1 and the row's norm, in its padding columns, so that the same product
// also sums the gradients of the offsets and the norm column.
#pragma once
#include "network_mma.cuh"

namespace eugen {

// Incoming gradients are multiplied by a power of two that brings the largest one near 2^TARGET_EXPONENT, because
// halves lose values below 2^-24 and cannot represent values above 2^16.
enum { TARGET_EXPONENT = 5 };

// The factor for gradients whose largest magnitude has these bits. It is NaN if that magnitude is infinite or NaN, so
// that a loss scaler sees it in every gradient.
EUGEN_FUNCTION float gradient_scale(uint32 largest) {
  const int exponent = int(largest >> 23);  // biased by 127
  if (exponent == 0) return 1.f;
  if (exponent == 255) return float_from_bits(0x7fc00000u);
  int scale = 127 + 127 + TARGET_EXPONENT - exponent;
  scale = scale < 1 ? 1 : scale > 253 ? 253 : scale;  // so that the inverse is a normal number, too
  return float_from_bits(uint32(scale) << 23);
}

// How the 16 x 16 tiles of matrix I's gradient are divided among warps: in blocks of `rows` x `columns` tiles, of which a
// warp has `own` at most. A block's tiles share the fragments that they are products of. Among the blocks of at most
// `most` tiles, these need the fewest fragments without giving a warp more tiles.
template <class C, int I, int WARPS, int MOST>
struct GradientBlocks {
  static constexpr int down = C::n(I) / 16, across = C::k(I) / 16;
  static constexpr int least = (down * across + WARPS - 1) / WARPS;  // tiles of a warp
  static constexpr int each(int blocks) { return (blocks + WARPS - 1) / WARPS; }
  static constexpr int best(bool want_rows) {
    int rows = 1, columns = 1, fragments = 2 * least;
    for (int r = 1; r <= down; r++)
      for (int c = 1; c <= across; c++) {
        if (r * c > MOST || down % r != 0 || across % c != 0) continue;
        const int blocks = each(down / r * (across / c));
        if (blocks * r * c > least || blocks * (r + c) >= fragments) continue;
        rows = r, columns = c, fragments = blocks * (r + c);
      }
    return want_rows ? rows : columns;
  }
  static constexpr int rows = best(true), columns = best(false);
  static constexpr int count = down / rows * (across / columns), own = each(count);
};

// A warp's share of the weight gradient of matrix I: blocks of tiles, and 16 x 8 tiles of offsets and norm column.
template <class C, int I, int WARPS>
struct MatrixSums {
  typedef GradientBlocks<C, I, WARPS, 16> Blocks;
  static constexpr int own = Blocks::own, tiles = Blocks::rows * Blocks::columns;
  static constexpr bool has_vectors = C::has_offsets(I) || C::has_norm(I);
  static constexpr int vectors = has_vectors ? (C::n(I) / 16 + WARPS - 1) / WARPS : 0;
  float weights[own][tiles][2][4];
  float vector[vectors ? vectors : 1][4];

  EUGEN_MEMBER void clear() {
#pragma unroll
    for (int j = 0; j < own * tiles; j++)
#pragma unroll
      for (int e = 0; e < 8; e++) weights[j / tiles][j % tiles][e >> 2][e & 3] = 0.f;
#pragma unroll
    for (int j = 0; j < vectors; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) vector[j][e] = 0.f;
  }
};

template <class C, int I, int WARPS>
struct ChainSums {
  MatrixSums<C, I, WARPS> own;
  ChainSums<C, I - 1, WARPS> rest;
};
template <class C, int WARPS>
struct ChainSums<C, -1, WARPS> {};

struct NoSums {};  // weight gradients are added to memory immediately

// Each warp processes TILES tiles of 16 rows. KEEP_SUMS: weight gradients stay in registers until the end; otherwise
// they are added to memory after each step.
template <class C, int WARPS, int TILES, bool STREAMED, bool KEEP_SUMS>
struct Backward {
  typedef Weights<C, STREAMED, WARPS * WARP> ChainWeights;
  static constexpr int rows = WARPS * TILES * 16;
  static constexpr int gradient_row = C::widest_out() + ROW_PADDING;
  static constexpr int bytes =
      ChainWeights::bytes + 2 * rows * (gradient_row + [] {
        int sum = 0;
        for (int i = 0; i <= C::stages; i++) sum += C::row(i);
        return sum;
      }());

  static constexpr int activations_before(int i) {
    int sum = 0;
    for (int j = 0; j < i; j++) sum += rows * C::row(j);
    return sum;
  }

  // Whether the outputs of matrix I depend on the norm of its inputs.
  static constexpr bool pulls(int i) { return C::has_norm(i) && C::norm_rows(i) == 0; }

  ChainWeights weights;
  uint16* activations;
  uint16* gradient;  // gradient of the current matrix's outputs
  float inverse_scale;
  float* grad_parameters;

  // The visitor of evaluate() that stores the inputs of every matrix in shared memory.
  static constexpr bool OUTPUTS = false;
  template <int I>
  EUGEN_MEMBER void inputs(const uint32 (&a)[TILES][C::k(I) / 16][4], const float (&norms)[TILES][2]) {
    uint16* to = activations + activations_before(I) + warp_index() * 16 * TILES * C::row(I);
    store_fragments<C::k(I)>(a, to, C::row(I));
    const LanePlace place;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float norm = C::has_norm(I) ? norms[m][half] : 0.f;
        const uint32 word = place.column == 0 ? pack_bounded(1.f, norm) : 0u;
        store_halves(to + (m * 16 + half * 8 + place.row) * C::row(I) + C::k(I) + place.column, word);
      }
  }

  template <int K>
  EUGEN_MEMBER void store_fragments(const uint32 (&a)[TILES][K / 16][4], uint16* to, int ld) {
    const LanePlace place;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int k = 0; k < K / 16; k++)
          store_halves(to + (m * 16 + place.row + (i & 1) * 8) * ld + k * 16 + (i >> 1) * 8 + place.column, a[m][k][i]);
  }

  // Word i of tile k of the inputs of matrix I, which the same lane has stored.
  template <int I>
  EUGEN_MEMBER uint32 own_word(int m, int k, int i) const {
    const LanePlace place;
    const int row = warp_index() * 16 * TILES + m * 16 + place.row + (i & 1) * 8;
    return load_halves(activations + activations_before(I) + row * C::row(I) + k * 16 + (i >> 1) * 8 + place.column);
  }

  template <int I>
  EUGEN_MEMBER void own_inputs(uint32 (&a)[TILES][C::k(I) / 16][4]) const {
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int k = 0; k < C::k(I) / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[m][k][i] = own_word<I>(m, k, i);
  }

  // gradient^T [activations 1 norm] over all rows of the block, added to sums, or to memory if sums are not kept.
  template <int I>
  EUGEN_MEMBER void add_products(MatrixSums<C, I, WARPS>& sums) {
    typedef typename MatrixSums<C, I, WARPS>::Blocks Blocks;
#pragma unroll
    for (int j = 0; j < sums.own; j++)
      if (warp_index() + j * WARPS < Blocks::count) add_product<I, Blocks>(sums.weights[j], warp_index() + j * WARPS);
#pragma unroll
    for (int j = 0; j < sums.vectors; j++)
      if (warp_index() + j * WARPS < C::n(I) / 16) add_vector_product<I>(sums.vector[j], warp_index() + j * WARPS);
  }
  template <int I>
  EUGEN_MEMBER void add_products(NoSums&) {
    typedef MatrixSums<C, I, WARPS> Sums;
    typedef GradientBlocks<C, I, WARPS, 4> Blocks;
#pragma unroll 1
    for (int block = warp_index(); block < Blocks::count; block += WARPS) {
      float sum[Blocks::rows * Blocks::columns][2][4] = {};
      add_product<I, Blocks>(sum, block);
      flush_weights<I, Blocks>(sum, block);
      sync_warp();  // lanes in the padding add nothing, and must rejoin for the next products
    }
    if constexpr (Sums::has_vectors) {
#pragma unroll 1
      for (int tile = warp_index(); tile < C::n(I) / 16; tile += WARPS) {
        float sum[4] = {};
        add_vector_product<I>(sum, tile);
        flush_vectors<I>(sum, tile);
        sync_warp();
      }
    }
  }

  template <int I, class Blocks>
  EUGEN_MEMBER void add_product(float (&sum)[Blocks::rows * Blocks::columns][2][4], int block) {
    constexpr int WIDE = Blocks::across / Blocks::columns, LD = C::row(I);
    const uint16* left = by_output(gradient + block / WIDE * Blocks::rows * 16, gradient_row);
    const uint16* right = by_input(activations + activations_before(I) + block % WIDE * Blocks::columns * 16, LD);
#pragma unroll
    for (int r = 0; r < rows; r += 16) {
      uint32 a[Blocks::rows][4];
#pragma unroll
      for (int i = 0; i < Blocks::rows; i++) load_matrices_transposed(a[i], left + r * gradient_row + i * 16);
#pragma unroll
      for (int j = 0; j < Blocks::columns; j++) {
        uint32 b[4];
        load_matrices_transposed(b, right + r * LD + j * 16);
#pragma unroll
        for (int i = 0; i < Blocks::rows; i++) {
          multiply_add(sum[i * Blocks::columns + j][0], a[i], b[0], b[1]);
          multiply_add(sum[i * Blocks::columns + j][1], a[i], b[2], b[3]);
        }
      }
    }
  }
  template <int I>
  EUGEN_MEMBER void add_vector_product(float (&sum)[4], int tile) {
    constexpr int LD = C::row(I);
    const uint16* left = by_output(gradient + tile * 16, gradient_row);
    const uint16* right = activations + activations_before(I) + (lane_index() & 15) * LD + C::k(I);
#pragma unroll
    for (int r = 0; r < rows; r += 16) {
      uint32 a[4], b[2];
      load_matrices_transposed(a, left + r * gradient_row);
      load_two_matrices_transposed(b, right + r * LD);
      multiply_add(sum, a, b[0], b[1]);
    }
  }

  // Add the sums of a block of tiles, or of a tile of vectors, to grad_parameters, in the packed order.
  template <int I, class Blocks>
  EUGEN_MEMBER void flush_weights(const float (&sum)[Blocks::rows * Blocks::columns][2][4], int block) {
    constexpr int WIDE = Blocks::across / Blocks::columns;
    const LanePlace place;
#pragma unroll
    for (int e = 0; e < 8 * Blocks::rows * Blocks::columns; e += 2) {
      const int tile = e / 8, h = e >> 2 & 1, q = e & 3;
      const int r = (block / WIDE * Blocks::rows + tile / Blocks::columns) * 16 + place.row + (q >> 1) * 8;
      const int c = (block % WIDE * Blocks::columns + tile % Blocks::columns) * 16 + h * 8 + place.column;
      const float low = sum[tile][h][q] * inverse_scale, high = sum[tile][h][q + 1] * inverse_scale;
      const int to = C::template weight_place<I>(r, c);
      if constexpr (C::has_pairs(I)) {
        if (to >= 0) add_to_pair(grad_parameters + to, low, high);
      } else {
        const int next = C::template weight_place<I>(r, c + 1);
        if (to >= 0) add_to(grad_parameters + to, low);
        if (next >= 0) add_to(grad_parameters + next, high);
      }
    }
  }
  template <int I>
  EUGEN_MEMBER void flush_vectors(const float (&sum)[4], int tile) {
    const LanePlace place;
    if (place.column != 0) return;  // column 0 belongs to the 1, column 1 to the norm
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = tile * 16 + place.row + half * 8;
      const int offset = C::template offset_place<I>(r), norm = C::template norm_place<I>(r);
      if (offset >= 0) add_to(grad_parameters + offset, sum[2 * half] * inverse_scale);
      if (norm >= 0) add_to(grad_parameters + norm, sum[2 * half + 1] * inverse_scale);
    }
  }

  // The norm n of values v contributes v (g . column) / n to their gradient. This computes the factor of v for each
  // row, for the inputs v of matrix I.
  template <int I>
  EUGEN_MEMBER void norm_pull(const uint32 (&g)[TILES][C::n(I) / 16][4], float eps, float (&pull)[TILES][2]) {
    float norms[TILES][2];
    {
      uint32 a[TILES][C::k(I) / 16][4];
      own_inputs<I>(a);
      row_norms<TILES, C::k(I)>(a, eps, norms);
    }
    norm_pull<I>(g, norms, pull);
  }
  // For values v that are among the matrix's outputs: writes their gradient to g.
  template <int I>
  EUGEN_MEMBER void norm_gradient(uint32 (&g)[TILES][C::n(I) / 16][4], float eps) {
    constexpr int FIRST = C::projected(I) / 16;
    float norms[TILES][2], pull[TILES][2];
    {
      uint32 a[TILES][C::k(I) / 16][4];
      own_inputs<I>(a);
      stage_norms<C, I, TILES>(a, weights, eps, norms, [&](const float (&c)[TILES][2][4], int tile) {
#pragma unroll
        for (int m = 0; m < TILES; m++)
#pragma unroll
          for (int i = 0; i < 4; i++) g[m][FIRST + tile][i] = pack_word(c[m], i);
      });
    }
    norm_pull<I>(g, norms, pull);
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int n = FIRST; n < C::n(I) / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float factor = pull[m][i & 1];
          g[m][n][i] = pack_bounded(factor * low_half(g[m][n][i]), factor * high_half(g[m][n][i]));
        }
  }
  template <int I>
  EUGEN_MEMBER void norm_pull(const uint32 (&g)[TILES][C::n(I) / 16][4], const float (&norms)[TILES][2],
                              float (&pull)[TILES][2]) {
    const LanePlace place;
    const float* column = weights.template norm_column<I>();
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < C::projected(I) / 16; n++)
#pragma unroll
          for (int i = half; i < 4; i += 2) {
            const int at = n * 16 + (i >> 1) * 8 + place.column;
            sum += low_half(g[m][n][i]) * column[at] + high_half(g[m][n][i]) * column[at + 1];
          }
        pull[m][half] = sum_of_row(sum) / norms[m][half];
      }
  }

  // Gradient c of the inputs of matrix I in tile k, from the gradient g of its outputs. `next` is as in Weights::need.
  template <int I>
  EUGEN_MEMBER void input_gradient(float (&c)[TILES][2][4], const uint32 (&g)[TILES][C::n(I) / 16][4], int k,
                                     const float (&pull)[TILES][2], const typename ChainWeights::Part& next) {
    weights.need(weights.template columns_part<I>(k), next);
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float low = 0.f, high = 0.f;
        if constexpr (pulls(I)) {
          const uint32 word = own_word<I>(m, k, i);
          low = pull[m][i & 1] * low_half(word), high = pull[m][i & 1] * high_half(word);
        }
        c[m][i >> 1][2 * (i & 1)] = low, c[m][i >> 1][2 * (i & 1) + 1] = high;
      }
    constexpr int LD = ChainWeights::template columns_ld<I>();
    const uint16* p = by_input(weights.template columns<I>(k), LD);
#pragma unroll
    for (int n = 0; n < C::n(I) / 16; n++) {
      uint32 b[4];
      load_matrices_transposed(b, p + n * 16 * LD);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        multiply_add(c[m][0], g[m][n], b[0], b[1]);
        multiply_add(c[m][1], g[m][n], b[2], b[3]);
      }
    }
  }

  // From the gradient g of matrix I's outputs to the gradient of matrix I - 1's outputs.
  template <int I>
  EUGEN_MEMBER void stage_gradient(const uint32 (&g)[TILES][C::n(I) / 16][4],
                                     uint32 (&du)[TILES][C::n(I - 1) / 16][4], const Epsilons& eps) {
    constexpr int S = I - 1, BLOCK = C::out_padded(S), BLOCK_TILES = BLOCK / 16;
    constexpr Phi PHI = C::phi(S);
    // The slope of identity and ReLU can be read off the features. Other slopes, and the factors of products, need the
    // projections, which are recomputed from the stage's inputs.
    constexpr bool PRODUCTS = C::order(S) == 2, SHARED = PRODUCTS && C::is_shared(S);
    constexpr bool SHOWN = (PHI == IDENTITY_PHI || PHI == RELU_PHI) && !SHARED;
    float pull[TILES][2];
    if constexpr (pulls(I)) norm_pull<I>(g, eps.value[I], pull);
    uint32 a[TILES][C::k(S) / 16][4];
    float norms[TILES][2];
    if constexpr (!SHOWN || PRODUCTS) {
      own_inputs<S>(a);
      if constexpr (C::has_norm(S)) stage_norms<C, S, TILES>(a, weights, eps.value[S], norms);
    }
    const auto block = [&](float (&c)[TILES][2][4], int b, int tile) {
      const int at = b * BLOCK + tile * 16;
      const float* column = C::has_norm(S) ? weights.template norm_column<S>() + at : nullptr;
      project<C, S, TILES>(c, a, weights.template rows<S>(b, tile), weights.template offsets<S>() + at, column, norms);
    };
#pragma unroll
    for (int tile = 0; tile < BLOCK_TILES; tile++) {
      float first[TILES][2][4], second[TILES][2][4];  // gradients of the features of order 1 and 2
      const auto projections = weights.template rows_part<S>(tile);
      const auto later = tile + 1 < BLOCK_TILES ? weights.template columns_part<I>(tile + 1) : ChainWeights::nothing();
      const auto other = PRODUCTS ? weights.template columns_part<I>(BLOCK_TILES + tile) : SHOWN ? later : projections;
      input_gradient<I>(first, g, tile, pull, other);
      if constexpr (PRODUCTS) input_gradient<I>(second, g, BLOCK_TILES + tile, pull, projections);
      if constexpr (!SHOWN || PRODUCTS) weights.need(projections, later);
      float single[TILES][2][4], left[TILES][2][4], right[TILES][2][4];
      if constexpr (!SHOWN) block(single, 0, tile);
      if constexpr (PRODUCTS && !SHARED) block(left, 1, tile);
      if constexpr (PRODUCTS) block(right, SHARED ? 1 : 2, tile);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        if constexpr (!SHOWN) {
#pragma unroll
          for (int e = 0; e < 8; e++) first[m][e >> 2][e & 3] *= slope(PHI, single[m][e >> 2][e & 3]);
        }
        if constexpr (PRODUCTS) {
#pragma unroll
          for (int e = 0; e < 8; e++) {
            const float l = SHARED ? single[m][e >> 2][e & 3] : left[m][e >> 2][e & 3], r = right[m][e >> 2][e & 3];
            const float passed = second[m][e >> 2][e & 3] * slope(PHI, l * r);
            if constexpr (SHARED)
              first[m][e >> 2][e & 3] += passed * r;
            else
              left[m][e >> 2][e & 3] = passed * r;
            right[m][e >> 2][e & 3] = passed * l;
          }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
          du[m][tile][i] = pack_word(first[m], i);
          if constexpr (SHOWN && PHI == RELU_PHI)
            du[m][tile][i] = where_positive(du[m][tile][i], own_word<I>(m, tile, i));
          if constexpr (PRODUCTS && !SHARED) du[m][BLOCK_TILES + tile][i] = pack_word(left[m], i);
          if constexpr (PRODUCTS) du[m][(SHARED ? 1 : 2) * BLOCK_TILES + tile][i] = pack_word(right[m], i);
        }
      }
    }
    if constexpr (C::norm_rows(S) != 0) norm_gradient<S>(du, eps.value[S]);
  }

  // Processes matrices I to 0. g is the gradient of matrix I's outputs, not yet in shared memory.
  template <int I, class Io, class Sums>
  EUGEN_MEMBER void descend(const uint32 (&g)[TILES][C::n(I) / 16][4], const Epsilons& eps, Io* grad_x, int64 first,
                              int64 n, Sums& sums) {
    sync_block();  // the gradient of the matrix before has been read
    store_fragments<C::n(I)>(g, gradient + warp_index() * 16 * TILES * gradient_row, gradient_row);
    sync_block();
    add_products<I>(own_of(sums));
    if constexpr (I > 0) {
      uint32 du[TILES][C::n(I - 1) / 16][4];
      stage_gradient<I>(g, du, eps);
      descend<I - 1>(du, eps, grad_x, first, n, rest_of(sums));
    } else if (grad_x) {
      float pull[TILES][2];
      if constexpr (pulls(I)) norm_pull<I>(g, eps.value[I], pull);
      constexpr int IN_TILES = C::k(I) / 16;
#pragma unroll
      for (int k = 0; k < IN_TILES; k++) {
        float c[TILES][2][4];
        const auto later = k + 1 < IN_TILES ? weights.template columns_part<I>(k + 1) : ChainWeights::nothing();
        input_gradient<I>(c, g, k, pull, later);
        store_sums<C::in_fours, TILES, C::in, C::in_row>(c, k, grad_x, first, n, inverse_scale);
      }
    }
  }

  template <int I>
  static EUGEN_MEMBER MatrixSums<C, I, WARPS>& own_of(ChainSums<C, I, WARPS>& sums) { return sums.own; }
  static EUGEN_MEMBER NoSums& own_of(NoSums& sums) { return sums; }
  template <int I>
  static EUGEN_MEMBER ChainSums<C, I - 1, WARPS>& rest_of(ChainSums<C, I, WARPS>& sums) { return sums.rest; }
  static EUGEN_MEMBER NoSums& rest_of(NoSums& sums) { return sums; }

  template <int I>
  static EUGEN_MEMBER void clear(ChainSums<C, I, WARPS>& sums) {
    sums.own.clear();
    if constexpr (I > 0) clear<I - 1>(sums.rest);
  }
  static EUGEN_MEMBER void clear(NoSums&) {}
  template <int I>
  EUGEN_MEMBER void flush_all(const ChainSums<C, I, WARPS>& sums) {
    typedef MatrixSums<C, I, WARPS> Own;
#pragma unroll
    for (int j = 0; j < Own::own; j++)
      if (warp_index() + j * WARPS < Own::Blocks::count)
        flush_weights<I, typename Own::Blocks>(sums.own.weights[j], warp_index() + j * WARPS);
#pragma unroll
    for (int j = 0; j < Own::vectors; j++)
      if (warp_index() + j * WARPS < C::n(I) / 16) flush_vectors<I>(sums.own.vector[j], warp_index() + j * WARPS);
    if constexpr (I > 0) flush_all<I - 1>(sums.rest);
  }
  EUGEN_MEMBER void flush_all(const NoSums&) {}

  template <bool B, class T, class F> struct Choose { typedef T type; };
  template <class T, class F> struct Choose<false, T, F> { typedef F type; };

  template <class Io>
  EUGEN_MEMBER void run(const Io* x, const Epsilons& eps, int64 n, const Io* grad_out, float scale, Io* grad_x) {
    inverse_scale = 1.f / scale;
    typename Choose<KEEP_SUMS, ChainSums<C, C::stages, WARPS>, NoSums>::type sums;
    clear(sums);
    for (int64 base = int64(blockIdx.x) * rows; base < n; base += int64(gridDim.x) * rows) {
      const int64 first = base + warp_index() * 16 * TILES;
      uint32 a[TILES][C::k(0) / 16][4];
      load_rows<C::in_fours, TILES, C::in, C::in_row, C::k(0)>(a, x, first, n);
      sync_block();  // the activations of the rows before have been read
      evaluate<C, 0, TILES>(a, weights, eps, *this);
      uint32 g[TILES][C::n(C::stages) / 16][4];
      load_rows<C::out_fours, TILES, C::out, C::out, C::n(C::stages)>(g, grad_out, first, n, scale);
      descend<C::stages>(g, eps, grad_x, first, n, sums);
    }
    flush_all(sums);
  }
};

}  // namespace eugen
