import { describe, expect, it } from "vitest";
import { BLOCK, blockDistances, blocksAlongAxis } from "../src/field/blocks";

/** Bits of a grid in which about one cell of `rarity` is occupied, and the blocks of those cells. */
function grid(resolution: number, rarity: number): { bits: Uint8Array; occupied: number[][] } {
  const bits = new Uint8Array(resolution ** 3 / 8);
  const occupied = [];
  for (let cell = 0; cell < resolution ** 3; cell++) {
    if (Math.imul(cell + 7, 2654435761) >>> 0 >= 2 ** 32 / rarity) continue;
    bits[cell >> 3] |= 1 << (cell & 7);
    const place = [cell % resolution, Math.floor(cell / resolution) % resolution, Math.floor(cell / resolution ** 2)];
    occupied.push(place.map((at) => Math.floor(at / BLOCK)));
  }
  return { bits, occupied };
}

describe("block distances", () => {
  // At resolutions that blocks do not divide, rows of cells begin within bytes, and the last blocks are smaller.
  it.each([
    [4, 40],
    [6, 100],
    [16, 300],
    [26, 4000],
    [32, 20000],
    [40, 1e9],
  ])("are those to the nearest occupied block (%i cells along an axis)", (resolution, rarity) => {
    const { bits, occupied } = grid(resolution, rarity);
    const side = blocksAlongAxis(resolution);
    const wanted = Array.from({ length: side ** 3 }, (_, block) => {
      const place = [block % side, Math.floor(block / side) % side, Math.floor(block / side ** 2)];
      const distance = (other: number[]) => Math.max(...other.map((at, axis) => Math.abs(at - place[axis])));
      return occupied.reduce((least, other) => Math.min(least, distance(other)), 255);
    });
    expect([...blockDistances(bits, resolution)]).toEqual(wanted);
    if (resolution > 4 && rarity < 1e9) expect(new Set(wanted).size).toBeGreaterThan(1);
  });
});
