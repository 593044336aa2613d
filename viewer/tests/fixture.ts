import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Field } from "../src/field/field";
import { checkScene, type SceneDescription } from "../src/scene/format";
import { assembleField } from "../src/scene/load";
import { parseSafetensors } from "../src/scene/safetensors";

interface Evaluated {
  encoded: number[][];
  log_density: number[];
  color: number[][];
}

/** What Python computed; tests/viewer/fixture.py writes it. */
export interface Expected {
  positions: number[][];
  directions: number[][];
  harmonics: number[][];
  vertices: number[][];
  rows: number[][];
  fields: Evaluated[];
  pixels: number[][];
  rays: number[][];
}

const FOLDER = join(import.meta.dirname, "fixtures");

/** A file of the fixtures. */
export function bytes(name: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(readFileSync(join(FOLDER, name)));
}

function json(name: string): unknown {
  return JSON.parse(readFileSync(join(FOLDER, name), "utf-8"));
}

/** scene.json, parsed anew so that a test may change it. */
export function sceneJson(): Record<string, unknown> {
  return json("scene.json") as Record<string, unknown>;
}

export const expected = json("expected.json") as Expected;
export const scene: SceneDescription = checkScene(sceneJson());
export const fields: Field[] = scene.fields.map((description) =>
  assembleField(description.file, description, parseSafetensors(description.file, bytes(description.file).buffer)),
);
