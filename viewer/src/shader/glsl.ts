/** A number as a GLSL float literal. */
export function float(value: number): string {
  if (!Number.isFinite(value)) throw new RangeError(`${value} has no literal`);
  const text = value.toString();
  return /[.e]/.test(text) ? text : `${text}.0`;
}

/** Numbers as a GLSL vec3. */
export function vec3(values: readonly number[]): string {
  return `vec3(${values.map(float).join(", ")})`;
}
