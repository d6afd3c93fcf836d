/** The causal check of a figure in one call: what happens without the places that it shows brightest. */
import type { tf } from "../engine/tf";
import type { Tap } from "../nn/tap";
import { ablate, type Ablation, heaviest } from "./ablation";
import type { Asked, Talker } from "./answer";
import { activationWithout, answerWithout, type KnockOut } from "./knock-out";
import type { Span } from "./looks";

export type CheckOptions = {
  /** How many of the brightest places are taken away: a whole number, or a share below 1. Default: a tenth. */
  count?: number;
  draws?: number;
  seed?: number;
  signal?: AbortSignal;
};

/**
 * log p of an answer without the image tokens that it looked at most, beside random image tokens of the same picture.
 *
 * @param row what `whereItLooks` draws: a weight for each key, at least those of the picture
 * @param image of `prompt.images`
 * @param how default: "mean"
 * @param count of image tokens
 *
 * @example show(ablationCheck([{ label: "red", ...(await checkLook(model, asked, rows[0], asked.prompt.images[0])) }]))
 */
export async function checkLook(
  model: Talker,
  asked: Asked,
  row: ArrayLike<number>,
  { start, end }: Span,
  { how, count = 0.1, ...options }: CheckOptions & { how?: KnockOut } = {},
): Promise<Ablation> {
  if (!(start >= 0 && start < end && end <= row.length))
    throw new RangeError(`checkLook: the picture's tokens are ${start} to ${end}, the row has ${row.length} weights, one for each key`);
  const among = Array.from({ length: end - start }, (_, i) => start + i);
  const chosen = heaviest(Array.from(row).slice(start, end), count).map((i) => start + i);
  const score = answerWithout(model, asked, { how, among });
  try {
    return await ablate(score, chosen, { among, ...options });
  } finally {
    score.dispose();
  }
}

/**
 * Any number of a picture tower without the patches that a map shows brightest, beside random patches.
 *
 * @param run gives the number, with the tap inside
 * @param values a weight for each patch, [CLS] left out
 * @param which the activation whose rows are replaced by their mean; default: "vision.patch_embed"
 *
 * @example await checkPatches((tap) => tf.sum(tf.mul(clip.encodeImage(pixels, tap), text)), rollout[0].slice(1))
 */
export function checkPatches(
  run: (tap: Tap) => tf.Tensor,
  values: ArrayLike<number>,
  { which = "vision.patch_embed", count = 0.1, ...options }: CheckOptions & { which?: string } = {},
): Promise<Ablation> {
  const among = Array.from({ length: values.length }, (_, i) => i);
  return ablate(activationWithout(run, which), heaviest(values, count), { among, ...options });
}
