/** Pictures and texts as unit vectors, in batches, from any iterator: 100,000 files need the memory of one batch and of their vectors. */
import { breathe, interruptSignal } from "./engine/interrupt";
import { progress } from "./engine/progress";
import { tf } from "./engine/tf";
import { type Picture, type PictureSource, readPicture } from "./image/picture";
import type { Clip } from "./models/index";
import { unit } from "./models/clip";

/** N unit vectors of `width` numbers, one after the other. */
export type Embeddings = { values: Float32Array; count: number; width: number };

export type EmbedOptions = {
  /** How many go through the model at once; default 32. */
  batchSize?: number;
  /** How many there are, where the iterator cannot tell, for the progress bar. */
  total?: number;
  /** Stops early and keeps the vectors made so far; default: the notebook's interrupt, or Ctrl-C. */
  signal?: AbortSignal;
};

/** The model's picture input for some pictures. -> [B, H, W, 3], mean and std applied */
export function pixelBatch(model: Clip, pictures: Picture[]): tf.Tensor4D {
  const { height, width } = model.imageProcessor.size;
  const values = new Float32Array(pictures.length * height * width * 3);
  pictures.forEach((picture, i) => values.set(model.imageProcessor.process(picture), i * height * width * 3));
  return tf.tensor4d(values, [pictures.length, height, width, 3]);
}

/** The model's text input, padded to the longest and cut to what the model reads. -> int32 [B, N] each */
export function tokenBatch(model: Clip, texts: string[]): { ids: tf.Tensor2D; mask: tf.Tensor2D } {
  const maxLength = model.config.text_config.max_position_embeddings;
  const { ids, mask } = model.tokenizer.batch(texts, { maxLength, padding: "longest", truncation: true });
  return { ids: tf.tensor2d(ids, undefined, "int32"), mask: tf.tensor2d(mask, undefined, "int32") };
}

/**
 * Unit vectors of pictures, in the order given.
 *
 * @param sources paths, URLs, bytes or pictures; a picture that cannot be read stops the run with its name
 * @returns the vectors made; fewer than asked for when `signal` came
 */
export async function embedImages(model: Clip, sources: Many<PictureSource>, options: EmbedOptions = {}): Promise<Embeddings> {
  return embedAll(model, sources, options, "pictures", async (some) => {
    const pictures = await Promise.all(some.map((source) => readPicture(source)));
    return tf.tidy(() => unit(model.encodeImage(pixelBatch(model, pictures))));
  });
}

/** Unit vectors of texts, in the order given. Texts longer than the model reads are cut. */
export async function embedTexts(model: Clip, texts: Many<string>, options: EmbedOptions = {}): Promise<Embeddings> {
  return embedAll(model, texts, options, "texts", async (some) =>
    tf.tidy(() => {
      const { ids, mask } = tokenBatch(model, some);
      return unit(model.encodeText(ids, mask));
    }),
  );
}

type Many<T> = Iterable<T> | AsyncIterable<T>;

async function embedAll<T>(
  model: Clip,
  items: Many<T>,
  options: EmbedOptions,
  unitName: string,
  encode: (some: T[]) => Promise<tf.Tensor2D>,
): Promise<Embeddings> {
  const { batchSize = 32, signal = interruptSignal() } = options;
  if (!Number.isInteger(batchSize) || batchSize < 1)
    throw new RangeError(`embed: batchSize is ${batchSize}, expected a whole number of at least 1`);
  if (typeof items === "string" || items instanceof Uint8Array)
    throw new TypeError(`embed: expected a list of ${unitName}, not one; put it in [ ]`);
  const total = options.total ?? (Array.isArray(items) ? items.length : 0);
  const bar = progress(total, "embed", unitName);
  const parts: Float32Array[] = [];
  try {
    for await (const some of batches(items, batchSize)) {
      if (signal.aborted) break;
      const vectors = await encode(some);
      parts.push((await vectors.data()) as Float32Array);
      vectors.dispose();
      bar.tick(some.length);
      await breathe();
    }
  } finally {
    bar.done();
  }
  const width = model.config.projection_dim;
  const values = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    values.set(part, at);
    at += part.length;
  }
  return { values, count: values.length / width, width };
}

async function* batches<T>(items: Many<T>, size: number): AsyncGenerator<T[]> {
  let some: T[] = [];
  for await (const item of items) {
    some.push(item);
    if (some.length === size) {
      yield some;
      some = [];
    }
  }
  if (some.length) yield some;
}
