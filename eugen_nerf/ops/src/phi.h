// The activations of a stage and their derivatives, as in layers/activations.py.
#pragma once
#include "common.h"

namespace eugen {

// The same numbers as in packing.py.
enum Phi { IDENTITY_PHI, RELU_PHI, SQUARED_RELU_PHI, SOFTPLUS_PHI, GELU_PHI, SINE_PHI };

// NaN stays NaN, as in PyTorch, because a diverged network must not look healthy.
EUGEN_FUNCTION float apply(Phi phi, float z) {
  switch (phi) {
    case RELU_PHI: return z < 0 ? 0.f : z;
    case SQUARED_RELU_PHI: return z < 0 ? 0.f : z * z;
    case SOFTPLUS_PHI: return z > 20 ? z : log1pf(expf(z));
    case GELU_PHI: return 0.5f * z * (1 + erff(z * 0.70710678118654752f));
    case SINE_PHI: return sinf(z);
    default: return z;
  }
}

EUGEN_FUNCTION float slope(Phi phi, float z) {
  switch (phi) {
    case RELU_PHI: return z <= 0 ? 0.f : 1.f;
    case SQUARED_RELU_PHI: return z <= 0 ? 0.f : 2 * z;
    case SOFTPLUS_PHI: return z > 20 ? 1.f : 1 / (1 + expf(-z));
    case GELU_PHI:
      return 0.5f * (1 + erff(z * 0.70710678118654752f)) + z * 0.39894228040143268f * expf(-0.5f * z * z);
    case SINE_PHI: return cosf(z);
    default: return 1.f;
  }
}

}  // namespace eugen
