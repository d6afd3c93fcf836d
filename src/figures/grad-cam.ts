import type { Picture } from "../image/picture";
import { attentionMap } from "./attention-map";
import type { Figure, Grid, Heads, Rows } from "./figure";
import { headsOf, shapeOf } from "./numbers";

/**
 * Grad-CAM (Selvaraju et al. 2017) for tokens in place of a convolution's cells: channels are weighted by the mean of their gradient over the tokens,
 * added up, and only what speaks for the question is kept. activation, gradient: [N][D] of one block's residual stream -> [N], 0 or more.
 */
export function gradCam(activation: Rows, gradient: Rows): Float64Array {
  const [[n, width], b] = [shapeOf("gradCam", "activation", activation), shapeOf("gradCam", "gradient", gradient)];
  if (b[0] !== n || b[1] !== width)
    throw new RangeError(`gradCam: activation is ${n}x${width}, gradient ${b[0]}x${b[1]}; expected the same tokens and channels`);
  const weights = new Float64Array(width);
  for (let i = 0; i < n; i++) for (let d = 0; d < width; d++) weights[d] += gradient[i][d] / n;
  return Float64Array.from({ length: n }, (_, i) => {
    let sum = 0;
    for (let d = 0; d < width; d++) sum += weights[d] * activation[i][d];
    return Math.max(0, sum);
  });
}

/**
 * Grad-CAM of attention (ALBEF, Li et al. 2021, section 6.1): weights times the part of their gradient that speaks for the question, mean over the heads.
 * pattern, gradient: [heads][queries][keys] of one layer -> [queries][keys], 0 or more.
 */
export function gradCamOfPattern(pattern: Heads, gradient: Heads): Float64Array[] {
  const [a, b] = [headsOf("gradCamOfPattern", pattern), headsOf("gradCamOfPattern", gradient)];
  if (String(a) !== String(b)) throw new RangeError(`gradCamOfPattern: the pattern is ${a.join("x")}, the gradient ${b.join("x")}`);
  const [heads, queries, keys] = a;
  return Array.from({ length: queries }, (_, i) =>
    Float64Array.from({ length: keys }, (_v, j) => {
      let sum = 0;
      for (let h = 0; h < heads; h++) sum += pattern[h][i][j] * Math.max(0, gradient[h][i][j]);
      return sum / heads;
    }),
  );
}

/**
 * Grad-CAM over the picture of a tower with a class token. values: [1 + rows x columns], [CLS] first, of `gradCam` or a row of `gradCamOfPattern`.
 * For the image tokens of a prompt use `whereItLooks`, which knows tiles.
 */
export function gradCamMap(
  values: ArrayLike<number>,
  grid: Grid,
  { title = "Grad-CAM", ...rest }: { picture?: Picture; opacity?: number; title?: string } = {},
): Figure {
  return attentionMap(values, grid, { title, ...rest });
}
