import { float } from "../shader/glsl";

/** coefficient * x^i * y^j * z^k */
type Monomial = readonly [coefficient: number, i: number, j: number, k: number];

const A = 0.4886025119029199;
const B = 1.0925484305920792;
const C = 0.31539156525252005;
const D = 0.5900435899266435;
const E = 0.4570457994644658;
const F = 0.3731763325901154;
const G = 1.445305721320277;

/** Real spherical harmonics of a unit vector up to degree 3, orthonormal over the sphere, each as a sum of monomials. */
export const HARMONICS: readonly (readonly Monomial[])[] = [
  [[0.28209479177387814, 0, 0, 0]],
  [[-A, 0, 1, 0]],
  [[A, 0, 0, 1]],
  [[-A, 1, 0, 0]],
  [[B, 1, 1, 0]],
  [[-B, 0, 1, 1]],
  [[3 * C, 0, 0, 2], [-C, 0, 0, 0]],
  [[-B, 1, 0, 1]],
  [[B / 2, 2, 0, 0], [-B / 2, 0, 2, 0]],
  [[-3 * D, 2, 1, 0], [D, 0, 3, 0]],
  [[2.890611442640554, 1, 1, 1]],
  [[-5 * E, 0, 1, 2], [E, 0, 1, 0]],
  [[5 * F, 0, 0, 3], [-3 * F, 0, 0, 1]],
  [[-5 * E, 1, 0, 2], [E, 1, 0, 0]],
  [[G, 2, 0, 1], [-G, 0, 2, 1]],
  [[-D, 3, 0, 0], [3 * D, 1, 2, 0]],
];

/** The harmonics of the unit vector (x, y, z). */
export function sphericalHarmonics(x: number, y: number, z: number): number[] {
  return HARMONICS.map((terms) => terms.reduce((sum, [c, i, j, k]) => sum + c * x ** i * y ** j * z ** k, 0));
}

/** A harmonic of a vec3 named d, as GLSL. */
export function harmonicSource(terms: readonly Monomial[]): string {
  return terms
    .map(([c, i, j, k]) => [float(c), ...power("d.x", i), ...power("d.y", j), ...power("d.z", k)].join(" * "))
    .join(" + ");
}

function power(name: string, exponent: number): string[] {
  return Array.from({ length: exponent }, () => name);
}
