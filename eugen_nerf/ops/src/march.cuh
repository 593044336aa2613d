// How kernels receive what marching needs.
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

  EUGEN_MEMBER March march(const uint8* bits) const { return make_march(box, contracted, rule, resolution, bits); }
};

}  // namespace eugen
