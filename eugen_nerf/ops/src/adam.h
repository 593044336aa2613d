// Adam on one number, for tables of which a step touches only a part.
#pragma once
#include "common.h"

namespace eugen {

struct AdamStep {
  float beta1, beta2, eps;
  float step_size;     // learning rate / (1 - beta1^t)
  float second_scale;  // 1 / (1 - beta2^t)
};

// Kingma & Ba 2015, algorithm 1. Written without a branch, so that it works on whole vectors.
EUGEN_FUNCTION void adam_update(const AdamStep& a, bool touched, float g, float& parameter, float& first,
                                float& second) {
  const float m = first + (1 - a.beta1) * (g - first);
  const float v = second + (1 - a.beta2) * (g * g - second);
  const float p = parameter - a.step_size * m / (sqrt(v * a.second_scale) + a.eps);
  first = touched ? m : first;
  second = touched ? v : second;
  parameter = touched ? p : parameter;
}

}  // namespace eugen
