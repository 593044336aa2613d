// Ray marching in vector registers: the next candidates of one ray together.
#pragma once
#include <algorithm>
#include <cstring>

#include "march.h"

namespace eugen {

enum { CANDIDATES = 16 };  // checked together

// Candidates that were checked together.
struct Checked {
  float edge[CANDIDATES + 1];  // candidate i lies between edges i and i + 1
  float unit[3][CANDIDATES];
  uint32 samples;  // bit i: candidate i is a sample and has not been taken yet
};

// exp for x >= 0, which compilers can vectorize. The relative error is below 3e-7; from x = 88.38 on the result is
// infinite.
EUGEN_FUNCTION float exp_of_positive(float x) {
  x = minimum(x, 89.f);
  const int power = int(x * 1.44269504f + 0.5f);  // x = power * ln 2 + r, |r| < 0.35
  const float n = float(power), r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  const float series = 1.f + r * (1.f + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r / 720)))));
  const int bits = (power + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return series * scale;
}

// Whether candidates are best checked together: where no step over empty cells can be longer than one. The index of a
// cell must fit in 31 bits.
EUGEN_FUNCTION bool together(const March& m) { return (m.contracted || m.cone_angle != 0.f) && m.resolution <= 1024; }

// Advances the walk by the next candidates and checks them.
template <bool CONTRACTED>
void check_candidates(March m, Walk& at, Checked& to) {
  m.contracted = CONTRACTED;  // a compile-time constant, so that there is no branch per candidate
  const Walk walk = at;       // a copy, which no store below can change
  const float cone = m.cone_angle, straight = cone > 0.f ? 1.f / cone : 3e38f, r = float(m.resolution);
  const int last = m.resolution - 1;
  float edge[CANDIDATES + 1];
  int index[CANDIDATES];  // of the candidate's cell, or -1
#pragma omp simd
  for (int k = 0; k <= CANDIDATES; k++) {
    const float s = maximum(walk.start + float(walk.number + k) - 0.5f, 0.f);
    edge[k] = m.step_size * minimum(s, straight) * exp_of_positive(maximum(cone * s - 1.f, 0.f));
  }
  std::memcpy(to.edge, edge, sizeof(edge));
#pragma omp simd
  for (int k = 0; k < CANDIDATES; k++) {
    const float middle = 0.5f * (edge[k] + edge[k + 1]);
    const Vec3 u = to_unit(m, Vec3{walk.origin.x + walk.direction.x * middle, walk.origin.y + walk.direction.y * middle,
                                   walk.origin.z + walk.direction.z * middle});
    const bool inside = (u.x >= 0.f) & (u.x < 1.f) & (u.y >= 0.f) & (u.y < 1.f) & (u.z >= 0.f) & (u.z < 1.f);
    const int x = std::min(int(clamp(u.x, 0.f, 1.f) * r), last), y = std::min(int(clamp(u.y, 0.f, 1.f) * r), last),
              z = std::min(int(clamp(u.z, 0.f, 1.f) * r), last);
    to.unit[0][k] = u.x;
    to.unit[1][k] = u.y;
    to.unit[2][k] = u.z;
    index[k] = inside ? (z * m.resolution + y) * m.resolution + x : -1;
  }
  const int count = std::min<int>(CANDIDATES, walk.count - walk.number);
  uint32 samples = 0;
  for (int k = 0; k < count; k++) {
    const uint32 cell = index[k] < 0 ? 0 : uint32(index[k]);
    samples |= uint32(m.bits[cell >> 3] >> (cell & 7) & (index[k] >= 0)) << k;
  }
  to.samples = samples;
  at.number += count;
}

EUGEN_FUNCTION void check_candidates(const March& m, Walk& walk, Checked& to) {
  m.contracted ? check_candidates<true>(m, walk, to) : check_candidates<false>(m, walk, to);
}

EUGEN_FUNCTION int take(Checked& from) {
  const int k = __builtin_ctz(from.samples);
  from.samples &= from.samples - 1;
  return k;
}

// As next_sample of march.h. `ahead` keeps candidates from one call to the next; no sample is left in it at first.
EUGEN_FUNCTION bool next_sample(const March& m, Walk& walk, Checked& ahead, Step& step) {
  if (!together(m)) return next_sample(m, walk, step);
  while (!ahead.samples) {
    if (walk.number >= walk.count) return false;
    check_candidates(m, walk, ahead);
  }
  const int k = take(ahead);
  step.t_start = ahead.edge[k];
  step.t_end = ahead.edge[k + 1];
  step.unit = Vec3{ahead.unit[0][k], ahead.unit[1][k], ahead.unit[2][k]};
  return true;
}

}  // namespace eugen
