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

  // bits and blocks as in struct March; they may be null where positions are all that is wanted.
  EUGEN_MEMBER March march(const uint8* bits, const uint8* blocks) const {
    March m = make_march(box, contracted, rule, resolution, bits);
    m.blocks = blocks;
    return m;
  }
};

}  // namespace eugen
