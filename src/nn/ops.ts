/** The operations that tfjs lacks or saves too much for. Each is declared once: formula, gradient, source. */
import { isBfloat16, matMulBfloat16, toBfloat16, toFloat32 } from "../engine/bfloat16";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";

const rows = (x: tf.Tensor): tf.Tensor2D => x.reshape([-1, x.shape[x.shape.length - 1]!]) as tf.Tensor2D;

const mixed = { on: false };

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

/** a·b with the arithmetic of the weight's dtype: bfloat16 weights multiply in bfloat16 and accumulate in float32; result float32. */
function product(a: tf.Tensor2D, b: tf.Tensor2D, transposeA: boolean, transposeB: boolean): tf.Tensor2D {
  if (!mixed.on && !isBfloat16(b)) return tf.matMul(a, b, transposeA, transposeB);
  return toFloat32(matMulBfloat16(toBfloat16(a), toBfloat16(b), transposeA, transposeB));
}

const project = defineOp<{ x: tf.Tensor2D; weight: tf.Tensor2D }, Record<string, never>>("Project", {
  formula: ({ x, weight }) => product(x, weight, false, true),
  saves: { inputs: ["x", "weight"] },
  gradient: (dy, { x, weight }) => ({
    x: () => product(dy as tf.Tensor2D, weight!, false, false),
    weight: () => {
      if (isBfloat16(weight!)) throw new Error('project: a bfloat16 weight is frozen; load with { dtype: "float32" } to train it');
      return product(dy as tf.Tensor2D, x!, true, false);
    },
  }),
});

/**
 * x·Wᵀ, as torch.nn.functional.linear without bias. x: float32 [..., in], weight: [out, in] (float32, or bfloat16 frozen) -> float32 [..., out].
 */
export function linearProduct(x: tf.Tensor, weight: tf.Tensor2D): tf.Tensor {
  const [out, inner] = weight.shape;
  if (x.shape[x.shape.length - 1] !== inner)
    throw new RangeError(`linearProduct: x [${x.shape}] does not fit weight [${out}, ${inner}]; the last axis of x must be ${inner}`);
  return project({ x: rows(x), weight }, {}).reshape([...x.shape.slice(0, -1), out]);
}

const normalise = defineOp<{ x: tf.Tensor2D; weight: tf.Tensor1D; bias: tf.Tensor1D }, { eps: number }>("LayerNorm", {
  formula: ({ x, weight, bias }, { eps }) => standardise(x, eps).normal.mul(weight).add(bias),
  saves: { inputs: ["x", "weight"] },
  gradient: (dy, { x, weight }, { eps }) => ({
    x: () =>
      tf.tidy(() => {
        const { normal, inverse } = standardise(x!, eps);
        const g = dy.mul(weight!);
        return g
          .sub(g.mean(-1, true))
          .sub(normal.mul(g.mul(normal).mean(-1, true)))
          .mul(inverse);
      }),
    weight: () => tf.tidy(() => dy.mul(standardise(x!, eps).normal).sum(0)),
    bias: () => dy.sum(0),
  }),
});

function standardise(x: tf.Tensor2D, eps: number): { normal: tf.Tensor2D; inverse: tf.Tensor2D } {
  const centred = x.sub(x.mean(-1, true)) as tf.Tensor2D;
  const inverse = centred.square().mean(-1, true).add(eps).rsqrt() as tf.Tensor2D;
  return { normal: centred.mul(inverse), inverse };
}

/** Layer normalisation over the last axis (Ba et al. 2016); eps stands inside the root, as in PyTorch. x: [..., D], weight and bias: [D]. */
export const layerNormOp = (x: tf.Tensor, weight: tf.Tensor1D, bias: tf.Tensor1D, eps: number): tf.Tensor =>
  normalise({ x: rows(x), weight, bias }, { eps }).reshape(x.shape);

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
  saves: { inputs: ["x"] },
  gradient: (dy, { x }) => ({ x: () => tf.tidy(() => dy.mul(phi(x!).add(x!.mul(density(x!))))) }),
});

/** Exact GELU, x Φ(x) (Hendrycks & Gimpel 2016). Any shape. */
export const gelu = (x: tf.Tensor): tf.Tensor => geluOp({ x }, {});

const QUICK = 1.702;
const quickGeluOp = defineOp<{ x: tf.Tensor }, Record<string, never>>("QuickGelu", {
  formula: ({ x }) => x.mul(x.mul(QUICK).sigmoid()),
  saves: { inputs: ["x"] },
  gradient: (dy, { x }) => ({
    x: () =>
      tf.tidy(() => {
        const s = x!.mul(QUICK).sigmoid();
        return dy.mul(s.add(x!.mul(QUICK).mul(s).mul(tf.scalar(1).sub(s))));
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

/** Mean cross-entropy of rows of logits against class ids. logits: [N, C], labels: int32 [N] -> scalar. */
export function crossEntropy(logits: tf.Tensor2D, labels: tf.Tensor1D): tf.Scalar {
  const picked = tf.logSoftmax(logits).mul(tf.oneHot(labels, logits.shape[1])).sum(-1);
  return picked.mean().neg() as tf.Scalar;
}
