import type { Encoding } from "../scene/format";
import { type Chain, factors, type Field, numProjections, type Stage } from "./field";
import { halfToNumber } from "./half";
import { sphericalHarmonics } from "./harmonics";

// Multipliers of the spatial hash along y and z (Müller et al. 2022, "Instant NGP", eq. 4).
export const PRIME_Y = 2654435761;
export const PRIME_Z = 805459861;

// exp(89) is infinite in single precision.
export const MAX_LOG_DENSITY = 80;

/** Whether every vertex of a level has a row of its own. */
export function isDense(encoding: Encoding, level: number): boolean {
  return (encoding.resolutions[level] + 1) ** 3 <= 2 ** encoding.log2_table_size;
}

/** Row of the table that holds the features of a vertex (whole numbers x, y, z) of a level. */
export function vertexRow(encoding: Encoding, level: number, x: number, y: number, z: number): number {
  const side = encoding.resolutions[level] + 1;
  if (isDense(encoding, level)) return encoding.offsets[level] + x + side * (y + side * z);
  const mask = 2 ** encoding.log2_table_size - 1;
  return encoding.offsets[level] + ((x ^ Math.imul(y, PRIME_Y) ^ Math.imul(z, PRIME_Z)) & mask);
}

/** A value of the hash table. */
export function tableValue(field: Field, row: number, level: number, feature: number): number {
  const width = field.description.encoding.features;
  const stored = field.table[row * width + feature];
  if (field.tableScale === undefined) return halfToNumber(stored);
  const c = (stored - 128) / 127;
  return c * Math.abs(c) * field.tableScale[level * width + feature];
}

/** Features of a position in the unit cube, level by level, by trilinear interpolation in the hash grid. */
export function hashEncode(field: Field, position: readonly number[]): number[] {
  const { encoding } = field.description;
  return encoding.resolutions.flatMap((resolution, level) => {
    const scaled = position.map((value) => Math.min(Math.max(value, 0), 1) * resolution);
    const cell = scaled.map((value) => Math.min(Math.floor(value), resolution - 1));
    const features = new Array<number>(encoding.features).fill(0);
    for (let corner = 0; corner < 8; corner++) {
      const upper = [corner & 1, (corner >> 1) & 1, corner >> 2];
      const weight = upper.reduce((product, up, axis) => {
        const fraction = scaled[axis] - cell[axis];
        return product * (up ? fraction : 1 - fraction);
      }, 1);
      const row = vertexRow(encoding, level, cell[0] + upper[0], cell[1] + upper[1], cell[2] + upper[2]);
      for (let f = 0; f < features.length; f++) features[f] += weight * tableValue(field, row, level, f);
    }
    return features;
  });
}

/** A merged network's outputs. */
export function evaluateChain(chain: Chain, inputs: readonly number[]): number[] {
  const features = chain.stages.reduce<readonly number[]>((x, stage) => stageFeatures(stage, x), inputs);
  return affine(chain.weight, chain.bias, chain.outputs, features);
}

/** Density and color at a position in the unit cube, seen along a unit direction. */
export function evaluateField(
  field: Field,
  position: readonly number[],
  direction: readonly number[],
): { logDensity: number; color: number[] } {
  const raw = evaluateChain(field.density, hashEncode(field, position));
  const harmonics = sphericalHarmonics(direction[0], direction[1], direction[2]);
  const color = evaluateChain(field.color, [...harmonics, ...raw.slice(1)]);
  return { logDensity: Math.min(raw[0], MAX_LOG_DENSITY), color: color.map((value) => 1 / (1 + Math.exp(-value))) };
}

function stageFeatures(stage: Stage, x: readonly number[]): number[] {
  const width = stage.features / stage.order;
  const rows = affine(stage.projections, stage.offsets, width * numProjections(stage), x);
  const { normColumn } = stage;
  if (normColumn !== undefined) {
    const norm = Math.sqrt(x.reduce((sum, value) => sum + value * value, stage.eps));
    rows.forEach((_, row) => (rows[row] += norm * normColumn[row]));
  }
  return factors(stage).flatMap((projections) =>
    Array.from({ length: width }, (_, j) =>
      activate(stage.phi, projections.reduce((product, p) => product * rows[p * width + j], 1)),
    ),
  );
}

function affine(
  matrix: Float32Array,
  offsets: Float32Array | undefined,
  outputs: number,
  x: readonly number[],
): number[] {
  return Array.from({ length: outputs }, (_, row) =>
    x.reduce((sum, value, column) => sum + matrix[row * x.length + column] * value, offsets?.[row] ?? 0),
  );
}

function activate(phi: Stage["phi"], x: number): number {
  switch (phi) {
    case "identity":
      return x;
    case "relu":
      return Math.max(x, 0);
    case "squared_relu":
      return Math.max(x, 0) ** 2;
    case "softplus":
      return x > 20 ? x : Math.log1p(Math.exp(x));
    case "gelu":
      return 0.5 * x * (1 + erf(x / Math.SQRT2));
    case "sin":
      return Math.sin(x);
  }
}

/** The error function, accurate to 1.5e-7 (Abramowitz and Stegun, 7.1.26). */
function erf(x: number): number {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - p * Math.exp(-x * x));
}
