/** What the tests of single kernels share. */
import { random } from "vitrine/data/random";
import { tf } from "vitrine/engine";
import { toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";

/** Dtypes as kernels are told of them (TensorFlow's codes). */
export const FLOAT = 1;
export const HALF = 14;

const draw = random(17);

/** Numbers from -1 to 1. */
export const noise = (...shape: number[]): tf.Tensor =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );

export const numbers = (x: tf.Tensor): Float32Array => Float32Array.from(toFloat32(x).dataSync());

/** The tanh form of GELU (Hendrycks & Gimpel 2016). */
export const geluTanh = (x: tf.Tensor): tf.Tensor => {
  const inner = x.pow(3).mul(0.044715).add(x);
  return inner
    .mul(Math.sqrt(2 / Math.PI))
    .tanh()
    .add(1)
    .mul(x)
    .mul(0.5);
};

/** float32 -> the nearest bfloat16, as float32. */
export const rounded = <T extends tf.Tensor>(x: T): T => toFloat32(toBfloat16(x));

/** Central differences of f at x, one for each number of x. */
export function slopes(f: (x: tf.Tensor) => number, x: tf.Tensor, step: number): Float64Array {
  const values = x.dataSync();
  return Float64Array.from(values, (_, i) => {
    const [low, high] = [-step, step].map((by) => {
      const moved = Float32Array.from(values);
      moved[i] += by;
      return tf.tidy(() => f(tf.tensor(moved, x.shape)));
    });
    return (high - low) / (2 * step);
  });
}

// The formulas in stock tfjs, written out here: those of nn/ops may themselves run on the kernels that are compared with them.

/** x Φ(x) */
export const gelu = (x: tf.Tensor): tf.Tensor => x.mul(x.mul(Math.SQRT1_2).erf().add(1).mul(0.5));

/** x σ(1.702 x) */
export const quickGelu = (x: tf.Tensor): tf.Tensor => x.mul(x.mul(1.702).sigmoid());

/** Layer norm over the last axis. */
export function layerNorm(x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor, eps: number): tf.Tensor {
  const centred = x.sub(x.mean(-1, true));
  return centred.mul(centred.square().mean(-1, true).add(eps).rsqrt()).mul(weight).add(bias);
}
