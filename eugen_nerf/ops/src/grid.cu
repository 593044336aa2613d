// Kernels of the hash grid; constants as in grid.cuh.
#include "grid.cuh"

using namespace eugen;

namespace eugen {

constexpr int F = EUGEN_FEATURES;

// Number of levels that one thread evaluates. Together they produce 32 bytes of output, the smallest unit of a memory
// write, and their tables fit into the L2 cache while all positions are processed.
constexpr int GROUP = F >= 8 ? 1 : 8 / F;

enum { THREADS = 128 };

}  // namespace eugen

// x [n, 3], table -> out [n, levels * F]. Block (i, j) starts at position 128 i and level GROUP j.
EUGEN_KERNEL(128)
hash_encode_forward(const float* __restrict__ x, const TableValue* __restrict__ table, const GridLevels levels, int64 n,
                    float* __restrict__ out) {
  const int64 i = int64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const Vec3 unit = load3(x + 3 * i);
  const int first = int(blockIdx.y) * GROUP, count = levels.count - first < GROUP ? levels.count - first : GROUP;
  float sums[GROUP * F];
#pragma unroll
  for (int l = 0; l < GROUP; l++) {
    float sum[F];
    if (l < count) interpolate<F>(unit, levels.level(first + l), table, sum);
#pragma unroll
    for (int f = 0; f < F; f++) sums[l * F + f] = sum[f];
  }
  float* to = out + (i * levels.count + first) * F;
  if (count == GROUP && levels.count * F % 4 == 0) {
#pragma unroll
    for (int f = 0; f < GROUP * F; f += 4) store_four(to + f, {sums[f], sums[f + 1], sums[f + 2], sums[f + 3]});
  } else {
#pragma unroll
    for (int f = 0; f < GROUP * F; f++)
      if (f < count * F) to[f] = sums[f];
  }
}

namespace eugen {

// Adds `share` to a row of grad_table if `adds` is true. For GPUs that can only add one value to memory at a time: two
// neighboring lanes first add one lane's pair of values together, then the other's, so that each of the warp's
// additions touches half as many places.
EUGEN_FUNCTION void add_with_neighbor(uint32 row, const float (&share)[F], bool adds, float* grad_table) {
  const uint32 none = ~0u, mine = adds ? row : none, other = shuffle_xor(mine, 1);
  const bool odd = lane_index() & 1;
  const uint32 of_even = odd ? other : mine, of_odd = odd ? mine : other;
#pragma unroll
  for (int f = 0; f + 1 < F; f += 2) {
    const float taken = shuffle_xor(odd ? share[f] : share[f + 1], 1);
    if (of_even != none) add_to(grad_table + size_t(of_even) * F + f + odd, odd ? taken : share[f]);
    if (of_odd != none) add_to(grad_table + size_t(of_odd) * F + f + odd, odd ? share[f + 1] : taken);
  }
}

// Adds the corners' shares of a gradient to grad_table. In a dense level, neighboring lanes (samples of the same ray)
// often lie in the same cell. Such a run is summed in registers and added by its first lane.
template <bool DENSE>
EUGEN_FUNCTION void scatter(const HashCell& cell, const float (&weights)[8], const float (&g)[F], bool active,
                            float* grad_table) {
  float share[8][F];
#pragma unroll
  for (int c = 0; c < 8; c++)
#pragma unroll
    for (int f = 0; f < F; f++) share[c][f] = active ? weights[c] * g[f] : 0.f;
  bool adds = active;
  if (DENSE) {
    const int lane = lane_index();
    const uint32 key = active ? cell.rows[0] : ~0u, before = shuffle_up(key, 1);
    const bool first = lane == 0 || before != key;
    const uint32 firsts = votes(first);
    adds = active && first;
    if (firsts != ~0u) {
      const uint32 later = firsts & ~(2u * (1u << lane) - 1);
      const int end = later ? lowest_bit(later) : 32;
#pragma unroll
      for (int step = 1; step < 32; step *= 2)
#pragma unroll
        for (int c = 0; c < 8; c++)
#pragma unroll
          for (int f = 0; f < F; f++) {
            const float other = shuffle_down(share[c][f], step);
            if (lane + step < end) share[c][f] += other;
          }
    }
  }
#pragma unroll
  for (int c = 0; c < 8; c++) {
    float* const to = grad_table + size_t(cell.rows[c]) * F;
    if constexpr (F % 2 != 0) {
      if (adds) add_to(to, share[c][0]);
    } else if constexpr (PAIRS_AT_ONCE) {
#pragma unroll
      for (int f = 0; f < F; f += 2)
        if (adds) add_to_pair(to + f, share[c][f], share[c][f + 1]);
    } else {
      add_with_neighbor(cell.rows[c], share[c], adds, grad_table);
    }
  }
}

}  // namespace eugen

// Scatters grad [n, levels * F] to grad_table by addition.
EUGEN_ROOMY_KERNEL(128, 1)
hash_encode_backward(const float* __restrict__ x, const GridLevels levels, int64 n, const float* __restrict__ grad,
                     float* __restrict__ grad_table) {
  const int64 i = int64(blockIdx.x) * THREADS + threadIdx.x;
  const bool active = i < n;  // inactive lanes stay, because the sums need all lanes of a warp
  const Vec3 unit = active ? load3(x + 3 * i) : Vec3{0.f, 0.f, 0.f};
#pragma unroll 1
  for (int l = 0; l < GROUP; l++) {
    const int number = int(blockIdx.y) * GROUP + l;
    if (number >= levels.count) break;
    const HashLevel level = levels.level(number);
    const HashCell cell = hash_cell(unit, level);
    float weights[8], g[F];
    corner_weights(cell, weights);
    for (int f = 0; f < F; f++) g[f] = active ? grad[(i * levels.count + number) * F + f] : 0.f;
    if (level.dense)
      scatter<true>(cell, weights, g, active, grad_table);
    else
      scatter<false>(cell, weights, g, active, grad_table);
  }
}

// grad_x [n, 3] from grad [n, levels * F].
EUGEN_KERNEL(128)
hash_encode_position_gradient(const float* __restrict__ x, const TableValue* __restrict__ table, const GridLevels levels,
                              int64 n, const float* __restrict__ grad, float* __restrict__ grad_x) {
  const int64 i = int64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const Vec3 unit = load3(x + 3 * i);
  const float position[3] = {unit.x, unit.y, unit.z};
  float total[3] = {0.f, 0.f, 0.f};
  for (int l = 0; l < levels.count; l++) {
    const HashLevel level = levels.level(l);
    const HashCell cell = hash_cell(unit, level);
    const float* g = grad + (i * levels.count + l) * F;
#pragma unroll
    for (int c = 0; c < 8; c++) {
      float row[F], dot = 0.f;
      load_row<F>(table, cell.rows[c], row);
      for (int f = 0; f < F; f++) dot += g[f] * row[f];
      for (int a = 0; a < 3; a++) total[a] += dot * corner_slope(cell, c, a) * float(level.resolution);
    }
  }
  // Clamped positions have no gradient. Like PyTorch, this includes positions on the faces of the cube.
  for (int a = 0; a < 3; a++) grad_x[3 * i + a] = position[a] > 0.f && position[a] < 1.f ? total[a] : 0.f;
}
