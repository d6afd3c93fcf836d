/** What the Q-Former itself says of a picture: its language head, word after word (the third objective of BLIP-2's first stage). */
import { take } from "../engine/read";
import { breathe, interruptSignal } from "../engine/interrupt";
import { tf } from "../engine/tf";
import type { Blip2 } from "./blip2-load";

export type CaptionOptions = {
  /** Most tokens of a caption; default and limit: the Q-Former's positions less the first token. */
  maxTokens?: number;
  /** Ends early with what was said; default: the notebook's interrupt, or Ctrl-C. */
  signal?: AbortSignal;
};

/**
 * The likeliest next word again and again (greedy), until [SEP]. Every word is computed with all words before it: no cache, which is quick enough for a
 * model this small. states: [B, N, Dv] -> B captions
 *
 * @throws when the checkpoint has no language head
 */
export async function captionPictures(model: Blip2, states: tf.Tensor3D, options: CaptionOptions = {}): Promise<string[]> {
  const most = model.config.qformer_config.max_position_embeddings - 1;
  const { maxTokens = most, signal = interruptSignal() } = options;
  if (!Number.isInteger(maxTokens) || maxTokens < 1 || maxTokens > most)
    throw new RangeError(`captionPictures: maxTokens is ${maxTokens}, expected a whole number from 1 to ${most}`);
  const [first, end] = ["[DEC]", "[SEP]"].map((token) => model.tokenizer.idOf(token) as number);
  const rows = Array.from({ length: states.shape[0] }, () => [first]);
  const open = new Set(rows.keys());
  for (let step = 0; step < maxTokens && open.size > 0 && !signal.aborted; step++) {
    const next = await take(
      tf.tidy(() => {
        const ids = tf.tensor2d(rows, undefined, "int32");
        return model.wordLogits(states, { ids }).slice([0, step, 0], [-1, 1, -1]).argMax(-1).flatten();
      }),
    );
    rows.forEach((row, i) => row.push(open.has(i) ? next[i] : end)); // closed rows keep their length in the batch
    for (const i of [...open]) if (next[i] === end) open.delete(i);
    await breathe();
  }
  return rows.map((row) => {
    const stop = row.indexOf(end);
    return model.tokenizer.decode(row.slice(1, stop < 0 ? undefined : stop));
  });
}
