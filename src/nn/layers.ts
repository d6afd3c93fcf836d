/** Layers as functions of plain parameters. Letters: B batch, N tokens, D width, H heads, dh = D / H. */
import { tf } from "../engine/tf";
import { attend, attentionScores, mergeHeads, splitHeads } from "./attend";
import { addSameShape, gatherRows, gelu, layerNormOp, linearProduct, quickGelu, rowNorms } from "./ops";
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
  /** DoRA's learned row norms (Liu et al. 2024), where used. */
  magnitude?: tf.Tensor1D; // [out]
};

export type Linear = { weight: tf.Tensor2D /* [out, in] */; bias?: tf.Tensor1D; lora?: Lora };
export type Norm = { weight: tf.Tensor1D; bias: tf.Tensor1D };
export type Attention = { q: Linear; k: Linear; v: Linear; out: Linear };
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

/** Spec of a layer norm. */
export const normSpec = (name: string, width: number) => ({
  weight: w(`${name}.weight`, [width]),
  bias: w(`${name}.bias`, [width]),
});

/** y = x·Wᵀ + b, and the adapter's part where one is attached: the one place that multiplies. x: [..., in] -> [..., out] */
export const linear = (p: Linear, x: tf.Tensor): tf.Tensor =>
  tf.tidy(() => (p.lora ? withAdapter(p, p.lora, x) : linearProduct(x, p.weight, p.bias)));

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

/** Layer norm over the last axis. x: [..., D] -> [..., D] */
export const layerNorm = <T extends tf.Tensor>(p: Norm, x: T, eps = 1e-5): T => layerNormOp(x, p.weight, p.bias, eps) as T;

/** Rows of a table. table: [V, D], ids: int32 [B, N] -> float32 [B, N, D] */
export const embedding = (table: tf.Tensor2D, ids: tf.Tensor2D): tf.Tensor3D => gatherRows(table, ids) as tf.Tensor3D;

/** Activations by the name that a config's `hidden_act` gives. */
export const activations: { [name: string]: (x: tf.Tensor) => tf.Tensor } = { gelu, quick_gelu: quickGelu };

/** The activation of a config. @throws naming those there are. */
export function activation(name: string): (x: tf.Tensor) => tf.Tensor {
  const act = Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (!act) throw new Error(`hidden_act "${name}" is not known; known: ${Object.keys(activations).join(", ")}`);
  return act;
}

/**
 * Multi-head self-attention (Vaswani et al. 2017). It runs as one op unless a tap changes something inside.
 *
 * @param mask added to the scores before the softmax: 0 where a query may look, a large negative number where not; [B or 1, 1, N, N]
 */
export function attention(p: Attention, x: tf.Tensor3D, heads: number, tap: Tap = noTap, mask?: tf.Tensor4D): tf.Tensor3D {
  const D = x.shape[2];
  if (D % heads !== 0) throw new RangeError(`attention: width ${D} does not divide into ${heads} heads (num_attention_heads)`);
  return tf.tidy(() => {
    const [q, k, v] = [p.q, p.k, p.v].map((layer) => linear(layer, x) as tf.Tensor3D); //           [B, N, D]
    const edited = watched(tap) ? attendWatched({ q, k, v }, heads, tap, mask) : undefined;
    return linear(p.out, edited ?? attend({ q, k, v, mask }, heads)) as tf.Tensor3D; //             [B, N, D]
  });
}

/** Attention in steps that a tap sees. Its result counts only where a tap changed a step: looking alone must not change the last digit of an answer. */
function attendWatched(
  x: { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D },
  heads: number,
  tap: Tap,
  mask?: tf.Tensor4D,
): tf.Tensor3D | undefined {
  let changed = false;
  const watch = <T extends tf.Tensor>(name: string, step: T): T => {
    const y = tap(name, step);
    changed ||= y !== step;
    return y;
  };
  const q = watch("q", splitHeads(x.q, heads)); //                                                   [B, H, N, dh]
  const k = watch("k", splitHeads(x.k, heads));
  const v = watch("v", splitHeads(x.v, heads));
  const scores = watch("attn_scores", attentionScores(q, k, mask)); //                               [B, H, N, N]
  const pattern = watch("pattern", tf.softmax(scores)); //                                           rows sum to 1
  const z = watch("z", tf.matMul(pattern, v)); //                                                    [B, H, N, dh]
  return changed ? mergeHeads(z as tf.Tensor4D) : undefined; //                                      [B, N, D]
}

/** Feed-forward part. x: [B, N, D] -> [B, N, D] */
export const mlp = (p: Mlp, x: tf.Tensor3D, act: (x: tf.Tensor) => tf.Tensor, tap: Tap = noTap): tf.Tensor3D =>
  tf.tidy(() => {
    const pre = tap("pre", linear(p.fc1, x)); //     [B, N, F]
    const post = tap("post", act(pre));
    return linear(p.fc2, post) as tf.Tensor3D; //    [B, N, D]
  });

/**
 * Pictures as rows of patches, in the order of a convolution's weight (channel, row, column).
 * pixels: [B, H, W, C] -> [B, (H / P)(W / P), C·P·P]; a rest of less than a patch at the right or bottom is cut off, as a convolution does.
 */
export function patchify(pixels: tf.Tensor4D, P: number): tf.Tensor3D {
  const [B, H, W, C] = pixels.shape;
  const [rows, columns] = [Math.floor(H / P), Math.floor(W / P)];
  const whole = H % P || W % P ? pixels.slice([0, 0, 0, 0], [B, rows * P, columns * P, C]) : pixels;
  return whole
    .reshape([B, rows, P, columns, P, C])
    .transpose([0, 1, 3, 5, 2, 4])
    .reshape([B, rows * columns, C * P * P]) as tf.Tensor3D;
}

/** Patch embedding: a convolution whose stride is its kernel, hence one product. weight: [D, C·P·P]; pixels: [B, H, W, C] -> [B, N, D] */
export function patchEmbed(p: Linear, pixels: tf.Tensor4D, P: number): tf.Tensor3D {
  return linear(p, patchify(pixels, P)) as tf.Tensor3D;
}

/** Mask of the lower triangle: [1, 1, N, N], 0 where key <= query, else a large negative number. */
export function causalMask(N: number): tf.Tensor4D {
  const position = tf.range(0, N, 1, "int32");
  const hidden = position.reshape([1, 1, 1, N]).greater(position.reshape([1, 1, N, 1]));
  return hidden.cast("float32").mul(BLOCKED) as tf.Tensor4D;
}

/** mask: int32 [B, N], 1 where a token is real -> [B, 1, 1, N], 0 there and a large negative number at padding. */
export const paddingMask = (mask: tf.Tensor2D): tf.Tensor4D =>
  tf.scalar(1).sub(mask.cast("float32")).mul(BLOCKED).reshape([mask.shape[0], 1, 1, mask.shape[1]]) as tf.Tensor4D;

/** Finite, so that a row with every key blocked gives a uniform pattern and not NaN, as PyTorch's finfo.min does; small enough to add twice. */
const BLOCKED = -1e30;
