/**
 * The first stage of BLIP-2's training (Li et al. 2023, section 3.1): the three losses of one batch, with hard negatives for the matching one, on pictures whose
 * states were computed once, since the picture tower is frozen.
 */
import { shuffledBatches } from "../data/batches";
import { type Random, mixSeeds, random } from "../data/random";
import { breathe } from "../engine/interrupt";
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import type { Picture } from "../image/picture";
import { type Blip2Text, wordLoss } from "../models/blip2";
import type { Blip2 } from "../models/blip2-load";

/** States of many pictures: [count, N, D], one after the other. */
export type States = { values: Float32Array; count: number; tokens: number; width: number };

/** What the frozen tower makes of pictures. batchSize: how many go through it at once */
export async function picturesSeen(
  model: Blip2,
  pictures: AsyncIterable<Picture> | Iterable<Picture>,
  count: number,
  batchSize = 64,
): Promise<States> {
  const { height, width: W } = model.imageProcessor.size;
  const [tokens, width] = [model.grid[0] * model.grid[1] + 1, model.config.vision_config.hidden_size];
  const values = new Float32Array(count * tokens * width);
  let [batch, done]: [Float32Array[], number] = [[], 0];
  const flush = async () => {
    const pixels = new Float32Array(batch.length * height * W * 3);
    batch.forEach((one, i) => pixels.set(one, i * height * W * 3));
    values.set(await take(tf.tidy(() => model.see(tf.tensor4d(pixels, [batch.length, height, W, 3])))), done * tokens * width);
    done += batch.length;
    batch = [];
    await breathe();
  };
  for await (const picture of pictures) {
    batch.push(model.imageProcessor.process(picture));
    if (batch.length === batchSize) await flush();
  }
  if (batch.length) await flush();
  if (done !== count) throw new RangeError(`picturesSeen: ${done} pictures came, ${count} were announced`);
  return { values, count, tokens, width };
}

/** Some pictures' states: [B, N, D] */
export function statesOf({ values, tokens, width }: States, rows: readonly number[]): tf.Tensor3D {
  const size = tokens * width;
  const out = new Float32Array(rows.length * size);
  rows.forEach((row, i) => out.set(values.subarray(row * size, (row + 1) * size), i * size));
  return tf.tensor3d(out, [rows.length, tokens, width]);
}

/**
 * For each row another column, drawn by its share among the others (LAVIS: softmax of the scaled similarities, the own one left out).
 * logits: [B][B]
 */
export function hardNegatives(logits: ArrayLike<number>, B: number, next: Random): number[] {
  if (B < 2 || logits.length !== B * B)
    throw new RangeError(`hardNegatives: ${logits.length} numbers for ${B} rows; expected ${B * B}, of 2 or more`);
  return Array.from({ length: B }, (_, i) => {
    const row = Array.from({ length: B }, (_, j) => (j === i ? Number.NEGATIVE_INFINITY : logits[i * B + j]));
    const most = Math.max(...row);
    const shares = row.map((x) => Math.exp(x - most));
    let left = next() * shares.reduce((a, b) => a + b, 0);
    const found = shares.findIndex((share) => (left -= share) < 0);
    return found >= 0 ? found : row.indexOf(most);
  });
}

const transposed = (square: ArrayLike<number>, B: number): Float32Array =>
  Float32Array.from({ length: B * B }, (_, i) => square[(i % B) * B + Math.floor(i / B)]);

/** One batch: matching pictures and texts, what the language head is to say, and which rows are each other's hard negatives. */
export type StageOneBatch = {
  states: tf.Tensor3D;
  ids: tf.Tensor2D;
  padding: tf.Tensor2D;
  /** For the language head, which begins with a token of its own: what it is to say, and what it reads. */
  spokenIds: tf.Tensor2D;
  spokenInput: tf.Tensor2D;
  spokenPadding: tf.Tensor2D;
  /** int32 [B]: a wrong picture for each text, a wrong text for each picture. */
  wrongPicture: tf.Tensor1D;
  wrongText: tf.Tensor1D;
};

/** What is hidden at random in training, so that neither picture nor text is learned by heart. */
export type Hiding = {
  /** Share of a picture's patches whose states become 0, which is near their mean behind the tower's norm. */
  patches: number;
  /** Share of a text's tokens that become [MASK], the first one apart. */
  words: number;
};

export type StageOneOptions = {
  batchSize: number;
  /** Similarities are divided by it before negatives are drawn by their share: the lower, the harder; Infinity: all alike. */
  negativeTemperature: number;
  hiding?: Hiding;
  seed?: number;
};

export type StageOneData = {
  count: number;
  /** A row of `States` for an item, drawn anew each time. */
  picture(item: number, next: Random): number;
  /** The text that is matched, and the one that is said. */
  text(item: number, next: Random): { matched: string; spoken: string };
  states: States;
};

/** Endless batches; the model's own similarities, as they are now, choose the negatives. `train()` disposes them. */
export async function* stageOneBatches(
  model: Blip2,
  data: StageOneData,
  { batchSize, negativeTemperature, hiding = { patches: 0, words: 0 }, seed = 0 }: StageOneOptions,
): AsyncGenerator<StageOneBatch> {
  const next = random(mixSeeds(seed, 1));
  const maskToken = model.tokenizer.special.mask;
  if (hiding.words > 0 && maskToken === undefined) throw new Error("stageOneBatches: the vocabulary has no [MASK] to hide words with");
  const items = Array.from({ length: data.count }, (_, i) => i);
  for (const batch of shuffledBatches(items, batchSize, { seed, epochs: Infinity, dropLast: true })) {
    const texts = batch.map((item) => data.text(item, next));
    const seen = statesOf(
      data.states,
      batch.map((item) => data.picture(item, next)),
    );
    const states = hidePatches(seen, hiding.patches, next);
    const full = model.read(texts.map((text) => text.matched));
    const matched = { ids: hideWords(full.ids, hiding.words, maskToken, next), padding: full.padding };
    const spoken = model.read(
      texts.map((text) => text.spoken),
      "[DEC]",
    );
    const logits = await take(
      tf.tidy(() => model.similarities(model.encodePicture(states), model.encodeWords(matched)).div(negativeTemperature)),
    );
    tf.dispose([seen, full.ids]);
    yield {
      states,
      ...matched,
      spokenIds: spoken.ids,
      spokenInput: hideWords(spoken.ids, hiding.words, maskToken, next),
      spokenPadding: spoken.padding,
      wrongText: tf.tensor1d(hardNegatives(logits, batchSize, next), "int32"),
      wrongPicture: tf.tensor1d(hardNegatives(transposed(logits, batchSize), batchSize, next), "int32"),
    };
  }
}

function hidePatches(states: tf.Tensor3D, share: number, next: Random): tf.Tensor3D {
  const [B, N] = states.shape;
  const kept = Float32Array.from({ length: B * N }, (_, i) => (i % N > 0 && next() < share ? 0 : 1)); // never the class token
  return tf.tidy(() => states.mul(tf.tensor(kept, [B, N, 1])));
}

function hideWords(ids: tf.Tensor2D, share: number, maskToken: number | undefined, next: Random): tf.Tensor2D {
  const [B, T] = ids.shape;
  const hidden = Int32Array.from({ length: B * T }, (_, i) => (i % T > 0 && next() < share ? 1 : 0)); // padding counts in no case
  return tf.tidy(() => tf.where(tf.tensor(hidden, [B, T], "bool"), tf.fill([B, T], maskToken ?? 0, "int32"), ids) as tf.Tensor2D);
}

/** The three losses, their sum what is trained (LAVIS weighs them alike). */
export function stageOneLosses(model: Blip2, batch: StageOneBatch): { contrastive: tf.Scalar; matching: tf.Scalar; generation: tf.Scalar } {
  const { states, ids, padding } = batch;
  const text: Blip2Text = { ids, padding };
  return {
    contrastive: model.loss.contrastive(states, text),
    matching: tf.tidy(() => {
      const B = states.shape[0];
      const pick = <T extends tf.Tensor>(x: T, rows: tf.Tensor1D) => tf.gather(x, rows) as T;
      const labels = tf.concat([tf.ones([B], "int32"), tf.zeros([2 * B], "int32")]) as tf.Tensor1D;
      return model.loss.matching(
        tf.concat([states, pick(states, batch.wrongPicture), states]),
        { ids: tf.concat([ids, ids, pick(ids, batch.wrongText)]), padding: tf.concat([padding, padding, pick(padding, batch.wrongText)]) },
        labels,
      );
    }),
    generation: tf.tidy(() =>
      wordLoss(model.wordLogits(states, { ids: batch.spokenInput, padding: batch.spokenPadding }), {
        ids: batch.spokenIds,
        padding: batch.spokenPadding,
      }),
    ),
  };
}

/** The sum of the three. */
export const stageOneLoss =
  (model: Blip2) =>
  (batch: StageOneBatch): tf.Scalar =>
    tf.tidy(() => {
      const { contrastive, matching, generation } = stageOneLosses(model, batch);
      return contrastive.add(matching).add(generation) as tf.Scalar;
    });
