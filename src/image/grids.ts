/** Into how many columns and rows a picture is cut. Each rule is the one that its family's checkpoints were trained with. */
import type { Size } from "./views";

export type TileGrid = { rows: number; columns: number };

/** All grids of `least` to `most` tiles, fewer tiles first, of equally many the one with fewer columns first. */
function candidates(least: number, most: number): TileGrid[] {
  const grids: TileGrid[] = [];
  for (let columns = 1; columns <= most; columns++)
    for (let rows = 1; rows * columns <= most; rows++) if (rows * columns >= least) grids.push({ rows, columns });
  return grids.sort((a, b) => a.rows * a.columns - b.rows * b.columns); // stable
}

/**
 * The grid of `least` to `most` tiles whose aspect ratio is closest to the picture's. Of equally close ones the larger, as long as
 * the picture has more than half the grid's pixels (dynamic resolution of InternVL 1.5, Chen et al. 2024). 1 x 1 where none is allowed.
 */
export function closestGrid(original: Size, tile: Size, least: number, most: number): TileGrid {
  const aspect = original.width / original.height;
  const area = original.width * original.height;
  let best: TileGrid = { rows: 1, columns: 1 };
  let distance = Number.POSITIVE_INFINITY;
  for (const grid of candidates(least, most)) {
    const d = Math.abs(aspect - grid.columns / grid.rows);
    if (d < distance) [best, distance] = [grid, d];
    else if (d === distance && area > 0.5 * tile.width * tile.height * grid.columns * grid.rows) best = grid;
  }
  return best;
}

/** Share of the picture's pixels that must stay when each part is shrunk into a tile (Ovis). */
const COVERING = 0.9;

/**
 * Ovis: the fewest tiles that keep more than 90% of the picture's pixels when each part is shrunk to the tile's side; else the grid
 * that keeps most. transformers (5.23) tries a grid as rows x columns and then cuts columns x rows, and so do we: that is what its
 * checkpoints see there. Where no grid is enough, grids that keep equally much are told apart by rounding errors alone, so the parts are
 * added as Python before 3.12 adds them (later ones add more exactly, and may choose another of these grids).
 */
export function coveringGrid({ width, height }: Size, side: number, most: number): TileGrid {
  type Tried = { grid: TileGrid; tiles: number; kept: number };
  const tried = candidates(1, most).map(({ columns: a, rows: b }): Tried => {
    const parts = splits(height, a).flatMap((h) => splits(width, b).map((w) => keptPixels(w, h, side)));
    return { grid: { rows: b, columns: a }, tiles: a * b, kept: parts.reduce((sum, part) => sum + part, 0) / (width * height) };
  });
  const enough = tried.filter(({ kept }) => kept > COVERING);
  const better = (a: Tried, b: Tried): boolean =>
    enough.length
      ? a.tiles < b.tiles || (a.tiles === b.tiles && a.kept > b.kept)
      : a.kept > b.kept || (a.kept === b.kept && a.tiles < b.tiles);
  return (enough.length ? enough : tried).reduce((best, one) => (better(one, best) ? one : best)).grid;
}

/** A length in whole parts; the last takes what is left over. */
function splits(length: number, parts: number): number[] {
  const each = Math.floor(length / parts);
  return Array.from({ length: parts }, (_, i) => (i === parts - 1 ? length - i * each : each));
}

/** Pixels of a part once its longer edge is at most `side`. */
function keptPixels(width: number, height: number, side: number): number {
  const [long, short] = [Math.max(width, height), Math.min(width, height)];
  return long > side ? (short / long) * side * side : long * short;
}

/**
 * AnyRes (LLaVA-NeXT): of the allowed canvases the one on which most of the picture's own pixels fit; of equal ones, the one that
 * wastes least; the first where that is equal too. Sizes that would vanish (below one pixel) fit nothing: then the first canvas.
 */
export function bestCanvas(original: Size, canvases: Size[]): Size {
  let best = canvases[0];
  let [most, least] = [0, Number.POSITIVE_INFINITY];
  for (const canvas of canvases) {
    const scale = Math.min(canvas.width / original.width, canvas.height / original.height);
    const fitted = Math.trunc(original.width * scale) * Math.trunc(original.height * scale);
    const effective = Math.min(fitted, original.width * original.height);
    const wasted = canvas.width * canvas.height - effective;
    if (effective > most || (effective === most && wasted < least)) [best, most, least] = [canvas, effective, wasted];
  }
  return best;
}
