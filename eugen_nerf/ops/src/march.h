// Ray marching through an occupancy grid: step rule, contraction, bit lookup.
// The definitions are layout.StepRule, layout.Space and reference.march.
#pragma once
#include "common.h"

namespace eugen {

struct March {
  float low[3], high[3];  // scene box
  float scale[3];         // 1 / (high - low)
  int contracted;
  float step_size, cone_angle;
  int resolution;     // occupancy cells along an axis
  const uint8* bits;  // [resolution^3 / 8]
  // [ceil(resolution / BLOCK)^3]: whether any cell of a block is occupied, so that an empty block can be crossed at
  // once; null if this is unknown.
  const uint8* blocks;
  float occupied_low[3], occupied_high[3];  // box around all occupied cells of a bounded scene, or the scene box
};

enum { BLOCK = 4 };  // cells of a block along an axis

EUGEN_FUNCTION int blocks_along_axis(int resolution) { return (resolution + BLOCK - 1) / BLOCK; }

EUGEN_FUNCTION March make_march(const float box[6], int contracted, const float rule[2], int resolution,
                                const uint8* bits) {
  March m;
  for (int a = 0; a < 3; a++) {
    m.low[a] = m.occupied_low[a] = box[a];
    m.high[a] = m.occupied_high[a] = box[3 + a];
    m.scale[a] = 1.f / (box[3 + a] - box[a]);
  }
  m.contracted = contracted;
  m.step_size = rule[0];
  m.cone_angle = rule[1];
  m.resolution = resolution;
  m.bits = bits;
  m.blocks = nullptr;
  return m;
}

EUGEN_FUNCTION float step_distance(const March& m, float s) {
  if (m.cone_angle == 0.f || s * m.cone_angle <= 1.f) return m.step_size * s;
  return m.step_size / m.cone_angle * exp(m.cone_angle * s - 1.f);
}

EUGEN_FUNCTION float step_coordinate(const March& m, float distance) {
  const float linear = distance / m.step_size;
  if (m.cone_angle == 0.f || linear * m.cone_angle <= 1.f) return linear;
  return (1.f + log(linear * m.cone_angle)) / m.cone_angle;
}

EUGEN_FUNCTION Vec3 to_unit(const March& m, Vec3 p) {
  float u[3] = {p.x, p.y, p.z};
  float norm = 1.f;
  for (int a = 0; a < 3; a++) {
    u[a] = (u[a] - m.low[a]) * m.scale[a];
    if (m.contracted) {
      u[a] = 2.f * u[a] - 1.f;
      norm = maximum(norm, absolute(u[a]));
    }
  }
  if (m.contracted) {
    const float inverse = 1.f / norm, shrink = 0.25f * (2.f - inverse) * inverse;
    for (int a = 0; a < 3; a++) u[a] = u[a] * shrink + 0.5f;
  }
  return Vec3{u[0], u[1], u[2]};
}

// The side, in cells, of the empty cube around a position: 0 if its cell is occupied, 1 if its cell is empty or outside
// of the grid, BLOCK if its whole block is empty.
EUGEN_FUNCTION int empty_cells(const March& m, Vec3 unit) {
  // Written so that NaN counts as outside.
  if (!(unit.x >= 0.f && unit.x < 1.f && unit.y >= 0.f && unit.y < 1.f && unit.z >= 0.f && unit.z < 1.f)) return 1;
  const int r = m.resolution;
  int c[3] = {int(unit.x * float(r)), int(unit.y * float(r)), int(unit.z * float(r))};
  for (int a = 0; a < 3; a++)
    if (c[a] > r - 1) c[a] = r - 1;
  if (m.blocks) {
    const int side = blocks_along_axis(r);
    if (!m.blocks[(c[2] / BLOCK * side + c[1] / BLOCK) * side + c[0] / BLOCK]) return BLOCK;
  }
  const int64 index = (int64(c[2]) * r + c[1]) * r + c[0];
  return m.bits[index >> 3] >> (index & 7) & 1 ? 0 : 1;
}

// Narrow [near, far] to the box; far < near if the ray misses it.
EUGEN_FUNCTION void clip_to_box(const float low[3], const float high[3], Vec3 origin, Vec3 direction, float& near,
                                float& far) {
  const float o[3] = {origin.x, origin.y, origin.z}, d[3] = {direction.x, direction.y, direction.z};
  for (int a = 0; a < 3; a++) {
    // A zero component would give 0 * inf = NaN on a face.
    const float safe = absolute(d[a]) < 1e-19f ? 1e-19f : d[a];
    const float first = (low[a] - o[a]) / safe, second = (high[a] - o[a]) / safe;
    near = maximum(near, minimum(first, second));
    far = minimum(far, maximum(first, second));
  }
}

// One ray's walk from sample to sample.
struct Walk {
  Vec3 origin, direction;
  float steps_per_cell[3];  // steps to cross a cell along each axis, signed; used without contraction and cone only
  float start;              // step coordinate of sample 0
  int number;               // the next candidate
  int count;                // number of candidates
};

struct Step {
  float t_start, t_end;
  Vec3 position, unit;
};

EUGEN_FUNCTION Walk begin_walk(const March& m, Vec3 origin, Vec3 direction, float near, float far, float jitter) {
  Walk walk{origin, direction, {0.f, 0.f, 0.f}, 0.f, 0, 0};
  if (!(far > near)) return walk;  // also if a limit is NaN, which clipping to the box would hide
  float first = near, last = far;
  if (!m.contracted) {
    clip_to_box(m.low, m.high, origin, direction, near, far);
    clip_to_box(m.occupied_low, m.occupied_high, origin, direction, first, last);
  }
  if (!(far > near)) return walk;
  walk.start = step_coordinate(m, maximum(near, 0.f)) + jitter;
  const float steps = step_coordinate(m, maximum(far, 0.f)) - walk.start;
  // A cap far above any sensible count keeps the conversion defined for huge or infinite limits.
  walk.count = steps > 0.f ? int(minimum(steps + 1.f, 1e7f)) : 0;
  if (float(walk.count) - 1.f >= steps) walk.count--;  // ceil
  if (!m.contracted) {
    // Candidates keep their positions, which follow from the scene box. Those outside of the box around the occupied
    // cells are skipped, except for one more at each end to allow for round-off.
    if (!(last > first)) first = last = near;
    const float skipped = step_coordinate(m, maximum(first, 0.f)) - walk.start - 1.f;
    const float end = step_coordinate(m, maximum(last, 0.f)) - walk.start + 2.f;
    if (skipped > 0.f) walk.number = int(minimum(skipped, float(walk.count)));
    if (end < float(walk.count)) walk.count = end > 0.f ? int(end) : 0;
  }
  const float d[3] = {direction.x, direction.y, direction.z};
  for (int a = 0; a < 3; a++) {
    const float cells = d[a] * m.scale[a] * float(m.resolution) * m.step_size;
    walk.steps_per_cell[a] = absolute(cells) > 1e-9f ? 1.f / cells : 1e9f;
    if (m.cone_angle != 0.f) walk.steps_per_cell[a] = 0.f;  // the step size varies, so there are no strides
  }
  return walk;
}

EUGEN_FUNCTION Step step_at(const March& m, const Walk& walk, int number) {
  const float s = walk.start + float(number);
  Step step;
  step.t_start = step_distance(m, maximum(s - 0.5f, 0.f));
  step.t_end = step_distance(m, s + 0.5f);
  const float middle = 0.5f * (step.t_start + step.t_end);
  step.position = Vec3{walk.origin.x + walk.direction.x * middle, walk.origin.y + walk.direction.y * middle,
                       walk.origin.z + walk.direction.z * middle};
  step.unit = to_unit(m, step.position);
  return step;
}

// Steps from an empty position to the next one that may be occupied, at least 1. `empty` is the result of empty_cells.
EUGEN_FUNCTION int steps_over(const March& m, const Walk& walk, const Step& step, int empty) {
  if (m.contracted) return 1;
  // Every step up to the far side of this empty cell or block is empty too. A bit less, to allow for round-off.
  const float cells = float(empty), r = float(m.resolution) / cells;
  const float p[3] = {step.unit.x * r, step.unit.y * r, step.unit.z * r};
  float leave = 1e6f;
  for (int a = 0; a < 3; a++) {
    const float across = walk.steps_per_cell[a] * cells;
    const float inside = p[a] - floor(p[a]);
    leave = minimum(leave, across > 0.f ? (1.f - inside) * across : -inside * across);
  }
  return 1 + int(maximum(leave - 0.05f, 0.f));
}

// Advance to the next sample in an occupied cell; false at the end of the ray.
EUGEN_FUNCTION bool next_sample(const March& m, Walk& walk, Step& step) {
  while (walk.number < walk.count) {
    step = step_at(m, walk, walk.number);
    const int empty = empty_cells(m, step.unit);
    if (empty == 0) {
      walk.number++;
      return true;
    }
    walk.number += steps_over(m, walk, step, empty);
  }
  return false;
}

}  // namespace eugen
