import type { Picture } from "../image/picture";
import type { Figure, Grid, Vector } from "./figure";
import { mapSheet } from "./map-sheet";

/**
 * What each token of a text rests on: its gradient-weighted map over the picture. maps: for each token 1 + rows x columns weights, the class token's first
 * (`wordRelevance` gives them).
 */
export function tokenMaps(
  maps: readonly Vector[],
  tokens: readonly string[],
  grid: Grid,
  picture: Picture,
  { title = "What each word rests on", note = "attention to the picture weighted by its gradient" } = {},
): Figure {
  if (maps.length !== tokens.length)
    throw new RangeError(`tokenMaps: ${maps.length} maps for ${tokens.length} tokens, expected one for each`);
  const named = maps.map((row, i) => ({ name: tokens[i], row }));
  return mapSheet("tokenMaps", named, grid, picture, { title, note, columns: Math.min(6, Math.max(3, maps.length)) });
}
