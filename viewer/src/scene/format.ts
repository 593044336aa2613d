import type { Vec3 } from "../camera/vector";
import { damaged, ViewerError } from "../errors";

export const SUPPORTED_VERSION = 1;

export const ACTIVATIONS = ["identity", "relu", "squared_relu", "softplus", "gelu", "sin"] as const;
export type Activation = (typeof ACTIVATIONS)[number];

/** A stage of a merged network: products of projections, and an activation. docs/scene-format.md has the formula. */
export interface StageDescription {
  inputs: number;
  features: number;
  order: number;
  shared: boolean;
  phi: Activation;
  eps: number;
}

export interface ChainDescription {
  inputs: number;
  outputs: number;
  stages: StageDescription[];
}

export interface Encoding {
  resolutions: number[];
  offsets: number[];
  features: number;
  log2_table_size: number;
}

export interface FieldDescription {
  name: string;
  file: string;
  bytes: number;
  crc32: number;
  multiply_adds: number;
  space: { box: [Vec3, Vec3]; contracted: boolean };
  step: { size: number; cone_angle: number };
  near: number;
  far: number;
  min_transmittance: number;
  occupancy: { resolution: number };
  encoding: Encoding;
  density: ChainDescription;
  color: ChainDescription;
}

/** A camera of the dataset. Columns of `camera_to_world`: right, up, back, position. */
export interface View {
  name: string;
  split: string;
  camera_to_world: number[][];
  fx: number;
  fy: number;
  cx: number;
  cy: number;
  width: number;
  height: number;
  photo?: string;
}

export interface SceneDescription {
  title: string;
  background: Vec3;
  up: Vec3;
  focus: Vec3;
  fields: FieldDescription[];
  views: View[];
}

const FILE = "scene/scene.json";

/**
 * Check that a parsed scene.json is one that this viewer understands.
 * @throws ViewerError otherwise.
 */
export function checkScene(json: unknown): SceneDescription {
  const scene = new Checked(json, "");
  if (scene.raw("format") !== "eugen-scene") throw damaged(FILE, "it does not describe a scene");
  const version = scene.number("version");
  if (version > SUPPORTED_VERSION) {
    throw new ViewerError(
      `This scene has version ${version} of the format, the viewer knows ${SUPPORTED_VERSION}`,
      "Export the scene again, with one version of eugen-nerf, so that viewer and scene belong together.",
    );
  }
  scene.text("title");
  for (const key of ["background", "up", "focus"]) scene.numbers(key, 3);
  if (scene.list("fields").map(checkField).length === 0) throw damaged(FILE, "it has no field");
  if (scene.list("views").map(checkView).length === 0) throw damaged(FILE, "it has no view");
  return json as SceneDescription;
}

function checkField(field: Checked): void {
  field.text("name");
  if (!/^[\w.-]+$/.test(field.text("file"))) throw damaged(FILE, "a field's file is not in its folder");
  for (const key of ["bytes", "crc32", "multiply_adds", "near", "far", "min_transmittance"]) field.number(key);
  const space = field.object("space");
  space.flag("contracted");
  for (const corner of space.list("box")) corner.asNumbers(3);
  field.object("step").number("size");
  field.object("step").number("cone_angle");
  field.object("occupancy").number("resolution");
  const encoding = field.object("encoding");
  const levels = encoding.numbers("resolutions").length;
  encoding.numbers("offsets", levels + 1);
  encoding.number("features");
  encoding.number("log2_table_size");
  for (const name of ["density", "color"]) checkChain(field.object(name));
}

function checkChain(chain: Checked): void {
  chain.number("inputs");
  chain.number("outputs");
  const stages = chain.list("stages");
  if (stages.length === 0) throw damaged(FILE, "a network has no stage");
  for (const stage of stages) {
    for (const key of ["inputs", "features", "order", "eps"]) stage.number(key);
    stage.flag("shared");
    const phi = stage.text("phi");
    if (!ACTIVATIONS.some((known) => known === phi)) throw damaged(FILE, `it uses an unknown function ${phi}`);
  }
}

function checkView(view: Checked): void {
  view.text("name");
  view.text("split");
  for (const key of ["fx", "fy", "cx", "cy", "width", "height"]) view.number(key);
  const rows = view.list("camera_to_world");
  if (rows.length !== 3) throw damaged(FILE, "a camera has no pose");
  for (const row of rows) row.asNumbers(4);
  if (view.raw("photo") !== undefined && !/^photos\/[\w.-]+$/.test(view.text("photo"))) {
    throw damaged(FILE, "a photo is not in its folder");
  }
}

/** A value out of JSON with its place, for messages. */
class Checked {
  constructor(
    private readonly value: unknown,
    private readonly place: string,
  ) {}

  raw(key: string): unknown {
    if (typeof this.value !== "object" || this.value === null) throw this.missing(key);
    return (this.value as Record<string, unknown>)[key];
  }

  object(key: string): Checked {
    const value = this.raw(key);
    if (typeof value !== "object" || value === null) throw this.missing(key);
    return new Checked(value, this.at(key));
  }

  list(key: string): Checked[] {
    const value = this.raw(key);
    if (!Array.isArray(value)) throw this.missing(key);
    return value.map((item, index) => new Checked(item, `${this.at(key)}[${index}]`));
  }

  number(key: string): number {
    const value = this.raw(key);
    if (typeof value !== "number") throw this.missing(key);
    return value;
  }

  text(key: string): string {
    const value = this.raw(key);
    if (typeof value !== "string") throw this.missing(key);
    return value;
  }

  flag(key: string): void {
    if (typeof this.raw(key) !== "boolean") throw this.missing(key);
  }

  numbers(key: string, length?: number): number[] {
    return this.object(key).asNumbers(length);
  }

  asNumbers(length?: number): number[] {
    const { value } = this;
    const right = Array.isArray(value) && value.every((item) => typeof item === "number");
    if (!right || (length !== undefined && value.length !== length)) {
      throw damaged(FILE, `${this.place} is not as it should be`);
    }
    return value;
  }

  private at(key: string): string {
    return this.place === "" ? key : `${this.place}.${key}`;
  }

  private missing(key: string): ViewerError {
    return damaged(FILE, `${this.at(key)} is missing or not as it should be`);
  }
}
