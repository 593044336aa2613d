/** Side of a block, in cells. */
export const BLOCK = 4;
const LOG2_BLOCK = 2;

/** Number of blocks along an axis of an occupancy grid. */
export function blocksAlongAxis(resolution: number): number {
  return Math.ceil(resolution / BLOCK);
}

/**
 * How far each block of BLOCK^3 cells is from the nearest one with an occupied cell, so that rays can cross the blocks between at
 * once: the largest of the distances along the three axes, in blocks, at most 255. 0 where a cell is occupied.
 *
 * @param occupancy the bits of resolution^3 cells, x fastest.
 * @returns one byte for each block, x fastest.
 */
export function blockDistances(occupancy: Uint8Array, resolution: number): Uint8Array {
  const side = blocksAlongAxis(resolution);
  const row = side + 2; // with a border, so that every block has all neighbors
  const at = (x: number, y: number, z: number) => ((z + 1) * row + y + 1) * row + x + 1;
  const distances = new Uint8Array(row ** 3).fill(255);
  for (let n = 0; n < occupancy.length; n++) {
    for (let bits = occupancy[n], cell = 8 * n; bits > 0; bits >>= 1, cell++) {
      if ((bits & 1) === 0) continue;
      const line = Math.floor(cell / resolution);
      const [y, z] = [line % resolution, Math.floor(line / resolution)];
      distances[at((cell % resolution) >> LOG2_BLOCK, y >> LOG2_BLOCK, z >> LOG2_BLOCK)] = 0;
    }
  }
  // Two sweeps suffice, each over the neighbors that it has visited before (Borgefors 1986, "Distance transformations in digital
  // images").
  const steps = [-1, 0, 1].flatMap((z) => [-1, 0, 1].flatMap((y) => [-1, 0, 1].map((x) => (z * row + y) * row + x)));
  const before = steps.slice(0, 13);
  for (const direction of [1, -1]) {
    for (let n = 0; n < side ** 3; n++) {
      const block = direction > 0 ? n : side ** 3 - 1 - n;
      const place = at(block % side, Math.floor(block / side) % side, Math.floor(block / side ** 2));
      let least = distances[place];
      for (const step of before) least = Math.min(least, distances[place + direction * step] + 1);
      distances[place] = least;
    }
  }
  const result = new Uint8Array(side ** 3);
  for (let z = 0; z < side; z++) {
    for (let y = 0; y < side; y++) result.set(distances.subarray(at(0, y, z), at(side, y, z)), (z * side + y) * side);
  }
  return result;
}
