// Kernel arguments of ray marching, and a warp's march along one ray.
#pragma once
#include "march.h"
#include "simt.cuh"

namespace eugen {

// Filled by cuda.py.
struct MarchArguments {
  float box[6];
  float rule[2];
  int contracted;
  int resolution;

  // bits and blocks are those of struct March. They may be null if only positions are needed.
  EUGEN_MEMBER March march(const uint8* bits, const uint8* blocks) const {
    March m = make_march(box, contracted, rule, resolution, bits);
    m.blocks = blocks;
    return m;
  }
};

// Advances one ray by the next WARP candidates, with all lanes together: lane i checks candidate walk.number + i.
// Returns a mask of the lanes whose candidate is a sample, in the ray's order. `step` is this lane's own step.
EUGEN_FUNCTION uint32 next_samples(const March& m, Walk& walk, Step& step) {
  const int lane = lane_index(), number = walk.number + lane;
  int skip = 1;
  bool sample = false;
  if (number < walk.count) {
    step = step_at(m, walk, number);
    const int empty = empty_cells(m, step.unit);
    sample = empty == 0;
    if (lane == WARP - 1 && !sample) skip = steps_over(m, walk, step, empty);
  }
  const uint32 samples = votes(sample);
  walk.number += WARP - 1 + shuffle(skip, WARP - 1);
  return samples;
}

}  // namespace eugen
