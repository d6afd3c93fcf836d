/**
 * Activation patching (Vig et al. 2020; Meng et al. 2022, "causal tracing"): an activation of one run is replaced by another run's, and the change of the
 * answer says what that activation carries.
 */
import { toFloat32 } from "../engine/bfloat16";
import { tf } from "../engine/tf";
import { edit, type Tap } from "../nn/tap";
import { namesOf, watching } from "./watching";

/** A model's scores [V] or [1, V] for the token that is looked at, with the tap inside. Both runs have equally many tokens. */
export type Run = (tap: Tap) => tf.Tensor;

/** One number of a run's scores. */
export type Measure = (logits: tf.Tensor) => tf.Scalar;

export type Patched = {
  /** The measure of the run that is patched, and of the run that the activations come from. */
  base: number;
  source: number;
  /** Full names of the activations, in order, and the groups of positions. */
  names: string[];
  positions: number[][];
  /** The measure after each replacement: [names][groups]. Shorter where `signal` came. */
  values: number[][];
};

/**
 * Replaces each activation that matches, group of positions by group of positions, one at a time.
 *
 * @param which e.g. /blocks\.\d+\.resid_pre$/; activations are [B, N, D] or [B, H, N, dh]
 * @param positions groups that are replaced together; default: each token by itself
 * @throws when nothing matches, and when the runs differ in shape
 *
 * @example await patchRuns((tap) => answer(cat, tap), (tap) => answer(dog, tap), { which: /resid_pre$/, measure: logitDifference(catId, dogId) })
 */
export async function patchRuns(
  base: Run,
  source: Run,
  {
    which,
    measure,
    positions,
    signal,
  }: { which: RegExp | string | readonly string[]; measure: Measure; positions?: readonly (readonly number[])[]; signal?: AbortSignal },
): Promise<Patched> {
  const shapes = namesOf(which, base);
  const names = [...shapes.keys()];
  const tokens = Math.max(...names.map((name) => tokensOf(shapes.get(name)!)));
  const groups = (positions ?? Array.from({ length: tokens }, (_, i) => [i])).map((group) => [...group]);
  const from = new Map<string, tf.Tensor>();
  const keep: Tap = (name, x) => {
    if (String(x.shape) !== String(shapes.get(name)))
      throw new RangeError(
        `patchRuns: "${name}" is [${x.shape}] in the source run, [${shapes.get(name)}] in the base run; both need equally many tokens`,
      );
    from.set(name, tf.keep(toFloat32(x).clone()));
    return x;
  };
  try {
    const out: Patched = {
      base: await numberOf(() => measure(base(watching([], keep)))),
      source: await numberOf(() => measure(source(watching(names, keep)))),
      names,
      positions: groups,
      values: [],
    };
    for (const name of names) {
      const row: number[] = [];
      out.values.push(row);
      for (const group of groups) {
        if (signal?.aborted) return out;
        const { tap, check } = edit(name, (x) => withRows(x, from.get(name)!, group));
        row.push(await numberOf(() => measure(base(watching([name], tap)))));
        check();
      }
    }
    return out;
  } finally {
    tf.dispose([...from.values()]);
  }
}

/** Tokens of an activation [B, N, D] or [B, H, N, dh]. */
const tokensOf = (shape: number[]): number => shape[shape.length - 2];

/** x with `other`'s rows at these positions of the last axis but one. */
function withRows(x: tf.Tensor, other: tf.Tensor, positions: readonly number[]): tf.Tensor {
  const N = tokensOf(x.shape);
  const mark = new Float32Array(N);
  for (const position of positions) {
    if (!(Number.isInteger(position) && position >= 0 && position < N))
      throw new RangeError(`patchRuns: position ${position} is not among the ${N} tokens`);
    mark[position] = 1;
  }
  return tf.where(tf.tensor2d(mark, [N, 1]).cast("bool").broadcastTo(x.shape), other, x);
}

async function numberOf(compute: () => tf.Tensor): Promise<number> {
  const x = tf.tidy(compute);
  const [value] = await x.data();
  x.dispose();
  await new Promise((resolve) => setImmediate(resolve)); // lets an interrupt in
  return value;
}

/** How much more the model likes token a than token b: the difference of their logits. */
export const logitDifference =
  (a: number, b: number): Measure =>
  (logits) =>
    tf.tidy(() => {
      const row = logits.flatten();
      return row
        .slice([a], [1])
        .sub(row.slice([b], [1]))
        .squeeze() as tf.Scalar;
    });

/** How far the answer is from a reference: KL(reference ‖ answer) in nats. reference: scores [V], which stay the caller's. */
export const divergenceFrom =
  (reference: tf.Tensor): Measure =>
  (logits) =>
    tf.tidy(() => {
      const [p, q] = [tf.logSoftmax(reference.flatten()), tf.logSoftmax(logits.flatten())];
      return p.exp().mul(p.sub(q)).sum() as tf.Scalar;
    });
