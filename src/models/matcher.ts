/**
 * What BLIP's retrieval model and ALBEF have in common: they compare a picture and a text by unit vectors of each alone (ITC), and judge a pair by reading
 * it together (ITM).
 */
import { tf } from "../engine/tf";
import type { ImageProcessor } from "../image/processor";
import { type Linear, linear } from "../nn/layers";
import { at, noTap, type Tap } from "../nn/tap";
import type { Tokenizer } from "../text/tokenizer";
import { contrastiveLoss, matchingLoss } from "./blip2";
import { unit } from "./clip";
import type { Loaded } from "./loaded";
import { firstToken } from "./vit";

/** Texts in a model's tokens. */
export type Words = { ids: tf.Tensor2D /* int32 [B, T] */; padding?: tf.Tensor2D /* int32 [B, T], 1 where a token is real */ };

/** What a model that talks or compares has on its picture side. */
export type Sight = {
  tokenizer: Tokenizer;
  imageProcessor: ImageProcessor;
  /** Rows and columns of patches in a picture; its states have a class token before them. */
  grid: [number, number];
  /** Texts as the model reads them, padded to the longest and cut to its positions. */
  read(texts: string[]): Required<Words>;
  /** The picture tower's states of pictures [B, S, S, 3], prepared by the image processor -> [B, N, Dv] */
  see(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor3D;
};

export type Matcher<P, C> = Loaded<P> &
  Sight & {
    config: C;
    /** Numbers of a unit vector. */
    width: number;
    /** A unit vector for each picture. [B, N, Dv] -> [B, d] */
    encodePicture(states: tf.Tensor3D): tf.Tensor2D;
    /** A unit vector for each text, read alone: [B, d]. Taps: `text.…`. */
    encodeWords(words: Words, tap?: Tap): tf.Tensor2D;
    /** `encodePicture` of `see`, as `embedImages` wants it. */
    encodeImage(pixels: tf.Tensor4D, tap?: Tap): tf.Tensor2D;
    /** `encodeWords` of token ids and mask, int32 [B, T] each, as `embedTexts` wants it. */
    encodeText(ids: tf.Tensor2D, mask?: tf.Tensor2D, tap?: Tap): tf.Tensor2D;
    /** Cosine of every picture with every text. [B, d], [T, d] -> [B, T] */
    similarities(pictures: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D;
    /** The same of vectors of any length, divided by the temperature of the contrastive loss. */
    logits(pictures: tf.Tensor2D, texts: tf.Tensor2D): tf.Tensor2D;
    /**
     * [no, yes] of pairs read together: [B, 2]; their softmax is the probability of a match. One picture goes with every text. Taps: `fused.…`.
     * @throws RangeError when pictures and texts differ in number
     */
    matchingLogits(states: tf.Tensor3D, words: Words, options?: { tap?: Tap }): tf.Tensor2D;
    /** The two losses, of matching rows of pictures and texts; `loss.matching` takes labels, int32 [B], 1 where a pair matches. */
    loss: {
      contrastive(states: tf.Tensor3D, words: Words): tf.Scalar;
      matching(states: tf.Tensor3D, words: Words, labels: tf.Tensor1D): tf.Scalar;
    };
    /** The same model around another parameter tree (with adapters attached or merged). Shares everything else. */
    with(params: P): Matcher<P, C>;
  };

type Heads = { projectVision: Linear; projectText: Linear; matching: Linear };

/** What a family says of itself. */
export type MatcherFamily<P, C> = Omit<Loaded<P>, "params"> &
  Omit<Sight, "see"> & {
    config: C;
    width: number;
    see(params: P, pixels: tf.Tensor4D, tap: Tap): tf.Tensor3D;
    /** The states of texts alone: [B, T, D] */
    readText(params: P, words: Words, tap: Tap): tf.Tensor3D;
    /** The states of texts that look at pictures; `textTap` sees what of it the texts alone are read by. [B, T, D] */
    readPair(params: P, states: tf.Tensor3D, words: Words, tap: Tap, textTap: Tap): tf.Tensor3D;
    temperature(params: P): number | tf.Scalar;
  };

/** A family around its weights. */
export function matcher<P extends Heads, C>(family: MatcherFamily<P, C>, params: P): Matcher<P, C> {
  const { see: look, readText, readPair, temperature, ...fixed } = family;
  const encodePicture = (states: tf.Tensor3D) => tf.tidy(() => unit(linear(params.projectVision, firstToken(states)) as tf.Tensor2D));
  const encodeWords = (words: Words, tap: Tap = noTap) =>
    tf.tidy(() => unit(linear(params.projectText, firstToken(readText(params, words, at(tap, "text")))) as tf.Tensor2D));
  const see = (pixels: tf.Tensor4D, tap: Tap = noTap) => look(params, pixels, tap);
  const matchingLogits = (states: tf.Tensor3D, words: Words, { tap = noTap }: { tap?: Tap } = {}) =>
    tf.tidy(() => {
      const all = forEach(states, words.ids.shape[0]);
      const read = readPair(params, all, words, at(tap, "fused"), at(tap, "text"));
      return linear(params.matching, firstToken(read)) as tf.Tensor2D;
    });
  const similarities = (pictures: tf.Tensor2D, texts: tf.Tensor2D) => tf.matMul(pictures, texts, false, true) as tf.Tensor2D;
  return {
    ...fixed,
    params,
    see,
    encodePicture,
    encodeWords,
    encodeImage: (pixels, tap) => tf.tidy(() => encodePicture(see(pixels, tap))),
    encodeText: (ids, padding, tap) => encodeWords({ ids, padding }, tap),
    similarities,
    logits: (pictures, texts) => tf.tidy(() => similarities(unit(pictures), unit(texts)).div(temperature(params)) as tf.Tensor2D),
    matchingLogits,
    loss: {
      contrastive: (states, words) =>
        tf.tidy(() => contrastiveLoss(similarities(encodePicture(states), encodeWords(words)), temperature(params))),
      matching: (states, words, labels) => tf.tidy(() => matchingLoss(matchingLogits(states, words), labels)),
    },
    with: (other) => matcher(family, other),
  };
}

/** A picture's states for each of `texts` texts. [B or 1, N, D] -> [B, N, D] */
function forEach(states: tf.Tensor3D, texts: number): tf.Tensor3D {
  const [B] = states.shape;
  if (B === texts) return states;
  if (B === 1) return states.tile([texts, 1, 1]);
  throw new RangeError(
    `matchingLogits: ${B} pictures and ${texts} texts; a pair is a picture and its text, or give one picture for all texts`,
  );
}

/** Texts in tokens, padded to the longest and cut to `maxLength`. */
export function readWords(tokenizer: Tokenizer, texts: string[], maxLength: number): Required<Words> {
  const { ids, mask } = tokenizer.batch(texts, { maxLength, padding: "longest", truncation: true });
  const shape: [number, number] = [ids.length, ids[0]?.length ?? 0];
  const ints = (rows: number[][]) => tf.tensor2d(rows.flat(), shape, "int32");
  return { ids: ints(ids), padding: ints(mask) };
}
