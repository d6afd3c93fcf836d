/** LLaVA's tilings of any resolution: the whole picture first, then the tiles of a canvas on which it lies with its own aspect ratio. */
import { bestCanvas } from "./grids";
import { meanColour } from "./processor";
import type { TileConfig } from "./tile-config";
import { type Canvas, gridViews, type Size, squared, stretched, type TilePlan, wholeView } from "./views";

type Scheme<Name> = Extract<TileConfig["scheme"], { name: Name }>;

/**
 * LLaVA-NeXT and LLaVA-OneVision. `alone`: whether the picture is the only one of its message; OneVision pads one of several to a
 * square and does not cut it.
 */
export function planAnyres(original: Size, view: TileConfig["view"], scheme: Scheme<"anyres">, alone: boolean): TilePlan {
  const { size, filter, mean } = view;
  if (scheme.single === "alone" && !alone)
    return { grid: { rows: 1, columns: 1 }, size, views: [wholeView(squared(original, size, filter, meanColour(mean)), "base")] };
  const canvas = centred(original, bestCanvas(original, scheme.image_grid_pinpoints), filter);
  const grid = { rows: canvas.after.height / size.height, columns: canvas.after.width / size.width };
  return { grid, size, views: [wholeView(stretched(original, size, filter), "base"), ...gridViews(canvas, grid, size)] };
}

/** The picture as large as it fits, in the middle of a black canvas (an odd pixel more at the right or below). */
function centred(original: Size, target: Size, filter: Canvas["filter"]): Canvas {
  const [across, down] = [target.width / original.width, target.height / original.height];
  const resized =
    across < down
      ? { width: target.width, height: Math.min(Math.ceil(original.height * across), target.height) }
      : { width: Math.min(Math.ceil(original.width * down), target.width), height: target.height };
  const left = Math.floor((target.width - resized.width) / 2);
  const top = Math.floor((target.height - resized.height) / 2);
  return { ...stretched(original, resized, filter), after: { left, top, width: target.width, height: target.height } };
}

/** LLaVA-1.5-HD (`highres`): padded to a square of as many whole tiles as fit `side`, taken from its middle; the whole picture is stretched. */
export function planHighres(original: Size, { size, filter, mean }: TileConfig["view"], { side }: Scheme<"highres">): TilePlan {
  const count = Math.floor(side / size.width);
  const canvas = squared(original, { width: side, height: side }, filter, meanColour(mean));
  const used = { width: count * size.width, height: count * size.height };
  const spare = { left: -Math.floor((side - used.width) / 2), top: -Math.floor((side - used.height) / 2) };
  const grid = { rows: count, columns: count };
  const views = gridViews({ ...canvas, after: { ...spare, ...used } }, grid, size);
  return { grid, size, views: [wholeView(stretched(original, size, filter), "base"), ...views] };
}

/** The rows and columns of features, of all tiles of a canvas put together, that show picture and not padding. */
export type Unpadded = { top: number; left: number; rows: number; columns: number };

/** Cuts off the features that show only padding, with the rounding of LLaVA-NeXT. features: rows and columns of the whole canvas. */
export function unpad(original: Size, features: { rows: number; columns: number }): Unpadded {
  const { rows, columns } = features;
  const cut = (edge: number, scale: number, whole: number): number =>
    Math.floor((whole - Math.trunc(Number((edge * scale).toFixed(7)))) / 2); // 7 digits, so that 27.999999 is 28
  if (original.width / original.height > columns / rows) {
    const top = cut(original.height, columns / original.width, rows);
    return { top, left: 0, rows: rows - top * 2, columns };
  }
  const left = cut(original.width, rows / original.height, columns);
  return { top: 0, left, rows, columns: columns - left * 2 };
}

/** How many tokens a picture becomes, part by part. rows and columns: of the tiles' features that go into the prompt. */
export type AnyresTokens = { base: number; rows: number; columns: number; newlines: number; total: number };

/**
 * The tokens of a picture: `side` x `side` for the base view, then each row of unpadded features and a newline after it. With a
 * limit of tiles (OneVision's `anyres_max_9`), features that exceed it by more than a tenth a side are shrunk to it.
 *
 * Of a very long picture no row may be left, and the base view alone stands for it.
 *
 * @throws RangeError where that happens with a limit, for the reference fails there
 */
export function anyresTokens(
  original: Size,
  grid: { rows: number; columns: number },
  side: number,
  { maxTiles = null as number | null } = {},
): AnyresTokens {
  const kept = unpad(original, { rows: grid.rows * side, columns: grid.columns * side });
  let { rows, columns } = kept;
  const ratio = maxTiles === null ? 0 : Math.sqrt((rows * columns) / (maxTiles * side ** 2));
  if (ratio > 1.1) [rows, columns] = [wholeTimes(rows, ratio), wholeTimes(columns, ratio)];
  if (maxTiles !== null && (rows < 1 || columns < 1))
    throw new RangeError(
      `a picture of ${original.width} x ${original.height} leaves ${rows} x ${columns} features after unpadding; its aspect ratio is too extreme for these tiles`,
    );
  return { base: side ** 2, rows, columns, newlines: rows, total: side ** 2 + rows * columns + rows };
}

/** Python's a // b of two floats: exact, where Math.floor(a / b) may have been rounded up. */
const wholeTimes = (a: number, b: number): number => Math.round((a - (a % b)) / b);
