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

// Additions to memory take UNIT numbers at a time. Corners that are neighbors along x mostly lie in one sector of 32
// bytes, the unit of a memory access, if a sector has room for both. A group of LANES lanes adds the shares of such
// CORNERS together, one lane's sample after the other, so that an addition of the warp touches fewer sectors.
constexpr int UNIT = PAIRS_AT_ONCE && F % 2 == 0 ? 2 : 1;
constexpr int CORNERS = F <= 4 ? 2 : 1;
constexpr int LANES = CORNERS * F / UNIT;

// Number s of lane l of a group becomes number l of lane s.
template <class T>
EUGEN_FUNCTION void transpose(T (&v)[LANES]) {
  const int lane = lane_index();
#pragma unroll
  for (int bit = LANES / 2; bit > 0; bit /= 2)
#pragma unroll
    for (int s = 0; s < LANES; s++) {
      if (s & bit) continue;
      const bool upper = lane & bit;
      const T taken = shuffle_xor(upper ? v[s] : v[s | bit], bit);
      v[s] = upper ? taken : v[s];
      v[s | bit] = upper ? v[s | bit] : taken;
    }
}

// Adds all lanes' shares of CORNERS corners to grad_table, except where `adds` is false.
EUGEN_FUNCTION void add_corners(const uint32* corner_rows, const float (*share)[F], bool adds, float* grad_table) {
  const uint32 none = ~0u;
  uint32 rows[LANES];
  float values[UNIT][LANES];
#pragma unroll
  for (int s = 0; s < LANES; s++) {
    rows[s] = adds ? corner_rows[s * UNIT / F] : none;
#pragma unroll
    for (int u = 0; u < UNIT; u++) values[u][s] = share[s * UNIT / F][s * UNIT % F + u];
  }
  transpose(rows);
#pragma unroll
  for (int u = 0; u < UNIT; u++) transpose(values[u]);
  grad_table += lane_index() * UNIT % F;
#pragma unroll
  for (int s = 0; s < LANES; s++) {
    if (rows[s] == none) continue;
    float* const to = grad_table + size_t(rows[s]) * F;
    if constexpr (UNIT == 2)
      add_to_pair(to, values[0][s], values[UNIT - 1][s]);
    else
      add_to(to, values[0][s]);
  }
}

// Adds the corners' shares of a gradient to grad_table. Neighboring lanes (samples of the same ray) often lie in the same
// cell. Such a run is summed in registers and added by its first lane.
EUGEN_FUNCTION void scatter(const HashCell& cell, const float (&weights)[8], const float (&g)[F], bool active,
                            float* grad_table) {
  float share[8][F];
#pragma unroll
  for (int c = 0; c < 8; c++)
#pragma unroll
    for (int f = 0; f < F; f++) share[c][f] = active ? weights[c] * g[f] : 0.f;
  // Rows would not do to compare cells, because several vertices share a row of a hashed level.
  const int lane = lane_index();
  bool first = lane == 0;
  for (int a = 0; a < 3; a++) {
    const uint32 before = shuffle_up(cell.vertex[a], 1);
    first = first || before != cell.vertex[a];
  }
  const uint32 firsts = votes(first), later = firsts & ~(2u * (1u << lane) - 1);
  const int end = later ? lowest_bit(later) : 32;
#pragma unroll 1
  for (int step = 1; votes(lane + step < end); step *= 2)
#pragma unroll
    for (int c = 0; c < 8; c++)
#pragma unroll
      for (int f = 0; f < F; f++) {
        const float other = shuffle_down(share[c][f], step);
        if (lane + step < end) share[c][f] += other;
      }
#pragma unroll
  for (int c = 0; c < 8; c += CORNERS) add_corners(cell.rows + c, share + c, active && first, grad_table);
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
    scatter(cell, weights, g, active, grad_table);
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
