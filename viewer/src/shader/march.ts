import type { FieldDescription } from "../scene/format";
import { float, vec3 } from "./glsl";

/** Width, in texels, of the occupancy grid's texture; a texel holds the bits of 32 cells. */
export const OCCUPANCY_WIDTH = 1024;

/** GLSL of ray marching through the occupancy grid, with the same samples as in evaluation after training. */
export function marchSource(description: FieldDescription): string {
  const { space, step, occupancy } = description;
  const [low, high] = space.box;
  const scale = low.map((value, axis) => 1 / (high[axis] - value));
  const r = occupancy.resolution;
  return `
uniform highp usampler2D occupancy;
uniform float stepFactor;  // 1 as in training, larger for a coarser image

const vec3 LOW = ${vec3(low)};
const vec3 SCALE = ${vec3(scale)};
const float CONE = ${float(step.cone_angle)};

// Both scale with the factor: step k of a coarse image is step stepFactor * k of the exact one.
float stepSize() { return ${float(step.size)} * stepFactor; }
float cone() { return CONE * stepFactor; }

float stepDistance(float s) {
  if (s * cone() <= 1.0) return stepSize() * s;
  return stepSize() / cone() * exp(cone() * s - 1.0);
}

float stepCoordinate(float t) {
  float s = t / stepSize();
  if (s * cone() <= 1.0) return s;
  return (1.0 + log(s * cone())) / cone();
}

vec3 toUnit(vec3 p) {
  vec3 u = (p - LOW) * SCALE;
${
  space.contracted
    ? `  u = 2.0 * u - 1.0;
  float norm = max(max(abs(u.x), abs(u.y)), max(abs(u.z), 1.0));
  return 0.25 * u * (2.0 - 1.0 / norm) / norm + 0.5;`
    : "  return u;"
}
}

bool isOccupied(vec3 u) {
  if (any(lessThan(u, vec3(0.0))) || any(greaterThanEqual(u, vec3(1.0)))) return false;
  uvec3 c = min(uvec3(u * ${float(r)}), uvec3(${r - 1}u));
  uint index = (c.z * ${r}u + c.y) * ${r}u + c.x;
  uint word = index >> 5u;
  uint bits = texelFetch(occupancy, ivec2(word % ${OCCUPANCY_WIDTH}u, word / ${OCCUPANCY_WIDTH}u), 0).x;
  return (bits >> (index & 31u) & 1u) == 1u;
}

// Step coordinate of the first sample, and the maximum number of steps.
void beginWalk(vec3 origin, vec3 direction, out float start, out int count) {
  float near = ${float(description.near)}, far = ${float(description.far)};
${
  space.contracted
    ? ""
    : `  vec3 safe = mix(direction, vec3(1e-19), lessThan(abs(direction), vec3(1e-19)));
  vec3 first = (LOW - origin) / safe, second = (${vec3(high)} - origin) / safe;
  vec3 entry = min(first, second), leave = max(first, second);
  near = max(near, max(entry.x, max(entry.y, entry.z)));
  far = min(far, min(leave.x, min(leave.y, leave.z)));
`
}  start = 0.0;
  count = 0;
  if (!(far > near)) return;
  start = stepCoordinate(max(near, 0.0)) + 0.5;
  count = int(clamp(ceil(stepCoordinate(max(far, 0.0)) - start), 0.0, 1e7));
}

// Number of steps that are certain to stay in the empty cell around u.
int emptySteps(vec3 u, vec3 direction) {
${
  space.contracted || step.cone_angle > 0 // steps of different lengths
    ? "  return 1;"
    : `  vec3 speed = direction * SCALE * ${float(r)} * stepSize();  // cells a step
  vec3 inside = fract(u * ${float(r)});
  vec3 rest = mix(-inside, 1.0 - inside, greaterThan(speed, vec3(0.0)));
  vec3 steps = mix(rest / speed, vec3(1e6), lessThan(abs(speed), vec3(1e-9)));
  // A bit less than to the cell's far side, because of round-off error.
  return 1 + int(max(min(steps.x, min(steps.y, steps.z)) - 0.05, 0.0));`
}
}
`;
}
