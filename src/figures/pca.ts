/** Principal components by subspace iteration: a few components of a few thousand rows, in plain float64. */
import type { Rows } from "./figure";
import { dot, expectFinite, shapeOf } from "./numbers";

/** scores: [N][k]; components: [k][D], length 1 each; variance: the share of the whole that each explains, [k]; mean: [D]. */
export type Pca = { scores: Float64Array[]; components: Float64Array[]; variance: number[]; mean: Float64Array };

/**
 * The `count` directions of largest variance of rows [N, D] (Jolliffe 2002, chapter 1), by block power iteration with a
 * Rayleigh-Ritz step (Golub and Van Loan, 8.2.5 and 8.4). Deterministic; the sign is fixed so that the largest entry of each component is positive.
 */
export function pca(rows: Rows, count: number): Pca {
  const [n, width] = shapeOf("pca", "rows", rows);
  expectFinite("pca", "rows", rows);
  if (!(Number.isInteger(count) && count >= 1 && count <= Math.min(n, width)))
    throw new RangeError(`pca: ${count} components of ${n}x${width} rows, expected 1 to ${Math.min(n, width)}`);
  const mean = new Float64Array(width);
  for (let i = 0; i < n; i++) for (let j = 0; j < width; j++) mean[j] += rows[i][j] / n;
  const centred = Array.from(rows, (row) => Float64Array.from(row, (x, j) => x - mean[j]));
  const total = centred.reduce((sum, row) => sum + dot(row, row), 0);

  const { vectors, values } = subspace(centred, count, Math.min(n, width, count + 8));
  const components = vectors.slice(0, count).map(positive);
  return {
    components,
    mean,
    scores: centred.map((row) => Float64Array.from(components, (c) => dot(row, c))),
    variance: values.slice(0, count).map((value) => (total > 0 ? value / total : 0)),
  };
}

/** The leading eigenvectors of X^T X and their eigenvalues, largest first; `size` of them, of which the first `count` are exact. */
function subspace(x: Float64Array[], count: number, size: number): { vectors: Float64Array[]; values: number[] } {
  const random = xorshift(1);
  let basis = orthonormal(
    Array.from({ length: size }, () => Float64Array.from(x[0], () => random() - 0.5)),
    random,
  );
  let before: number[] = [];
  for (let step = 0; step < 200; step++) {
    const image = basis.map((v) => covariance(x, v)); //                           X^T X v
    const small = basis.map((v) => image.map((w) => dot(v, w))); //                [size, size], symmetric
    const { values, vectors } = jacobi(small);
    const turn = (from: Float64Array[]) => vectors.map((u) => combine(from, u));
    const moved = Math.max(...values.slice(0, count).map((value, i) => Math.abs(value - (before[i] ?? Infinity))));
    if (moved <= 1e-12 * Math.max(values[0], 1e-300) || size === x[0].length)
      return { vectors: turn(basis), values: values.map((v) => Math.max(0, v)) };
    before = values;
    basis = orthonormal(turn(image), random);
  }
  return { vectors: basis, values: before.map((v) => Math.max(0, v)) };
}

function covariance(x: Float64Array[], v: Float64Array): Float64Array {
  const out = new Float64Array(v.length);
  for (const row of x) {
    const weight = dot(row, v);
    for (let j = 0; j < out.length; j++) out[j] += weight * row[j];
  }
  return out;
}

function combine(vectors: Float64Array[], weights: ArrayLike<number>): Float64Array {
  const out = new Float64Array(vectors[0].length);
  vectors.forEach((v, i) => {
    for (let j = 0; j < out.length; j++) out[j] += weights[i] * v[j];
  });
  return out;
}

/** Gram-Schmidt, twice for accuracy; a vector that vanishes (rank too small) is replaced by a random one. */
function orthonormal(vectors: Float64Array[], random: () => number): Float64Array[] {
  const out: Float64Array[] = [];
  for (const start of vectors) {
    let v = start;
    for (let tries = 0; tries < 4; tries++) {
      const length = Math.sqrt(dot(v, v));
      for (let pass = 0; pass < 2; pass++)
        for (const u of out) {
          const d = dot(u, v);
          v = v.map((a, j) => a - d * u[j]);
        }
      const left = Math.sqrt(dot(v, v));
      if (left > 1e-10 * length && left > 0) {
        v = v.map((a) => a / left);
        break;
      }
      v = v.map(() => random() - 0.5);
    }
    out.push(v);
  }
  return out;
}

/** Eigenvalues (largest first) and eigenvectors of a small symmetric matrix by cyclic Jacobi rotations (Golub and Van Loan, 8.5). */
export function jacobi(matrix: Rows): { values: number[]; vectors: Float64Array[] } {
  const n = matrix.length;
  const a = Array.from(matrix, (row) => Float64Array.from(row));
  const v = a.map((_, i) => Float64Array.from(a, (_row, j) => (i === j ? 1 : 0))); // rows become eigenvectors
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++)
      for (let q = p + 1; q < n; q++) {
        off = Math.max(off, Math.abs(a[p][q]) / (Math.sqrt(Math.abs(a[p][p] * a[q][q])) || 1));
        rotate(a, v, p, q);
      }
    if (off < 1e-15) break;
  }
  const order = a.map((_, i) => i).sort((i, j) => a[j][j] - a[i][i]);
  return { values: order.map((i) => a[i][i]), vectors: order.map((i) => v[i]) };
}

/** One rotation in the plane (p, q) that makes a[p][q] zero. */
function rotate(a: Float64Array[], v: Float64Array[], p: number, q: number): void {
  if (a[p][q] === 0) return;
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
  const c = 1 / Math.sqrt(t * t + 1);
  const s = t * c;
  for (const row of a) [row[p], row[q]] = [c * row[p] - s * row[q], s * row[p] + c * row[q]];
  for (const m of [a, v]) for (let k = 0; k < a.length; k++) [m[p][k], m[q][k]] = [c * m[p][k] - s * m[q][k], s * m[p][k] + c * m[q][k]];
}

function positive(v: Float64Array): Float64Array {
  const most = v.reduce((best, x) => (Math.abs(x) > Math.abs(best) * (1 + 1e-9) ? x : best), 0);
  return most < 0 ? v.map((x) => -x) : v;
}

/** Seeded numbers in [0, 1) (Marsaglia 2003, "Xorshift RNGs", shifts 13, 17, 5). */
export function xorshift(seed: number): () => number {
  let state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bd1e995) >>> 0 || 1; // any seed, 0 too, must give a state that is not 0
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 4294967296;
  };
}
