/** How a model sees a picture: the picture resized, laid on a canvas, and cut into equal windows. Geometry first, pixels after. */
import type { Picture } from "./picture";
import { type Filter, type PassOrder, resize, type Window } from "./resize";

export type Size = { height: number; width: number };

/** A rectangle in pixels; fractions are allowed, and so is what lies outside the picture. */
export type Box = { left: number; top: number; width: number; height: number };

/** A picture of its own size on a canvas of `width` x `height`, its corner at (left, top): negative where the canvas shows a part of it only. */
export type Placement = { left: number; top: number; width: number; height: number };

export type Colour = readonly [red: number, green: number, blue: number];

/** A picture on its way to the model: laid on `before` (padding to a square, say), resized to `resized`, laid on `after`. */
export type Canvas = { before: Placement; resized: Size; after: Placement; fill: Colour; filter: Filter };

/** What one tile shows of the original picture, and where it stands. */
export type Tile = {
  /** In the original picture's pixels. Where the tile holds padding, the box reaches beyond the picture. */
  box: Box;
  /** In the tile's pixels: the part that holds picture; around it lies padding. Without padding, the whole tile. */
  inside: Box;
  kind: "tile" | "thumbnail" | "base";
  /** In the grid of tiles; 0 for a thumbnail or base view. */
  row: number;
  column: number;
};

/** One tile to be made: a window of a canvas. */
export type View = Pick<Tile, "kind" | "row" | "column"> & { canvas: Canvas; window: Window };

/** What a picture of some size becomes: equal tiles of `size`, in the order in which the model reads them. */
export type TilePlan = { grid: { rows: number; columns: number }; size: Size; views: View[] };

const BLACK: Colour = [0, 0, 0];

/** The whole of a picture resized to `resized`, without padding. */
export const stretched = (original: Size, resized: Size, filter: Filter): Canvas => ({
  before: { left: 0, top: 0, ...sized(original) },
  resized: sized(resized),
  after: { left: 0, top: 0, ...sized(resized) },
  fill: BLACK,
  filter,
});

/** A picture in the middle of the smallest square that holds it (an odd pixel more at the right or below), resized to `size`. */
export function squared(original: Size, size: Size, filter: Filter, fill: Colour): Canvas {
  const side = Math.max(original.width, original.height);
  const before = {
    left: Math.floor((side - original.width) / 2),
    top: Math.floor((side - original.height) / 2),
    width: side,
    height: side,
  };
  return { ...stretched(original, size, filter), before, fill };
}

const sized = ({ width, height }: Size): Size => ({ width, height });

/** The view of a whole canvas. */
export const wholeView = (canvas: Canvas, kind: Tile["kind"]): View => ({
  kind,
  row: 0,
  column: 0,
  canvas,
  window: { left: 0, top: 0, width: canvas.after.width, height: canvas.after.height },
});

/** A canvas cut into rows x columns windows of `size`, row by row. */
export function gridViews(canvas: Canvas, { rows, columns }: { rows: number; columns: number }, { width, height }: Size): View[] {
  const views: View[] = [];
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      views.push({ kind: "tile", row, column, canvas, window: { left: column * width, top: row * height, width, height } });
  return views;
}

/** Where a view lies in the original picture. */
export function tileOf({ kind, row, column, canvas, window }: View, original: Size): Tile {
  const across = canvas.before.width / canvas.resized.width; // original pixels a canvas pixel
  const down = canvas.before.height / canvas.resized.height;
  const box = {
    left: (window.left - canvas.after.left) * across - canvas.before.left,
    top: (window.top - canvas.after.top) * down - canvas.before.top,
    width: window.width * across,
    height: window.height * down,
  };
  const [left, width] = overlap(-box.left / across, original.width / across, window.width);
  const [top, height] = overlap(-box.top / down, original.height / down, window.height);
  return { box, inside: { left, top, width, height }, kind, row, column };
}

/** The part of [start, start + length) inside [0, end), as start and length. */
function overlap(start: number, length: number, end: number): [start: number, length: number] {
  const from = Math.min(Math.max(start, 0), end);
  return [from, Math.min(Math.max(start + length, 0), end) - from];
}

/** The pixels of views of one picture. Each canvas is resized once; of a canvas with one window, only that window. */
export function paint(picture: Picture, views: View[], order: PassOrder = "pillow"): Picture[] {
  const canvases = new Map<Canvas, Picture>();
  const shared = (canvas: Canvas): boolean => views.filter((view) => view.canvas === canvas).length > 1;
  return views.map(({ canvas, window }) => {
    if (!shared(canvas)) return paintWindow(picture, canvas, window, order);
    const whole = { left: 0, top: 0, width: canvas.after.width, height: canvas.after.height };
    if (!canvases.has(canvas)) canvases.set(canvas, paintWindow(picture, canvas, whole, order));
    return place(canvases.get(canvas) as Picture, { ...window, left: -window.left, top: -window.top }, canvas.fill);
  });
}

/** A window of a canvas, at the cost of what it shows. */
function paintWindow(picture: Picture, { before, resized, after, fill, filter }: Canvas, window: Window, order: PassOrder): Picture {
  const padded = place(picture, before, fill);
  const [left, width] = overlap(window.left - after.left, window.width, resized.width);
  const [top, height] = overlap(window.top - after.top, window.height, resized.height);
  const part = width > 0 && height > 0 ? resize(padded, resized.width, resized.height, filter, { left, top, width, height }, order) : null;
  const at = { left: left + after.left - window.left, top: top + after.top - window.top, width: window.width, height: window.height };
  return place(part ?? { width: 0, height: 0, data: new Uint8Array(0) }, at, fill);
}

/** A picture on a canvas of one colour: cut off where it reaches beyond, the same picture where it fills the canvas. */
export function place(picture: Picture, { left, top, width, height }: Placement, [red, green, blue]: Colour): Picture {
  if (left === 0 && top === 0 && picture.width === width && picture.height === height) return picture;
  const data = new Uint8Array(width * height * 3);
  const [fromX, columns] = overlap(-left, width, picture.width);
  const [fromY, rows] = overlap(-top, height, picture.height);
  if ((red || green || blue) && columns * rows < width * height) for (let i = 0; i < data.length; i += 3) data.set([red, green, blue], i);
  for (let y = fromY; y < fromY + rows; y++) {
    const start = (y * picture.width + fromX) * 3;
    data.set(picture.data.subarray(start, start + columns * 3), ((y + top) * width + fromX + left) * 3);
  }
  return { width, height, data };
}
