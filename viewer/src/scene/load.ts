import { damaged, ViewerError } from "../errors";
import { type Chain, type Field, numProjections, type Stage } from "../field/field";
import { crc32 } from "./crc32";
import { type ChainDescription, checkScene, type FieldDescription, type SceneDescription } from "./format";
import { parseSafetensors, type Tensor } from "./safetensors";

export const SCENE_FOLDER = "scene/";

/** Called with the number of bytes loaded so far and the total. */
export type Progress = (loaded: number, total: number) => void;

/**
 * Fetch scene.json.
 * @throws ViewerError that says what to do.
 */
export async function loadScene(): Promise<SceneDescription> {
  const file = `${SCENE_FOLDER}scene.json`;
  // Asked for anew on each visit: it names the version of every other file.
  const response = await request(file, "", { cache: "no-cache" });
  let json: unknown;
  try {
    json = await response.json();
  } catch {
    throw damaged(file, "it is not valid JSON");
  }
  return checkScene(json);
}

/**
 * Fetch the file with a field's tensors.
 * @param cache whether the browser may answer from its cache, as for `fetch`.
 * @throws ViewerError that says what to do.
 */
export async function downloadField(
  description: FieldDescription,
  progress: Progress,
  cache: RequestCache = "default",
): Promise<Uint8Array<ArrayBuffer>> {
  return download(SCENE_FOLDER + description.file, `?${description.crc32}`, description.bytes, progress, cache);
}

/**
 * Check the file of `downloadField` and read the field from it.
 * @throws ViewerError that says what to do.
 */
export function readField(description: FieldDescription, bytes: Uint8Array<ArrayBuffer>): Field {
  const file = SCENE_FOLDER + description.file;
  if (bytes.byteLength !== description.bytes) {
    throw damaged(file, `it has ${bytes.byteLength} of ${description.bytes} bytes`);
  }
  if (crc32(bytes) !== description.crc32) throw damaged(file, "its checksum is wrong");
  return assembleField(file, description, parseSafetensors(file, bytes.buffer));
}

/** Assemble a field from its description and tensors. */
export function assembleField(file: string, description: FieldDescription, tensors: Map<string, Tensor>): Field {
  const pick = (name: string, types: Tensor["dtype"][], shape: number[]): Tensor["data"] => {
    const tensor = tensors.get(name);
    if (tensor === undefined) throw damaged(file, `${name} is missing`);
    if (!types.includes(tensor.dtype) || tensor.shape.join() !== shape.join()) {
      throw damaged(file, `${name} does not have the shape or type that scene.json states`);
    }
    return tensor.data;
  };
  const floats = (name: string, ...shape: number[]) => pick(name, ["F32"], shape) as Float32Array<ArrayBuffer>;
  const optional = (name: string, ...shape: number[]) => (tensors.has(name) ? floats(name, ...shape) : undefined);
  const chain = (name: string, of: ChainDescription): Chain => {
    const stages = of.stages.map((stage, index): Stage => {
      const rows = (stage.features / stage.order) * numProjections(stage);
      const prefix = `${name}.${index}`;
      return {
        ...stage,
        projections: floats(`${prefix}.projections`, rows, stage.inputs),
        offsets: optional(`${prefix}.offsets`, rows),
        normColumn: optional(`${prefix}.norm_column`, rows),
      };
    });
    const width = of.stages[of.stages.length - 1].features;
    const weight = floats(`${name}.weight`, of.outputs, width);
    return { inputs: of.inputs, outputs: of.outputs, stages, weight, bias: optional(`${name}.bias`, of.outputs) };
  };
  const { encoding, occupancy } = description;
  const levels = encoding.resolutions.length;
  const rows = encoding.offsets[levels];
  return {
    description,
    table: pick("table", ["F16", "U8"], [rows, encoding.features]) as Uint16Array<ArrayBuffer> | Uint8Array<ArrayBuffer>,
    tableScale: optional("table_scale", levels, encoding.features),
    occupancy: pick("occupancy", ["U8"], [occupancy.resolution ** 3 / 8]) as Uint8Array<ArrayBuffer>,
    density: chain("density", description.density),
    color: chain("color", description.color),
  };
}

/**
 * The address of a photo. An export that is replaced has the same file names, and caches may hold the files of before: the
 * query differs when the networks do.
 */
export function photoAddress(scene: SceneDescription, photo: string): string {
  return `${SCENE_FOLDER}${photo}?${scene.fields.map((field) => field.crc32).join("-")}`;
}

async function request(file: string, query = "", init?: RequestInit): Promise<Response> {
  if (location.protocol === "file:") {
    throw new ViewerError(
      "Browsers do not let a page on disk read the files next to it",
      "Open the folder through a server: run eugen-view FOLDER, or upload the folder to any web host.",
    );
  }
  let response: Response;
  try {
    response = await fetch(file + query, init);
  } catch {
    throw unreachable(file);
  }
  if (response.status === 404) {
    throw new ViewerError(`${file} was not found (404)`, "Upload the whole exported folder, with its subfolders.");
  }
  if (!response.ok) {
    throw new ViewerError(`The server refused ${file} (${response.status})`, "Try again later, or ask its operator.");
  }
  return response;
}

function unreachable(file: string): ViewerError {
  return new ViewerError(
    `${file} cannot be loaded: the connection failed`,
    "Check that the server is running and that you are online, then reload the page.",
  );
}

/** @throws ViewerError if the browser does not have enough memory. */
function room(bytes: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(bytes);
  } catch {
    throw new ViewerError(
      `The scene needs ${(bytes / 1e6).toFixed(0)} MB of memory, more than this browser has left`,
      "Close other pages, or export a smaller scene with --size-budget.",
    );
  }
}

async function download(
  file: string,
  query: string,
  expected: number,
  progress: Progress,
  cache: RequestCache,
): Promise<Uint8Array<ArrayBuffer>> {
  const response = await request(file, query, { cache });
  const bytes = room(expected);
  let loaded = 0;
  if (response.body === null) throw unreachable(file);
  const reader = response.body.getReader();
  for (;;) {
    let part: ReadableStreamReadResult<Uint8Array<ArrayBuffer>>;
    try {
      part = await reader.read();
    } catch {
      throw unreachable(file);
    }
    if (part.done) break;
    if (loaded + part.value.length > expected) throw damaged(file, `it is longer than ${expected} bytes`);
    bytes.set(part.value, loaded);
    loaded += part.value.length;
    progress(loaded, expected);
  }
  return bytes.subarray(0, loaded);
}
