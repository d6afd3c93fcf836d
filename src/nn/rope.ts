/** Rotary position embedding (Su et al. 2021). Letters: B batch, N tokens, H heads, dh width of a head, R rotated numbers of each head. */
import { isBfloat16, toBfloat16, toFloat32 } from "../engine/bfloat16";
import { hasNative, runNative } from "../engine/native";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";

/** How fast pairs of a head's numbers turn, and what the turned ones are multiplied by: `rotaryParameters` of a config, as a tensor. */
export type Rotary = {
  inverseFrequencies: tf.Tensor1D; // float32 [R / 2]
  attentionFactor: number;
};

type Inputs = { x: tf.Tensor3D; positions: tf.Tensor2D; inverseFrequencies: tf.Tensor1D };
type Attributes = { heads: number; factor: number };

const DTYPES = { float32: 1, bfloat16: 14 };

/** Number i of a head turns with number i + R / 2 (transformers, apply_rotary_pos_emb of Llama and Qwen2); the rest of the head stays. */
function formula({ x, positions, inverseFrequencies }: Inputs, { heads, factor }: Attributes, direction: 1 | -1): tf.Tensor3D {
  const [B, N, D] = x.shape;
  const [half, width] = [inverseFrequencies.shape[0], D / heads];
  const angles = positions.cast("float32").expandDims(2).mul(inverseFrequencies).expandDims(2); // [B or 1, N, 1, R / 2]
  const [sine, cosine] = [angles.sin().mul(factor * direction), angles.cos().mul(factor)];
  const [a, b, rest] = tf.split(toFloat32(x).reshape([B, N, heads, width]), [half, half, width - 2 * half], 3);
  const turned = [a!.mul(cosine).sub(b!.mul(sine)), b!.mul(cosine).add(a!.mul(sine)), rest!];
  return tf.concat(turned, 3).reshape([B, N, D]) as tf.Tensor3D;
}

/** As the formula, by the kernel where it can run. */
function turn(inputs: Inputs, attributes: Attributes, direction: 1 | -1, dtype: "float32" | "bfloat16"): tf.Tensor3D {
  const { x, positions, inverseFrequencies } = inputs;
  if (hasNative("rope")) {
    const numbers = [attributes.heads, attributes.factor, direction, DTYPES[dtype]];
    return runNative("rope", [x, positions, inverseFrequencies], numbers)[0] as tf.Tensor3D;
  }
  const y = tf.tidy(() => formula(inputs, attributes, direction));
  if (dtype === "float32") return y;
  return tf.tidy(() => toBfloat16(y));
}

const sameDtype = (x: tf.Tensor) => (isBfloat16(x) ? "bfloat16" : "float32");

const ropeOp = defineOp<Inputs, Attributes>("Rope", {
  formula: (inputs, attributes) => {
    const y = formula(inputs, attributes, 1);
    return isBfloat16(inputs.x) ? toBfloat16(y) : y;
  },
  kernels: { tensorflow: (inputs, attributes) => turn(inputs, attributes, 1, sameDtype(inputs.x)) },
  saves: { inputs: ["positions", "inverseFrequencies"] },
  gradient: (dy, { positions, inverseFrequencies }, attributes) => ({
    x: () => turn({ x: dy as tf.Tensor3D, positions: positions!, inverseFrequencies: inverseFrequencies! }, attributes, -1, "float32"),
  }),
});

function check(name: string, x: tf.Tensor3D, positions: tf.Tensor2D, { inverseFrequencies }: Rotary, heads: number): void {
  const misfits: string[] = [];
  const [B, N, D] = x.shape;
  const half = inverseFrequencies.size;
  if (D % heads !== 0) misfits.push(`width ${D} does not divide into ${heads} heads`);
  else if (2 * half > D / heads) misfits.push(`${half} frequencies turn ${2 * half} numbers, but a head has ${D / heads}`);
  if (positions.dtype !== "int32") misfits.push(`positions are ${positions.dtype}, expected int32`);
  if (positions.rank !== 2 || positions.shape[1] !== N || ![1, B].includes(positions.shape[0]))
    misfits.push(`positions are [${positions.shape}], expected [${B} or 1, ${N}]`);
  if (misfits.length) throw new RangeError(`${name} of x [${x.shape}]: ${misfits.join("; ")}`);
}

/**
 * Turns queries or keys by their positions; angles, sines and cosines are float32. x: float32 or bfloat16 [B, N, H·dh], positions: int32
 * [B or 1, N] -> the same shape and dtype. The gradient, to a float32 x, is the turn backwards.
 *
 * @throws RangeError naming everything that does not fit.
 */
export function rope(x: tf.Tensor3D, positions: tf.Tensor2D, rotary: Rotary, heads: number): tf.Tensor3D {
  check("rope", x, positions, rotary, heads);
  const { inverseFrequencies, attentionFactor: factor } = rotary;
  return ropeOp({ x, positions, inverseFrequencies }, { heads, factor }) as tf.Tensor3D;
}

/**
 * The gradient of `rope` to x, for blocks with a gradient of their own: not recorded. dy: float32 or bfloat16 [B, N, H·dh] -> the same shape,
 * of dy's dtype.
 */
export function ropeGradient(dy: tf.Tensor3D, positions: tf.Tensor2D, rotary: Rotary, heads: number): tf.Tensor3D {
  check("ropeGradient", dy, positions, rotary, heads);
  const { inverseFrequencies, attentionFactor: factor } = rotary;
  return turn({ x: dy, positions, inverseFrequencies }, { heads, factor }, -1, sameDtype(dy));
}
