// Kernels along rays: spherical harmonics of directions, marching, sample positions, compositing. Where the number of
// samples differs between rays, each warp processes one ray, so that all lanes stay busy until the ray ends.
#include "composite.cuh"
#include "harmonics.h"
#include "march.cuh"

using namespace eugen;

namespace eugen {

enum { THREADS = 128 };

EUGEN_FUNCTION int64 thread_number() { return int64(blockIdx.x) * THREADS + threadIdx.x; }
EUGEN_FUNCTION int64 warp_number() { return thread_number() / WARP; }

// Samples [begin, end) of ray r. Invalid offsets must not lead outside of the arrays.
struct Range {
  int64 begin, end;
};
EUGEN_FUNCTION Range samples_of(const int64* offsets, int64 r, int64 n) {
  Range range{offsets[r], offsets[r + 1]};
  range.begin = range.begin < 0 ? 0 : range.begin > n ? n : range.begin;
  range.end = range.end < range.begin ? range.begin : range.end > n ? n : range.end;
  return range;
}

// Arrays [n, width] with a row for each sample, and where some of the rows are copied to.
enum { MAX_ARRAYS = 8 };
struct RowArrays {
  int width[MAX_ARRAYS];
  const float* from[MAX_ARRAYS];
  float* to[MAX_ARRAYS];
};

}  // namespace eugen

// [n, 3] -> [n, 16].
EUGEN_KERNEL(128) spherical_harmonics(const float* __restrict__ directions, int64 n, float* __restrict__ out) {
  const int64 i = thread_number();
  if (i >= n) return;
  float row[16];
  eugen::spherical_harmonics(load3(directions + 3 * i), row);
  for (int k = 0; k < 16; k += 4) {
    const float four[4] = {row[k], row[k + 1], row[k + 2], row[k + 3]};
    store_four(out + 16 * i + k, four);
  }
}

// Whether any cell of each block of BLOCK^3 cells is occupied: blocks [blocks_along_axis(resolution)^3].
EUGEN_KERNEL(128) occupied_blocks(const uint8* __restrict__ bits, int resolution, uint8* __restrict__ blocks) {
  const int64 i = thread_number(), side = blocks_along_axis(resolution), r = resolution;
  if (i >= side * side * side) return;
  const int64 low[3] = {i % side * BLOCK, i / side % side * BLOCK, i / (side * side) * BLOCK};
  bool any = false;
  for (int64 z = low[2]; z < low[2] + BLOCK && z < r; z++)
    for (int64 y = low[1]; y < low[1] + BLOCK && y < r; y++)
      for (int64 x = low[0]; x < low[0] + BLOCK && x < r; x++) {
        const int64 cell = (z * r + y) * r + x;
        any = any || (bits[cell >> 3] >> (cell & 7) & 1);
      }
  blocks[i] = any;
}

// The number of samples of each ray: counts [rays]; one warp for each ray.
EUGEN_KERNEL(128)
march_count(const float* __restrict__ origins, const float* __restrict__ directions, const float* __restrict__ near,
            const float* __restrict__ far, const float* __restrict__ jitter, int64 rays, const MarchArguments arguments,
            const uint8* __restrict__ bits, const uint8* __restrict__ blocks, int64* __restrict__ counts) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const March m = arguments.march(bits, blocks);
  Walk walk = begin_walk(m, load3(origins + 3 * r), load3(directions + 3 * r), near[r], far[r], jitter[r]);
  Step step;
  int64 count = 0;
  while (walk.number < walk.count) count += count_bits(next_samples(m, walk, step));
  if (lane_index() == 0) counts[r] = count;
}

// Repeats the walk and writes t_start, t_end [n] at the offsets that follow from the counts. The compiler may round
// differently in this kernel and in march_count, so that this one may find fewer samples; empty samples fill the gap.
EUGEN_KERNEL(128)
march_write(const float* __restrict__ origins, const float* __restrict__ directions, const float* __restrict__ near,
            const float* __restrict__ far, const float* __restrict__ jitter, int64 rays, const MarchArguments arguments,
            const uint8* __restrict__ bits, const uint8* __restrict__ blocks, const int64* __restrict__ offsets,
            float* __restrict__ t_start, float* __restrict__ t_end) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const March m = arguments.march(bits, blocks);
  Walk walk = begin_walk(m, load3(origins + 3 * r), load3(directions + 3 * r), near[r], far[r], jitter[r]);
  Step step = {};
  const uint32 lanes_before = (1u << lane_index()) - 1;
  float stop = near[r];  // the end of the last sample
  int64 begin = offsets[r];
  const int64 end = offsets[r + 1];
  while (begin < end && walk.number < walk.count) {
    const uint32 samples = next_samples(m, walk, step);
    const int64 i = begin + count_bits(samples & lanes_before);
    if (samples >> lane_index() & 1 && i < end) {
      t_start[i] = step.t_start;
      t_end[i] = step.t_end;
    }
    const float last = shuffle(step.t_end, samples ? highest_bit(samples) : 0);
    if (samples) stop = last;
    begin += count_bits(samples);
  }
  for (int64 i = begin + lane_index(); i < end; i += WARP) t_start[i] = t_end[i] = stop;
}

// Positions in the unit cube, unit [n, 3], and directions, view [n, 3]; one warp for each ray.
EUGEN_KERNEL(128)
sample_points(const float* __restrict__ origins, const float* __restrict__ directions, int64 rays,
              const int64* __restrict__ offsets, const float* __restrict__ t_start, const float* __restrict__ t_end,
              int64 n, const MarchArguments arguments, float* __restrict__ unit, float* __restrict__ view) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const March m = arguments.march(nullptr, nullptr);
  const Vec3 o = load3(origins + 3 * r), d = load3(directions + 3 * r);
  const Range range = samples_of(offsets, r, n);
  for (int64 i = range.begin + lane_index(); i < range.end; i += WARP) {
    const float t = 0.5f * (t_start[i] + t_end[i]);
    const Vec3 u = to_unit(m, Vec3{o.x + d.x * t, o.y + d.y * t, o.z + d.z * t});
    unit[3 * i] = u.x, unit[3 * i + 1] = u.y, unit[3 * i + 2] = u.z;
    view[3 * i] = d.x, view[3 * i + 1] = d.y, view[3 * i + 2] = d.z;
  }
}

// The number of samples of each ray that light reaches: counts [rays]; one warp for each ray.
EUGEN_KERNEL(128)
visible_count(const float* __restrict__ sigma, const float* __restrict__ t_start, const float* __restrict__ t_end,
              int64 n, const int64* __restrict__ offsets, int64 rays, float max_thickness,
              int64* __restrict__ counts) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const Range range = samples_of(offsets, r, n);
  const int64 count = count_visible(sigma, t_start, t_end, range.begin, range.end, max_thickness);
  if (lane_index() == 0) counts[r] = count;
}

// Copies the first rows of each ray, as many as kept_offsets [rays + 1] leave room for; one warp for each ray and array.
EUGEN_KERNEL(128)
visible_rows(const RowArrays arrays, int64 n, const int64* __restrict__ offsets,
             const int64* __restrict__ kept_offsets, int64 rays) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const int width = arrays.width[blockIdx.y];
  const int64 kept = kept_offsets[r];
  const float* from = arrays.from[blockIdx.y] + width * samples_of(offsets, r, n).begin;
  float* to = arrays.to[blockIdx.y] + width * kept;
  const int64 numbers = width * (kept_offsets[r + 1] - kept);
  for (int64 i = lane_index(); i < numbers; i += WARP) to[i] = from[i];
}

// out [rays, 5]: rgb, alpha, depth; one warp for each ray.
EUGEN_KERNEL(128)
composite_forward(const float* __restrict__ sigma, const float* __restrict__ rgb, const float* __restrict__ t_start,
                  const float* __restrict__ t_end, int64 n, const int64* __restrict__ offsets, int64 rays,
                  float* __restrict__ out) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const Range range = samples_of(offsets, r, n);
  float sums[5];
  eugen::composite_forward(sigma, rgb, t_start, t_end, range.begin, range.end, sums);
  if (lane_index() == 0)
    for (int c = 0; c < 5; c++) out[5 * r + c] = sums[c];
}

// grad_sigma [n], grad_rgb [n, 3] from grad_out [rays, 5]; one warp for each ray.
EUGEN_KERNEL(128)
composite_backward(const float* __restrict__ sigma, const float* __restrict__ rgb, const float* __restrict__ t_start,
                   const float* __restrict__ t_end, int64 n, const int64* __restrict__ offsets, int64 rays,
                   const float* __restrict__ grad_out, float* __restrict__ grad_sigma, float* __restrict__ grad_rgb) {
  const int64 r = warp_number();
  if (r >= rays) return;
  const Range range = samples_of(offsets, r, n);
  float grad[5];
  for (int c = 0; c < 5; c++) grad[c] = grad_out[5 * r + c];
  eugen::composite_backward(sigma, rgb, t_start, t_end, range.begin, range.end, grad, grad_sigma, grad_rgb);
}
