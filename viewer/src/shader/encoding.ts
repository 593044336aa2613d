import { isDense, PRIME_Y, PRIME_Z } from "../field/evaluate";
import type { Field } from "../field/field";
import { float } from "./glsl";
import { type Constants, inOrder, type Lanes } from "./lanes";
import { named } from "./network";

/** Layout of a table row in texels: channels per texel, and texels per row. */
export function texelLayout(features: number): { channels: 1 | 2 | 4; texels: number } {
  if (features <= 2) return { channels: features === 1 ? 1 : 2, texels: 1 };
  return { channels: 4, texels: Math.ceil(features / 4) };
}

/** Lanes of `encode`'s output: levels of one or two features are packed; with more features, each level fills whole groups. */
export function encodingLanes(levels: number, features: number): Lanes {
  if (features <= 2) return inOrder(levels * features);
  const { texels } = texelLayout(features);
  return Array.from({ length: levels * texels * 4 }, (_, lane) => {
    const [level, feature] = [Math.floor(lane / (4 * texels)), lane % (4 * texels)];
    return feature < features ? level * features + feature : -1;
  });
}

/** GLSL of `void encode(vec3 u, out vec4 e0, ...)`, the hash encoding of training, and its number of texture fetches. */
export function encodingSource(field: Field, log2Width: number, constants: Constants): { source: string; fetches: number } {
  const { encoding } = field.description;
  const { channels, texels } = texelLayout(encoding.features);
  const levels = encoding.resolutions.length;
  const output = named("e", encodingLanes(levels, encoding.features)).names;
  const swizzle = { 1: "x", 2: "xy", 4: "xyzw" }[channels];
  const type = { 1: "float", 2: "vec2", 4: "vec4" }[channels];
  const decode =
    field.tableScale === undefined
      ? "return t;"
      : `${type} c = (t * 255.0 - 128.0) / 127.0;\n  return c * abs(c);`;
  const sum = (k: number) =>
    Array.from({ length: 8 }, (_, corner) => {
      const axis = (bit: number, name: string) => (corner & bit ? `f.${name}` : `g.${name}`);
      const row = `row(v + uvec3(${corner & 1}u, ${(corner >> 1) & 1}u, ${corner >> 2}u), offset, mask, side)`;
      return `${axis(1, "x")} * ${axis(2, "y")} * ${axis(4, "z")} * fetch(${row}, ${k}u)`;
    }).join("\n    + ");
  let body = "";
  for (let level = 0; level < levels; level++) {
    const resolution = encoding.resolutions[level];
    const dense = isDense(encoding, level);
    const mask = dense ? 0 : 2 ** encoding.log2_table_size - 1;
    const call = (k: number) =>
      `level${k}(u, ${float(resolution)}, ${encoding.offsets[level]}u, ${mask}u, ${dense ? resolution + 1 : 0}u)`;
    for (let k = 0; k < texels; k++) {
      const scale = field.tableScale === undefined ? "" : ` * ${scaleOf(field, level, k, constants)}.${swizzle}`;
      const place = level * texels * channels + k * channels;
      const target = `e${Math.floor(place / 4)}.${"xyzw".slice(place % 4, (place % 4) + channels)}`;
      body += `  ${target} = ${call(k)}${scale};\n`;
    }
  }
  const functions = Array.from(
    { length: texels },
    (_, k) => `
${type} level${k}(vec3 u, float resolution, uint offset, uint mask, uint side) {
  vec3 p = u * resolution;
  vec3 cell = min(floor(p), resolution - 1.0);
  vec3 f = p - cell;
  vec3 g = 1.0 - f;
  uvec3 v = uvec3(cell);
  return ${sum(k)};
}
`,
  ).join("");
  const source = `
uniform highp sampler2D table;

${type} fetch(uint row, uint k) {
  uint texel = row * ${texels}u + k;
  ${type} t = texelFetch(table, ivec2(texel & ${2 ** log2Width - 1}u, texel >> ${log2Width}u), 0).${swizzle};
  ${decode}
}

uint row(uvec3 v, uint offset, uint mask, uint side) {
  if (side > 0u) return offset + v.x + side * (v.y + side * v.z);
  return offset + ((v.x ^ (v.y * ${PRIME_Y}u) ^ (v.z * ${PRIME_Z}u)) & mask);
}
${functions}
void encode(vec3 u, ${output.map((name) => `out vec4 ${name}`).join(", ")}) {
  u = clamp(u, 0.0, 1.0);
  ${output[output.length - 1]} = vec4(0.0);
${body}}
`;
  return { source, fetches: 8 * levels * texels };
}

function scaleOf(field: Field, level: number, texel: number, constants: Constants): string {
  const { features } = field.description.encoding;
  const scale = field.tableScale!.slice(level * features + 4 * texel, Math.min(level * features + 4 * texel + 4, (level + 1) * features));
  return `W(${constants.vector(scale, inOrder(scale.length))})`;
}
