/**
 * Attention's core as one op: softmax(q·kᵀ / sqrt(dh) + masks)·v. Letters: B batch, N tokens, D width, H heads, dh = D / H.
 * It keeps q, k and v for the gradient, and computes the pattern again there: scores, masked scores and pattern take more memory than all three.
 */
import { toFloat32 } from "../engine/bfloat16";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";
import { attentionGradientKernel, attentionKernel, fitsAttention } from "./kernels";
import { type Inside, insideBlock, leanAttention, narrowed } from "./lean";
import { causalMask, paddingMask } from "./masks";

/** Where queries may look. Without anything: everywhere. */
export type Mask = {
  /** A query looks at no key behind it; with fewer queries than keys, the last query stands at the last key. */
  causal?: boolean;
  /** int32 [B, Nk]: 1 where a token is real, 0 at padding, which nobody looks at. */
  padding?: tf.Tensor2D;
  /** Added to the scores: float32 [B or 1, H or 1, Nq or 1, Nk]. */
  bias?: tf.Tensor4D;
};

type Plain = { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D };
type Masked = Plain & { mask: tf.Tensor4D };
type Attributes = { heads: number; causal: boolean };

export { causalMask, paddingMask };

/** What is added to the scores, the causal part apart. */
const blocked = ({ padding, bias }: Mask): tf.Tensor4D | undefined => {
  if (!padding) return bias;
  return (bias ? paddingMask(padding).add(bias) : paddingMask(padding)) as tf.Tensor4D;
};

/** A causal mask weighs twice: a query that may look nowhere looks evenly at all keys that are not behind it, padding or not. */
const withTriangle = (mask: tf.Tensor4D | undefined, causal: boolean, queries: number, keys: number): tf.Tensor4D | undefined => {
  if (!causal) return mask;
  const triangle = causalMask(queries, keys).mul(2) as tf.Tensor4D;
  return mask ? (mask.add(triangle) as tf.Tensor4D) : triangle;
};

/** A mask as numbers that are added to the scores; undefined where there is nothing to add. */
export const additive = (mask: Mask, queries: number, keys = queries): tf.Tensor4D | undefined =>
  withTriangle(blocked(mask), mask.causal ?? false, queries, keys);

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

/** q·kᵀ / sqrt(dh) + mask. q, k: [B, H, N, dh], mask: additive -> [B, H, Nq, Nk] */
export function attentionScores(q: tf.Tensor4D, k: tf.Tensor4D, mask?: tf.Tensor4D): tf.Tensor4D {
  const scores = tf.matMul(q.mul(1 / Math.sqrt(q.shape[3])), k, false, true) as tf.Tensor4D;
  return mask ? scores.add(mask) : scores;
}

type Inputs = Plain & { mask?: tf.Tensor4D };

const scoresOf = (q: tf.Tensor4D, k: tf.Tensor4D, { mask }: Inputs, causal: boolean): tf.Tensor4D =>
  attentionScores(q, k, withTriangle(mask, causal, q.shape[2], k.shape[2]));

function formula(x: Inputs, { heads, causal }: Attributes): tf.Tensor3D {
  const pattern = tf.softmax(scoresOf(splitHeads(x.q, heads), splitHeads(x.k, heads), x, causal));
  return mergeHeads(tf.matMul(pattern, splitHeads(x.v, heads)) as tf.Tensor4D);
}

/** Gradients to q, k and v, all at once since they share the pattern. */
function gradients(dz: tf.Tensor3D, saved: Inputs, { heads, causal }: Attributes): [tf.Tensor, tf.Tensor, tf.Tensor] {
  const [q, k, v, dy] = [saved.q, saved.k, saved.v, dz].map((x) => splitHeads(x, heads));
  const pattern = tf.softmax(scoresOf(q, k, saved, causal));
  const dPattern = tf.matMul(dy, v, false, true);
  const dScores = pattern.mul(dPattern.sub(dPattern.mul(pattern).sum(-1, true))).mul(1 / Math.sqrt(q.shape[3]));
  const merged = (x: tf.Tensor) => mergeHeads(x as tf.Tensor4D);
  return [merged(tf.matMul(dScores, k)), merged(tf.matMul(dScores, q, true, false)), merged(tf.matMul(pattern, dy, true, false))];
}

const native = (inputs: Inputs, attributes: Attributes): tf.Tensor =>
  attentionKernel(inputs, attributes)?.[0] ?? formula(inputs, attributes);

const gradient = (dy: tf.Tensor, saved: object, attributes: Attributes) => {
  const [q, k, v] = tf.tidy(
    () => attentionGradientKernel(dy, saved as Inputs, attributes) ?? gradients(dy as tf.Tensor3D, saved as Inputs, attributes),
  );
  return { q: () => q, k: () => k, v: () => v };
};

const attendAll = defineOp<Plain, Attributes>("Attend", {
  formula: ({ q, k, v }, attributes) => formula({ q, k, v }, attributes), // a mask would be lost to its gradient
  kernels: { tensorflow: ({ q, k, v }, attributes) => native({ q, k, v }, attributes) },
  saves: { inputs: ["q", "k", "v"] },
  gradient,
});
/** The mask is a constant for the gradient. */
const attendMasked = defineOp<Masked, Attributes>("AttendMasked", {
  formula,
  kernels: { tensorflow: native },
  saves: { inputs: ["q", "k", "v", "mask"] },
  gradient,
});

/** The formula as a step of a block, for heads of a width that the kernels do not take. */
function attendByFormula(block: Inside, x: Plain, heads: number, mask: Mask): tf.Tensor3D {
  const attributes = { heads, causal: mask.causal ?? false };
  const widened = ({ q, k, v }: Plain): Inputs => {
    const [a, b, c] = [q, k, v].map((y) => toFloat32(y));
    return { q: a, k: b, v: c, mask: blocked(mask) };
  };
  const z = narrowed(formula(widened(x), attributes), block.dtype);
  block.tape?.record({
    name: "attention",
    output: z,
    from: [x.q, x.k, x.v],
    saves: [x.q, x.k, x.v],
    backward(dz, [q, k, v], to) {
      const found = gradients(toFloat32(dz) as tf.Tensor3D, widened({ q, k, v } as Plain), attributes);
      [x.q, x.k, x.v].forEach((y, i) => to.needs(y) && to.give(y, narrowed(found[i], block.dtype)));
    },
  });
  return z;
}

/** Multi-head attention of queries to keys. q: [B, Nq, D], k, v: [B, Nk, D] -> [B, Nq, D] */
export function attend({ q, k, v }: Plain, heads: number, mask: Mask = {}): tf.Tensor3D {
  const [block, width] = [insideBlock(), q.shape[2] / heads];
  if (block && !fitsAttention(width)) return attendByFormula(block, { q, k, v }, heads, mask);
  if (block) return leanAttention(block, { q, k, v, heads, ...mask, scale: 1 / Math.sqrt(width) });
  const [added, attributes] = [blocked(mask), { heads, causal: mask.causal ?? false }];
  return (added ? attendMasked({ q, k, v, mask: added }, attributes) : attendAll({ q, k, v }, attributes)) as tf.Tensor3D;
}
