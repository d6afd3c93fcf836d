import type { Picture } from "../image/picture";
import type { Figure, Grid, Heads, Vector } from "./figure";
import { expectIndex, headsOf, patchesOf } from "./numbers";
import { mapSheet } from "./map-sheet";

type Chosen = { queries?: readonly number[]; title?: string };

/** The mean over all heads, or over layers too: [queries][keys]. */
export function meanOverHeads(pattern: Heads): Float64Array[] {
  const [heads, queries, keys] = headsOf("meanOverHeads", pattern);
  return Array.from({ length: queries }, (_, q) =>
    Float64Array.from({ length: keys }, (_, k) => Array.from(pattern).reduce((sum, head) => sum + head[q][k], 0) / heads),
  );
}

/**
 * What each query of a Q-Former attends to: one map a query, the mean over the heads of one layer. pattern: the cross-attention [heads][Q][N],
 * N = 1 + rows x columns with the class token first.
 */
export function querySheet(
  pattern: Heads,
  grid: Grid,
  picture: Picture,
  { queries, title = "What each query attends to" }: Chosen = {},
): Figure {
  const [heads, count, keys] = checkPattern("querySheet", pattern, grid);
  const rows = meanOverHeads(pattern);
  const maps = choose("querySheet", queries, count).map((query) => ({ name: `query ${query}`, row: rows[query] }));
  const note = `mean of ${heads} heads over ${keys - 1} patches; brightest = the query's largest weight; what lies on the class token stands apart`;
  return mapSheet("querySheet", maps, grid, picture, { title, note });
}

/**
 * Each query and each head of one layer's cross-attention over the picture: a row of maps a query, the mean first. pattern: [heads][Q][N] with the class
 * token first.
 *
 * @param queries which; default the first ten
 */
export function queryHeads(
  pattern: Heads,
  grid: Grid,
  picture: Picture,
  { queries, title = "Queries and heads over the picture" }: Chosen = {},
): Figure {
  const [heads, count] = checkPattern("queryHeads", pattern, grid);
  const mean = meanOverHeads(pattern);
  const chosen = choose("queryHeads", queries, count).slice(0, queries ? undefined : 10);
  const maps = chosen.flatMap((query) => [
    { name: `query ${query} · mean`, row: mean[query] as Vector },
    ...Array.from(pattern, (head, h) => ({ name: `head ${h}`, row: head[query] })),
  ]);
  const left = count - chosen.length;
  const note = `each map's brightest = its own largest weight; what lies on the class token stands apart${left ? `; ${left} queries more` : ""}`;
  return mapSheet("queryHeads", maps, grid, picture, { title, note, columns: heads + 1 });
}

function checkPattern(where: string, pattern: Heads, grid: Grid): [number, number, number] {
  const shape = headsOf(where, pattern);
  const patches = patchesOf(where, grid);
  if (shape[2] !== patches + 1)
    throw new RangeError(`${where}: ${shape[2]} keys for a ${grid[0]}x${grid[1]} grid, expected ${patches + 1} (class token and patches)`);
  return shape;
}

function choose(where: string, queries: readonly number[] | undefined, count: number): readonly number[] {
  for (const query of queries ?? []) expectIndex(where, "query", query, count);
  return queries ?? Array.from({ length: count }, (_, i) => i);
}
