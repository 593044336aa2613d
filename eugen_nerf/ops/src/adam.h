// Adam on one number, for tables of which a step touches only a part.
#pragma once
#include "common.h"

namespace eugen {

struct AdamStep {
  float beta1, beta2, eps;
  float step_size;     // learning rate / (1 - beta1^t)
  float second_scale;  // 1 / (1 - beta2^t)
};

// Kingma & Ba 2015, algorithm 1.
EUGEN_FUNCTION void adam_update(const AdamStep& a, float g, float& parameter, float& first, float& second) {
  first += (1 - a.beta1) * (g - first);
  second += (1 - a.beta2) * (g * g - second);
  parameter -= a.step_size * first / (sqrt(second * a.second_scale) + a.eps);
}

}  // namespace eugen
