/** Masks that are added to attention's scores: 0 where a query may look at a key, a large negative number where not. */
import { tf } from "../engine/tf";

/** Finite, so that a row with every key blocked gives a uniform pattern and not NaN, as PyTorch's finfo.min does; small enough to add thrice. */
export const BLOCKED = -1e30;

type Places = { queries: number; keys: number; window?: number };

/** Where a key lies behind a query, or too far before it: bool [1, 1, queries, keys]. */
function hiddenByPlace({ queries, keys, window }: Places): tf.Tensor {
  const query = tf.range(keys - queries, keys, 1, "int32").reshape([1, 1, queries, 1]);
  const key = tf.range(0, keys, 1, "int32").reshape([1, 1, 1, keys]);
  const later = key.greater(query);
  return window === undefined ? later : later.logicalOr(query.sub(key).greaterEqual(window));
}

/** Mask of the lower triangle: [1, 1, Nq, Nk], 0 where a query may look, else a large negative number. The last query stands at the last key. */
export const causalMask = (queries: number, keys = queries): tf.Tensor4D =>
  tf.tidy(() => hiddenByPlace({ queries, keys }).cast("float32").mul(BLOCKED) as tf.Tensor4D);

/** mask: int32 [B, N], 1 where a token is real -> [B, 1, 1, N], 0 there and a large negative number at padding. */
export const paddingMask = (mask: tf.Tensor2D): tf.Tensor4D =>
  tf.tidy(() => tf.scalar(1).sub(mask.cast("float32")).mul(BLOCKED).reshape([mask.shape[0], 1, 1, mask.shape[1]]) as tf.Tensor4D);

export type MaskOptions = {
  /** Tokens that ask: the last ones of `keys`. */
  queries: number;
  /** Tokens that may be looked at, those of a cache included. Default: `queries`. */
  keys?: number;
  /** A query sees its own token and those before it. */
  causal?: boolean;
  /** With `causal`: of these only the last so many, its own among them (Beltagy et al. 2020; `sliding_window` of Mistral and Qwen2). */
  window?: number;
  /** int32 [B, keys], 1 where a token is real, 0 at padding. */
  padding?: tf.Tensor2D;
};

/**
 * One mask of everything that is hidden: [B or 1, 1, queries or 1, keys], or undefined where nothing is. A place weighs twice what padding does: a
 * query that may look nowhere looks evenly at the keys that causal and window leave it, padding or not.
 *
 * @throws RangeError naming everything that does not fit.
 */
export function attentionMask({ queries, keys = queries, causal = false, window, padding }: MaskOptions): tf.Tensor4D | undefined {
  const misfits: string[] = [];
  if (keys < queries) misfits.push(`${queries} queries are the last of ${keys} keys: there must be at least as many keys`);
  if (window !== undefined && !causal) misfits.push(`window is ${window} without causal: it counts back from a query's own token`);
  if (window !== undefined && !(Number.isInteger(window) && window >= 1))
    misfits.push(`window is ${window}, expected a whole number from 1`);
  if (padding && padding.shape[1] !== keys) misfits.push(`padding is [${padding.shape}], expected [B, ${keys}]`);
  if (misfits.length) throw new RangeError(`attentionMask: ${misfits.join("; ")}`);
  return tf.tidy(() => {
    const places = causal
      ? hiddenByPlace({ queries, keys, window })
          .cast("float32")
          .mul(2 * BLOCKED)
      : undefined;
    const padded = padding && paddingMask(padding);
    return (places && padded ? places.add(padded) : (places ?? padded)) as tf.Tensor4D | undefined;
  });
}
