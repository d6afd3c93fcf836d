/** Embeddings onto a plane, for `embeddingMap`. */
import { UMAP } from "umap-js";
import { breathe, interruptSignal } from "../engine/interrupt";
import type { Rows } from "./figure";
import { expectFinite, shapeOf, unitRows } from "./numbers";
import { pca, xorshift } from "./pca";

/** UMAP builds its neighbour graph in one go; with more rows it could not be interrupted within a second or two. */
const MOST_ROWS = 3000;

/** Points on the first two principal components: [N, D] -> [N][2]. Distances are true, but only these two directions are seen. */
export function projectPca(rows: Rows): [number, number][] {
  return pca(rows, 2).scores.map(([x, y]) => [x, y]);
}

/**
 * UMAP (McInnes, Healy and Melville 2018; the library umap-js): neighbours stay neighbours, distances between far groups mean little.
 * rows: [N, D], 4 to 3000 of them -> [N][2], the same for the same seed. The rows are scaled to length 1 (so nearness is cosine) and
 * reduced to their 32 leading principal components first. neighbours: how many each point is drawn to; minDist: how tight groups may be, 0-1.
 * Ends early with the map so far when `signal` is aborted.
 */
export async function projectUmap(
  rows: Rows,
  {
    seed = 0,
    neighbours = 15,
    minDist = 0.1,
    signal = interruptSignal(),
  }: { seed?: number; neighbours?: number; minDist?: number; signal?: AbortSignal } = {},
): Promise<[number, number][]> {
  const [count, width] = shapeOf("projectUmap", "rows", rows);
  expectFinite("projectUmap", "rows", rows);
  if (count < 4 || count > MOST_ROWS)
    throw new RangeError(`projectUmap: ${count} rows, expected 4 to ${MOST_ROWS}; take a sample of more, or use projectPca`);
  if (!(Number.isInteger(neighbours) && neighbours >= 2))
    throw new RangeError(`projectUmap: neighbours is ${neighbours}, expected 2 or more`);
  const unit = unitRows(rows);
  const small = Math.min(count, width) > 32 ? pca(unit, 32).scores : unit;
  // umap-js needs more points than neighbours; a small set takes all others as neighbours.
  const umap = new UMAP({ nComponents: 2, nNeighbors: Math.min(neighbours, count - 1), minDist, random: xorshift(seed) });
  const epochs = umap.initializeFit(small.map((row) => Array.from(row)));
  let last = performance.now();
  for (let epoch = 0; epoch < epochs && !signal.aborted; epoch++) {
    umap.step();
    if (performance.now() - last > 80) {
      await breathe();
      last = performance.now();
    }
  }
  return umap.getEmbedding().map(([x, y]) => [x, y]);
}
