/**
 * The tiles of a picture as one line of vectors (LLaVA-NeXT, Liu et al. 2024; LLaVA-OneVision, Li et al. 2024): the whole picture's patches, then
 * the patches of the tiles put together, without those that show only padding, shrunk where they are too many, and a newline behind each row.
 */
import { tf } from "../engine/tf";
import { anyresTokens, unpad } from "../image/anyres";
import type { Tile, TileLayout } from "../image/tiles";
import { gatherRows } from "../nn/ops";
import type { TokenPlace } from "./loaded";

/** How tiles are put together. */
export type Packing = { side: number; maxTiles: number | null };

/** Kept patches of the tiles put together: rows and columns of the whole, the part that shows picture, and what it is shrunk to. */
function planOf({ grid, original }: TileLayout, { side, maxTiles }: Packing) {
  const kept = unpad(original, { rows: grid.rows * side, columns: grid.columns * side });
  const { rows, columns } = anyresTokens(original, grid, side, { maxTiles });
  return { kept, rows, columns };
}

/**
 * @param features of the tiles, the whole picture first: [tiles, side², D]
 * @returns [tokens, D]
 */
export function packTiles(features: tf.Tensor3D, newline: tf.Tensor1D, tiled: TileLayout, packing: Packing): tf.Tensor2D {
  const [count, n, D] = features.shape;
  const { side } = packing;
  if (n !== side * side)
    throw new RangeError(
      `packTiles: ${n} patches in a tile, expected ${side} x ${side}; vision_feature_select_strategy does not fit the tower`,
    );
  const flat = features.reshape([count * n, D]) as tf.Tensor2D;
  if (count === 1) return tf.concat([flat, newline.reshape([1, D])]) as tf.Tensor2D;
  const { kept, rows, columns } = planOf(tiled, packing);
  const base = flat.slice([0, 0], [n, D]);
  const newlines = newline.reshape([1, 1, D]).tile([rows, 1, 1]); //                                 [rows, 1, D]
  if (rows * columns === 0) return tf.concat([base, newlines.reshape([rows, D])]) as tf.Tensor2D; // a very long picture leaves no patch
  const picked = gatherRows(flat, tf.tensor1d(canvasOrder(tiled, side, kept), "int32")) as tf.Tensor2D; // [kept rows · columns, D]
  const shrunk = resizeBilinear(picked, kept, { rows, columns });
  const lines = tf.concat([shrunk.reshape([rows, columns, D]), newlines], 1); //                     [rows, columns + 1, D]
  return tf.concat([base, lines.reshape([rows * (columns + 1), D])]) as tf.Tensor2D;
}

type Kept = { top: number; left: number; rows: number; columns: number };

/** Where each kept patch of the canvas stands among the patches of all tiles. */
function canvasOrder({ grid }: TileLayout, side: number, { top, left, rows, columns }: Kept): Int32Array {
  const order = new Int32Array(rows * columns);
  for (let i = 0; i < order.length; i++) {
    const [y, x] = [top + Math.floor(i / columns), left + (i % columns)];
    const tile = 1 + Math.floor(y / side) * grid.columns + Math.floor(x / side);
    order[i] = (tile * side + (y % side)) * side + (x % side);
  }
  return order;
}

type Grid = { rows: number; columns: number };

/** Rows and columns resized as torch.nn.functional.interpolate(mode="bilinear", align_corners=False) does, without smoothing. x: [rows·columns, D] */
function resizeBilinear(x: tf.Tensor2D, from: Grid, to: Grid): tf.Tensor2D {
  if (from.rows === to.rows && from.columns === to.columns) return x;
  const D = x.shape[1];
  const tall = tf.matMul(linearWeights(from.rows, to.rows), x.reshape([from.rows, from.columns * D]) as tf.Tensor2D);
  const turned = tall
    .reshape([to.rows, from.columns, D])
    .transpose([1, 0, 2])
    .reshape([from.columns, to.rows * D]) as tf.Tensor2D;
  return tf
    .matMul(linearWeights(from.columns, to.columns), turned)
    .reshape([to.columns, to.rows, D])
    .transpose([1, 0, 2])
    .reshape([to.rows * to.columns, D]) as tf.Tensor2D;
}

/** [to, from] */
function linearWeights(from: number, to: number): tf.Tensor2D {
  const weights = tf.buffer([to, from]);
  for (let i = 0; i < to; i++) {
    const at = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    const low = Math.min(Math.floor(at), from - 1);
    const high = Math.min(low + 1, from - 1);
    weights.set(weights.get(i, low) + 1 - (at - low), i, low);
    weights.set(weights.get(i, high) + (at - low), i, high);
  }
  return weights.toTensor() as tf.Tensor2D;
}

/**
 * What each patch of a tile shows, row by row. grid: the tile's patches, or a side of a square of them; share: of the tile's width and height that they
 * cover (a rest smaller than a patch is cut off).
 */
export function patchPlaces({ box }: Tile, tile: number, grid: number | Grid, share = 1): TokenPlace[] {
  const { rows, columns } = typeof grid === "number" ? { rows: grid, columns: grid } : grid;
  const [width, height] = [(box.width * share) / columns, (box.height * share) / rows];
  return Array.from({ length: rows * columns }, (_, i) => ({
    left: box.left + (i % columns) * width,
    top: box.top + Math.floor(i / columns) * height,
    width,
    height,
    tile,
  }));
}

/** What each token of `packTiles` shows; undefined for newlines. A shrunk patch shows the part of the picture that it stands for, and the tile of its middle. */
export function packedPlaces(tiled: TileLayout, packing: Packing, share = 1): TokenPlace[] {
  const { side } = packing;
  const places = patchPlaces(tiled.tiles[0], 0, side, share);
  if (tiled.count === 1) return [...places, undefined];
  const { kept, rows, columns } = planOf(tiled, packing);
  const { box } = tiled.tiles[1];
  const [stepX, stepY] = [kept.columns / columns, kept.rows / rows];
  /** A place on the canvas, in patches, as a place in the picture. */
  const along = (at: number, start: number, length: number) => start + (Math.floor(at / side) + (share * (at % side)) / side) * length;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const [x, y] = [kept.left + column * stepX, kept.top + row * stepY];
      const tile = 1 + Math.floor((y + stepY / 2) / side) * tiled.grid.columns + Math.floor((x + stepX / 2) / side);
      const [left, top] = [along(x, box.left, box.width), along(y, box.top, box.height)];
      places.push({ left, top, width: (stepX * share * box.width) / side, height: (stepY * share * box.height) / side, tile });
    }
    places.push(undefined);
  }
  return places;
}
