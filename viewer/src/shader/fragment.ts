import { MAX_LOG_DENSITY } from "../field/evaluate";
import type { Field } from "../field/field";
import { HARMONICS, harmonicSource } from "../field/harmonics";
import type { FieldDescription } from "../scene/format";
import { encodingLanes, encodingSource } from "./encoding";
import { float } from "./glsl";
import { Constants, inOrder } from "./lanes";
import { marchSource } from "./march";
import { activationSource, named, NetworkWriter, type Vector } from "./network";

/** Output of a program: images (color, depth, opacity), surface normals, or numbers that check the device. */
export type Program = "picture" | "normals" | "check";

/** Work of the shader per evaluated sample. */
export interface Work {
  multiplyAdds: number; // of both networks as they run, padding included
  tableFetches: number;
}

/** GLSL of a field, and its work. */
export interface FieldShader {
  work: Work;
  /** Source of a fragment shader. */
  fragment(program: Program): string;
}

/** Number of positions and directions that the check evaluates. */
export const CHECKS = 64;

/** Write the shaders of a field whose table is in a texture with rows of 2^log2TableWidth texels. */
export function fieldShader(field: Field, log2TableWidth: number): FieldShader {
  const { description } = field;
  const constants = new Constants();
  const writer = new NetworkWriter(constants);
  const encoding = encodingSource(field, log2TableWidth, constants);
  const { resolutions, features } = description.encoding;
  const encoded = named("e", encodingLanes(resolutions.length, features));
  const [densityBody, outputs] = writer.chain(field.density, encoded);

  // The color network's first stage in two parts: the part that depends on the direction is computed once per ray.
  const blocksOfDensity = writer.blocks;
  const first = field.color.stages[0];
  const rowLanes = NetworkWriter.rowLanes(first);
  const harmonics = named("h", inOrder(HARMONICS.length));
  const [viewBody, viewRows] = writer.affine(first.projections, first.inputs, rowLanes, harmonics, first.offsets);
  const blocksOfView = writer.blocks - blocksOfDensity;
  const view = named("view", rowLanes);
  // The log density is not an input of the color network: its lane is multiplied by a column of zeros.
  const raw = named(
    "raw",
    outputs.lanes.map((output) => (output <= 0 ? -1 : HARMONICS.length + output - 1)),
  );
  const [rowsBody, rows] = writer.affine(first.projections, first.inputs, rowLanes, raw, view);
  let normBody = "";
  if (first.normColumn !== undefined) {
    const squares = [...raw.names, ...harmonics.names].map((name) => `dot(${name}, ${name})`).join(" + ");
    normBody = writer.addNorm(rows, first.normColumn, `sqrt(${squares} - raw0.x * raw0.x + ${float(first.eps)})`);
  }
  const [colorBody, logits] = writer.chain(field.color, raw, rows);

  const words: Words = {
    raw: list(raw),
    view: list(view),
    harmonics: list(harmonics),
    declared: [raw, view, harmonics].map((vector) => `vec4 ${list(vector)};`).join(" "),
  };
  const functions = `${activationSource(field.density, field.color)}${encoding.source}${marchSource(description)}
// The density network's outputs: log density, then geometry features.
void density(vec3 u, ${list(raw, "out vec4 ")}) {
vec4 ${list(encoded)};
encode(u, ${list(encoded)});
${densityBody}${copy(outputs, raw)}}

void harmonics(vec3 d, ${list(harmonics, "out vec4 ")}) {
${HARMONICS.map((terms, n) => `h${Math.floor(n / 4)}.${"xyzw"[n % 4]} = ${harmonicSource(terms)};`).join("\n")}
}

// The part of the color network's first stage that depends on the direction.
void viewShare(${list(harmonics, "vec4 ")}, ${list(view, "out vec4 ")}) {
${viewBody}${copy(viewRows, view)}}

vec3 radiance(${list(raw, "vec4 ")}, ${list(view, "vec4 ")}, ${list(harmonics, "vec4 ")}) {
${rowsBody}${normBody}${colorBody}return 1.0 / (1.0 + exp(-${logits.names[0]}.xyz));
}
`;
  const work = { multiplyAdds: 16 * (writer.blocks - blocksOfView), tableFetches: encoding.fetches };
  const source = withLiterals(functions, constants.toArray());
  return {
    work,
    // Kept as long as the page is open, so it must not refer to the field, whose table is large.
    fragment: (program) =>
      `#version 300 es
precision highp float;
precision highp int;
out vec4 result;
${source}
${program === "check" ? checkSource(words) : pictureSource(description, program, words)}`,
  };
}

/**
 * Replace references to constants (W(k) for vec4 k, M(k) for the four from k on) by their values. Literals are by far the fastest
 * where shaders are compiled to CPU code. The exporter rejects networks whose source would become too long.
 */
function withLiterals(source: string, values: Float32Array): string {
  const numbers = (from: number, count: number) =>
    // Nine digits distinguish every single-precision number from its neighbors.
    Array.from(values.subarray(4 * from, 4 * (from + count)), (value) => float(Number(value.toPrecision(9)))).join(", ");
  return source
    .replace(/\bM\((\d+)\)/g, (_, k: string) => `mat4(${numbers(Number(k), 4)})`)
    .replace(/\bW\((\d+)\)/g, (_, k: string) => `vec4(${numbers(Number(k), 1)})`);
}

/** Lists of names in the shader: as arguments, and as declarations of all of them. */
interface Words {
  raw: string;
  view: string;
  harmonics: string;
  declared: string;
}

function list(vector: Vector, before = ""): string {
  return vector.names.map((name) => before + name).join(", ");
}

function copy(from: Vector, to: Vector): string {
  return from.names.map((name, g) => `${to.names[g]} = ${name};\n`).join("");
}

/** Pixel (x, y) holds the bits of number x (log density, red, green, blue) of check y. */
function checkSource(words: Words): string {
  return `
vec3 mixed(uint n) {
  uvec3 v = (n * 3u + uvec3(1u, 2u, 3u)) * 2654435761u;
  v = (v ^ (v >> 15u)) * 2246822519u;
  return vec3(v >> 9u) / 8388608.0;
}

void main() {
  uint n = uint(gl_FragCoord.y);
  vec3 u = mixed(2u * n), d = normalize(mixed(2u * n + 1u) - 0.5);
  ${words.declared}
  harmonics(d, ${words.harmonics});
  viewShare(${words.harmonics}, ${words.view});
  density(u, ${words.raw});
  vec3 color = radiance(${words.raw}, ${words.view}, ${words.harmonics});
  vec4 numbers = vec4(min(raw0.x, ${float(MAX_LOG_DENSITY)}), color);
  uint bits = floatBitsToUint(numbers[int(gl_FragCoord.x)]);
  result = vec4(bits & 255u, bits >> 8u & 255u, bits >> 16u & 255u, bits >> 24u) / 255.0;
}
`;
}

/** The positions and directions of `checkSource`, in double precision. */
export function checkPoint(n: number): { position: number[]; direction: number[] } {
  const mixed = (m: number) =>
    [1, 2, 3].map((axis) => {
      let v = Math.imul(m * 3 + axis, 2654435761);
      v = Math.imul(v ^ (v >>> 15), 2246822519);
      return (v >>> 9) / 8388608;
    });
  const direction = mixed(2 * n + 1).map((value) => value - 0.5);
  const length = Math.hypot(...direction);
  return { position: mixed(2 * n), direction: direction.map((value) => value / length) };
}

export const MODES = { color: 0, depth: 1, opacity: 2, normals: 3, distance: 4 } as const;
export type Mode = keyof typeof MODES;

function pictureSource(description: FieldDescription, program: Program, words: Words): string {
  const normals = program === "normals";
  return `
uniform vec3 origin;
uniform mat3 rotation;  // columns: right, up, back
uniform vec4 lens;  // fx, fy, cx, cy in pixels from the lower left corner
uniform vec3 background;
uniform int mode;
uniform vec2 depthRange;  // smallest and largest distance shown in depth images

// From near to far: light yellow, orange, red, violet, dark blue.
vec3 depthColor(float t) {
  vec3 c = vec3(0.99, 0.95, 0.69);
  c = mix(c, vec3(0.99, 0.65, 0.24), clamp(t * 4.0, 0.0, 1.0));
  c = mix(c, vec3(0.86, 0.22, 0.32), clamp(t * 4.0 - 1.0, 0.0, 1.0));
  c = mix(c, vec3(0.42, 0.12, 0.50), clamp(t * 4.0 - 2.0, 0.0, 1.0));
  return mix(c, vec3(0.06, 0.05, 0.20), clamp(t * 4.0 - 3.0, 0.0, 1.0));
}
${
  normals
    ? `
// Minus the gradient of the log density, from four samples at the corners of a tetrahedron.
vec3 normalAt(vec3 p, float t) {
  ${words.declared}
  vec3 sum = vec3(0.0);
  float reach = 1.5 * max(${float(description.step.size)}, CONE * t);  // in steps at that distance
  for (int i = 0; i < 4; i++) {
    vec3 corner = vec3(i == 0 || i == 3 ? 1.0 : -1.0, i == 1 || i == 3 ? 1.0 : -1.0, i == 2 || i == 3 ? 1.0 : -1.0);
    density(toUnit(p + reach * corner), ${words.raw});
    sum -= corner * clamp(raw0.x, -10.0, ${float(MAX_LOG_DENSITY)});
  }
  return length(sum) > 0.0 ? normalize(sum) : vec3(0.0);
}
`
    : ""
}
void main() {
  vec2 pixel = (gl_FragCoord.xy - lens.zw) / lens.xy;
  vec3 direction = normalize(rotation * vec3(pixel, -1.0));
  ${words.declared}
${
  normals
    ? ""
    : `  harmonics(direction, ${words.harmonics});
  viewShare(${words.harmonics}, ${words.view});
`
}  float start;
  int count;
  beginWalk(origin, direction, start, count);
  float transmittance = 1.0, alpha = 0.0, depth = 0.0;
  vec3 color = vec3(0.0);
  int number = 0;
  while (true) {
    // To the next sample. A loop of its own, so that pixels that are computed together evaluate the networks together.
    float t0, t1, middle;
    vec3 u;
    bool found = false;
    while (!found && number < count) {
      float s = start + float(number);
      t0 = stepDistance(max(s - 0.5, 0.0));
      t1 = stepDistance(s + 0.5);
      middle = 0.5 * (t0 + t1);
      u = toUnit(origin + direction * middle);
      found = isOccupied(u);
      number += found ? 1 : emptySteps(u, direction);
    }
    if (!found) break;
    density(u, ${words.raw});
    float optical = exp(min(raw0.x, ${float(MAX_LOG_DENSITY)})) * (t1 - t0);
    float passed = exp(-optical);
    float weight = transmittance * (optical < 1e-3 ? optical * (1.0 - 0.5 * optical) : 1.0 - passed);
${normals ? "" : `    color += weight * radiance(${words.raw}, ${words.view}, ${words.harmonics});\n`}    alpha += weight;
    depth += weight * middle;
    transmittance *= passed;
    if (transmittance < ${float(description.min_transmittance)}) break;
  }
  depth = alpha > 1e-4 ? depth / alpha : 0.0;
${
  normals
    ? `  vec3 n = transpose(rotation) * normalAt(origin + direction * depth, depth);
  result = vec4(mix(background, 0.5 + 0.5 * n, alpha), 1.0);`
    : `  if (mode == ${MODES.color}) {
    result = vec4(color + (1.0 - alpha) * background, 1.0);
  } else if (mode == ${MODES.opacity}) {
    result = vec4(vec3(alpha), 1.0);
  } else if (mode == ${MODES.depth}) {
    vec2 range = log(depthRange);
    float t = (log(max(depth, 1e-6)) - range.x) / (range.y - range.x);
    result = vec4(mix(background, depthColor(clamp(t, 0.0, 1.0)), alpha), 1.0);
  } else {
    uint bits = floatBitsToUint(depth);
    result = vec4(bits & 255u, bits >> 8u & 255u, bits >> 16u & 255u, bits >> 24u) / 255.0;
  }`
}
}
`;
}
