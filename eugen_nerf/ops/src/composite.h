// Emission-absorption compositing of one ray's packed samples; computes the same as reference.composite.
#pragma once
#include "common.h"

namespace eugen {

// The number of leading samples of a ray in front of which lies at most this optical thickness.
EUGEN_FUNCTION int64 count_visible(const float* sigma, const float* t_start, const float* t_end, int64 n,
                                   double max_thickness) {
  double optical = 0;
  int64 i = 0;
  for (; i < n && optical <= max_thickness; i++) {
    const float thickness = sigma[i] * (t_end[i] - t_start[i]);
    if (thickness == thickness) optical += thickness;  // NaN hides nothing; the ray shows it
  }
  return i;
}

// Sums over the n samples of a ray: out = rgb, alpha, depth.
EUGEN_FUNCTION void composite_forward(const float* sigma, const float* rgb, const float* t_start, const float* t_end,
                                      int64 n, float out[5]) {
  float total[5] = {0, 0, 0, 0, 0};
  double optical = 0;  // double, so that the sum over many thin samples is not lost to round-off
  for (int64 i = 0; i < n; i++) {
    const float thickness = sigma[i] * (t_end[i] - t_start[i]);
    const float weight = float(exp(-optical)) * -expm1f(-thickness);
    for (int c = 0; c < 3; c++) total[c] += weight * rgb[3 * i + c];
    total[3] += weight;
    total[4] += weight * 0.5f * (t_start[i] + t_end[i]);
    optical += thickness;
  }
  for (int c = 0; c < 5; c++) out[c] = total[c];
}

// Gradients of one ray. With w_i = T_i (1 - exp(-tau_i)), T_i = exp(-sum_{j<i} tau_j) and q_i = dL/dw_i:
// dL/dtau_i = T_{i+1} q_i - sum_{j>i} w_j q_j,  dL/drgb_i = w_i dL/drgb.
EUGEN_FUNCTION void composite_backward(const float* sigma, const float* rgb, const float* t_start, const float* t_end,
                                       int64 n, const float grad_out[5], float* grad_sigma, float* grad_rgb) {
  // Transmittances are accumulated front to back and stored in the gradient's memory. Subtracting thicknesses back to
  // front would lose everything in front of a very dense sample.
  double optical = 0;
  for (int64 i = 0; i < n; i++) {
    grad_sigma[i] = float(exp(-optical));
    optical += sigma[i] * (t_end[i] - t_start[i]);
  }
  float later = 0;  // sum over j > i of w_j q_j
  for (int64 i = n - 1; i >= 0; i--) {
    const float length = t_end[i] - t_start[i], thickness = sigma[i] * length;
    const float before = grad_sigma[i], after = before * exp(-thickness);
    const float weight = before * -expm1f(-thickness);
    float q = grad_out[3] + grad_out[4] * 0.5f * (t_start[i] + t_end[i]);
    for (int c = 0; c < 3; c++) {
      q += grad_out[c] * rgb[3 * i + c];
      grad_rgb[3 * i + c] = weight * grad_out[c];
    }
    grad_sigma[i] = length * (after * q - later);
    later += weight * q;
  }
}

}  // namespace eugen
