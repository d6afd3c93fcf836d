/** A language model driven step by step: the prompt in parts, then token after token, each step in one piece that Ctrl-C can break off. */
import { breathe } from "../engine/interrupt";
import { hasNative } from "../engine/native";
import { take } from "../engine/read";
import { stoppable } from "../engine/stop";
import { tf } from "../engine/tf";
import type { DecoderInputs, LanguageModel } from "../models/loaded";
import type { Cache } from "../nn/cache";

export type DecoderPrompt = {
  /** [1, N, D] */
  embeddings: tf.Tensor3D;
  /** int32 [1, all tokens, those of the cache included] */
  padding?: tf.Tensor2D;
  cache: Cache;
  encoded?: DecoderInputs["encoded"];
};

/** The scores of the next token of each sequence: [B, V], row by row; undefined where it was stopped. */
export type NextScores = Float32Array | undefined;

/** Multiplications of one part of a prompt: on a processor it takes less than a second, during which no signal is heard. */
const PART = 2e11;
/** Tokens of a part at least: reading the weights for fewer takes longer than multiplying. */
const SMALLEST = 64;
/** Room is made for so many tokens at once. */
const ROOM = 512;

/** Tokens of a prompt that are computed without listening to signals. On a GPU all of them. */
function partSize({ layers, hiddenSize }: LanguageModel): number {
  if (!hasNative("attention")) return Number.POSITIVE_INFINITY;
  return Math.max(SMALLEST, 2 ** Math.floor(Math.log2(PART / (12 * layers * hiddenSize ** 2))));
}

/** Runs the model and the head on the last position. A run that was stopped leaves the cache as it was. */
function lastScores(model: LanguageModel, cache: Cache, run: () => tf.Tensor3D, scored = true): tf.Tensor | undefined {
  const before = cache.length;
  let scores: tf.Tensor | undefined;
  try {
    scores = stoppable(() =>
      tf.tidy(() => {
        const hidden = run();
        const [B, N, D] = hidden.shape;
        if (!scored) return hidden.slice([0, N - 1, 0], [B, 1, 1]);
        return model.logits((N === 1 ? hidden : hidden.slice([0, N - 1, 0], [B, 1, D])) as tf.Tensor3D);
      }),
    );
    return scores;
  } finally {
    if (!scores) {
      cache.length = Math.max(cache.length, before);
      cache.truncate(before);
    }
  }
}

/** Reads the prompt into the cache. -> scores of what follows, [V] */
export async function readPrompt(model: LanguageModel, prompt: DecoderPrompt, signal: AbortSignal): Promise<NextScores> {
  const { embeddings, padding, cache, encoded } = prompt;
  const [N, first] = [embeddings.shape[1], cache.length];
  const size = partSize(model);
  cache.reserve(first + N);
  for (let at = 0; at < N && !signal.aborted; ) {
    const count = Math.min(size, N - at);
    const last = at + count === N;
    const scores = lastScores(
      model,
      cache,
      () => {
        const part = count === N ? embeddings : (embeddings.slice([0, at, 0], [-1, count, -1]) as tf.Tensor3D);
        const mask = padding && (padding.slice([0, 0], [-1, first + at + count]) as tf.Tensor2D);
        return model.forward({ embeddings: part, padding: mask, cache, encoded });
      },
      last,
    );
    if (!scores) return undefined;
    if (last) return take(scores);
    scores.dispose();
    at += count;
    await breathe();
  }
  return undefined;
}

/** One more token of each sequence. -> [B, V] */
export async function readTokens(model: LanguageModel, ids: number[], prompt: Omit<DecoderPrompt, "embeddings">): Promise<NextScores> {
  const { padding, cache, encoded } = prompt;
  if (cache.length + 1 > cache.room) cache.reserve(Math.min(cache.room + ROOM, Math.max(model.contextLength, cache.length + 1)));
  const scores = lastScores(model, cache, () => {
    const mask = padding && tf.concat([padding, tf.ones([1, cache.length + 1 - padding.shape[1]], "int32")], 1).tile([ids.length, 1]);
    return model.forward({
      embeddings: model.embed(tf.tensor2d(ids, [ids.length, 1], "int32")),
      padding: mask as tf.Tensor2D | undefined,
      cache,
      encoded,
    });
  });
  return scores && take(scores);
}
