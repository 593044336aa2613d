/**
 * Networks in a shader compute on groups of four numbers (vec4). Lanes map positions in the groups to the network's numbers;
 * a lane of -1 is padding, which does not affect any result.
 */
export type Lanes = readonly number[];

/** Numbers 0 to count - 1 in order, padded at the end. */
export function inOrder(count: number): Lanes {
  return Array.from({ length: 4 * Math.ceil(count / 4) }, (_, lane) => (lane < count ? lane : -1));
}

/** Groups of several parts, each padded separately; part p holds the numbers p * count to (p + 1) * count - 1. */
export function inParts(parts: number, count: number): Lanes {
  return Array.from({ length: parts }, (_, p) => inOrder(count).map((n) => (n < 0 ? -1 : p * count + n))).flat();
}

/** Collects the constants of a shader as consecutive vec4s. */
export class Constants {
  private readonly values: number[] = [];

  /** Number of vec4s. */
  get length(): number {
    return this.values.length / 4;
  }

  /**
   * Add a matrix as 4x4 blocks: the blocks in row-major order, each block column-major as GLSL requires.
   * @param matrix row-major, `columns` numbers per row.
   * @returns the index of the first vec4. Block (r, c) begins `4 * (r * columnLanes.length / 4 + c)` vec4s later.
   */
  matrix(matrix: Float32Array, columns: number, rowLanes: Lanes, columnLanes: Lanes): number {
    const place = this.length;
    for (let r = 0; r < rowLanes.length; r += 4) {
      for (const column of columnLanes) {
        for (let i = 0; i < 4; i++) {
          const row = rowLanes[r + i];
          this.values.push(row < 0 || column < 0 ? 0 : matrix[row * columns + column]);
        }
      }
    }
    return place;
  }

  /** Add a vector, or zeros if there is none; returns the index of its first vec4. */
  vector(vector: Float32Array | undefined, lanes: Lanes): number {
    const place = this.length;
    for (const lane of lanes) this.values.push(lane < 0 ? 0 : (vector?.[lane] ?? 0));
    return place;
  }

  toArray(): Float32Array<ArrayBuffer> {
    return new Float32Array(this.values);
  }
}
