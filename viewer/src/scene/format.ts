import { cross, dot, length, subtract, type Vec3 } from "../camera/vector";
import { damaged, ViewerError } from "../errors";
import { HARMONICS } from "../field/harmonics";

export const SUPPORTED_VERSION = 1;

export const ACTIVATIONS = ["identity", "relu", "squared_relu", "softplus", "gelu", "sin"] as const;
export type Activation = (typeof ACTIVATIONS)[number];

/** A stage of a merged network: products of projections and an activation. docs/scene-format.md has the formula. */
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

/** Whether a number is valid. */
type Rule = (value: number) => boolean;
const ANY: Rule = () => true;
const POSITIVE: Rule = (value) => Math.fround(value) > 0;
const NOT_NEGATIVE: Rule = (value) => value >= 0;
const SHARE: Rule = (value) => value >= 0 && value <= 1;
const COUNT: Rule = (value) => Number.isSafeInteger(value) && value >= 0;
const SIZE: Rule = (value) => COUNT(value) && value >= 1;
const EVEN: Rule = (value) => SIZE(value) && value % 2 === 0;

/**
 * Check that a parsed scene.json is valid and supported by this viewer.
 * @throws ViewerError otherwise.
 */
export function checkScene(json: unknown): SceneDescription {
  const scene = new Checked(json, "");
  if (scene.raw("format") !== "eugen-scene") throw damaged(FILE, "it does not describe a scene");
  const version = scene.number("version");
  if (version > SUPPORTED_VERSION) {
    throw new ViewerError(
      `This scene has version ${version} of the format, but the viewer supports only version ${SUPPORTED_VERSION}`,
      "Export the scene again with eugen-nerf, which writes a viewer and a scene of the same version.",
    );
  }
  scene.text("title");
  scene.numbers("background", 3, SHARE);
  if (Math.abs(length(scene.numbers("up", 3) as Vec3) - 1) > 1e-3) throw scene.wrong("up");
  scene.numbers("focus", 3);
  if (scene.list("fields").map(checkField).length === 0) throw damaged(FILE, "it has no field");
  if (scene.list("views").map(checkView).length === 0) throw damaged(FILE, "it has no view");
  return json as SceneDescription;
}

function checkField(field: Checked): void {
  field.text("name");
  if (!/^[\w.-]+$/.test(field.text("file"))) throw damaged(FILE, "a field's file is not in its folder");
  for (const key of ["bytes", "crc32", "multiply_adds"]) field.number(key, COUNT);
  field.number("far", (far) => far > field.number("near", NOT_NEGATIVE));
  field.number("min_transmittance", SHARE);
  const space = field.object("space");
  space.flag("contracted");
  const corners = space.list("box").map((corner) => corner.asNumbers(3) as Vec3);
  if (corners.length !== 2 || corners[0].some((low, axis) => low >= corners[1][axis])) throw space.wrong("box");
  // A ray takes at most a million steps, so smaller ones would not reach through the box.
  const least = 1e-6 * length(subtract(corners[1], corners[0]));
  field.object("step").number("size", (size) => POSITIVE(size) && size >= least);
  field.object("step").number("cone_angle", NOT_NEGATIVE);
  field.object("occupancy").number("resolution", EVEN); // whole bytes of bits
  const encoded = checkEncoding(field.object("encoding"));
  const outputs = checkChain(field.object("density"), encoded);
  const color = field.object("color");
  if (checkChain(color, HARMONICS.length + outputs - 1) !== 3) throw color.wrong("outputs");
}

/** @returns the number of encoded values per position. */
function checkEncoding(encoding: Checked): number {
  const resolutions = encoding.numbers("resolutions", undefined, SIZE);
  const offsets = encoding.numbers("offsets", resolutions.length + 1, COUNT);
  const entries = 2 ** encoding.number("log2_table_size", SIZE);
  // A level may be followed by rows that it does not use.
  const fits = resolutions.every(
    (resolution, level) => offsets[level + 1] - offsets[level] >= Math.min((resolution + 1) ** 3, entries),
  );
  if (offsets[0] !== 0 || !fits) throw encoding.wrong("offsets");
  return resolutions.length * encoding.number("features", SIZE);
}

/** @returns the number of outputs of a network with this number of inputs. */
function checkChain(chain: Checked, inputs: number): number {
  chain.number("inputs", (value) => value === inputs);
  const stages = chain.list("stages");
  if (stages.length === 0) throw damaged(FILE, "a network has no stage");
  let width = inputs;
  for (const stage of stages) {
    stage.number("inputs", (value) => value === width);
    const order = stage.number("order", SIZE);
    width = stage.number("features", (value) => SIZE(value) && value % order === 0);
    stage.number("eps", NOT_NEGATIVE);
    stage.flag("shared");
    const phi = stage.text("phi");
    if (!ACTIVATIONS.some((known) => known === phi)) throw damaged(FILE, `it uses an unknown function ${phi}`);
  }
  return chain.number("outputs", SIZE);
}

function checkView(view: Checked): void {
  view.text("name");
  view.text("split");
  for (const key of ["fx", "fy"]) view.number(key, POSITIVE);
  for (const key of ["cx", "cy"]) view.number(key);
  for (const key of ["width", "height"]) view.number(key, SIZE);
  const rows = view.list("camera_to_world").map((row) => row.asNumbers(4));
  if (rows.length !== 3) throw damaged(FILE, "a camera has no pose");
  const [right, up, back] = [0, 1, 2].map((column) => rows.map((row) => row[column]) as Vec3);
  // Rounded or scaled axes can be corrected, but not axes that are linearly dependent.
  const volume = Math.abs(dot(cross(right, up), back)) / (length(right) * length(up) * length(back));
  if (!(volume > 0.1)) throw view.wrong("camera_to_world");
  if (view.raw("photo") !== undefined && !/^photos\/[\w.-]+$/.test(view.text("photo"))) {
    throw damaged(FILE, "a photo is not in its folder");
  }
}

/** A JSON value with its path, for messages. */
class Checked {
  constructor(
    private readonly value: unknown,
    private readonly place: string,
  ) {}

  raw(key: string): unknown {
    if (typeof this.value !== "object" || this.value === null) throw this.wrong(key);
    return (this.value as Record<string, unknown>)[key];
  }

  object(key: string): Checked {
    const value = this.raw(key);
    if (typeof value !== "object" || value === null) throw this.wrong(key);
    return new Checked(value, this.at(key));
  }

  list(key: string): Checked[] {
    const value = this.raw(key);
    if (!Array.isArray(value)) throw this.wrong(key);
    return value.map((item, index) => new Checked(item, `${this.at(key)}[${index}]`));
  }

  number(key: string, rule = ANY): number {
    const value = this.raw(key);
    if (!isNumber(value) || !rule(value)) throw this.wrong(key);
    return value;
  }

  text(key: string): string {
    const value = this.raw(key);
    if (typeof value !== "string") throw this.wrong(key);
    return value;
  }

  flag(key: string): void {
    if (typeof this.raw(key) !== "boolean") throw this.wrong(key);
  }

  numbers(key: string, length?: number, rule = ANY): number[] {
    return this.object(key).asNumbers(length, rule);
  }

  asNumbers(length?: number, rule = ANY): number[] {
    const { value } = this;
    const right = Array.isArray(value) && value.every((item): item is number => isNumber(item) && rule(item));
    if (!right || (length !== undefined && value.length !== length)) {
      throw damaged(FILE, `${this.place} is invalid`);
    }
    return value;
  }

  wrong(key: string): ViewerError {
    return damaged(FILE, `${this.at(key)} is missing or invalid`);
  }

  private at(key: string): string {
    return this.place === "" ? key : `${this.place}.${key}`;
  }
}

/** Whether a value is a number that the graphics device can represent: 1e99 is valid JSON but exceeds single precision. */
function isNumber(value: unknown): value is number {
  return typeof value === "number" && Number.isFinite(Math.fround(value));
}
