import { describe, expect, it } from "vitest";
import { hashEncode } from "../src/field/evaluate";
import { HARMONICS, harmonicSource, sphericalHarmonics } from "../src/field/harmonics";
import { middle } from "../src/measure";
import { encodingLanes, texelLayout } from "../src/shader/encoding";
import { checkPoint, CHECKS, fieldShader } from "../src/shader/fragment";
import { float } from "../src/shader/glsl";
import { Constants, inOrder, inParts } from "../src/shader/lanes";
import { expected, fields } from "./fixture";

describe("constants", () => {
  it("hold a matrix in blocks that multiply as the matrix does", () => {
    const [rows, columns] = [5, 6];
    const matrix = Float32Array.from({ length: rows * columns }, (_, n) => Math.sin(n));
    const [rowLanes, columnLanes] = [inOrder(rows), inParts(2, 3)];
    const x = [0.5, -1, 2, 0.25, 3, -0.75];
    const constants = new Constants();
    constants.vector(undefined, inOrder(4)); // so that the matrix does not begin at 0
    const place = constants.matrix(matrix, columns, rowLanes, columnLanes);
    const values = constants.toArray();
    const groups = columnLanes.length / 4;
    const y = rowLanes.map((_, row) =>
      columnLanes.reduce((sum, column, c) => {
        const block = place + 4 * (Math.floor(row / 4) * groups + Math.floor(c / 4));
        const entry = values[4 * (block + (c % 4)) + (row % 4)]; // column by column
        return sum + entry * (column < 0 ? 123 : x[column]); // padding must not matter
      }, 0),
    );
    for (let row = 0; row < rows; row++) {
      const wanted = x.reduce((sum, value, column) => sum + matrix[row * columns + column] * value, 0);
      expect(y[row]).toBeCloseTo(wanted, 5);
    }
    expect(y.slice(rows)).toEqual([0, 0, 0]);
  });
});

describe("lanes", () => {
  it("pad vectors and their parts", () => {
    expect(inOrder(5)).toEqual([0, 1, 2, 3, 4, -1, -1, -1]);
    expect(inParts(2, 3)).toEqual([0, 1, 2, -1, 3, 4, 5, -1]);
  });

  it.each([
    [1, [0, 1, 2, -1]],
    [2, [0, 1, 2, 3, 4, 5, -1, -1]],
    [3, [0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1]],
  ])("of an encoding with %i features a level", (features, lanes) => {
    expect(encodingLanes(3, features)).toEqual(lanes);
  });

  it("of rows of a table are whole texels", () => {
    expect([1, 2, 3, 4, 5, 8].map(texelLayout)).toEqual([
      { channels: 1, texels: 1 },
      { channels: 2, texels: 1 },
      { channels: 4, texels: 1 },
      { channels: 4, texels: 1 },
      { channels: 4, texels: 2 },
      { channels: 4, texels: 2 },
    ]);
  });
});

describe("shaders", () => {
  it.each([0, 1])("of field %i count their work", (index) => {
    const { work } = fieldShader(fields[index], 8);
    expect(work.tableFetches).toBe(3 * 8);
    // Padded to blocks of 4 x 4: never less than the network itself without the direction's share, computed once a ray.
    const { density, color, multiply_adds: all } = fields[index].description;
    expect(work.multiplyAdds % 16).toBe(0);
    expect(work.multiplyAdds).toBeGreaterThan(0.5 * all);
    expect(density.stages.length + color.stages.length).toBe(3);
  });

  it("know the same harmonics as the evaluation", () => {
    const [x, y, z] = expected.directions[0];
    const evaluate = (source: string) =>
      source
        .replaceAll("d.x", `(${x})`)
        .replaceAll("d.y", `(${y})`)
        .replaceAll("d.z", `(${z})`)
        .split(" + ")
        .reduce((sum, term) => sum + term.split(" * ").reduce((product, f) => product * Number(f.replace(/[()]/g, "")), 1), 0);
    expect(HARMONICS.map((terms) => evaluate(harmonicSource(terms)))).toEqual(
      sphericalHarmonics(x, y, z).map((value) => expect.closeTo(value, 10) as number),
    );
  });

  it("check points all over the unit cube", () => {
    const points = Array.from({ length: CHECKS }, (_, n) => checkPoint(n));
    for (const axis of [0, 1, 2]) {
      const values = points.map(({ position }) => position[axis]);
      expect(Math.min(...values)).toBeLessThan(0.1);
      expect(Math.max(...values)).toBeGreaterThan(0.9);
      expect(Math.max(...values)).toBeLessThan(1);
    }
    for (const { direction } of points) expect(Math.hypot(...direction)).toBeCloseTo(1);
    expect(hashEncode(fields[0], points[0].position).every(Number.isFinite)).toBe(true);
  });

  it("contain numbers as GLSL wants them", () => {
    expect([1, -2, 0.5, 1e-12, 1e20].map(float)).toEqual(["1.0", "-2.0", "0.5", "1e-12", "100000000000000000000.0"]);
    expect(() => float(NaN)).toThrow(RangeError);
  });
});

it("takes the middle of several times", () => {
  expect(middle([3, 1, 2])).toBe(2);
  expect(middle([4, 1, 2, 3])).toBe(2.5);
});
