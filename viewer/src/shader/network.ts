import { type Chain, factors, numProjections, type Stage } from "../field/field";
import { float } from "./glsl";
import { type Constants, inOrder, inParts, type Lanes } from "./lanes";

/** GLSL functions of the activations; the error function follows Abramowitz and Stegun, 7.1.26. */
const ACTIVATIONS: Record<Stage["phi"], string> = {
  identity: "return x;",
  relu: "return max(x, 0.0);",
  squared_relu: "vec4 r = max(x, 0.0); return r * r;",
  softplus: "return max(x, 0.0) + log(1.0 + exp(-abs(x)));",
  sin: "return sin(x);",
  gelu: `vec4 a = abs(x) * 0.7071067811865476;
  vec4 t = 1.0 / (1.0 + 0.3275911 * a);
  vec4 p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return 0.5 * x * (1.0 + sign(x) * (1.0 - p * exp(-a * a)));`,
};

/** GLSL of the activations that chains use. */
export function activationSource(...chains: Chain[]): string {
  const used = new Set(chains.flatMap((chain) => chain.stages.map((stage) => stage.phi)));
  return [...used].map((phi) => `vec4 phi_${phi}(vec4 x) { ${ACTIVATIONS[phi]} }\n`).join("");
}

/** A vector in a shader: the names of its vec4s, and the number in each of their components. */
export interface Vector {
  names: readonly string[];
  lanes: Lanes;
}

/** A vector whose vec4s have names that start with a word. */
export function named(word: string, lanes: Lanes): Vector {
  return { names: Array.from({ length: lanes.length / 4 }, (_, g) => `${word}${g}`), lanes };
}

/**
 * Writes networks as GLSL statements, without arrays and loops, which would keep values out of registers. Constants are named
 * by their index: W(k) is vec4 k, M(k) the matrix whose columns are the four vec4s from k on.
 */
export class NetworkWriter {
  /** Number of 4x4 matrix products written so far. */
  blocks = 0;
  private names = 0;

  constructor(private readonly constants: Constants) {}

  /**
   * Statements for y = matrix x + start, where `start` is constants or a vector with the same lanes as y.
   * @param columns numbers per row of the matrix.
   */
  affine(
    matrix: Float32Array,
    columns: number,
    rows: Lanes,
    x: Vector,
    start: Float32Array | Vector | undefined,
  ): [source: string, y: Vector] {
    const y = this.vector(rows);
    const [height, width] = [y.names.length, x.names.length];
    const place = this.constants.matrix(matrix, columns, rows, x.lanes);
    const offsets = start === undefined || start instanceof Float32Array ? this.constants.vector(start, rows) : undefined;
    this.blocks += height * width;
    const lines = y.names.map((name, r) => {
      const first = offsets === undefined ? (start as Vector).names[r] : `W(${offsets + r})`;
      const terms = x.names.map((group, c) => `M(${place + 4 * (r * width + c)}) * ${group}`);
      return `vec4 ${name} = ${[first, ...terms].join("\n  + ")};\n`;
    });
    return [lines.join(""), y];
  }

  /** Statements that add `norm` times a column to a vector in place. */
  addNorm(y: Vector, column: Float32Array, norm: string): string {
    const place = this.constants.vector(column, y.lanes);
    return y.names.map((name, g) => `${name} += ${norm} * W(${place + g});\n`).join("");
  }

  /** Statements that compute a stage's features from its projected rows. */
  combine(stage: Stage, rows: Vector): [source: string, features: Vector] {
    const perOrder = stage.features / stage.order;
    const groups = Math.ceil(perOrder / 4);
    const features = this.vector(inParts(stage.order, perOrder));
    const lines = factors(stage).flatMap((projections, order) =>
      Array.from({ length: groups }, (_, g) => {
        const product = projections.map((p) => rows.names[g + p * groups]).join(" * ");
        return `vec4 ${features.names[g + order * groups]} = phi_${stage.phi}(${product});\n`;
      }),
    );
    return [lines.join(""), features];
  }

  /** The lanes of a stage's projected rows. */
  static rowLanes(stage: Stage): Lanes {
    return inParts(numProjections(stage), stage.features / stage.order);
  }

  /** Statements for a chain. The rows of its first stage can be given if they are already computed. */
  chain(chain: Chain, input: Vector, firstRows?: Vector): [source: string, y: Vector] {
    let source = "";
    let x = input;
    chain.stages.forEach((stage, index) => {
      let rows = firstRows;
      if (index > 0 || rows === undefined) {
        const lanes = NetworkWriter.rowLanes(stage);
        const [text, y] = this.affine(stage.projections, stage.inputs, lanes, x, stage.offsets);
        source += text;
        rows = y;
        if (stage.normColumn !== undefined) {
          const squares = x.names.map((name) => `dot(${name}, ${name})`).join(" + ");
          source += this.addNorm(rows, stage.normColumn, `sqrt(${squares} + ${float(stage.eps)})`);
        }
      }
      const [text, features] = this.combine(stage, rows);
      source += text;
      x = features;
    });
    const width = chain.weight.length / chain.outputs;
    const [text, y] = this.affine(chain.weight, width, inOrder(chain.outputs), x, chain.bias);
    return [source + text, y];
  }

  private vector(lanes: Lanes): Vector {
    return named(`v${this.names++}_`, lanes);
  }
}
