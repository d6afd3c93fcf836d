/** Taking something away from a model, to see whether its answer needed it: image tokens, patches, words, by their places in a sequence. */
import { tf } from "../engine/tf";
import { BLOCKED } from "../nn/masks";
import { edit, type Tap } from "../nn/tap";
import { answerLogProb, type Asked, type Talker } from "./answer";

/**
 * How: what stands there is replaced by zeros, or by the mean of what stands at the places of `among` (less of a shock to the model), or stays and nobody
 * but the place itself may look at it (attention knockout: Geva et al. 2023).
 */
export type KnockOut = "zero" | "mean" | "block";

/** The number that a model gives when these places are taken away; none: the model as it is. */
export type Score = (places: readonly number[]) => Promise<number>;

/** A score that holds tensors. */
export type HeldScore = Score & { dispose(): void };

/** int32 places as 1 in a row of 0. [N] */
const marks = (places: readonly number[], N: number): Float32Array => {
  const out = new Float32Array(N);
  for (const place of places) out[place] = 1;
  return out;
};

function checkPlaces(where: string, places: readonly number[], N: number): void {
  const odd = places.filter((place) => !(Number.isInteger(place) && place >= 0 && place < N));
  if (odd.length)
    throw new RangeError(`${where}: place ${odd[0]} is not among the ${N} tokens; places are whole numbers from 0 to ${N - 1}`);
}

/**
 * Rows of a sequence replaced by zeros, or by the mean of the rows `among` (default: all). x: [B, N, D] -> [B, N, D]
 *
 * @throws RangeError for a place that is not there
 */
export function replaceRows(x: tf.Tensor3D, places: readonly number[], by: "zero" | "mean", among?: readonly number[]): tf.Tensor3D {
  const N = x.shape[1];
  checkPlaces("replaceRows", [...places, ...(among ?? [])], N);
  if (places.length === 0) return x;
  return tf.tidy(() => {
    const out = tf.tensor3d(marks(places, N), [1, N, 1]);
    const kept = x.mul(tf.scalar(1).sub(out));
    if (by === "zero") return kept as tf.Tensor3D;
    const share = tf.tensor3d(among?.length ? marks(among, N) : new Float32Array(N).fill(1), [1, N, 1]);
    const mean = x.mul(share).sum(1, true).div(share.sum()); //                                      [B, 1, D]
    return kept.add(mean.mul(out)) as tf.Tensor3D;
  });
}

/**
 * A tap under which nobody looks at the keys at `places`, save a token at itself: it keeps what it is, and nobody hears of it.
 *
 * @param which names of the attention scores, e.g. /^language\..*attn_scores$/
 */
export function blockKeys(which: RegExp | string | readonly string[], places: readonly number[]): { tap: Tap; check(): void } {
  const made = edit(which, (scores, name) => {
    const [queries, keys] = scores.shape.slice(-2);
    checkPlaces("blockKeys", places, keys);
    const hidden = tf.tensor2d(marks(places, keys), [1, keys]).mul(tf.ones([queries, 1]));
    // With fewer queries than keys, the last query stands at the last key. Cross-attention has no "itself".
    const others = name.includes("cross") ? 1 : tf.scalar(1).sub(diagonal(queries, keys));
    return scores.add(hidden.mul(others).mul(BLOCKED));
  });
  return { tap: made.tap, check: made.check };
}

const diagonal = (queries: number, keys: number): tf.Tensor2D =>
  tf
    .range(keys - queries, keys, 1, "int32")
    .reshape([queries, 1])
    .equal(tf.range(0, keys, 1, "int32").reshape([1, keys]))
    .cast("float32");

/**
 * log p of an answer without some of the prompt's tokens, in nats.
 *
 * @param how default: "mean"
 * @param among of the mean; default: the tokens of the prompt's pictures where there are any, else all of the prompt
 * @param layers with "block": where it is done; default: in all
 */
export function answerWithout(
  model: Talker,
  asked: Asked,
  { how = "mean", among, layers }: { how?: KnockOut; among?: readonly number[]; layers?: readonly number[] } = {},
): HeldScore {
  const { prompt } = asked;
  const embeddings = tf.keep(model.embedPrompt(prompt));
  const pictures = prompt.images.flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i));
  const mean = among ?? (pictures.length ? pictures : undefined);
  const scores = scoresOf(model, layers);
  const score = async (places: readonly number[]): Promise<number> => {
    checkPlaces("answerWithout", places, prompt.ids.length);
    const result = tf.tidy(() => {
      if (how !== "block") return answerLogProb(model, asked, { embeddings: replaceRows(embeddings, places, how, mean) });
      if (places.length === 0) return answerLogProb(model, asked, { embeddings });
      const { tap, check } = blockKeys(scores, places);
      const y = answerLogProb(model, asked, { embeddings, tap });
      check();
      return y;
    });
    const [value] = await result.data();
    result.dispose();
    return value;
  };
  return Object.assign(score, { dispose: () => embeddings.dispose() });
}

/** Where the prompt's tokens are looked at: the decoder's own attention, or the encoder's and what the decoder reads of it. */
function scoresOf({ language }: Talker, layers?: readonly number[]): RegExp {
  const n = layers ? `(${layers.join("|")})` : "\\d+";
  const parts = language.encoder ? `(encoder\\.blocks\\.${n}\\.attn|blocks\\.${n}\\.cross)` : `blocks\\.${n}\\.attn`;
  return new RegExp(`^language\\.${parts}\\.attn_scores$`);
}

/**
 * Any number of a model without some rows of one activation [B, N, D], e.g. patches of a picture before the first block.
 *
 * @param run gives the number, with the tap inside: a similarity, a class's logit
 * @param which its name, e.g. "vision.patch_embed"
 *
 * @example activationWithout((tap) => tf.sum(tf.mul(clip.encodeImage(pixels, tap), text)), "vision.patch_embed")
 */
export function activationWithout(
  run: (tap: Tap) => tf.Tensor,
  which: string,
  { how = "mean", among }: { how?: "zero" | "mean"; among?: readonly number[] } = {},
): Score {
  return async (places) => {
    const result = tf.tidy(() => {
      const { tap, check } = edit(which, (x) => replaceRows(x as tf.Tensor3D, places, how, among));
      const y = run(tap);
      check();
      return y;
    });
    if (result.size !== 1) throw new RangeError(`activationWithout: the run gives [${result.shape}], expected one number`);
    const [value] = await result.data();
    result.dispose();
    return value;
  };
}
