import { describe, expect, it } from "vitest";
import { ViewerError } from "../src/errors";
import { crc32 } from "../src/scene/crc32";
import { checkScene } from "../src/scene/format";
import { parseSafetensors } from "../src/scene/safetensors";
import { assembleField } from "../src/scene/load";
import { bytes, scene, sceneJson } from "./fixture";

describe("safetensors written by Python", () => {
  it("has the arrays that the description says", () => {
    const tensors = parseSafetensors("f", bytes("halves.safetensors").buffer);
    expect(tensors.get("table")).toMatchObject({ dtype: "F16", shape: [scene.fields[0].encoding.offsets[3], 2] });
    expect(tensors.get("density.0.projections")).toMatchObject({ dtype: "F32", shape: [18, 6] });
    expect(tensors.get("occupancy")?.data.length).toBe(16 ** 3 / 8);
  });

  it("has the size and checksum that the description says", () => {
    for (const field of scene.fields) {
      expect(bytes(field.file).length).toBe(field.bytes);
      expect(crc32(bytes(field.file))).toBe(field.crc32);
    }
  });

  it.each([0, 7, 40, 900, -1])("is refused when cut off at %i", (length) => {
    const part = bytes("halves.safetensors").slice(0, length);
    expect(() => parseSafetensors("part.safetensors", part.buffer)).toThrow(/part.safetensors is damaged/);
  });

  it("is refused when its header is no JSON", () => {
    const broken = bytes("halves.safetensors");
    broken[9] = 255;
    expect(() => parseSafetensors("f", broken.buffer)).toThrow(/header cannot be read/);
  });

  it("may begin an array at any byte", () => {
    const header = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}';
    const buffer = new ArrayBuffer(8 + header.length + 8 + 1);
    new DataView(buffer).setBigUint64(0, BigInt(header.length), true);
    new Uint8Array(buffer).set(new TextEncoder().encode(header), 8);
    new DataView(buffer).setFloat32(8 + header.length + 4, 1.5, true);
    expect((8 + header.length) % 4).not.toBe(0);
    expect([...parseSafetensors("f", buffer).get("a")!.data]).toEqual([0, 1.5]);
  });

  it("must fit the description", () => {
    const tensors = parseSafetensors("f", bytes("bytes.safetensors").buffer);
    expect(() => assembleField("f", scene.fields[0], tensors)).toThrow(ViewerError);
    tensors.delete("color.weight");
    expect(() => assembleField("f", scene.fields[1], tensors)).toThrow(/color.weight is missing/);
  });
});

describe("scene.json", () => {
  it("is accepted as Python writes it", () => {
    expect(checkScene(sceneJson()).title).toBe("fixture");
  });

  it.each([
    ["format", "other", /does not describe a scene/],
    ["version", 2, /version 2 of the format/],
    ["title", 3, /title is missing/],
    ["focus", [1, 2], /focus is not as it should be/],
    ["fields", [], /no field/],
    ["fields", [{ name: "x", file: "../secret" }], /not in its folder/],
    ["views", [], /no view/],
    ["views", "many", /views is missing/],
  ])("is refused with %s = %j", (key, value, message) => {
    expect(() => checkScene({ ...sceneJson(), [key]: value })).toThrow(message);
  });

  it.each([null, 3, "text", []])("is refused when it is %j", (json) => {
    expect(() => checkScene(json)).toThrow(ViewerError);
  });
});

it("computes CRC-32 as zlib does", () => {
  expect(crc32(new TextEncoder().encode("123456789"))).toBe(0xcbf43926);
});
