// The optimizer kernel of hash tables.
#include "adam.h"
#include "simt.cuh"

using namespace eugen;

// Adam on those of the n values whose gradient is not zero. The others stay unchanged, including their moments.
EUGEN_KERNEL(128)
masked_adam(float* __restrict__ parameter, const float* __restrict__ grad, float* __restrict__ first,
            float* __restrict__ second, int64 n, const AdamStep step) {
  const int64 i = int64(blockIdx.x) * 128 + threadIdx.x;
  if (i < n && grad[i] != 0.f) adam_update(step, true, grad[i], parameter[i], first[i], second[i]);
}
