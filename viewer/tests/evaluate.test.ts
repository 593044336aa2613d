import { describe, expect, it } from "vitest";
import { evaluateField, hashEncode, isDense, vertexRow } from "../src/field/evaluate";
import { sphericalHarmonics } from "../src/field/harmonics";
import { halfToNumber } from "../src/field/half";
import { expected, fields } from "./fixture";

function near(actual: readonly number[], wanted: readonly number[], tolerance = 3e-4): void {
  expect(actual.length).toBe(wanted.length);
  actual.forEach((value, index) => {
    expect(Math.abs(value - wanted[index])).toBeLessThan(tolerance);
  });
}

describe("as Python computes it", () => {
  it("hashes vertices to rows", () => {
    const { encoding } = fields[0].description;
    expect(encoding.resolutions.map((_, level) => isDense(encoding, level))).toEqual([true, false, false]);
    expected.vertices.forEach(([x, y, z], n) => {
      expect(encoding.resolutions.map((_, level) => vertexRow(encoding, level, x, y, z))).toEqual(expected.rows[n]);
    });
  });

  it("evaluates spherical harmonics", () => {
    expected.directions.forEach(([x, y, z], n) => {
      near(sphericalHarmonics(x, y, z), expected.harmonics[n], 1e-4);
    });
  });

  it.each([0, 1])("interpolates in the hash grid of field %i", (index) => {
    expected.positions.forEach((position, n) => {
      near(hashEncode(fields[index], position), expected.fields[index].encoded[n]);
    });
  });

  it.each([0, 1])("evaluates density and color of field %i", (index) => {
    const { log_density: logDensity, color } = expected.fields[index];
    expected.positions.forEach((position, n) => {
      const result = evaluateField(fields[index], position, expected.directions[n]);
      near([result.logDensity, ...result.color], [logDensity[n], ...color[n]], 2e-3);
    });
  });
});

it("reads half floats", () => {
  const cases: [number, number][] = [
    [0x0000, 0],
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x0001, 2 ** -24],
    [0x3555, 0.333251953125],
    [0xfc00, -Infinity],
  ];
  for (const [bits, value] of cases) expect(halfToNumber(bits)).toBe(value);
  expect(halfToNumber(0x7e00)).toBeNaN();
});
