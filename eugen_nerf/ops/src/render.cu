// From rays to pixels in one persistent kernel that runs until the image is done.
//
// A warp carries 32 rays. In each round every lane marches to its next sample and encodes it, all lanes together
// evaluate both networks on tensor cores, and every lane composites. A lane whose ray has ended or become opaque takes
// the next ray of the image. Only pixels are written to memory.
//
// Constants set with -D: EUGEN_DENSITY_SPEC and EUGEN_COLOR_SPEC (packing.PackedChain.spec), EUGEN_WARPS,
// EUGEN_BLOCKS (resident on a multiprocessor), EUGEN_SHARED_BYTES, and those of grid.cuh.
#include "grid.cuh"
#include "harmonics.h"
#include "march.cuh"
#include "network_mma.cuh"

namespace eugen {

struct DensitySpec {
  static constexpr int in_row = 0;
  static constexpr int numbers[] = {EUGEN_DENSITY_SPEC};
};
struct ColorSpec {
  static constexpr int in_row = 0;
  static constexpr int numbers[] = {EUGEN_COLOR_SPEC};
};
typedef Chain<DensitySpec> Density;
typedef Chain<ColorSpec> Color;

enum { THREADS = EUGEN_WARPS * WARP, TILES = 2, HARMONICS = 16 };
constexpr int F = EUGEN_FEATURES, LEVELS = Density::in / F;
static_assert(Density::in == LEVELS * F, "the density network reads the hash grid's features");
static_assert(Color::in == HARMONICS + Density::out - 1 && Color::out == 3, "networks do not fit together");

typedef Weights<Density, false, THREADS> DensityWeights;
typedef Weights<Color, false, THREADS> ColorWeights;

// Shared memory for the inputs and outputs of the networks, for the 32 rays of a warp.
struct WarpMemory {
  uint16 encoded[WARP][Density::row(0)];
  uint16 color_inputs[WARP][Color::row(0)];  // harmonics of the direction, then the density network's other outputs
  alignas(16) float results[WARP][4];        // log density; color before the sigmoid
};
constexpr int WEIGHT_BYTES = DensityWeights::bytes + ColorWeights::bytes;
static_assert(WEIGHT_BYTES + EUGEN_WARPS * int(sizeof(WarpMemory)) == EUGEN_SHARED_BYTES, "shared memory");

// Loads 32 rows of shared memory as fragments.
template <int K>
EUGEN_FUNCTION void load_inputs(uint32 (&a)[TILES][K / 16][4], const uint16* rows, int ld) {
  const uint16* p = by_input(rows, ld);
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int k = 0; k < K / 16; k++) load_matrices(a[m][k], p + m * 16 * ld + k * 16);
}

struct DensityOutputs {
  WarpMemory& memory;
  static constexpr bool OUTPUTS = true;
  template <int I, class A, class N> EUGEN_MEMBER void inputs(const A&, const N&) {}
  EUGEN_MEMBER void output(const float (&c)[TILES][2][4], int tile) {
    const LanePlace place;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int e = 0; e < 8; e++) {
        const int row = m * 16 + place.row + (e & 2) * 4, column = tile * 16 + (e >> 2) * 8 + place.column + (e & 1);
        const float value = c[m][e >> 2][e & 3];
        if (column == 0)
          store_one(&memory.results[row][0], value);
        else if (column < Density::out)
          store_one(&memory.color_inputs[row][HARMONICS - 1 + column], uint16(pack_bounded(value, 0.f) & 0xffff));
      }
  }
};

struct ColorOutputs {
  WarpMemory& memory;
  static constexpr bool OUTPUTS = true;
  template <int I, class A, class N> EUGEN_MEMBER void inputs(const A&, const N&) {}
  EUGEN_MEMBER void output(const float (&c)[TILES][2][4], int tile) {
    const LanePlace place;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int e = 0; e < 8; e++) {
        const int row = m * 16 + place.row + (e & 2) * 4, column = tile * 16 + (e >> 2) * 8 + place.column + (e & 1);
        if (column < Color::out) store_one(&memory.results[row][1 + column], c[m][e >> 2][e & 3]);
      }
  }
};

EUGEN_FUNCTION void encode(Vec3 unit, const GridLevels& levels, const TableValue* table, uint16* row) {
#pragma unroll 4
  for (int l = 0; l < LEVELS; l++) {
    float sum[F];
    interpolate<F>(unit, levels.level(l), table, sum);
    if constexpr (F % 2 == 0) {
#pragma unroll
      for (int f = 0; f < F; f += 2) store_halves(row + l * F + f, pack_bounded(sum[f], sum[f + 1]));
    } else {
      store_one(row + l, uint16(pack_bounded(sum[0], 0.f) & 0xffff));
    }
  }
}

}  // namespace eugen

using namespace eugen;

// out [rays, 5]: rgb, alpha, depth; samples [rays]. next_ray must be 0 before the launch.
EUGEN_ROOMY_KERNEL(EUGEN_WARPS * WARP, EUGEN_BLOCKS)
render(const float* __restrict__ origins, const float* __restrict__ directions, const float* __restrict__ near,
       const float* __restrict__ far, int64 rays, const MarchArguments march, const uint8* __restrict__ bits,
       const uint8* __restrict__ blocks, const TableValue* __restrict__ table, const GridLevels levels, const float* __restrict__ density,
       const Epsilons density_eps, const float* __restrict__ color, const Epsilons color_eps, float min_transmittance,
       uint32* __restrict__ next_ray, float* __restrict__ out, int64* __restrict__ samples) {
  EUGEN_SHARED(memory);
  DensityWeights density_weights(density, nullptr, memory);
  ColorWeights color_weights(color, nullptr, memory + DensityWeights::bytes);
  WarpMemory& mine = reinterpret_cast<WarpMemory*>(memory + WEIGHT_BYTES)[warp_index()];
  const int lane = lane_index();
  for (int c = 0; c < Density::row(0); c += 2) store_halves(&mine.encoded[lane][c], 0);  // the padding stays zero
  for (int c = 0; c < Color::row(0); c += 2) store_halves(&mine.color_inputs[lane][c], 0);
  sync_warp();

  const March m = march.march(bits, blocks);
  const float opaque = -log(maximum(min_transmittance, 1e-30f));
  bool has_ray = false, more = true;
  int64 ray = 0;
  Walk walk;
  Step step;
  float total[5], optical = 0.f;
  int used = 0;
  while (true) {
    // March to the next sample of each lane; lanes whose ray has ended take the next rays.
    bool sampled = false;
    while (true) {
      if (has_ray && !sampled) {
        sampled = optical <= opaque && next_sample(m, walk, step);
        if (!sampled) {
          for (int c = 0; c < 5; c++) out[5 * ray + c] = total[c];
          samples[ray] = used;
          has_ray = false;
        }
      }
      const bool wants = !has_ray && more;
      const uint32 wanting = votes(wants);
      if (!wanting) break;
      const int speaker = lowest_bit(wanting);
      uint32 first = 0;
      if (lane == speaker) first = fetch_add(next_ray, uint32(count_bits(wanting)));
      first = shuffle(first, speaker);
      if (wants) {
        ray = int64(first) + count_bits(wanting & ((1u << lane) - 1));
        has_ray = more = ray < rays;
        if (has_ray) {
          const Vec3 direction = load3(directions + 3 * ray);
          walk = begin_walk(m, load3(origins + 3 * ray), direction, near[ray], far[ray], 0.5f);
          float harmonics[HARMONICS];
          spherical_harmonics(direction, harmonics);
#pragma unroll
          for (int c = 0; c < HARMONICS; c += 2)
            store_halves(&mine.color_inputs[lane][c], pack(harmonics[c], harmonics[c + 1]));
          for (int c = 0; c < 5; c++) total[c] = 0.f;
          optical = 0.f;
          used = 0;
        }
      }
    }
    if (!votes(sampled)) return;

    if (sampled) encode(step.unit, levels, table, mine.encoded[lane]);
    sync_warp();
    {
      uint32 a[TILES][Density::k(0) / 16][4];
      load_inputs<Density::k(0)>(a, mine.encoded[0], Density::row(0));
      DensityOutputs outputs{mine};
      evaluate<Density, 0, TILES>(a, density_weights, density_eps, outputs);
    }
    sync_warp();
    {
      uint32 a[TILES][Color::k(0) / 16][4];
      load_inputs<Color::k(0)>(a, mine.color_inputs[0], Color::row(0));
      ColorOutputs outputs{mine};
      evaluate<Color, 0, TILES>(a, color_weights, color_eps, outputs);
    }
    sync_warp();
    if (sampled) {
      float result[4];
      load_four(mine.results[lane], result);
      const float thickness = exp(minimum(80.f, result[0])) * (step.t_end - step.t_start);
      const float weight = exp(-optical) * -expm1f(-thickness);
      for (int c = 0; c < 3; c++) total[c] += weight / (1.f + exp(-result[1 + c]));
      total[3] += weight;
      total[4] += weight * 0.5f * (step.t_start + step.t_end);
      optical += thickness;
      used++;
    }
  }
}
