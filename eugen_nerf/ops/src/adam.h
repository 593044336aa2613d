// Adam on a single value, for tables of which a step updates only a part.
#pragma once
#include "common.h"
#if !defined(__CUDACC_RTC__) && !defined(__CUDACC__)
#include <cstring>
#endif

namespace eugen {

struct AdamStep {
  float beta1, beta2, eps;
  float step_size;     // learning rate / (1 - beta1^t)
  float second_scale;  // 1 / (1 - beta2^t)
};

// condition ? a : b, computed bitwise on a CPU. g++ compiles `p = condition ? a : p` to a masked store, which is slow
// on AMD processors with AVX2: the loop took 2.5 times as long.
EUGEN_FUNCTION float choose(bool condition, float a, float b) {
#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
  return condition ? a : b;
#else
  const uint32 mask = condition ? ~uint32(0) : 0;
  uint32 x, y;
  std::memcpy(&x, &a, sizeof(x));
  std::memcpy(&y, &b, sizeof(y));
  x = (x & mask) | (y & ~mask);
  float chosen;
  std::memcpy(&chosen, &x, sizeof(chosen));
  return chosen;
#endif
}

// Kingma & Ba 2015, algorithm 1. Written without a branch, so that it vectorizes.
EUGEN_FUNCTION void adam_update(const AdamStep& a, bool touched, float g, float& parameter, float& first,
                                float& second) {
  const float m = first + (1 - a.beta1) * (g - first);
  const float v = second + (1 - a.beta2) * (g * g - second);
  const float p = parameter - a.step_size * m / (sqrt(v * a.second_scale) + a.eps);
  first = choose(touched, m, first);
  second = choose(touched, v, second);
  parameter = choose(touched, p, parameter);
}

}  // namespace eugen
