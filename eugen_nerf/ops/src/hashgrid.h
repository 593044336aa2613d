// Multiresolution hash grid: the table rows around a position and their weights.
// Mueller et al. 2022, "Instant NGP", section 3; computes the same as reference.hash_encode.
#pragma once
#include "common.h"

namespace eugen {

struct HashLevel {
  int resolution;  // cells along an axis
  uint32 mask;     // table size - 1 of a hashed level
  uint32 offset;   // first row of the level in the table
  bool dense;      // every vertex has a row of its own
};

struct HashCell {
  uint32 vertex[3];  // the corner nearest to the origin
  uint32 rows[8];    // corner c is on the upper side along x, y, z if its bit 0, 1, 2 is set
  float fraction[3];
};

EUGEN_FUNCTION HashCell hash_cell(Vec3 position, const HashLevel& level) {
  HashCell cell;
  const float scale = float(level.resolution);
  const float position_of[3] = {clamp(position.x, 0.f, 1.f), clamp(position.y, 0.f, 1.f), clamp(position.z, 0.f, 1.f)};
  const float p[3] = {position_of[0] * scale, position_of[1] * scale, position_of[2] * scale};
  uint32 (&v)[3] = cell.vertex;
  for (int a = 0; a < 3; a++) {
    int c = int(p[a]);  // not negative, so this is floor
    if (c > level.resolution - 1) c = level.resolution - 1;  // position 1 belongs to the last cell
    // fma rounds once instead of twice, so that fine levels keep their precision. If the product above was rounded up
    // to the next vertex, the position still belongs to the cell before it.
    float fraction = fma(position_of[a], scale, -float(c));
    const bool before = fraction < 0.f;
    v[a] = uint32(before ? c - 1 : c);
    fraction = before ? fraction + 1.f : fraction;
    cell.fraction[a] = fraction;
  }
  if (level.dense) {
    const uint32 side = uint32(level.resolution) + 1;
    const uint32 base = level.offset + v[0] + side * (v[1] + side * v[2]);
    for (int c = 0; c < 8; c++) cell.rows[c] = base + uint32(c & 1) + side * (uint32(c >> 1 & 1) + side * uint32(c >> 2));
  } else {
    const uint32 x[2] = {v[0], v[0] + 1};
    const uint32 y[2] = {v[1] * 2654435761u, (v[1] + 1) * 2654435761u};
    const uint32 z[2] = {v[2] * 805459861u, (v[2] + 1) * 805459861u};
    for (int c = 0; c < 8; c++) cell.rows[c] = level.offset + ((x[c & 1] ^ y[c >> 1 & 1] ^ z[c >> 2]) & level.mask);
  }
  return cell;
}

EUGEN_FUNCTION void corner_weights(const HashCell& cell, float weights[8]) {
  const float x[2] = {1 - cell.fraction[0], cell.fraction[0]};
  const float y[2] = {1 - cell.fraction[1], cell.fraction[1]};
  const float z[2] = {1 - cell.fraction[2], cell.fraction[2]};
  for (int c = 0; c < 8; c++) weights[c] = x[c & 1] * y[c >> 1 & 1] * z[c >> 2];
}

// d weight / d fraction along one axis.
EUGEN_FUNCTION float corner_slope(const HashCell& cell, int corner, int axis) {
  float slope = corner >> axis & 1 ? 1.f : -1.f;
  for (int a = 0; a < 3; a++)
    if (a != axis) slope *= corner >> a & 1 ? cell.fraction[a] : 1 - cell.fraction[a];
  return slope;
}

}  // namespace eugen
