import type { FieldDescription, StageDescription } from "../scene/format";

/** A stage with its parameters. Rows are ordered by projection, then feature. */
export interface Stage extends StageDescription {
  projections: Float32Array; // [P * m, inputs]
  offsets?: Float32Array; // [P * m]
  normColumn?: Float32Array; // [P * m]
}

/** A sequence of stages and a final affine map. */
export interface Chain {
  inputs: number;
  outputs: number;
  stages: Stage[];
  weight: Float32Array; // [outputs, features of the last stage]
  bias?: Float32Array; // [outputs]
}

/** A radiance field as it was exported. */
export interface Field {
  description: FieldDescription;
  table: Uint16Array<ArrayBuffer> | Uint8Array<ArrayBuffer>; // [rows, features]: half floats, or bytes that tableScale scales
  tableScale?: Float32Array; // [levels, features]
  occupancy: Uint8Array<ArrayBuffer>; // [resolution^3 / 8]
  density: Chain;
  color: Chain;
}

/** Number of projections of a stage: one per factor of each order or, if shared, one per order. */
export function numProjections(stage: StageDescription): number {
  return stage.shared ? stage.order : (stage.order * (stage.order + 1)) / 2;
}

/** The projections that are multiplied for each order, from the lowest to the highest order. */
export function factors(stage: StageDescription): number[][] {
  return Array.from({ length: stage.order }, (_, k) => {
    const first = stage.shared ? 0 : (k * (k + 1)) / 2;
    return Array.from({ length: k + 1 }, (_, j) => first + j);
  });
}
