/** What unit vectors are for: zero-shot classes, retrieval with its metrics, nearest neighbours. Results are Arquero tables. */
import * as aq from "arquero";
import { embedImages, embedTexts, type EmbedImagesOptions, type Embeddings } from "./embed";
import { take } from "./engine/read";
import { tf } from "./engine/tf";
import type { PictureSource } from "./image/picture";
import type { DualEncoder } from "./models/loaded";

export type Table = ReturnType<typeof aq.table>;

/** Cosines of every row of a with every row of b. -> [a.count][b.count], row by row */
export async function similarity(a: Embeddings, b: Embeddings): Promise<Float32Array> {
  if (a.width !== b.width)
    throw new RangeError(`similarity: vectors of ${a.width} and of ${b.width} numbers; both must come from one model`);
  return take(tf.tidy(() => tf.matMul(matrix(a), matrix(b), false, true)));
}

/** A flat array as `count` rows of equal length, for the figures. */
export function rows(values: Float32Array, count: number): Float32Array[] {
  const width = values.length / count;
  if (!Number.isInteger(width)) throw new RangeError(`rows: ${values.length} values do not divide into ${count} rows`);
  return Array.from({ length: count }, (_, i) => values.subarray(i * width, (i + 1) * width));
}

const matrix = ({ values, count, width }: Embeddings): tf.Tensor2D => tf.tensor2d(values, [count, width]);

/** OpenAI's first prompt for classes; `{}` is the class. */
export const DEFAULT_TEMPLATE = "a photo of a {}";

/**
 * Probability of each label for each picture, by the words alone (CLIP, section 3.1). With several templates a class is the mean of its
 * prompts' unit vectors, as in the paper.
 *
 * @returns a table of picture (index), label, score; the labels of each picture in falling order of score; scores of one picture sum to 1.
 * Fewer pictures than asked for when `signal` came, or `onError: "skip"` left some out
 * @throws when a template holds no "{}"
 */
export async function zeroShot(
  model: DualEncoder,
  pictures: PictureSource[],
  labels: string[],
  { templates = [DEFAULT_TEMPLATE], ...options }: EmbedImagesOptions & { templates?: string[] } = {},
): Promise<Table> {
  const odd = templates.filter((t) => !t.includes("{}"));
  if (templates.length === 0 || odd.length)
    throw new Error(`zeroShot: each template must hold "{}" for the label; ${odd.length ? `"${odd[0]}" does not` : "none was given"}`);
  if (labels.length === 0) throw new Error("zeroShot: labels is empty");
  const prompts = await embedTexts(
    model,
    labels.flatMap((label) => templates.map((t) => t.replaceAll("{}", () => label))),
    options,
  );
  const images = await embedImages(model, pictures, options);
  if (images.count === 0 || prompts.count < labels.length * templates.length) return aq.from([]); // interrupted before the first picture
  const probabilities = tf.tidy(() => {
    const classes = matrix(prompts).reshape([labels.length, templates.length, prompts.width]).mean(1) as tf.Tensor2D;
    return tf.softmax(model.logits(matrix(images), classes));
  });
  const scores = await take(probabilities);
  const predictions = images.indices.map((picture, row) =>
    labels.map((label, i) => ({ picture, label, score: scores[row * labels.length + i] })).sort((a, b) => b.score - a.score),
  );
  return aq.from(predictions.flat());
}

/**
 * The k rows of `index` that are nearest to each row of `queries`.
 * @returns a table of query, rank (1 = nearest), row (of the index), score (cosine)
 */
export async function neighbours(queries: Embeddings, index: Embeddings, k = 5): Promise<Table> {
  const cosines = await similarity(queries, index);
  const hits = Array.from({ length: queries.count }, (_, query) => {
    const line = cosines.subarray(query * index.count, (query + 1) * index.count);
    const order = Array.from(line.keys()).sort((a, b) => line[b] - line[a] || a - b);
    return order.slice(0, k).map((row, i) => ({ query, rank: i + 1, row, score: line[row] }));
  });
  return aq.from(hits.flat());
}

/**
 * Retrieval between rows that belong together: row i of `images` is the picture of row i of `texts`. R@k is the share of queries whose partner
 * is among the k nearest (LAVIS, tasks/retrieval.py); ties count as found last.
 *
 * @returns a table of direction, R@1, R@5, R@10 (shares from 0 to 1), random (R@1 of guessing), count
 */
export async function retrieval(images: Embeddings, texts: Embeddings): Promise<Table> {
  if (images.count !== texts.count)
    throw new RangeError(`retrieval: ${images.count} pictures and ${texts.count} texts; row i of one must belong to row i of the other`);
  const directions = { "text → image": await ranks(texts, images), "image → text": await ranks(images, texts) };
  const within = (list: number[], k: number) => list.filter((rank) => rank <= k).length / list.length;
  return aq.from(
    Object.entries(directions).map(([direction, list]) => ({
      direction,
      "R@1": within(list, 1),
      "R@5": within(list, 5),
      "R@10": within(list, 10),
      random: 1 / list.length,
      count: list.length,
    })),
  );
}

/** The place, from 1, at which each query's own partner is found. */
export async function ranks(queries: Embeddings, index: Embeddings): Promise<number[]> {
  const cosines = await similarity(queries, index);
  return Array.from({ length: queries.count }, (_, i) => {
    const line = cosines.subarray(i * index.count, (i + 1) * index.count);
    return line.reduce((n, score, j) => n + (j !== i && !(score < line[i]) ? 1 : 0), 1);
  });
}
