import { afterEach, describe, expect, it, vi } from "vitest";
import { ViewerError } from "../src/errors";
import { crc32 } from "../src/scene/crc32";
import { checkScene } from "../src/scene/format";
import { parseSafetensors } from "../src/scene/safetensors";
import { assembleField, downloadField } from "../src/scene/load";
import { bytes, scene, sceneJson } from "./fixture";

afterEach(() => {
  vi.unstubAllGlobals();
});

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

  it("is refused when there is no memory for it", async () => {
    vi.stubGlobal("location", { protocol: "https:" });
    vi.stubGlobal("fetch", () => Promise.resolve(new Response("content")));
    const loading = downloadField({ ...scene.fields[0], bytes: 1e15 }, () => undefined);
    await expect(loading).rejects.toThrow(/needs 1000000000 MB of memory.*--size-budget/);
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

/** The fixture's scene.json with another value in a place. */
function sceneWith(place: string, value: unknown): unknown {
  const json = sceneJson();
  const keys = place.match(/\w+/g)!;
  const last = keys.pop()!;
  const inner = keys.reduce<Record<string, unknown>>((part, key) => part[key] as Record<string, unknown>, json);
  inner[last] = value;
  return json;
}

describe("scene.json", () => {
  it("is accepted as Python writes it", () => {
    expect(checkScene(sceneJson()).title).toBe("fixture");
  });

  it.each([
    ["format", "other", /does not describe a scene/],
    ["version", 2, /version 2 of the format/],
    ["title", 3, /title is missing/],
    ["focus", [1, 2], /focus is invalid/],
    ["fields", [], /no field/],
    ["fields", [{ name: "x", file: "../secret" }], /not in its folder/],
    ["views", [], /no view/],
    ["views", "many", /views is missing/],
  ])("is refused with %s = %j", (key, value, message) => {
    expect(() => checkScene({ ...sceneJson(), [key]: value })).toThrow(message);
  });

  it.each([
    ["background", [1, 1, 2]],
    ["up", [0, 0, 0]],
    ["focus", [0, 0, 1e300]],
    ["fields[0].bytes", -1],
    ["fields[0].bytes", 0.5],
    ["fields[0].crc32", 1.5],
    ["fields[0].near", -1],
    ["fields[0].far", 0.5],
    ["fields[0].min_transmittance", 2],
    ["fields[0].space.box", [[-1, -1, -1]]],
    ["fields[0].space.box", [[-1, -1, -1], [1, -1, 1]]],
    ["fields[0].space.box", [[-1, -1, -1], [1, 1, 1], [2, 2, 2]]],
    ["fields[0].step.size", 0],
    ["fields[0].step.size", 1e-7],
    ["fields[0].step.cone_angle", -1],
    ["fields[0].occupancy.resolution", 0],
    ["fields[0].occupancy.resolution", 15],
    ["fields[0].encoding.resolutions", [4, 6.5, 12]],
    ["fields[0].encoding.resolutions", [4, 0, 12]],
    ["fields[0].encoding.offsets", [0, 125, 253, 380]],
    ["fields[0].encoding.offsets", [8, 133, 261, 389]],
    ["fields[0].encoding.features", 0],
    ["fields[0].encoding.log2_table_size", 6.5],
    ["fields[0].density.inputs", 7],
    ["fields[0].density.outputs", 0],
    ["fields[0].density.stages[0].inputs", 7],
    ["fields[0].density.stages[0].order", 0],
    ["fields[0].density.stages[0].features", 13],
    ["fields[0].color.inputs", 20],
    ["fields[0].color.outputs", 4],
    ["fields[0].color.stages[1].inputs", 13],
    ["fields[0].color.stages[1].eps", -1],
    ["views[0].fx", 0],
    ["views[0].height", 1.5],
    ["views[0].width", 0],
    ["views[0].camera_to_world", [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]],
    ["views[0].camera_to_world", [[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]],
  ])("is refused with %s = %j", (place, value) => {
    expect(() => checkScene(sceneWith(place, value))).toThrow(`scene/scene.json is damaged: ${place} is `);
  });

  it("may have other tables and scaled poses", () => {
    // Smaller tables are what --size-budget makes, and datasets may bring axes that are not exactly of unit length.
    const smaller = { resolutions: [4, 6, 12], offsets: [0, 64, 128, 192], features: 2, log2_table_size: 6 };
    expect(() => checkScene(sceneWith("fields[0].encoding", smaller))).not.toThrow();
    const padded = { ...smaller, offsets: [0, 64, 136, 200] };
    expect(() => checkScene(sceneWith("fields[0].encoding", padded))).not.toThrow();
    const scaled = [[0.5, 0, 0, 1], [0, 0.5, 0, 1], [0, 0, 0.5, 1]];
    expect(() => checkScene(sceneWith("views[0].camera_to_world", scaled))).not.toThrow();
  });

  it.each([null, 3, "text", []])("is refused when it is %j", (json) => {
    expect(() => checkScene(json)).toThrow(ViewerError);
  });
});

it("computes CRC-32 as zlib does", () => {
  expect(crc32(new TextEncoder().encode("123456789"))).toBe(0xcbf43926);
});
