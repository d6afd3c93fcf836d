/** What a model that talks makes of a given answer: its scores, its probability, and where it looks while it says it. */
import { tf } from "../engine/tf";
import type { Prompt, VisionLanguageModel } from "../models/loaded";
import { at, noTap, type Tap } from "../nn/tap";

/** A model that talks, whatever its family. */
export type Talker = Pick<VisionLanguageModel, "language" | "embedPrompt">;

/** A prompt, and the answer whose tokens are looked at: what was generated, or what might have been. */
export type Asked = { prompt: Prompt; answer: readonly number[] };

export type Reading = {
  tap?: Tap;
  /** What stands at the prompt's positions instead of `embedPrompt`'s rows: [1, N, D]. */
  embeddings?: tf.Tensor3D;
};

/**
 * Scores before each token of the answer, the answer itself read along (teacher forcing): [A, V].
 * Taps: the picture's, and `language.…`; with an encoder, `language.encoder.…` too.
 *
 * @throws RangeError when the answer is empty
 */
export function answerLogits(
  { language, embedPrompt }: Talker,
  { prompt, answer }: Asked,
  { tap = noTap, embeddings }: Reading = {},
): tf.Tensor2D {
  if (answer.length === 0) throw new RangeError("answerLogits: the answer has no tokens, expected at least one");
  const A = answer.length;
  const inner = at(tap, "language");
  return tf.tidy(() => {
    const x = embeddings ?? embedPrompt(prompt, { tap });
    const words = (ids: readonly number[]) => language.embed(tf.tensor2d([...ids], [1, ids.length], "int32"));
    const { encoder } = language;
    const hidden = encoder
      ? language.forward({
          embeddings: words([...(prompt.start ?? [encoder.startToken]), ...answer.slice(0, -1)]),
          encoded: { states: encoder.encode({ embeddings: x, tap: inner }) },
          tap: inner,
        })
      : language.forward({ embeddings: A > 1 ? (tf.concat([x, words(answer.slice(0, -1))], 1) as tf.Tensor3D) : x, tap: inner });
    const [, N, D] = hidden.shape;
    const logits = language.logits(hidden.slice([0, N - A, 0], [1, A, D]));
    return logits.reshape([A, language.vocabSize]);
  });
}

/** log p of each token of the answer, in nats: [A] */
export const answerLogProbs = (model: Talker, asked: Asked, reading?: Reading): tf.Tensor1D =>
  tf.tidy(() => {
    const logits = answerLogits(model, asked, reading);
    const said = tf.oneHot(tf.tensor1d([...asked.answer], "int32"), logits.shape[1]);
    return tf.logSoftmax(logits).mul(said).sum(1) as tf.Tensor1D;
  });

/** log p of the whole answer, in nats: what ablation, patching and Grad-CAM ask about. */
export const answerLogProb = (model: Talker, asked: Asked, reading?: Reading): tf.Scalar =>
  tf.tidy(() => answerLogProbs(model, asked, reading).sum() as tf.Scalar);

/**
 * Where each token of the answer looked from: the patterns of the positions that made it. The prompt is read once into a cache, and only the answer's
 * rows are watched, so that a long prompt of tiles costs no more memory than its cache.
 *
 * @returns [layers][heads][A][keys]: keys are the prompt and the answer but its last token; with an encoder the prompt alone, through the cross-attention.
 * Row i is what was looked at when token i was chosen
 * @throws RangeError when the answer is empty
 */
export async function answerAttention(model: Talker, { prompt, answer }: Asked): Promise<number[][][][]> {
  if (answer.length === 0) throw new RangeError("answerAttention: the answer has no tokens, expected at least one");
  const wanted = model.language.encoder ? /^language\.blocks\.\d+\.cross_attn\.pattern$/ : /^language\.blocks\.\d+\.attn\.pattern$/;
  const rows: tf.Tensor[] = [];
  const A = answer.length;
  const tap: Tap = (name, x) => {
    const [, heads, queries, keys] = x.shape as number[];
    if (wanted.test(name)) rows.push(tf.keep(x.slice([0, 0, queries - A, 0], [1, heads, A, keys])));
    return x;
  };
  if (model.language.encoder) answerLogits(model, { prompt, answer }, { tap }).dispose();
  else readCached(model, { prompt, answer }, tap);
  const layers = await Promise.all(rows.map((x) => x.array() as Promise<number[][][][]>));
  tf.dispose(rows);
  if (layers.length === 0) throw new Error(`answerAttention: the language model names no ${wanted.source}`);
  return layers.map(([heads]) => heads);
}

/** The prompt but for its last token goes into a cache unwatched; the positions that make the answer follow with the tap. */
function readCached({ language, embedPrompt }: Talker, { prompt, answer }: Asked, tap: Tap): void {
  const [A, N, D] = [answer.length, prompt.ids.length, language.hiddenSize];
  const cache = language.makeCache(N + A - 1);
  try {
    tf.tidy(() => {
      const x = embedPrompt(prompt);
      if (N > 1) language.forward({ embeddings: x.slice([0, 0, 0], [1, N - 1, D]), cache });
      const last = x.slice([0, N - 1, 0], [1, 1, D]);
      const said = answer.slice(0, -1);
      const embeddings = A > 1 ? (tf.concat([last, language.embed(tf.tensor2d(said, [1, A - 1], "int32"))], 1) as tf.Tensor3D) : last;
      language.forward({ embeddings, cache, tap: at(tap, "language") });
    });
  } finally {
    cache.dispose();
  }
}
