/** Numbers that tell how activations lie, layer by layer. */
import { toFloat32 } from "../engine/bfloat16";
import { tf } from "../engine/tf";

export type Statistics = {
  name: string;
  /** Mean length of a token's vector. */
  norm: number;
  mean: number;
  /** Standard deviation of all numbers. */
  std: number;
  /** Largest absolute value. */
  max: number;
  /** Share of channels (last axis) that stay within 1 % of the activation's root mean square at every token: 0 to 1. */
  dead: number;
};

/** Within this share of the root mean square a channel says nothing. */
const QUIET = 0.01;

/**
 * Statistics of recorded activations [..., D], in their order.
 *
 * @example const { tap, seen } = record(/mlp\.post$/); clip.encodeImage(pixels, tap); await activationStatistics(seen.entries())
 */
export async function activationStatistics(entries: readonly (readonly [string, tf.Tensor])[]): Promise<Statistics[]> {
  const out: Statistics[] = [];
  for (const [name, x] of entries) {
    const found = tf.tidy(() => {
      const rows = toFloat32(x).reshape([-1, x.shape[x.shape.length - 1]]); //                       [tokens, D]
      const { mean, variance } = tf.moments(rows);
      const power = rows.square().mean();
      const channels = rows.abs().max(0); //                                                         [D]
      const dead = channels.lessEqual(power.sqrt().mul(QUIET)).cast("float32").mean();
      return tf.stack([rows.square().sum(1).sqrt().mean(), mean, variance.sqrt(), channels.max(), dead]);
    });
    const [norm, mean, std, max, dead] = await found.data();
    found.dispose();
    out.push({ name, norm, mean, std, max, dead });
  }
  return out;
}
