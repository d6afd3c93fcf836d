/** Training CLIP on pictures with their texts: batches and loss for `train()`. */
import { shuffledBatches } from "../data/batches";
import { type Random, mixSeeds, random } from "../data/random";
import { pixelBatch, tokenBatch } from "../embed";
import type { tf } from "../engine/tf";
import type { Picture } from "../image/picture";
import type { DualEncoder } from "../models/loaded";

/** Anything with a picture and a caption. */
export type Pair = { caption: string; image(): Promise<Picture> };

export type PairBatch = { pixels: tf.Tensor4D; ids: tf.Tensor2D; mask: tf.Tensor2D };

export type PairOptions<P> = {
  batchSize: number;
  /** Of the order, and of what `caption` and `augment` draw. */
  seed?: number;
  /** Passes over the pairs; default endless. */
  epochs?: number;
  /** The text of a pair; default its caption. */
  caption?: (pair: P, next: Random) => string;
  /** A change of the picture, drawn anew each time; default none. */
  augment?: (picture: Picture, next: Random) => Picture;
};

/** Batches of tensors, in an order that depends on the seed alone. `train()` disposes them. */
export async function* pairBatches<P extends Pair>(
  model: DualEncoder,
  pairs: readonly P[],
  options: PairOptions<P>,
): AsyncGenerator<PairBatch> {
  const { batchSize, seed = 0, epochs = Infinity, caption = (pair) => pair.caption, augment = (picture) => picture } = options;
  const next = random(mixSeeds(seed, 1));
  for (const batch of shuffledBatches(pairs, batchSize, { seed, epochs, dropLast: true })) {
    const pictures = await Promise.all(batch.map((pair) => pair.image()));
    const changed = pictures.map((picture) => augment(picture, next));
    const texts = batch.map((pair) => caption(pair, next));
    yield { pixels: pixelBatch(model, changed), ...tokenBatch(model, texts) };
  }
}

/** CLIP's loss of a batch of matching pairs. */
export const pairLoss =
  (model: DualEncoder) =>
  ({ pixels, ids, mask }: PairBatch): tf.Scalar =>
    model.loss(model.encodeImage(pixels), model.encodeText(ids, mask));
