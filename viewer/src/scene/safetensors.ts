import { damaged } from "../errors";

export type TensorData = Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer> | Uint8Array<ArrayBuffer>;

/** An array of a safetensors file. Half floats are given as their 16 bits. */
export interface Tensor {
  dtype: "F32" | "F16" | "U8";
  shape: number[];
  data: TensorData;
}

const ELEMENTS = { F32: Float32Array, F16: Uint16Array, U8: Uint8Array };

/**
 * Read a safetensors file: eight bytes with the length of a JSON header, the header, the data. All little-endian.
 * @throws ViewerError that names the file if it is not a safetensors file or is shorter than its header states.
 */
export function parseSafetensors(file: string, buffer: ArrayBuffer): Map<string, Tensor> {
  if (buffer.byteLength < 8) throw damaged(file, "it is too short");
  const length = new DataView(buffer).getBigUint64(0, true);
  if (length > BigInt(buffer.byteLength - 8)) throw damaged(file, "its header is cut off");
  const begin = 8 + Number(length);
  const header = parseHeader(file, new Uint8Array(buffer, 8, Number(length)));
  const tensors = new Map<string, Tensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name !== "__metadata__") tensors.set(name, readTensor(file, name, entry, buffer, begin));
  }
  return tensors;
}

function parseHeader(file: string, bytes: Uint8Array): Record<string, unknown> {
  try {
    const header: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (typeof header === "object" && header !== null) return header as Record<string, unknown>;
  } catch {
    // Not JSON, or not text at all: the same error for the user.
  }
  throw damaged(file, "its header cannot be read");
}

function readTensor(file: string, name: string, entry: unknown, buffer: ArrayBuffer, begin: number): Tensor {
  const { dtype, shape, data_offsets: offsets } = entry as Record<string, unknown>;
  if (dtype !== "F32" && dtype !== "F16" && dtype !== "U8") {
    throw damaged(file, `${name} is of an unknown type`);
  }
  if (!isCounts(shape) || !isCounts(offsets) || offsets.length !== 2) throw damaged(file, `${name} has no shape`);
  const Elements = ELEMENTS[dtype];
  const count = shape.reduce((product, size) => product * size, 1);
  const [from, to] = offsets;
  if (to - from !== count * Elements.BYTES_PER_ELEMENT || begin + to > buffer.byteLength) {
    throw damaged(file, `${name} is cut off`);
  }
  const start = begin + from;
  // Typed arrays must start at a multiple of their element size, which the format does not guarantee.
  const aligned = start % Elements.BYTES_PER_ELEMENT === 0;
  const data = aligned ? new Elements(buffer, start, count) : new Elements(buffer.slice(start, begin + to));
  return { dtype, shape, data };
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && (item as number) >= 0);
}
