/** Positions in T5 (Raffel et al. 2020, section 2.1): a number for each head and bucket of distances, added to the scores. */
import { tf } from "../engine/tf";
import { embedding } from "../nn/layers";

export type Buckets = { relative_attention_num_buckets: number; relative_attention_max_distance: number };

/**
 * The bucket of a distance: near ones have their own, far ones share, wider with the logarithm, and all beyond the longest share the last.
 * As transformers computes it, with a logarithm in float32.
 *
 * @param distance place of the key minus place of the query
 * @param bidirectional half of the buckets for keys behind the query; else those share the bucket of distance 0
 */
export function bucketOf(distance: number, c: Buckets, bidirectional: boolean): number {
  const count = bidirectional ? Math.floor(c.relative_attention_num_buckets / 2) : c.relative_attention_num_buckets;
  const own = Math.floor(count / 2);
  const away = bidirectional ? Math.abs(distance) : Math.max(0, -distance);
  const half = bidirectional && distance > 0 ? count : 0;
  if (away < own) return half + away;
  const float = Math.fround;
  const share = float(float(Math.log(float(away / own))) / float(Math.log(c.relative_attention_max_distance / own)));
  return half + Math.min(count - 1, own + Math.trunc(float(share * (count - own))));
}

/**
 * The bias of the last `queries` of `keys` tokens. table: [buckets, H] -> [1, H, queries, keys]
 */
export function positionBias(
  table: tf.Tensor2D,
  c: Buckets,
  { queries, keys, bidirectional }: { queries: number; keys: number; bidirectional: boolean },
): tf.Tensor4D {
  const first = keys - queries;
  const byDistance = Int32Array.from({ length: keys + queries }, (_, i) => bucketOf(i - keys + 1, c, bidirectional)); // from -(keys - 1) on
  const ids = new Int32Array(queries * keys);
  for (let q = 0; q < queries; q++) for (let k = 0; k < keys; k++) ids[q * keys + k] = byDistance[k - q - first + keys - 1];
  return tf.tidy(
    () =>
      embedding(table, tf.tensor2d(ids, [queries, keys], "int32"))
        .transpose([2, 0, 1])
        .expandDims(0) as tf.Tensor4D,
  );
}
