/**
 * Attention's core as one op: softmax(q·kᵀ / sqrt(dh) + mask)·v. Letters: B batch, N tokens, D width, H heads, dh = D / H.
 * It keeps q, k and v for the gradient, and computes the pattern again there: scores, masked scores and pattern take more memory than all three.
 */
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";
import { attentionGradientKernel, attentionKernel } from "./kernels";

type Plain = { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D };
type Masked = Plain & { mask: tf.Tensor4D };

/** [B, N, D] -> [B, H, N, dh] */
export function splitHeads(x: tf.Tensor3D, heads: number): tf.Tensor4D {
  const [B, N, D] = x.shape;
  return x.reshape([B, N, heads, D / heads]).transpose([0, 2, 1, 3]);
}

/** [B, H, N, dh] -> [B, N, D] */
export function mergeHeads(x: tf.Tensor4D): tf.Tensor3D {
  const [B, H, N, dh] = x.shape;
  return x.transpose([0, 2, 1, 3]).reshape([B, N, H * dh]);
}

/** q·kᵀ / sqrt(dh) + mask. q, k: [B, H, N, dh], mask: [B or 1, 1, N, N] -> [B, H, N, N] */
export function attentionScores(q: tf.Tensor4D, k: tf.Tensor4D, mask?: tf.Tensor4D): tf.Tensor4D {
  const scores = tf.matMul(q.mul(1 / Math.sqrt(q.shape[3])), k, false, true) as tf.Tensor4D;
  return mask ? scores.add(mask) : scores;
}

function formula({ q, k, v, mask }: Plain & { mask?: tf.Tensor4D }, { heads }: { heads: number }): tf.Tensor3D {
  const pattern = tf.softmax(attentionScores(splitHeads(q, heads), splitHeads(k, heads), mask));
  return mergeHeads(tf.matMul(pattern, splitHeads(v, heads)) as tf.Tensor4D);
}

/** Gradients to q, k and v, all at once since they share the pattern. */
function gradients(dz: tf.Tensor3D, saved: Plain & { mask?: tf.Tensor4D }, heads: number): [tf.Tensor, tf.Tensor, tf.Tensor] {
  const [q, k, v, dy] = [saved.q, saved.k, saved.v, dz].map((x) => splitHeads(x, heads));
  const pattern = tf.softmax(attentionScores(q, k, saved.mask));
  const dPattern = tf.matMul(dy, v, false, true);
  const dScores = pattern.mul(dPattern.sub(dPattern.mul(pattern).sum(-1, true))).mul(1 / Math.sqrt(q.shape[3]));
  const merged = (x: tf.Tensor) => mergeHeads(x as tf.Tensor4D);
  return [merged(tf.matMul(dScores, k)), merged(tf.matMul(dScores, q, true, false)), merged(tf.matMul(pattern, dy, true, false))];
}

const native = (inputs: Plain & { mask?: tf.Tensor4D }, attributes: { heads: number }): tf.Tensor =>
  attentionKernel(inputs, attributes.heads)?.[0] ?? formula(inputs, attributes);

const gradient = (dy: tf.Tensor, saved: object, { heads }: { heads: number }) => {
  const [q, k, v] = tf.tidy(
    () => attentionGradientKernel(dy, saved as Masked, heads) ?? gradients(dy as tf.Tensor3D, saved as Masked, heads),
  );
  return { q: () => q, k: () => k, v: () => v };
};

const attendAll = defineOp<Plain, { heads: number }>("Attend", {
  formula: ({ q, k, v }, attributes) => formula({ q, k, v }, attributes), // a mask would be lost to its gradient
  kernels: { tensorflow: ({ q, k, v }, attributes) => native({ q, k, v }, attributes) },
  saves: { inputs: ["q", "k", "v"] },
  gradient,
});
/** The mask is a constant for the gradient. */
const attendMasked = defineOp<Masked, { heads: number }>("AttendMasked", {
  formula,
  kernels: { tensorflow: native },
  saves: { inputs: ["q", "k", "v", "mask"] },
  gradient,
});

/** Multi-head attention of queries to keys. q, k, v: [B, N, D], mask: [B or 1, 1, N, N], added to the scores -> [B, N, D] */
export function attend({ q, k, v, mask }: Plain & { mask?: tf.Tensor4D }, heads: number): tf.Tensor3D {
  return (mask ? attendMasked({ q, k, v, mask }, { heads }) : attendAll({ q, k, v }, { heads })) as tf.Tensor3D;
}
