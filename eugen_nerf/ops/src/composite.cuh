// Compositing of one ray's packed samples by a warp, one sample per lane at a time; computes the same as composite.h.
#pragma once
#include "simt.cuh"

namespace eugen {

// Optical thickness is summed in float within a group of samples, one per lane, and in double across groups, so that
// the sum over many thin samples is not lost to round-off.
struct Group {
  float thickness, before;  // optical thickness of this lane's sample, and in front of it
};
EUGEN_FUNCTION Group next_group(float thickness, double& optical) {
  float sum = thickness;
  for (int by = 1; by < WARP; by *= 2) {
    const float other = shuffle_up(sum, by);
    if (lane_index() >= by) sum += other;
  }
  const float lower = shuffle_up(sum, 1);
  Group group{thickness, float(optical + double(lane_index() > 0 ? lower : 0.f))};
  optical += double(shuffle(sum, WARP - 1));
  return group;
}

// The number of leading samples of [begin, end) in front of which lies at most this optical thickness, identical in
// every lane.
EUGEN_FUNCTION int64 count_visible(const float* sigma, const float* t_start, const float* t_end, int64 begin, int64 end,
                                   float max_thickness) {
  double optical = 0;
  int64 count = 0;
  for (int64 first = begin; first < end; first += WARP) {
    const int64 i = first + lane_index();
    const float thickness = i < end ? sigma[i] * (t_end[i] - t_start[i]) : 0.f;
    // NaN hides nothing; the ray shows it.
    const Group group = next_group(thickness == thickness ? thickness : 0.f, optical);
    const int found = count_bits(votes(i < end && group.before <= max_thickness));
    count += found;
    if (found < WARP) break;
  }
  return count;
}

// Sums over the samples [begin, end) of a ray, identical in every lane: out = rgb, alpha, depth.
EUGEN_FUNCTION void composite_forward(const float* sigma, const float* rgb, const float* t_start, const float* t_end,
                                      int64 begin, int64 end, float (&out)[5]) {
  for (int c = 0; c < 5; c++) out[c] = 0.f;
  double optical = 0;
  for (int64 first = begin; first < end; first += WARP) {
    const int64 i = first + lane_index();
    const bool mine = i < end;
    const Group group = next_group(mine ? sigma[i] * (t_end[i] - t_start[i]) : 0.f, optical);
    if (mine) {
      const float weight = exp(-group.before) * -expm1f(-group.thickness);
      for (int c = 0; c < 3; c++) out[c] += weight * rgb[3 * i + c];
      out[3] += weight;
      out[4] += weight * 0.5f * (t_start[i] + t_end[i]);
    }
  }
  for (int by = WARP / 2; by > 0; by /= 2)
    for (int c = 0; c < 5; c++) out[c] += shuffle_xor(out[c], by);
}

// Gradients of the samples [begin, end) of a ray.
EUGEN_FUNCTION void composite_backward(const float* sigma, const float* rgb, const float* t_start, const float* t_end,
                                       int64 begin, int64 end, const float (&grad_out)[5], float* grad_sigma,
                                       float* grad_rgb) {
  // First pass, front to back: transmittances, stored in the gradient's memory. The same lane reads them again.
  double optical = 0;
  int64 first = begin;
  for (; first < end; first += WARP) {
    const int64 i = first + lane_index();
    const bool mine = i < end;
    const Group group = next_group(mine ? sigma[i] * (t_end[i] - t_start[i]) : 0.f, optical);
    if (mine) grad_sigma[i] = exp(-group.before);
  }
  float later = 0.f;  // sum over the groups behind this one of the weights times their gradients
  while (first > begin) {
    first -= WARP;
    const int64 i = first + lane_index();
    const bool mine = i < end;
    float length = 0.f, after = 0.f, q = 0.f, share = 0.f;
    if (mine) {
      length = t_end[i] - t_start[i];
      const float thickness = sigma[i] * length, before = grad_sigma[i];
      const float weight = before * -expm1f(-thickness);
      after = before * exp(-thickness);
      q = grad_out[3] + grad_out[4] * 0.5f * (t_start[i] + t_end[i]);
      for (int c = 0; c < 3; c++) {
        q += grad_out[c] * rgb[3 * i + c];
        grad_rgb[3 * i + c] = weight * grad_out[c];
      }
      share = weight * q;
    }
    float sum = share;  // over this lane's sample and those behind it
    for (int by = 1; by < WARP; by *= 2) {
      const float other = shuffle_down(sum, by);
      if (lane_index() + by < WARP) sum += other;
    }
    const float higher = shuffle_down(sum, 1);
    const float behind = later + (lane_index() < WARP - 1 ? higher : 0.f);
    if (mine) grad_sigma[i] = length * (after * q - behind);
    later += shuffle(sum, 0);
  }
}

}  // namespace eugen
