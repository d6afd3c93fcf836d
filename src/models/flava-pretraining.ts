/**
 * What FLAVA learns from (Singh et al. 2022, section 3): pictures alone (masked image modelling), texts alone (masked language modelling), and pairs (global
 * contrastive, image-text matching, masked multimodal modelling of both). Numbers as FlavaForPreTraining of transformers/models/flava/modeling_flava.py.
 */
import { tf } from "../engine/tf";
import { crossEntropy, IGNORED } from "../nn/cross-entropy";
import type { Flava } from "./flava";

/** Pictures, texts, or as many of both: pairs. */
export type FlavaBatch = {
  /** [B, H, W, 3], mean and std of the checkpoint applied. */
  pixels?: tf.Tensor4D;
  /** int32 [B, N], 1 where a patch is hidden and to be guessed, as `blockMask()` draws. */
  hidden?: tf.Tensor2D;
  /** int32 [B, N], what `visualWords()` says of every patch. */
  words?: tf.Tensor2D;
  /** int32 [B, T], the whole texts. */
  ids?: tf.Tensor2D;
  /** int32 [B, T], 1 where a token is real. */
  mask?: tf.Tensor2D;
  /** int32 [B, T], the texts with [MASK] or another word where a word is to be guessed; default: `ids`. */
  masked?: tf.Tensor2D;
  /** int32 [B, T], the words to be guessed, and `IGNORED` (-100) at all other places. */
  labels?: tf.Tensor2D;
  /** int32 [B], 1 where picture and text belong together, 0 where not; then only pairs that belong (all, where none does) count in the other losses. */
  matches?: tf.Tensor1D;
};

/** Those that the batch has the inputs of, each times its weight in config.json, and their sum. */
export type FlavaLosses = {
  /** Patches of pictures alone. */
  mim?: tf.Scalar;
  /** Words of texts alone. */
  mlm?: tf.Scalar;
  /** Whether picture and text belong together. */
  itm?: tf.Scalar;
  /** Patches of a picture whose text is read too, and words of a text whose picture is. */
  mmmImage?: tf.Scalar;
  mmmText?: tf.Scalar;
  contrastive?: tf.Scalar;
  total: tf.Scalar;
};

type Parts = Omit<FlavaLosses, "total">;
type Pairs = FlavaBatch & { pixels: tf.Tensor4D; ids: tf.Tensor2D };

/**
 * The losses of a batch. A loss without a single row that counts is NaN, as PyTorch's.
 *
 * @throws RangeError listing everything that does not fit, and for a batch with nothing to learn from; Error for a checkpoint without heads
 */
export function flavaLosses(model: Flava, batch: FlavaBatch): FlavaLosses {
  check(batch);
  return tf.tidy(() => {
    const { pixels, ids } = batch;
    const parts = pixels && ids ? ofPairs(model, { ...batch, pixels, ids }) : ofOneKind(model, batch);
    const [first, ...rest] = Object.values(parts);
    if (!first) throw new RangeError("flavaLosses: the config gives every loss that this batch has the inputs of the weight 0");
    return { ...parts, total: rest.reduce((sum, loss) => sum.add(loss), first) };
  });
}

/** Patches hidden, and what they show; IGNORED elsewhere. int32 [B, N] */
const patchLabels = ({ hidden, words }: Required<Pick<FlavaBatch, "hidden" | "words">>): tf.Tensor2D =>
  tf.where(hidden.equal(1), words, tf.fill(words.shape, IGNORED, "int32"));

const weighed = (parts: { [name in keyof Parts]: [weight: number, loss: () => tf.Scalar] | undefined }): Parts =>
  Object.fromEntries(
    Object.entries(parts).flatMap(([name, part]) => (part && part[0] > 0 ? [[name, part[1]().mul(part[0])]] : [])),
  ) as Parts;

function ofOneKind(model: Flava, { pixels, hidden, words, ids, mask, masked = ids, labels }: FlavaBatch): Parts {
  const { mim_weight, mlm_weight } = model.config;
  return weighed({
    mim: pixels && hidden && words && [mim_weight, () => crossEntropy(model.patchLogits(pixels, hidden), patchLabels({ hidden, words }))],
    mlm: masked && labels && [mlm_weight, () => crossEntropy(model.wordLogits(masked, mask), labels)],
  });
}

function ofPairs(model: Flava, { pixels, hidden, words, ids, mask, masked = ids, labels, matches }: Pairs): Parts {
  const { itm_weight, mmm_image_weight, mmm_text_weight, global_contrastive_weight } = model.config;
  const pairs = model.encodePairs(pixels, masked, mask, undefined, hidden); //                          [B, M, D]
  const rows = matches && itm_weight > 0 ? belonging(matches) : undefined;
  const ofThem = (x: tf.Tensor): tf.Tensor =>
    rows ? tf.where(rows.reshape([-1, ...x.shape.slice(1).fill(1)]), x, tf.fill(x.shape, IGNORED, "int32")) : x;
  const guessed = (logits: tf.Tensor3D, wanted: tf.Tensor2D) => crossEntropy(logits, ofThem(wanted));
  return weighed({
    itm: matches && [itm_weight, () => crossEntropy(model.matching(pairs), matches)],
    mmmImage: hidden &&
      words && [mmm_image_weight, () => guessed(model.patchLogitsSeeing(pairs, words.shape[1]), patchLabels({ hidden, words }))],
    mmmText: labels && [mmm_text_weight, () => guessed(model.wordLogitsSeeing(pairs, labels.shape[1]), labels)],
    contrastive: [
      global_contrastive_weight,
      () => {
        const scores = model.logits(model.encodeImage(pixels), model.encodeText(ids, mask)); //          [B, B]
        const own = ofThem(tf.range(0, scores.shape[0], 1, "int32"));
        return crossEntropy(scores, own).add(crossEntropy(scores.transpose(), own)).div(2);
      },
    ],
  });
}

/** The pairs that belong together; all, where none does. bool [B] */
const belonging = (matches: tf.Tensor1D): tf.Tensor1D => {
  const these = matches.notEqual(0);
  return these.logicalOr(these.any().logicalNot()) as tf.Tensor1D;
};

function check({ pixels, hidden, words, ids, mask, masked, labels, matches }: FlavaBatch): void {
  const misfits: string[] = [];
  const same = (name: string, x: tf.Tensor | undefined, wanted: (number | undefined)[] | undefined, as: string) => {
    if (!x) return;
    if (!wanted) misfits.push(`${name} without ${as}`);
    else if (x.shape.length !== wanted.length || wanted.some((n, i) => n !== undefined && n !== x.shape[i]))
      misfits.push(`${name} is [${x.shape}], expected [${wanted.map((n) => n ?? "N")}] as ${as}`);
  };
  const pairs = pixels && ids && [ids.shape[0]];
  if (pairs && pixels.shape[0] !== pairs[0]) misfits.push(`${pixels.shape[0]} pictures and ${pairs[0]} texts, expected as many of each`);
  same("hidden", hidden, pixels && [pixels.shape[0], undefined], "pixels");
  same("words", words, hidden?.shape, "hidden");
  for (const [name, x] of Object.entries({ mask, masked, labels })) same(name, x, ids?.shape, "ids");
  same("matches", matches, pairs, "pairs of pixels and ids");
  if (hidden && words && String(hidden.shape) !== String(words.shape))
    misfits.push("codebook_size of the processor must be 8 times the patches of a side");
  if (!pairs && !words && !labels)
    misfits.push("nothing to learn from: give hidden and words of pictures, labels of texts, or pixels and ids");
  if (misfits.length) throw new RangeError(`flavaLosses: ${misfits.join("; ")}`);
}
