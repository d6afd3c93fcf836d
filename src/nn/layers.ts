/** Layers as functions of plain parameters. Letters: B batch, N tokens, D width, H heads, dh = D / H. */
import { tf } from "../engine/tf";
import { toFloat32 } from "../engine/bfloat16";
import { additive, attend, attentionMix, attentionScores, type Heads, type Mask, mergeHeads, splitHeads } from "./attend";
import { splitColumns } from "./columns";
import { geglu, gegluTanh, geluTanh, relu, silu, swiglu } from "./gated";
import { attentionPatternKernel } from "./kernels";
import { insideBlock, leanActivation, leanAdd, leanGated, leanLinear, leanNorm, leanRope, leanScale } from "./lean";
import { addSameShape, gatherRows, gelu, layerNormOp, linearProduct, quickGelu, rowNorms, scaleChannels } from "./ops";
import { patchRows } from "./patches";
import { rmsNormOp } from "./rms-norm";
import { type Rotary, rope } from "./rope";
import { patchKernel, w, weight } from "./spec";
import { noTap, type Tap, watched } from "./tap";

/** A low-rank addition to a weight: W + scale · B·A (Hu et al. 2021). Attached by `withLora`. */
export type Lora = {
  A: tf.Tensor2D; // [r, in]
  B: tf.Tensor2D; // [out, r]
  /** lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA. */
  scale: number;
  /** Drops inputs of A while training; the identity otherwise. */
  drop(x: tf.Tensor): tf.Tensor;
  /** Whether it would drop any now. */
  dropping(): boolean;
  /** DoRA's learned row norms (Liu et al. 2024), where used. */
  magnitude?: tf.Tensor1D; // [out]
};

export type Linear = { weight: tf.Tensor2D /* [out, in] */; bias?: tf.Tensor1D; lora?: Lora };
export type Norm = { weight: tf.Tensor1D; bias: tf.Tensor1D };
export type RmsNorm = { weight: tf.Tensor1D };
export type Attention = { q: Linear; k: Linear; v: Linear; out: Linear };
/** Queries, keys and values as one product. */
export type FusedAttention = { qkv: Linear; out: Linear };
export type Mlp = { fc1: Linear; fc2: Linear };

/** Spec of a linear layer with bias. */
export const linearSpec = (name: string, inner: number, out: number) => ({
  weight: weight(`${name}.weight`, [out, inner]),
  bias: w(`${name}.bias`, [out]),
});

/** Spec of a linear layer without bias. */
export const projectionSpec = (name: string, inner: number, out: number) => ({
  weight: weight(`${name}.weight`, [out, inner]),
});

/** Spec of a patch convolution without bias (CLIP). */
export const patchSpec = (name: string, channels: number, P: number, D: number) => ({
  weight: patchKernel(`${name}.weight`, [D, channels, P]),
});

/** Spec of an RMS norm. */
export const rmsNormSpec = (name: string, width: number) => ({ weight: w(`${name}.weight`, [width]) });

/** Spec of a layer norm. */
export const normSpec = (name: string, width: number) => ({
  weight: w(`${name}.weight`, [width]),
  bias: w(`${name}.bias`, [width]),
});

export type LinearFollows = {
  /** An activation of the result. */
  activation?: ActivationName;
  /** What the result is added to, of its shape: the residual stream. */
  onto?: tf.Tensor;
  /** A float32 result inside a block too, where the residual stream goes on. */
  wide?: boolean;
};

/**
 * y = x·Wᵀ + b, and the adapter's part where one is attached: the one place that multiplies. What follows a product is folded into it where that is faster.
 * x: [..., in] -> [..., out]
 */
export function linear(p: Linear, x: tf.Tensor, { activation, onto, wide }: LinearFollows = {}): tf.Tensor {
  const block = insideBlock();
  if (block) return leanLinear(block, x, p, { activation, onto, wide })[0];
  return tf.tidy(() => {
    const y = p.lora ? withAdapter(p, p.lora, x) : linearProduct(x, p.weight, p.bias);
    const z = activation ? activations[activation](y) : y;
    return onto ? addSameShape(onto, z) : z;
  });
}

/** peft/tuners/lora/layer.py (Linear.forward) and dora.py (DoraLinearLayer.forward). */
function withAdapter({ weight, bias }: Linear, lora: Lora, x: tf.Tensor): tf.Tensor {
  const kept = lora.drop(x);
  const low = linearProduct(linearProduct(kept, lora.A).mul(lora.scale), lora.B);
  if (!lora.magnitude) return addSameShape(linearProduct(x, weight, bias), low);
  const ratio = lora.magnitude.div(rowNorms(weight, lora.A, lora.B, lora.scale)); // [out]
  const y = linearProduct(x, weight);
  const base = kept === x ? y : linearProduct(kept, weight);
  const adapted = y.add(base.mul(ratio.sub(1))).add(low.mul(ratio));
  return bias ? adapted.add(bias) : adapted;
}

/** Layer norm over the last axis. x: [..., D] -> [..., D]; wide: float32 inside a block too, where it is the residual stream (post-norm) */
export function layerNorm<T extends tf.Tensor>(p: Norm, x: T, eps = 1e-5, wide = false): T {
  const block = insideBlock();
  return (block ? leanNorm(block, "layerNorm", x, { ...p, eps }, wide) : layerNormOp(x, p.weight, p.bias, eps)) as T;
}

/** RMS norm over the last axis, or over each part of it that is as long as the weight. x: [..., D] -> [..., D] */
export function rmsNorm<T extends tf.Tensor>(p: RmsNorm, x: T, eps = 1e-6): T {
  const block = insideBlock();
  return (block ? leanNorm(block, "rmsNorm", x, { ...p, eps }) : rmsNormOp(x, p.weight, eps)) as T;
}

/** The `rotary` of `attention`: queries and keys turned by their positions (int32 [B or 1, N]). */
export const rotate =
  (rotary: Rotary, positions: tf.Tensor2D) =>
  (x: tf.Tensor3D, heads: number): tf.Tensor3D => {
    const block = insideBlock();
    return block ? leanRope(block, x, positions, rotary, heads) : rope(x, positions, rotary, heads);
  };

/**
 * x + part: what a block adds to its residual stream. part: gives y, or, where nobody watches the part itself under `name`, the sum with the stream that
 * it is handed, which is folded into the last product.
 */
export function add(x: tf.Tensor3D, name: string, tap: Tap, part: (onto?: tf.Tensor3D) => tf.Tensor3D): tf.Tensor3D {
  if (!watched(tap)) return part(x);
  const [y, block] = [tap(name, part()), insideBlock()];
  return (block ? leanAdd(block, x, y) : addSameShape(x, y)) as tf.Tensor3D;
}

/** Rows of a table. table: [V, D], ids: int32 [B, N] -> float32 [B, N, D] */
export const embedding = (table: tf.Tensor2D, ids: tf.Tensor2D): tf.Tensor3D => gatherRows(table, ids) as tf.Tensor3D;

/** Activations by the name that a config's `hidden_act` gives. */
export const activations = { gelu, quick_gelu: quickGelu, gelu_pytorch_tanh: geluTanh, gelu_new: geluTanh, silu, relu };
export type ActivationName = keyof typeof activations;

/** The activation of a config. @throws naming those there are. */
export function activationName(name: string): ActivationName {
  if (!Object.hasOwn(activations, name))
    throw new Error(`hidden_act "${name}" is not known; known: ${Object.keys(activations).join(", ")}`);
  return name as ActivationName;
}

export type AttentionOptions = Heads & {
  tap?: Tap;
  mask?: Mask;
  /** The residual stream that the result is added to. */
  onto?: tf.Tensor3D;
  /** What keys and values are made of, in cross-attention: [B, Nk, in]. */
  states?: tf.Tensor3D;
  /** Normalises queries and keys before they are turned. */
  norms?: { q(x: tf.Tensor3D): tf.Tensor3D; k(x: tf.Tensor3D): tf.Tensor3D };
  /** Keys and values that were made of the states before. */
  keyed?: { k: tf.Tensor3D; v: tf.Tensor3D };
  /** Turns queries and keys by their positions: `rotate`. */
  rotary?: (x: tf.Tensor3D, heads: number) => tf.Tensor3D;
  /** Keys and values of the tokens before these: takes the new ones and gives all. */
  cache?: (k: tf.Tensor3D, v: tf.Tensor3D) => { k: tf.Tensor3D; v: tf.Tensor3D; used?: number };
};

/**
 * Multi-head attention (Vaswani et al. 2017), its heads' part one op unless a tap changes something inside. x: [B, N, D] -> [B, N, D]
 *
 * @throws RangeError when the width does not divide into the heads
 */
export function attention(p: Attention, x: tf.Tensor3D, options: AttentionOptions): tf.Tensor3D {
  const { heads, states = x, keyed } = options;
  checkHeads("attention", p.q.weight.shape[0], heads);
  return tf.tidy(() => {
    const q = linear(p.q, x) as tf.Tensor3D; //                                                     [B, N, D]
    return attendHeads(p.out, { q, ...(keyed ?? keysAndValues(p, states)) }, options);
  });
}

/** The keys and values of attention. states: [B, Nk, in] -> [B, Nk, D] each */
export const keysAndValues = (p: Pick<Attention, "k" | "v">, states: tf.Tensor3D): { k: tf.Tensor3D; v: tf.Tensor3D } => ({
  k: linear(p.k, states) as tf.Tensor3D,
  v: linear(p.v, states) as tf.Tensor3D,
});

/**
 * Self-attention whose queries, keys and values are one product, so that an adapter sees one layer. x: [B, N, D] -> [B, N, D]
 *
 * @param parts how the product's columns lie: one part [q | k | v] (a ViT's `qkv`, Phi-3's `qkv_proj`), or one for each key head, each
 *   [its queries | k | v] (InternLM2's `wqkv`)
 * @throws RangeError when the width does not divide into the heads
 */
export function fusedAttention(
  p: FusedAttention,
  x: tf.Tensor3D,
  { parts = 1, ...options }: AttentionOptions & { parts?: number },
): tf.Tensor3D {
  const { heads, groups = heads } = options;
  const width = p.qkv.weight.shape[0] / (heads + 2 * groups);
  checkHeads("fusedAttention", width * heads, heads);
  return tf.tidy(() => {
    const sections = [heads, groups, groups].map((count) => (count * width) / parts);
    const [q, k, v] = splitColumns(linear(p.qkv, x) as tf.Tensor3D, sections, parts); //               [B, N, H·dh], [B, N, G·dh] twice
    return attendHeads(p.out, { q: q!, k: k!, v: v! }, options);
  });
}

function checkHeads(name: string, width: number, heads: number): void {
  if (width % heads !== 0) throw new RangeError(`${name}: width ${width} does not divide into ${heads} heads (num_attention_heads)`);
}

/** What comes after the products of queries, keys and values. */
function attendHeads(
  out: Linear,
  x: Keyed,
  { heads, groups = heads, scale, tap = noTap, mask = {}, onto, norms, rotary, cache }: AttentionOptions,
) {
  const [plainQ, plainK] = norms ? [norms.q(x.q), norms.k(x.k)] : [x.q, x.k];
  const [q, k] = rotary ? [rotary(plainQ, heads), rotary(plainK, groups)] : [plainQ, plainK];
  const all = { q, ...(cache ? cache(k, x.v) : { k, v: x.v }) };
  const edited = watched(tap) ? attendWatched(all, { heads, groups, scale }, tap, mask) : undefined;
  const z = edited ?? attend(all, { heads, groups, scale }, mask); //                                [B, N, D]
  return linear(out, z, { onto, wide: true }) as tf.Tensor3D;
}

type Keyed = { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D; used?: number };

/** Attention in steps that a tap sees. Its result counts only where a tap changed a step: looking alone must not change the last digit of an answer. */
function attendWatched(x: Keyed, { heads, groups = heads, scale }: Heads, tap: Tap, mask: Mask): tf.Tensor3D | undefined {
  let changed = false;
  const watch = <T extends tf.Tensor>(name: string, step: T): T => {
    const y = tap(name, step);
    changed ||= y !== step;
    return y;
  };
  const seen = (y: tf.Tensor3D) => (x.used === undefined ? toFloat32(y) : toFloat32(y).slice([0, 0, 0], [y.shape[0], x.used, y.shape[2]]));
  const q = watch("q", splitHeads(toFloat32(x.q), heads)); //                                        [B, H, Nq, dh]
  const k = watch("k", splitHeads(seen(x.k), groups)); //                                            [B, G, Nk, dh]
  const v = watch("v", splitHeads(seen(x.v), groups));
  const scores = watch("attn_scores", attentionScores(q, k, additive(mask, q.shape[2], k.shape[2]), scale)); // [B, H, Nq, Nk]
  const causal = mask.causal ?? false;
  const shape = { heads, groups, causal, scale: scale ?? 1 / Math.sqrt(q.shape[3]) };
  const own = insideBlock() && !changed ? attentionPatternKernel({ ...x, ...mask }, shape) : undefined;
  const pattern = watch("pattern", own ?? tf.softmax(scores)); //                                    rows sum to 1
  const z = watch("z", attentionMix(pattern, v)); //                                                 [B, H, Nq, dh]
  return changed ? mergeHeads(z as tf.Tensor4D) : undefined; //                                      [B, Nq, H·dh]
}

/** Layer scale (Touvron et al. 2021): y·scale, channel by channel, added to the residual stream `onto` where it is given. y: [B, N, D], scale: [D] */
export function scaleBy(scale: tf.Tensor1D, y: tf.Tensor3D, onto?: tf.Tensor3D): tf.Tensor3D {
  const block = insideBlock();
  if (block) return leanScale(block, y, scale, onto) as tf.Tensor3D;
  const scaled = scaleChannels(y, scale);
  return (onto ? addSameShape(onto, scaled) : scaled) as tf.Tensor3D;
}

/** Feed-forward part. x: [B, N, D] -> [B, N, D], added to the residual stream `onto` where it is given */
export const mlp = (p: Mlp, x: tf.Tensor3D, act: ActivationName, tap: Tap = noTap, onto?: tf.Tensor3D): tf.Tensor3D =>
  tf.tidy(() => {
    const post = watched(tap) ? activatedWatched(p.fc1, x, act, tap) : linear(p.fc1, x, { activation: act });
    return linear(p.fc2, post, { onto, wide: true }) as tf.Tensor3D;
  });

export type GatedMlp = { gate: Linear; up: Linear; down: Linear };

const GATED = { silu: swiglu, gelu: geglu, gelu_new: gegluTanh };
export type GatedName = keyof typeof GATED;
/** Activations that a gate may have, by the names of configs. */
export const gatedNames = Object.keys(GATED) as GatedName[];

/** Feed-forward part with a gate (Shazeer 2020; SwiGLU by default). x: [B, N, D] -> [B, N, D], added to `onto` where it is given */
export const gatedMlp = (p: GatedMlp, x: tf.Tensor3D, tap: Tap = noTap, onto?: tf.Tensor3D, act: GatedName = "silu"): tf.Tensor3D =>
  tf.tidy(() => gated(p.down, tap("pre", linear(p.gate, x)), tap("pre_linear", linear(p.up, x)), tap, onto, act)); // [B, N, F]

function gated(down: Linear, gate: tf.Tensor, up: tf.Tensor, tap: Tap, onto?: tf.Tensor3D, act: GatedName = "silu"): tf.Tensor3D {
  const block = insideBlock();
  const post = tap("post", block ? leanGated(block, gate, up, act) : GATED[act](gate, up));
  return linear(down, post, { onto, wide: true }) as tf.Tensor3D;
}

export type FusedGatedMlp = { gateUp: Linear; down: Linear };

/** As `gatedMlp`, with gate and up one product [gate | up] (Phi-3's `gate_up_proj`). */
export const fusedGatedMlp = (p: FusedGatedMlp, x: tf.Tensor3D, tap: Tap = noTap, onto?: tf.Tensor3D): tf.Tensor3D =>
  tf.tidy(() => {
    const F = p.gateUp.weight.shape[0] / 2;
    const [gate, up] = splitColumns(linear(p.gateUp, x), [F, F]);
    return gated(p.down, tap("pre", gate!), tap("pre_linear", up!), tap, onto);
  });

/** act(fc1(x)) for a tap that sees both sides of the activation. */
function activatedWatched(fc1: Linear, x: tf.Tensor3D, act: ActivationName, tap: Tap): tf.Tensor {
  const block = insideBlock();
  if (!block) return tap("post", activations[act](tap("pre", linear(fc1, x)))); //                   [B, N, F]
  const [post, pre] = leanLinear(block, x, fc1, { activation: act }, true);
  const edited = tap("pre", pre!);
  return tap("post", edited === pre ? post : leanActivation(block, edited, act));
}

/** Patch embedding: a convolution whose stride is its kernel, hence one product. weight: [D, C·P·P]; pixels: [B, H, W, C] -> [B, N, D] */
export function patchEmbed(p: Linear, pixels: tf.Tensor4D, P: number): tf.Tensor3D {
  return linear(p, patchRows(pixels, P)) as tf.Tensor3D;
}

export type { Mask };
