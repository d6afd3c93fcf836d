/**
 * Attention's core as one op: softmax(q·kᵀ / sqrt(dh) + masks)·v. Letters: B batch, N tokens, D width, H heads, dh = D / H.
 * It keeps q, k and v for the gradient, and computes the pattern again there: scores, masked scores and pattern take more memory than all three.
 */
import { toFloat32 } from "../engine/bfloat16";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";
import { attentionGradientKernel, attentionKernel, fitsAttention } from "./kernels";
import { type Inside, insideBlock, leanAttention, narrowed } from "./lean";
import { attentionMask, paddingMask } from "./masks";
import { attentionGradientWebgpu, attentionWebgpu } from "./webgpu-attention";

/** Where queries may look. Without anything: everywhere. */
export type Mask = {
  /** A query looks at no key behind it; with fewer queries than keys, the last query stands at the last key. */
  causal?: boolean;
  /** int32 [B, Nk]: 1 where a token is real, 0 at padding, which nobody looks at. */
  padding?: tf.Tensor2D;
  /** Added to the scores: float32 [B or 1, H or 1, Nq or 1, Nk]. */
  bias?: tf.Tensor4D;
};

/** How q, k and v are made of heads. */
export type Heads = {
  /** Of q. */
  heads: number;
  /** Of k and v, each shared by heads / groups neighbouring heads of q (Ainslie et al. 2023); default: as many as q's. */
  groups?: number;
  /** Of the scores; default 1 / sqrt(dh). */
  scale?: number;
};

type Plain = { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D };
type Masked = Plain & { mask: tf.Tensor4D };
type Attributes = { heads: number; groups: number; causal: boolean; scale: number };

/** What is added to the scores, the causal part apart. */
const blocked = ({ padding, bias }: Mask): tf.Tensor4D | undefined => {
  if (!padding) return bias;
  return (bias ? paddingMask(padding).add(bias) : paddingMask(padding)) as tf.Tensor4D;
};

const withTriangle = (mask: tf.Tensor4D | undefined, causal: boolean, queries: number, keys: number): tf.Tensor4D | undefined => {
  const places = causal ? attentionMask({ queries, keys, causal }) : undefined;
  return places && mask ? (mask.add(places) as tf.Tensor4D) : (places ?? mask);
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

type Inputs = Plain & { mask?: tf.Tensor4D };

/** Heads that share a key head as one longer row of queries. [B, H, N, dh] -> [B, G, (H / G)·N, dh] */
const grouped = (x: tf.Tensor4D, groups: number): tf.Tensor4D => {
  const [B, H, N, dh] = x.shape;
  return x.reshape([B, groups, (H / groups) * N, dh]);
};

/** scale·q·kᵀ + mask. q: [B, H, Nq, dh], k: [B, G, Nk, dh], mask: additive -> [B, H, Nq, Nk] */
export function attentionScores(q: tf.Tensor4D, k: tf.Tensor4D, mask?: tf.Tensor4D, scale = 1 / Math.sqrt(q.shape[3])): tf.Tensor4D {
  const [B, H, N] = q.shape;
  const scores = tf.matMul(grouped(q.mul(scale), k.shape[1]), k, false, true).reshape([B, H, N, k.shape[2]]) as tf.Tensor4D;
  return mask ? scores.add(mask) : scores;
}

/** Values by their shares. pattern: [B, H, Nq, Nk], v: [B, G, Nk, dh] -> [B, H, Nq, dh] */
export function attentionMix(pattern: tf.Tensor4D, v: tf.Tensor4D): tf.Tensor4D {
  const [B, H, N] = pattern.shape;
  return tf.matMul(grouped(pattern, v.shape[1]), v).reshape([B, H, N, v.shape[3]]);
}

const patternOf = (q: tf.Tensor4D, k: tf.Tensor4D, { mask }: Inputs, { causal, scale }: Attributes): tf.Tensor4D =>
  tf.softmax(attentionScores(q, k, withTriangle(mask, causal, q.shape[2], k.shape[2]), scale));

function formula(x: Inputs, attributes: Attributes): tf.Tensor3D {
  const { heads, groups } = attributes;
  const pattern = patternOf(splitHeads(x.q, heads), splitHeads(x.k, groups), x, attributes);
  return mergeHeads(attentionMix(pattern, splitHeads(x.v, groups)));
}

/** Gradients to q, k and v, all at once since they share the pattern. */
function gradients(dz: tf.Tensor3D, saved: Inputs, attributes: Attributes): [tf.Tensor, tf.Tensor, tf.Tensor] {
  const { heads, groups, scale } = attributes;
  const [q, dy] = [saved.q, dz].map((x) => splitHeads(x, heads));
  const [k, v] = [saved.k, saved.v].map((x) => splitHeads(x, groups));
  const pattern = patternOf(q, k, saved, attributes);
  const dScores = scoreGradient(pattern, dy, v).mul(scale) as tf.Tensor4D;
  const toKeys = (x: tf.Tensor4D, y: tf.Tensor4D) =>
    mergeHeads(tf.matMul(grouped(x, groups), grouped(y, groups), true, false) as tf.Tensor4D);
  return [mergeHeads(attentionMix(dScores, k)), toKeys(dScores, q), toKeys(pattern, dy)];
}

const native = (inputs: Inputs, attributes: Attributes): tf.Tensor =>
  attentionKernel(inputs, attributes)?.[0] ?? formula(inputs, attributes);

const webgpu = (inputs: Inputs, attributes: Attributes): tf.Tensor => attentionWebgpu(inputs, attributes) ?? formula(inputs, attributes);

const gradient = (dy: tf.Tensor, saved: object, attributes: Attributes) => {
  const [q, k, v] = tf.tidy(
    () =>
      attentionGradientWebgpu(dy, saved as Inputs, attributes) ??
      attentionGradientKernel(dy, saved as Inputs, attributes) ??
      gradients(dy as tf.Tensor3D, saved as Inputs, attributes),
  );
  return { q: () => q, k: () => k, v: () => v };
};

/** Gradient to the scores: pattern · (dPattern - Σ dPattern · pattern). [B, H, Nq, Nk] */
const scoreGradient = (pattern: tf.Tensor4D, dy: tf.Tensor4D, v: tf.Tensor4D): tf.Tensor4D => {
  const dPattern = attentionScores(dy, v, undefined, 1);
  return pattern.mul(dPattern.sub(dPattern.mul(pattern).sum(-1, true)));
};

/** Gradient to what was added to the scores, such as a learned bias of positions: theirs, summed where the mask is shared. */
const maskGradient = (dy: tf.Tensor, saved: Inputs, attributes: Attributes, shape = saved.mask!.shape): tf.Tensor4D =>
  tf.tidy(() => {
    const { heads, groups } = attributes;
    const [q, d] = [saved.q, dy as tf.Tensor3D].map((x) => splitHeads(x, heads));
    const [k, v] = [saved.k, saved.v].map((x) => splitHeads(x, groups));
    const scores = scoreGradient(patternOf(q, k, saved, attributes), d, v);
    const shared = shape.flatMap((length, axis) => (length === 1 && scores.shape[axis] !== 1 ? [axis] : []));
    return scores.sum(shared, true);
  });

const attendAll = defineOp<Plain, Attributes>("Attend", {
  formula: ({ q, k, v }, attributes) => formula({ q, k, v }, attributes), // a mask would be lost to its gradient
  kernels: {
    tensorflow: ({ q, k, v }, attributes) => native({ q, k, v }, attributes),
    webgpu: ({ q, k, v }, attributes) => webgpu({ q, k, v }, attributes),
  },
  saves: { inputs: ["q", "k", "v"] },
  gradient,
});
const attendMasked = defineOp<Masked, Attributes>("AttendMasked", {
  formula,
  kernels: { tensorflow: native, webgpu },
  saves: { inputs: ["q", "k", "v", "mask"] },
  gradient: (dy, saved, attributes) => ({
    ...gradient(dy, saved, attributes),
    mask: () => maskGradient(dy, saved as Inputs, attributes),
  }),
});

/** The formula as a step of a block, for heads of a width that the kernels do not take, or a bias that is learned. */
function attendByFormula(block: Inside, x: Plain, { padding, bias }: Mask, attributes: Attributes): tf.Tensor3D {
  const mask = blocked({ padding, bias });
  const learned = block.tape?.needs(bias) ? bias : undefined;
  const widened = ([q, k, v]: tf.Tensor[]): Inputs => ({ ...(asPlain([q, k, v].map(toFloat32)) as Plain), mask });
  const z = narrowed(formula(widened([x.q, x.k, x.v]), attributes), block.dtype);
  block.tape?.record({
    name: "attention",
    output: z,
    from: [x.q, x.k, x.v, learned],
    saves: [x.q, x.k, x.v, mask],
    backward(dz, saved, to) {
      const inputs = { ...widened(saved), mask: saved[3] as tf.Tensor4D | undefined };
      const found = gradients(toFloat32(dz) as tf.Tensor3D, inputs, attributes);
      if (learned) to.give(learned, maskGradient(toFloat32(dz), inputs, attributes, learned.shape));
      [x.q, x.k, x.v].forEach((y, i) => to.needs(y) && to.give(y, narrowed(found[i], block.dtype)));
    },
  });
  return z;
}

/** The rows of a cache that count. */
const withoutRoom = ({ q, k, v }: Plain, used: number): Plain => {
  const [keys, values] = [k, v].map((y) => toFloat32(y).slice([0, 0, 0], [y.shape[0], used, y.shape[2]]));
  return { q, k: keys as tf.Tensor3D, v: values as tf.Tensor3D };
};

const asPlain = ([q, k, v]: tf.Tensor[]): Plain => ({ q, k, v }) as Plain;

function checkHeads({ q, k, v }: Plain, { heads, groups = heads }: Heads): void {
  const width = q.shape[2] / heads;
  const misfits: string[] = [];
  if (heads % groups !== 0) misfits.push(`${heads} heads do not divide among ${groups} key heads`);
  if (!Number.isInteger(width)) misfits.push(`q [${q.shape}] does not divide into ${heads} heads`);
  for (const [name, x] of [["k", k] as const, ["v", v] as const])
    if (x.shape[2] !== width * groups || x.shape[1] !== k.shape[1] || x.shape[0] !== q.shape[0])
      misfits.push(`${name} is [${x.shape}], expected [${q.shape[0]}, ${k.shape[1]}, ${width * groups}]`);
  if (misfits.length) throw new RangeError(`attend: ${misfits.join("; ")}`);
}

/**
 * Multi-head attention of queries to keys. q: [B, Nq, H·dh], k, v: [B, Nk, G·dh] -> [B, Nq, H·dh]
 *
 * @throws RangeError naming every shape that does not fit
 */
export function attend(x: Plain & { used?: number }, shape: Heads, mask: Mask = {}): tf.Tensor3D {
  checkHeads(x, shape);
  const { heads, groups = heads, scale = 1 / Math.sqrt(x.q.shape[2] / heads) } = shape;
  const [block, attributes] = [insideBlock(), { heads, groups, scale, causal: mask.causal ?? false }];
  const learned = block?.tape?.needs(mask.bias) ?? false; // the kernels take a bias for a constant
  if (block && !learned && fitsAttention(x.q.shape[2] / heads)) return leanAttention(block, { ...x, ...mask, heads, groups, scale });
  if (block) return attendByFormula(block, x.used === undefined ? x : withoutRoom(x, x.used), mask, attributes);
  const [{ q, k, v }, added] = [x, blocked(mask)];
  return (added ? attendMasked({ q, k, v, mask: added }, attributes) : attendAll({ q, k, v }, attributes)) as tf.Tensor3D;
}
