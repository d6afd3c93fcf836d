/** The native kernels behind the ops of this folder; each gives undefined where it cannot run here, and the op takes its formula. */
import { hasNative, runNative } from "../engine/native";
import type { tf } from "../engine/tf";

const FLOAT = 1;
const KINDS = { gelu: 1, quick_gelu: 2 };
export type Kind = keyof typeof KINDS;

/** y and statistics [rows, 2] of a layer norm. */
export function normKernel(x: tf.Tensor, weight: tf.Tensor1D, bias: tf.Tensor1D | undefined, eps: number): tf.Tensor[] | undefined {
  return hasNative("layerNorm") ? runNative("layerNorm", [x, weight, bias, undefined], [eps, FLOAT]) : undefined;
}

/** The gradient of a layer norm: dx, or dx, dweight and dbias. */
export function normGradientKernel(
  dy: tf.Tensor,
  x: tf.Tensor,
  weight: tf.Tensor1D,
  eps: number,
  parameters: boolean,
): tf.Tensor[] | undefined {
  const forward = hasNative("layerNormGradient") && normKernel(x, weight, undefined, eps);
  return forward ? runNative("layerNormGradient", [dy, x, weight, forward[1], undefined], [FLOAT, parameters ? 1 : 0]) : undefined;
}

export const activationKernel = (x: tf.Tensor, kind: Kind): tf.Tensor | undefined =>
  hasNative("activation") ? runNative("activation", [x, undefined], [KINDS[kind], FLOAT])[0] : undefined;

export const activationGradientKernel = (dy: tf.Tensor, x: tf.Tensor, kind: Kind): tf.Tensor | undefined =>
  hasNative("activationGradient") ? runNative("activationGradient", [dy, x, undefined], [KINDS[kind], FLOAT, 0])[0] : undefined;

type Qkv = { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D; mask?: tf.Tensor4D };
type Heads = { heads: number; groups: number; causal: boolean; scale: number };

/** Whether the attention kernels take heads of this width. */
export const fitsAttention = (width: number): boolean => width % 16 === 0 && width <= 128;

const fits = ({ q }: Qkv, { heads }: Heads): boolean => fitsAttention(q.shape[2] / heads);
const numbers = ({ heads, groups, causal, scale }: Heads): number[] => [heads, groups, causal ? 1 : 0, scale, 0];
const inputs = ({ q, k, v, mask }: Qkv): (tf.Tensor | undefined)[] => [q, k, v, undefined, mask];

/** z [B, N, D] and logarithms [B, H, N] of an attention. */
export function attentionKernel(x: Qkv, heads: Heads): tf.Tensor[] | undefined {
  return hasNative("attention") && fits(x, heads) ? runNative("attention", inputs(x), numbers(heads)) : undefined;
}

/** Gradients to q, k and v. The forward pass is run again rather than its logarithms kept: it is the cheap part. */
export function attentionGradientKernel(dz: tf.Tensor, x: Qkv, heads: Heads): tf.Tensor[] | undefined {
  const forward = hasNative("attentionGradient") && attentionKernel(x, heads);
  return forward ? runNative("attentionGradient", [...inputs(x), forward[0], forward[1], dz], numbers(heads)) : undefined;
}

type Pattern = Qkv & { used?: number; padding?: tf.Tensor2D; bias?: tf.Tensor4D };

/** Who looks where, from the kernel that computes with the same numbers: softmax of the scores, [B, H, Nq, Nk]. Not recorded for gradients. */
export function attentionPatternKernel({ q, k, v, padding, bias, used }: Pattern, heads: Heads): tf.Tensor4D | undefined {
  if (!hasNative("attentionPattern") || !fits({ q, k, v }, heads)) return undefined;
  return runNative("attentionPattern", [q, k, v, padding, bias], [...numbers(heads).slice(0, -1), used ?? 0])[0] as tf.Tensor4D;
}
