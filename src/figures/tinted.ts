/** A picture with a map over it, as a picture: for figures of so many maps that axes for each would take seconds to draw. */
import type { Picture } from "../image/picture";
import type { Grid, Vector } from "./figure";

/** Viridis at tenths (matplotlib's table, rounded). */
const VIRIDIS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [109, 205, 89],
  [180, 222, 44],
  [253, 231, 37],
];

/** x from 0 to 1 -> red, green, blue */
function viridis(x: number): number[] {
  const at = Math.min(1, Math.max(0, x)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(at));
  return VIRIDIS[i].map((from, c) => from + (at - i) * (VIRIDIS[i + 1][c] - from));
}

/**
 * The map's colours over the picture, brightest where a cell is `most`. weights: one for each cell of the grid, row by row, 0 or more
 *
 * @param opacity of the map, 0 to 1
 */
export function tinted(picture: Picture, weights: Vector, [rows, columns]: Grid, most: number, opacity = 0.6): Picture {
  const { width, height, data } = picture;
  const out = new Uint8Array(data.length);
  const colours = Array.from(weights, (x) => viridis(most > 0 ? x / most : 0));
  for (let y = 0; y < height; y++) {
    const row = Math.floor((y * rows) / height);
    for (let x = 0; x < width; x++) {
      const colour = colours[row * columns + Math.floor((x * columns) / width)];
      const at = (y * width + x) * 3;
      for (let c = 0; c < 3; c++) out[at + c] = Math.round((1 - opacity) * data[at + c] + opacity * colour[c]);
    }
  }
  return { width, height, data: out };
}
