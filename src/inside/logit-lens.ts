/**
 * The logit lens (nostalgebraist 2020): what the model would say if it stopped behind a layer, its residual stream read through the final norm and the
 * head. A caveat belongs to every use: only the last layer was trained to be read so, and early layers may hold their content in another basis.
 */
import { tf } from "../engine/tf";
import type { LanguageModel } from "../models/loaded";
import type { Tap } from "../nn/tap";
import { namesOf, watching } from "./watching";

export type Lens = {
  /** Full names of the states, in order. */
  names: string[];
  /** Positions of the sequence that were read. */
  positions: number[];
  /** The likeliest tokens, [names][positions][top], and their probabilities. */
  ids: number[][][];
  probabilities: number[][][];
};

const STATES = /^blocks\.\d+\.resid_post$/;

/**
 * @param embeddings of the whole sequence, prompt and answer: [1, N, D]
 * @param positions which to read; default: the last 12
 * @param top tokens for each
 * @throws when the model names no `blocks.N.resid_post`
 */
export async function logitLens(
  language: LanguageModel,
  embeddings: tf.Tensor3D,
  {
    positions,
    top = 5,
    encoded,
  }: { positions?: readonly number[]; top?: number; encoded?: Parameters<LanguageModel["forward"]>[0]["encoded"] } = {},
): Promise<Lens> {
  const N = embeddings.shape[1];
  const chosen = [...(positions ?? Array.from({ length: Math.min(12, N) }, (_, i) => N - Math.min(12, N) + i))];
  const odd = chosen.find((position) => !(Number.isInteger(position) && position >= 0 && position < N));
  if (odd !== undefined) throw new RangeError(`logitLens: position ${odd} is not among the ${N} of the sequence`);
  const run = (tap: Tap) => language.forward({ embeddings, encoded, tap });
  const names = [...namesOf(STATES, run).keys()];
  const states = new Map<string, tf.Tensor3D>();
  const lens: Lens = { names, positions: chosen, ids: [], probabilities: [] };
  try {
    const keep = <T extends tf.Tensor>(name: string, x: T): T => {
      states.set(name, tf.keep(x.clone()) as unknown as tf.Tensor3D);
      return x;
    };
    tf.tidy(() => void run(watching(names, keep)));
    for (const name of names) {
      const { values, indices } = tf.tidy(() => {
        const hidden = finished(run, names[names.length - 1], states.get(name)!);
        const logits = language.logits(tf.gather(hidden, tf.tensor1d(chosen, "int32"), 1));
        return tf.topk(tf.softmax(logits.squeeze([0])), top); //                                     [positions, top]
      });
      lens.ids.push((await indices.array()) as number[][]);
      lens.probabilities.push((await values.array()) as number[][]);
      tf.dispose([values, indices]);
      await new Promise((resolve) => setImmediate(resolve));
    }
    return lens;
  } finally {
    tf.dispose([...states.values()]);
  }
}

/** What the head would read of a state: the model runs on, and its last state is replaced before the final norm, whatever that is in the family. */
function finished(run: (tap: Tap) => tf.Tensor3D, last: string, state: tf.Tensor3D): tf.Tensor3D {
  const swap = <T extends tf.Tensor>(_: string, x: T): T => (x.dtype === state.dtype ? state : state.cast(x.dtype)) as unknown as T;
  return run(watching([last], swap));
}
