/** Position tables of picture towers, resized to other grids of patches. */
import { tf } from "../engine/tf";

/**
 * A table of side x side positions resized bicubically, as torch.nn.functional.interpolate(mode="bicubic", align_corners=False) does. [side², D] ->
 * [rows·columns, D]
 *
 * @throws RangeError where a grid has no row or column
 */
export function resizePositions(table: tf.Tensor2D, side: number, { rows, columns }: { rows: number; columns: number }): tf.Tensor2D {
  if (rows === side && columns === side) return table;
  if (rows < 1 || columns < 1) throw new RangeError(`resizePositions: a grid of ${rows} x ${columns} patches; the picture holds no patch`);
  const D = table.shape[1];
  const grid = table.reshape([side, side * D]) as tf.Tensor2D;
  const tall = tf
    .matMul(cubic(side, rows), grid)
    .reshape([rows, side, D])
    .transpose([1, 0, 2])
    .reshape([side, rows * D]) as tf.Tensor2D;
  return tf
    .matMul(cubic(side, columns), tall)
    .reshape([columns, rows, D])
    .transpose([1, 0, 2])
    .reshape([rows * columns, D]) as tf.Tensor2D;
}

/** The matrix that resizes a line of `from` samples to `to` (a = -0.75, edges repeated). [to, from] */
function cubic(from: number, to: number): tf.Tensor2D {
  const a = -0.75;
  const kernel = (d: number) => (d <= 1 ? (a + 2) * d ** 3 - (a + 3) * d ** 2 + 1 : d < 2 ? a * (d ** 3 - 5 * d ** 2 + 8 * d - 4) : 0);
  const weights = tf.buffer([to, from]);
  for (let i = 0; i < to; i++) {
    const centre = ((i + 0.5) * from) / to - 0.5;
    for (let j = Math.floor(centre) - 1; j <= Math.floor(centre) + 2; j++) {
      const edge = Math.min(from - 1, Math.max(0, j));
      weights.set(weights.get(i, edge) + kernel(Math.abs(centre - j)), i, edge);
    }
  }
  return weights.toTensor() as tf.Tensor2D;
}
