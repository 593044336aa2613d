// How kernels receive what marching needs, and a warp's march along one ray.
#pragma once
#include "march.h"
#include "simt.cuh"

namespace eugen {

// As cuda.py fills it.
struct MarchArguments {
  float box[6];
  float rule[2];
  int contracted;
  int resolution;

  // bits and blocks as in struct March; they may be null where positions are all that is wanted.
  EUGEN_MEMBER March march(const uint8* bits, const uint8* blocks) const {
    March m = make_march(box, contracted, rule, resolution, bits);
    m.blocks = blocks;
    return m;
  }
};

// Advances one ray by the next WARP candidates, all lanes together: lane i looks at candidate walk.number + i. Returns the
// lanes whose candidate is a sample, in the ray's order; where `step` is this lane's.
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
