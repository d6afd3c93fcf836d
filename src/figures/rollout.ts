import type { Picture } from "../image/picture";
import { attentionMap } from "./attention-map";
import type { Figure, Grid, Heads, Vector } from "./figure";
import { headsOf } from "./numbers";

/** How the heads of a layer become one matrix. */
export type HeadFusion = "mean" | "min" | "max";

/**
 * Attention rollout (Abnar and Zuidema 2020, section 3): each layer's attention, half of it replaced by the identity for the residual
 * path, multiplied through all layers. patterns: one [heads][N][N] a layer, first layer first -> [N][N], rows sum to 1; row 0 tells how
 * much of each input token arrives at [CLS]. discardRatio 0-1: the share of the smallest weights of each layer that is set to 0 first
 * (not in the paper; it removes haze), never those on [CLS]. headFusion "max" and "min" are not in the paper either.
 */
export function attentionRollout(
  patterns: ArrayLike<Heads>,
  { headFusion = "mean", discardRatio = 0 }: { headFusion?: HeadFusion; discardRatio?: number } = {},
): Float64Array[] {
  return rollOut("attentionRollout", patterns, { headFusion, discardRatio });
}

/** The same for weights of any kind, one [heads][N][N] a layer; negative ones, once the heads are one, count as 0. */
export function rollOut(
  where: string,
  weights: ArrayLike<Heads>,
  { headFusion, discardRatio }: { headFusion: HeadFusion; discardRatio: number },
): Float64Array[] {
  if (!(weights?.length > 0)) throw new RangeError(`${where}: no layers, expected one [heads][N][N] pattern for each layer`);
  if (!["mean", "min", "max"].includes(headFusion))
    throw new RangeError(`${where}: headFusion is "${headFusion}", expected "mean", "min" or "max"`);
  if (!(discardRatio >= 0 && discardRatio < 1)) throw new RangeError(`${where}: discardRatio is ${discardRatio}, expected 0 <= ratio < 1`);
  const [, n] = headsOf(where, weights[0]);
  let rolled: Float64Array[] | undefined;
  for (let layer = 0; layer < weights.length; layer++) {
    const [, queries, keys] = headsOf(where, weights[layer]);
    if (queries !== n || keys !== n)
      throw new RangeError(
        `${where}: layer ${layer} is ${queries}x${keys}, expected ${n}x${n} as in layer 0; rollout needs every token in every layer`,
      );
    const fused = fuse(weights[layer], n, headFusion).map((row) => row.map((x) => Math.max(0, x)));
    const mixed = withResidual(discard(fused, discardRatio));
    rolled = rolled ? multiply(mixed, rolled) : mixed;
  }
  return rolled as Float64Array[];
}

/** The row of the class token of `attentionRollout`, over the picture. Options of both functions. */
export function rolloutMap(
  patterns: ArrayLike<Heads>,
  grid: Grid,
  {
    headFusion,
    discardRatio,
    title = "Attention rollout to [CLS]",
    ...rest
  }: { headFusion?: HeadFusion; discardRatio?: number; picture?: Picture; opacity?: number; title?: string } = {},
): Figure {
  const row: Vector = attentionRollout(patterns, { headFusion, discardRatio })[0];
  return attentionMap(row, grid, { title, ...rest });
}

function fuse(pattern: Heads, n: number, fusion: HeadFusion): Float64Array[] {
  const join = { mean: (a: number, b: number) => a + b / pattern.length, min: Math.min, max: Math.max }[fusion];
  const start = fusion === "mean" ? 0 : fusion === "min" ? Infinity : -Infinity;
  return Array.from({ length: n }, (_, i) => {
    const row = new Float64Array(n).fill(start);
    for (let head = 0; head < pattern.length; head++) for (let j = 0; j < n; j++) row[j] = join(row[j], pattern[head][i][j]);
    return row;
  });
}

/** Sets the smallest `ratio` of a layer's weights to 0, except those on token 0 ([CLS]). */
function discard(a: Float64Array[], ratio: number): Float64Array[] {
  const others: [number, number][] = [];
  for (let i = 0; i < a.length; i++) for (let j = 1; j < a.length; j++) others.push([i, j]);
  others.sort(([i, j], [k, l]) => a[i][j] - a[k][l]);
  for (const [i, j] of others.slice(0, Math.floor(ratio * others.length))) a[i][j] = 0;
  return a;
}

/** (A + I) / 2 with rows that sum to 1 again. */
function withResidual(a: Float64Array[]): Float64Array[] {
  return a.map((row, i) => {
    const mixed = row.map((x, j) => x + (i === j ? 1 : 0));
    const sum = mixed.reduce((s, x) => s + x, 0);
    return mixed.map((x) => x / sum);
  });
}

function multiply(a: Float64Array[], b: Float64Array[]): Float64Array[] {
  return a.map((row) => {
    const out = new Float64Array(b.length);
    row.forEach((weight, k) => {
      if (weight !== 0) for (let j = 0; j < out.length; j++) out[j] += weight * b[k][j];
    });
    return out;
  });
}
