/** Pictures and texts as unit vectors, in batches, from any iterator: 100,000 files need the memory of two batches and of their vectors. */
import { breathe, interruptSignal } from "./engine/interrupt";
import { type Progress, progress } from "./engine/progress";
import { tf } from "./engine/tf";
import type { Picture, PictureSource } from "./image/picture";
import { type Prepared, preparePictures } from "./image/prepare";
import type { DualEncoder } from "./models/loaded";
import { unit } from "./models/clip";

/** N unit vectors of `width` numbers, one after the other. */
export type Embeddings = { values: Float32Array; count: number; width: number };

/** A picture that cannot be read: its place in the list, what was given for it, and why. */
export type PictureFailure = { index: number; source: PictureSource; error: Error };

/** indices: the place in the list of each row's picture; failures: what has no row (only with `onError: "skip"`). */
export type ImageEmbeddings = Embeddings & { indices: number[]; failures: PictureFailure[] };

export type EmbedOptions = {
  /** How many go through the model at once; default 32. */
  batchSize?: number;
  /** How many there are, where the iterator cannot tell, for the progress bar. */
  total?: number;
  /** Stops early and keeps the vectors made so far; default: the notebook's interrupt, or Ctrl-C. */
  signal?: AbortSignal;
};

export type EmbedImagesOptions = EmbedOptions & {
  /** At pictures that cannot be read: stop and name them ("throw", the default), or leave them out and list them ("skip"). */
  onError?: "throw" | "skip";
  /** Threads that read and resize pictures while the model computes; default: a quarter of the cores. 0: none. */
  workers?: number;
};

/** The model's picture input for some pictures. -> [B, H, W, 3], mean and std applied */
export function pixelBatch(model: DualEncoder, pictures: Picture[]): tf.Tensor4D {
  const { height, width } = model.imageProcessor.size;
  const values = new Float32Array(pictures.length * height * width * 3);
  pictures.forEach((picture, i) => values.set(model.imageProcessor.process(picture), i * height * width * 3));
  return tf.tensor4d(values, [pictures.length, height, width, 3]);
}

/**
 * The model's text input, padded to the longest (for a model that reads padding: to all that it reads, the mask 1 everywhere) and cut to what the model
 * reads. -> int32 [B, N] each
 */
export function tokenBatch(model: DualEncoder, texts: string[]): { ids: tf.Tensor2D; mask: tf.Tensor2D } {
  const maxLength = model.config.text_config.max_position_embeddings;
  const padding = model.readsPadding ? "max_length" : "longest";
  const { ids, mask } = model.tokenizer.batch(texts, { maxLength, padding, truncation: true });
  const counts = model.readsPadding ? mask.map((row) => row.map(() => 1)) : mask;
  return { ids: tf.tensor2d(ids, undefined, "int32"), mask: tf.tensor2d(counts, undefined, "int32") };
}

/**
 * Unit vectors of pictures, in the order given. Worker threads read, decode and resize the next batch while the model computes this one; the numbers
 * are the same without them.
 *
 * @param sources paths, URLs, bytes or pictures
 * @returns the vectors made; fewer than asked for when `signal` came
 * @throws naming every picture of a batch that cannot be read, unless `onError` is "skip"
 */
export async function embedImages(
  model: DualEncoder,
  sources: Many<PictureSource>,
  options: EmbedImagesOptions = {},
): Promise<ImageEmbeddings> {
  const { onError = "throw", workers } = options;
  if (onError !== "throw" && onError !== "skip") throw new RangeError(`embed: onError is "${onError}", expected "throw" or "skip"`);
  if (workers !== undefined && !(Number.isInteger(workers) && workers >= 0))
    throw new RangeError(`embed: workers is ${workers}, expected a whole number of at least 0`);
  const { batchSize, ...run } = begin(sources, options, "pictures");
  const { height, width } = model.imageProcessor.size;
  // While a batch is computed the threads have the whole next one to do, and something to begin the one after it with.
  const ahead = batchSize + Math.ceil(batchSize / 4);
  const prepared = preparePictures(model.imageProcessor, sources, { ahead, workers, signal: run.signal });
  const [indices, failures]: [number[], PictureFailure[]] = [[], []];
  const vectors = await collect(model, pixelBatches(prepared, batchSize, height * width * 3), run, (batch) => {
    if (batch.failures.length && onError === "throw") throw unreadable(batch.failures);
    failures.push(...batch.failures);
    indices.push(...batch.indices);
    const B = batch.indices.length;
    if (B) return tf.tidy(() => unit(model.encodeImage(tf.tensor4d(batch.values, [B, height, width, 3]))));
  });
  return { ...vectors, indices, failures };
}

/** Unit vectors of texts, in the order given. Texts longer than the model reads are cut. */
export async function embedTexts(model: DualEncoder, texts: Many<string>, options: EmbedOptions = {}): Promise<Embeddings> {
  const { batchSize, ...run } = begin(texts, options, "texts");
  return collect(model, batches(texts, batchSize), run, ({ items }) =>
    tf.tidy(() => {
      const { ids, mask } = tokenBatch(model, items);
      return unit(model.encodeText(ids, mask));
    }),
  );
}

type Many<T> = Iterable<T> | AsyncIterable<T>;
type Run = { signal: AbortSignal; bar: Progress };

/** Checks what both functions take, and starts the bar. */
function begin(items: Many<unknown>, options: EmbedOptions, unitName: string): Run & { batchSize: number } {
  const { batchSize = 32, signal = interruptSignal() } = options;
  if (!Number.isInteger(batchSize) || batchSize < 1)
    throw new RangeError(`embed: batchSize is ${batchSize}, expected a whole number of at least 1`);
  if (typeof items === "string" || items instanceof Uint8Array)
    throw new TypeError(`embed: expected a list of ${unitName}, not one; put it in [ ]`);
  const total = options.total ?? (Array.isArray(items) ? items.length : 0);
  return { batchSize, signal, bar: progress(total, "embed", unitName) };
}

/** Computes batch after batch until `signal` comes. encode: -> [B, width], or nothing where no item of the batch is left */
async function collect<B extends { count: number }>(
  model: DualEncoder,
  batches: AsyncIterable<B>,
  { signal, bar }: Run,
  encode: (batch: B) => tf.Tensor2D | undefined,
): Promise<Embeddings> {
  const parts: Float32Array[] = [];
  try {
    for await (const batch of batches) {
      if (signal.aborted) break;
      const vectors = encode(batch);
      if (vectors) parts.push((await vectors.data()) as Float32Array);
      vectors?.dispose();
      bar.tick(batch.count);
      await breathe();
    }
  } finally {
    bar.done();
  }
  const { width } = model;
  const values = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    values.set(part, at);
    at += part.length;
  }
  return { values, count: values.length / width, width };
}

async function* batches<T>(items: Many<T>, size: number): AsyncGenerator<{ count: number; items: T[] }> {
  let some: T[] = [];
  for await (const item of items) {
    some.push(item);
    if (some.length === size) {
      yield { count: size, items: some };
      some = [];
    }
  }
  if (some.length) yield { count: some.length, items: some };
}

/** `count` pictures were tried; the numbers of the readable ones lie in `values` one after the other, until the next batch is asked for. */
type PixelBatch = { count: number; indices: number[]; failures: PictureFailure[]; values: Float32Array };

async function* pixelBatches(prepared: AsyncIterable<Prepared>, size: number, length: number): AsyncGenerator<PixelBatch> {
  const values = new Float32Array(size * length);
  let [indices, failures]: [number[], PictureFailure[]] = [[], []];
  const batch = () => ({ count: indices.length + failures.length, indices, failures, values: values.subarray(0, indices.length * length) });
  for await (const { index, source, values: one, error } of prepared) {
    if (error && error.name !== "PictureError") throw error; // no fault of the picture
    if (error) failures.push({ index, source, error });
    else values.set(one, indices.push(index) * length - length);
    if (indices.length + failures.length < size) continue;
    yield batch();
    [indices, failures] = [[], []];
  }
  if (indices.length + failures.length) yield batch();
}

/** One error that names all of them. */
function unreadable(failures: PictureFailure[]): Error {
  const advice = 'onError: "skip" leaves such pictures out and lists them in failures';
  const lines = failures.map(({ index, error }) => `  [${index}] ${error.message}`);
  const message = `embedImages: ${failures.length === 1 ? "a picture" : `${failures.length} pictures`} cannot be read (${advice}):\n${lines.join("\n")}`;
  return Object.assign(new Error(message, { cause: failures[0].error }), { failures });
}
