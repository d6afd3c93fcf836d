/**
 * The layers' operations as they run inside a block (`block.ts`): native kernels on bfloat16 or float32 activations, with what follows a product folded
 * into it, and gradients written out by hand that keep no more than they read. Each agrees with its formula in `ops.ts`.
 */
import { toBfloat16, toFloat32 } from "../engine/bfloat16";
import { multiply, multiplyBack } from "../engine/frozen";
import { ACTIVATIONS, lowRank, lowRankGradient, type NativeDtype, runNative } from "../engine/native";
import { tf } from "../engine/tf";
import type { Rotary } from "./rope";
import type { Tape } from "./tape";

/** What the layers ask while a block runs. */
export type Inside = {
  /** Of activations; the residual stream is float32 always. */
  dtype: NativeDtype;
  /** Where gradients are recorded. */
  tape?: Tape;
};

let inside: Inside | undefined;

/** The block that is running, if one is. */
export const insideBlock = (): Inside | undefined => inside;

/** Runs `compute` as the inside of a block. */
export function runInside<T>(block: Inside | undefined, compute: () => T): T {
  const before = inside;
  inside = block;
  try {
    return compute();
  } finally {
    inside = before;
  }
}

const CODES = { float32: 1, bfloat16: 14 };
const KINDS = { gelu: 1, quick_gelu: 2, silu: 3, gelu_pytorch_tanh: 4, gelu_new: 4, relu: 5 };
/** By the names that configs give. */
export type LeanActivation = keyof typeof KINDS;

const codeOf = (x: tf.Tensor): number => CODES[x.dtype as NativeDtype];

/** x in the dtype of the block's activations. */
export const narrowed = <T extends tf.Tensor>(x: T, dtype: NativeDtype): T => (dtype === "bfloat16" ? toBfloat16(x) : toFloat32(x));

export type LeanNorm = { weight: tf.Tensor1D; bias?: tf.Tensor1D; eps: number };

/** Layer norm, or RMS norm. x: float32 or bfloat16 [..., D] -> the block's dtype, or float32 where `wide` */
export function leanNorm(block: Inside, kind: "layerNorm" | "rmsNorm", x: tf.Tensor, p: LeanNorm, wide = false): tf.Tensor {
  const [y, statistics] = runNative(kind, [x, p.weight, p.bias], [p.eps, wide ? CODES.float32 : CODES[block.dtype]]);
  block.tape?.record({
    name: kind,
    output: y,
    from: [x],
    weights: [p.weight, p.bias],
    saves: [x, statistics],
    backward(dy, [input, kept], to) {
      const parameters = to.needs(p.weight) || to.needs(p.bias);
      const [dx, dWeight, dBias] = runNative(
        `${kind}Gradient`,
        [dy, input, p.weight, kept, to.take(x)],
        [codeOf(input), parameters ? 1 : 0],
      );
      to.give(x, dx);
      if (to.needs(p.weight)) to.give(p.weight, dWeight);
      if (to.needs(p.bias)) to.give(p.bias!, dBias);
    },
  });
  return y;
}

export type LeanLinear = {
  weight: tf.Tensor2D;
  bias?: tf.Tensor1D;
  lora?: { A: tf.Tensor2D; B: tf.Tensor2D; scale: number };
};
export type LeanOptions = {
  activation?: LeanActivation;
  /** Added to the result, which is float32 then. */
  onto?: tf.Tensor;
  /** A float32 result. */
  wide?: boolean;
};

/**
 * activation(x·Wᵀ + scale·(x·Aᵀ)·Bᵀ + b) + onto. x: [..., in] -> [y, what went into the activation, where there is one] of [..., out].
 * watched: also give what went into the activation when no gradient asks for it.
 */
export function leanLinear(
  block: Inside,
  x: tf.Tensor,
  p: LeanLinear,
  options: LeanOptions = {},
  watched = false,
): [tf.Tensor, tf.Tensor?] {
  const { tape } = block;
  const { weight, bias, lora } = p;
  const dtype = options.wide || options.onto ? "float32" : block.dtype;
  const adapted = tape !== undefined && (tape.needs(lora?.A) || tape.needs(lora?.B));
  const slope = tape !== undefined && options.activation !== undefined && (adapted || tape.needs(x));
  const low = lora && lowRank(x, lora.A, { dtype: block.dtype });
  const pair = lora && { low: low!, up: lora.B, scale: lora.scale };
  const activation = options.activation && ACTIVATIONS[KINDS[options.activation]];
  const [y, before] = multiply(x, weight, { bias, activation, residual: options.onto, pair, dtype }, slope || watched);
  tape?.record({
    name: "linear",
    output: y,
    from: [x, options.onto],
    weights: [lora?.A, lora?.B],
    saves: [adapted ? x : undefined, adapted ? low : undefined, slope ? before : undefined],
    backward(dy, saved, to) {
      if (to.needs(options.onto)) to.give(options.onto!, dy.clone());
      if (!adapted && !to.needs(x)) return;
      const [input, lower] = adapted ? saved : [];
      const d = slope ? activationSlope(dy, saved.at(-1)!, options.activation!, block.dtype) : dy;
      const dLow = lora && lowRank(d, lora.B, { scale: lora.scale, transposed: true, dtype: block.dtype });
      if (to.needs(lora?.A)) to.give(lora!.A, lowRankGradient(dLow!, input));
      if (to.needs(lora?.B)) to.give(lora!.B, tf.transpose(lowRankGradient(lower, d, lora!.scale)));
      if (to.needs(x)) {
        const pair = lora && { low: dLow!, up: lora.A, scale: 1, transposed: true };
        to.give(x, multiplyBack(d, weight, { pair, residual: to.take(x), dtype: block.dtype }));
      }
    },
  });
  return [y, before];
}

const activationSlope = (dy: tf.Tensor, x: tf.Tensor, kind: LeanActivation, dtype: NativeDtype): tf.Tensor =>
  runNative("activationGradient", [dy, x], [KINDS[kind], CODES[dtype], 0])[0];

/** An activation by itself. x: any shape -> the block's dtype */
export function leanActivation(block: Inside, x: tf.Tensor, kind: LeanActivation): tf.Tensor {
  const y = runNative("activation", [x], [KINDS[kind], CODES[block.dtype]])[0];
  block.tape?.record({
    name: kind,
    output: y,
    from: [x],
    saves: [x],
    backward: (dy, [input], to) => to.give(x, activationSlope(dy, input, kind, block.dtype)),
  });
  return y;
}

export type LeanAttention = {
  q: tf.Tensor3D;
  k: tf.Tensor3D;
  v: tf.Tensor3D;
  heads: number;
  groups: number;
  /** How many rows of k and v count, where they are a cache with room for more. */
  used?: number;
  causal?: boolean;
  /** int32 [B, Nk], 0 where there is no token. */
  padding?: tf.Tensor2D;
  /** Added to the scores: float32 [B or 1, H or 1, Nq or 1, Nk]. */
  bias?: tf.Tensor4D;
  scale: number;
};

/** softmax(scale·q·kᵀ + masks)·v of every head. q: [B, Nq, H·dh], k, v: [B, Nk, G·dh] -> [B, Nq, H·dh] */
export function leanAttention(block: Inside, a: LeanAttention): tf.Tensor3D {
  const { q, k, v, padding, bias } = a;
  const numbers = [a.heads, a.groups, a.causal ? 1 : 0, a.scale, a.used ?? 0];
  const [z, logarithms] = runNative("attention", [q, k, v, padding, bias], numbers);
  block.tape?.record({
    name: "attention",
    output: z,
    from: [q, k, v],
    saves: [q, k, v, z, logarithms, padding, bias],
    backward(dz, saved, to) {
      const [masks, out] = [saved.slice(5), saved.slice(0, 5)];
      const inputs = [out[0], out[1], out[2], padding && masks.shift(), bias && masks.shift(), out[3], out[4]];
      const gradients = runNative("attentionGradient", [...inputs, narrowed(dz, block.dtype)], numbers);
      [q, k, v].forEach((x, i) => (to.needs(x) ? to.give(x, gradients[i]) : gradients[i].dispose()));
    },
  });
  return z as tf.Tensor3D;
}

/** act(gate)·up of one shape. */
export function leanGated(block: Inside, gate: tf.Tensor, up: tf.Tensor, kind: LeanActivation): tf.Tensor {
  const numbers = [KINDS[kind], CODES[block.dtype]];
  const y = runNative("gated", [gate, up], numbers)[0];
  block.tape?.record({
    name: "gated",
    output: y,
    from: [gate, up],
    saves: [gate, up],
    backward(dy, [g, u], to) {
      const gradients = runNative("gatedGradient", [dy, g, u], numbers);
      [gate, up].forEach((x, i) => (to.needs(x) ? to.give(x, gradients[i]) : gradients[i].dispose()));
    },
  });
  return y;
}

/** Rotary position embedding. x: [B, N, H·dh], positions: int32 [B or 1, N] -> the same shape and dtype */
export function leanRope(block: Inside, x: tf.Tensor3D, positions: tf.Tensor2D, rotary: Rotary, heads: number): tf.Tensor3D {
  const numbers = [heads, rotary.attentionFactor];
  const y = runNative("rope", [x, positions, rotary.inverseFrequencies], [...numbers, 1, codeOf(x)])[0];
  block.tape?.record({
    name: "rope",
    output: y,
    from: [x],
    saves: [positions],
    backward: (dy, [places], to) => to.give(x, runNative("rope", [dy, places, rotary.inverseFrequencies], [...numbers, -1, codeOf(dy)])[0]),
  });
  return y as tf.Tensor3D;
}

/** x·scale, channel by channel, + onto: float32. x: [..., D], scale: [D] */
export function leanScale(block: Inside, x: tf.Tensor, scale: tf.Tensor1D, onto?: tf.Tensor): tf.Tensor {
  const y = runNative("scaleAdd", [x, scale, onto], [CODES.float32])[0];
  block.tape?.record({
    name: "scale",
    output: y,
    from: [x, onto],
    saves: [],
    backward(dy, _, to) {
      if (to.needs(onto)) to.give(onto!, dy.clone());
      if (to.needs(x)) to.give(x, runNative("scaleAdd", [dy, scale], [CODES[block.dtype]])[0]);
    },
  });
  return y;
}

/** Sections of columns, in each of the parts of a row. x: [..., parts·(a + b + ...)] -> [..., parts·a], [..., parts·b], ... of x's dtype */
export function leanSplit(block: Inside, x: tf.Tensor, sections: readonly number[], parts: number): tf.Tensor[] {
  const outputs = runNative("splitColumns", [x], [parts, ...sections]);
  const [output, ...also] = outputs;
  block.tape?.record({
    name: "split",
    output,
    also,
    from: [x],
    saves: [],
    backward(dy, _, to) {
      const gradients = [dy, ...also.map((y) => to.take(y))];
      to.give(x, runNative("joinColumns", gradients, [CODES[block.dtype], parts, ...sections])[0]);
      tf.dispose(gradients.slice(1).filter(Boolean));
    },
  });
  return outputs;
}

/** a + b of one shape, float32. */
export function leanAdd(block: Inside, a: tf.Tensor, b: tf.Tensor): tf.Tensor {
  const y = tf.add(toFloat32(a), toFloat32(b));
  block.tape?.record({
    name: "add",
    output: y,
    from: [a, b],
    saves: [],
    backward: (dy, _, to) => [a, b].forEach((x) => to.needs(x) && to.give(x, dy.clone())),
  });
  return y;
}
