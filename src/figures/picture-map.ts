/** Numbers of image tokens laid back onto the picture, whatever its tiles: by what of the picture each token shows. */
import type { TokenPlace } from "../models/loaded";

type Size = { width: number; height: number };

export type PictureMap = {
  /** [rows][columns] over the whole picture: how much falls on a cell, in multiples of what it would be if `total` lay evenly on the picture. */
  cells: Float64Array[];
  /** The sum of all weights, and how much of it fell on the picture: the rest lies on tokens that show nothing of it, and on padding. */
  total: number;
  onPicture: number;
};

/**
 * Spreads each token's weight evenly over what it shows and adds up where tiles and thumbnail overlap: by area, so that nothing is counted twice.
 *
 * @param weights one for each place, 0 or more
 * @param places of an `ImageSpan`
 * @param picture its size in pixels
 * @param side cells along the picture's longer side
 */
export function spreadOver(weights: ArrayLike<number>, places: readonly TokenPlace[], picture: Size, side = 48): PictureMap {
  if (weights.length !== places.length)
    throw new RangeError(`spreadOver: ${weights.length} weights for ${places.length} image tokens, expected one for each place`);
  const across = Math.max(1, Math.round(side * Math.min(1, picture.width / picture.height)));
  const down = Math.max(1, Math.round(side * Math.min(1, picture.height / picture.width)));
  const [w, h] = [picture.width / across, picture.height / down];
  const cells = Array.from({ length: down }, () => new Float64Array(across));
  let [total, onPicture] = [0, 0];
  places.forEach((place, i) => {
    total += weights[i];
    if (!place || weights[i] === 0) return;
    const rows = overlaps(place.top, place.height, h, down);
    const columns = overlaps(place.left, place.width, w, across);
    for (const [r, tall] of rows)
      for (const [c, wide] of columns) {
        const part = weights[i] * tall * wide;
        cells[r][c] += part;
        onPicture += part;
      }
  });
  const even = total / (across * down);
  if (even > 0) for (const row of cells) for (let c = 0; c < row.length; c++) row[c] /= even;
  return { cells, total, onPicture };
}

/** Cells that [start, start + length) touches, each with the share of the length that lies in it. */
function overlaps(start: number, length: number, cell: number, count: number): [number, number][] {
  const out: [number, number][] = [];
  const last = Math.min(count - 1, Math.ceil((start + length) / cell) - 1);
  for (let i = Math.max(0, Math.floor(start / cell)); i <= last; i++) {
    const inside = Math.min(start + length, (i + 1) * cell) - Math.max(start, i * cell);
    if (inside > 0) out.push([i, inside / length]);
  }
  return out;
}

/** The places of a plain grid of patches over a picture, row by row: for towers without tiles. */
export const gridPlaces = ([rows, columns]: readonly [number, number], { width, height }: Size): TokenPlace[] =>
  Array.from({ length: rows * columns }, (_, i) => ({
    left: ((i % columns) * width) / columns,
    top: (Math.floor(i / columns) * height) / rows,
    width: width / columns,
    height: height / rows,
    tile: 0,
  }));
