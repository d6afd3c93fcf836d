import type { Picture } from "../image/picture";
import { attentionMap } from "./attention-map";
import type { Figure, Grid, Heads } from "./figure";
import { headsOf } from "./numbers";
import { type HeadFusion, rollOut } from "./rollout";

/**
 * Attention rollout for one question: each weight is multiplied with the gradient of what is asked, heads are joined, what speaks against it is left out,
 * and the layers are multiplied as in `attentionRollout` (Chefer et al. 2021; the VITAttentionGradRollout of vit-explain, which joins by the mean).
 * patterns, gradients: one [heads][N][N] a layer, first layer first: `activation` and `gradient` of `gradientsAt` -> [N][N], rows sum to 1.
 * Gradients are taken as they are: the smaller they are, the more of each row stays on its own token, and a map shows proportions.
 */
export function gradientRollout(
  patterns: ArrayLike<Heads>,
  gradients: ArrayLike<Heads>,
  { headFusion = "mean", discardRatio = 0 }: { headFusion?: HeadFusion; discardRatio?: number } = {},
): Float64Array[] {
  if (patterns?.length !== gradients?.length)
    throw new RangeError(
      `gradientRollout: ${gradients?.length} layers of gradients for ${patterns?.length} of patterns, expected equally many`,
    );
  const weighted = Array.from(patterns, (pattern, layer) => {
    const [a, b] = [headsOf("gradientRollout", pattern), headsOf("gradientRollout", gradients[layer])];
    if (String(a) !== String(b))
      throw new RangeError(`gradientRollout: layer ${layer} has a pattern of ${a.join("x")} and a gradient of ${b.join("x")}`);
    return Array.from(pattern, (rows, h) => Array.from(rows, (row, i) => Float64Array.from(row, (x, j) => x * gradients[layer][h][i][j])));
  });
  return rollOut("gradientRollout", weighted, { headFusion, discardRatio });
}

/** The row of the class token of `gradientRollout`, over the picture. Options of both functions. */
export function gradientRolloutMap(
  patterns: ArrayLike<Heads>,
  gradients: ArrayLike<Heads>,
  grid: Grid,
  {
    headFusion,
    discardRatio,
    title = "Gradient rollout to [CLS]",
    ...rest
  }: { headFusion?: HeadFusion; discardRatio?: number; picture?: Picture; opacity?: number; title?: string } = {},
): Figure {
  return attentionMap(gradientRollout(patterns, gradients, { headFusion, discardRatio })[0], grid, { title, ...rest });
}
