/** The operations that tfjs lacks or saves too much for. Each is declared once: formula, gradient, source. */
import { gatherBfloat16, isBfloat16, matMulBfloat16, toBfloat16, toFloat32 } from "../engine/bfloat16";
import { isFrozen, multiply, multiplyBack, plain, runsPacked } from "../engine/frozen";
import { defineOp } from "../engine/op";
import { isQuantised } from "../engine/quantised";
import { recordingsDependOn } from "../engine/recording";
import { tf } from "../engine/tf";
import { activationGradientKernel, activationKernel, normGradientKernel, normKernel } from "./kernels";
import { activationGradientWebgpu, activationWebgpu, normGradientWebgpu, normWebgpu, productWithBias } from "./webgpu";

const rows = (x: tf.Tensor): tf.Tensor2D => x.reshape([-1, x.shape[x.shape.length - 1]!]) as tf.Tensor2D;

const mixed = { on: false };
recordingsDependOn(() => (mixed.on ? "autocast" : ""));

/**
 * Runs `compute` with every product of float32 weights done in bfloat16 (inputs rounded, float32 accumulation and result), as torch.autocast does:
 * about twice as fast where the processor has the instructions. Weights, gradients and everything else stay float32.
 */
export function autocast<T>(compute: () => T): T {
  const before = mixed.on;
  mixed.on = true;
  try {
    return compute();
  } finally {
    mixed.on = before;
  }
}

/** Whether `autocast` is on. */
export const castsProducts = (): boolean => mixed.on;

/** a·b with the arithmetic of the weight's dtype: bfloat16 weights multiply in bfloat16 and accumulate in float32; result float32. */
function product(a: tf.Tensor2D, b: tf.Tensor2D, transposeA: boolean, transposeB: boolean): tf.Tensor2D {
  if (isQuantised(b)) return product(a, toFloat32(b), transposeA, transposeB);
  if (!mixed.on && !isBfloat16(b)) return tf.matMul(a, b, transposeA, transposeB);
  return toFloat32(matMulBfloat16(toBfloat16(a), toBfloat16(plain(b)), transposeA, transposeB));
}

type Product = { x: tf.Tensor; weight: tf.Tensor2D; bias?: tf.Tensor1D };

/** Leading axes are flattened inside the op: a reshape outside of it would be recorded, and keep its input until the gradient. */
function linearFormula({ x, weight, bias }: Product): tf.Tensor {
  const y = product(rows(x), weight, false, true);
  return (bias ? y.add(bias) : y).reshape([...x.shape.slice(0, -1), weight.shape[0]]);
}

const gradientToInput = (dy: tf.Tensor, weight: tf.Tensor2D): tf.Tensor =>
  tf.tidy(() => product(rows(dy), weight, false, false).reshape([...dy.shape.slice(0, -1), weight.shape[1]]));
const gradientToBias = (dy: tf.Tensor): tf.Tensor => tf.tidy(() => rows(dy).sum(0));

const project = defineOp<Product, Record<string, never>>("Project", {
  formula: linearFormula,
  kernels: {
    webgpu: (inputs) => {
      const { x, weight, bias } = inputs;
      return bias ? productWithBias(rows(x), weight, bias).reshape([...x.shape.slice(0, -1), weight.shape[0]]) : linearFormula(inputs);
    },
  },
  saves: { inputs: ["x", "weight"] },
  gradient: (dy, { x, weight }) => ({
    x: () => gradientToInput(dy, weight!),
    weight: () => tf.tidy(() => product(rows(dy), rows(x!), true, false)),
    bias: () => gradientToBias(dy),
  }),
});

/** With a bfloat16 or quantised weight, which is frozen: x is not needed for any gradient, and not kept. */
const projectFrozen = defineOp<Product, Record<string, never>>("ProjectFrozen", {
  formula: linearFormula,
  kernels: {
    tensorflow: (inputs) =>
      runsPacked(inputs.weight) ? multiply(inputs.x, inputs.weight, { bias: inputs.bias })[0] : linearFormula(inputs),
  },
  saves: { inputs: ["weight"] },
  gradient: (dy, { weight }) => ({
    x: () => (runsPacked(weight!) ? multiplyBack(dy, weight!) : gradientToInput(dy, weight!)),
    weight: () => {
      throw new Error(`project: a ${weight!.dtype} weight is frozen; load with { dtype: "float32" } to train it`);
    },
    bias: () => gradientToBias(dy),
  }),
});

/**
 * x·Wᵀ + b, as torch.nn.functional.linear. x: float32 [..., in], weight: [out, in] (float32, or frozen in bfloat16, int8 or NF4), bias: [out] -> float32 [..., out].
 */
export function linearProduct(x: tf.Tensor, weight: tf.Tensor2D, bias?: tf.Tensor1D): tf.Tensor {
  const [out, inner] = weight.shape;
  if (x.shape[x.shape.length - 1] !== inner)
    throw new RangeError(`linearProduct: x [${x.shape}] does not fit weight [${out}, ${inner}]; the last axis of x must be ${inner}`);
  const op = isFrozen(weight) ? projectFrozen : project;
  return op(bias ? { x, weight, bias } : { x, weight }, {});
}

const addSame = defineOp<{ a: tf.Tensor; b: tf.Tensor }, Record<string, never>>("AddSame", {
  formula: ({ a, b }) => a.add(b),
  gradient: (dy) => ({ a: () => dy.clone(), b: () => dy.clone() }),
});

/** a + b of one shape. Unlike tfjs's own addition it keeps neither for the gradient. */
export function addSameShape<T extends tf.Tensor>(a: T, b: tf.Tensor): T {
  if (String(a.shape) !== String(b.shape)) throw new RangeError(`addSameShape: [${a.shape}] and [${b.shape}] differ`);
  return addSame({ a, b }, {}) as T;
}

function normFormula({ x, weight, bias }: { x: tf.Tensor; weight: tf.Tensor1D; bias: tf.Tensor1D }, { eps }: { eps: number }): tf.Tensor {
  return standardise(x, eps).normal.mul(weight).add(bias);
}

const normalise = defineOp<{ x: tf.Tensor; weight: tf.Tensor1D; bias: tf.Tensor1D }, { eps: number }>("LayerNorm", {
  formula: normFormula,
  kernels: {
    tensorflow: (inputs, { eps }) => normKernel(inputs.x, inputs.weight, inputs.bias, eps)?.[0] ?? normFormula(inputs, { eps }),
    webgpu: ({ x, weight, bias }, { eps }) => normWebgpu(x, weight, bias, eps),
  },
  saves: { inputs: ["x", "weight"] },
  gradient: (dy, { x, weight }, { eps }) => ({
    x: () =>
      tf.tidy(() => {
        const native = normGradientWebgpu(dy, x!, weight!, eps) ?? normGradientKernel(dy, x!, weight!, eps, false)?.[0];
        if (native) return native;
        const { normal, inverse } = standardise(x!, eps);
        const g = dy.mul(weight!);
        return g
          .sub(g.mean(-1, true))
          .sub(normal.mul(g.mul(normal).mean(-1, true)))
          .mul(inverse);
      }),
    weight: () => tf.tidy(() => rows(dy.mul(standardise(x!, eps).normal)).sum(0)),
    bias: () => gradientToBias(dy),
  }),
});

function standardise(x: tf.Tensor, eps: number): { normal: tf.Tensor; inverse: tf.Tensor } {
  const centred = x.sub(x.mean(-1, true));
  const inverse = centred.square().mean(-1, true).add(eps).rsqrt();
  return { normal: centred.mul(inverse), inverse };
}

/** Layer normalisation over the last axis (Ba et al. 2016); eps stands inside the root, as in PyTorch. x: [..., D], weight and bias: [D]. */
export const layerNormOp = (x: tf.Tensor, weight: tf.Tensor1D, bias: tf.Tensor1D, eps: number): tf.Tensor =>
  normalise({ x, weight, bias }, { eps });

const SQRT_HALF = Math.SQRT1_2;
const phi = (x: tf.Tensor): tf.Tensor => x.mul(SQRT_HALF).erf().add(1).mul(0.5);
const density = (x: tf.Tensor): tf.Tensor =>
  x
    .square()
    .mul(-0.5)
    .exp()
    .mul(1 / Math.sqrt(2 * Math.PI));

const geluOp = defineOp<{ x: tf.Tensor }, Record<string, never>>("Gelu", {
  formula: ({ x }) => x.mul(phi(x)),
  kernels: { tensorflow: ({ x }) => activationKernel(x, "gelu") ?? x.mul(phi(x)), webgpu: ({ x }) => activationWebgpu(x, "gelu") },
  saves: { inputs: ["x"] },
  gradient: (dy, { x }) => ({
    x: () =>
      activationGradientWebgpu(dy, x!, "gelu") ??
      activationGradientKernel(dy, x!, "gelu") ??
      tf.tidy(() => dy.mul(phi(x!).add(x!.mul(density(x!))))),
  }),
});

/** Exact GELU, x Φ(x) (Hendrycks & Gimpel 2016). Any shape. */
export const gelu = (x: tf.Tensor): tf.Tensor => geluOp({ x }, {});

const QUICK = 1.702;
const quickGeluOp = defineOp<{ x: tf.Tensor }, Record<string, never>>("QuickGelu", {
  formula: ({ x }) => x.mul(x.mul(QUICK).sigmoid()),
  kernels: {
    tensorflow: ({ x }) => activationKernel(x, "quick_gelu") ?? x.mul(x.mul(QUICK).sigmoid()),
    webgpu: ({ x }) => activationWebgpu(x, "quick_gelu"),
  },
  saves: { inputs: ["x"] },
  gradient: (dy, { x }) => ({
    x: () =>
      activationGradientWebgpu(dy, x!, "quick_gelu") ??
      activationGradientKernel(dy, x!, "quick_gelu") ??
      tf.tidy(() => {
        const scaled = x!.mul(QUICK);
        const s = scaled.sigmoid();
        return scaled.mul(tf.scalar(1).sub(s)).add(1).mul(s).mul(dy); // s + 1.702 x s (1 - s)
      }),
  }),
});

/** OpenAI's approximation of GELU, x σ(1.702 x) (CLIP's model.py, QuickGELU). Any shape. */
export const quickGelu = (x: tf.Tensor): tf.Tensor => quickGeluOp({ x }, {});

const rowNormsOp = defineOp<{ weight: tf.Tensor2D; A: tf.Tensor2D; B: tf.Tensor2D }, { scale: number }>("RowNorms", {
  formula: ({ weight, A, B }, { scale }) => toFloat32(weight).add(tf.matMul(B, A).mul(scale)).square().sum(1).sqrt(),
  saves: { inputs: ["A", "B"] },
  gradient: (_, { A, B }) => ({ A: () => tf.zerosLike(A!), B: () => tf.zerosLike(B!) }),
});

/** Norm of each row of W + scale·B·A, a constant for the gradient (DoRA, section 4.3). weight: [out, in], A: [r, in], B: [out, r] -> [out] */
export const rowNorms = (weight: tf.Tensor2D, A: tf.Tensor2D, B: tf.Tensor2D, scale: number): tf.Tensor1D =>
  rowNormsOp({ weight, A, B }, { scale }) as tf.Tensor1D;

const gatherOp = defineOp<{ table: tf.Tensor2D; ids: tf.Tensor }, { rows: number }>("Embedding", {
  formula: ({ table, ids }) => (isBfloat16(table) ? toFloat32(gatherBfloat16(table, ids)) : tf.gather(table, ids)),
  saves: { inputs: ["ids"] },
  gradient: (dy, { ids }, { rows: count }) => ({
    table: () =>
      tf.tidy(() => {
        const [flat, flatIds] = [rows(dy), ids!.flatten() as tf.Tensor1D];
        // The WebAssembly backend has no segment sum; there a product with one-hot rows does the same.
        const direct = tf.getKernel("UnsortedSegmentSum", tf.getBackend());
        return direct
          ? tf.unsortedSegmentSum(flat, flatIds, count)
          : tf.matMul(tf.oneHot(flatIds, count).cast("float32"), flat, true, false);
      }),
  }),
});

/** Rows of a table. table: float32 or frozen bfloat16 [V, D], ids: int32 [...] -> float32 [..., D] */
export const gatherRows = (table: tf.Tensor2D, ids: tf.Tensor): tf.Tensor => gatherOp({ table, ids }, { rows: table.shape[0] });

type Scaled = { x: tf.Tensor; scale: tf.Tensor1D };

const scaleChannelsOp = defineOp<Scaled, Record<string, never>>("ScaleChannels", {
  formula: ({ x, scale }) => x.mul(scale),
  saves: { inputs: ["x", "scale"] },
  gradient: (dy, { x, scale }) => ({ x: () => dy.mul(scale!), scale: () => tf.tidy(() => rows(dy.mul(x!)).sum(0)) }),
});

/** Each channel by its own factor. x: [..., D], scale: [D] -> [..., D] */
export const scaleChannels = (x: tf.Tensor, scale: tf.Tensor1D): tf.Tensor => scaleChannelsOp({ x, scale }, {});
