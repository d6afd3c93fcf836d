/**
 * Frozen bfloat16 weights of linear layers, kept only in the order that the processor multiplies in, where it has the instructions. Outside this
 * file such a weight is a bfloat16 tensor [out, in] like any other: it is counted, cloned and disposed by tfjs, and `toFloat32` reads it.
 */
import { bfloat16Tensor, isBfloat16, setUnpack, toBfloat16 } from "./bfloat16";
import { deferTensor } from "./deferred";
import { type FilePart, kernelFromFile, tensorFromFile } from "./from-file";
import {
  hasNative,
  linearBack,
  linearKeeping,
  linearNative,
  type LinearOptions,
  packWeight,
  packWeightBytes,
  type PackedWeight,
  type ProductWeight,
  unpackWeight,
} from "./native";
import { isQuantised, multiplyQuantised, multiplyQuantisedKeeping, multiplyQuantisedTransposed } from "./quantised";
import { heldForm } from "./recording";
import { tf } from "./tf";

/** What stands behind a packed weight's data. */
type Layout = { out: number; in: number };
const layouts = new WeakMap<object, Layout>();

/** A weight as `frozenWeight` keeps it: packed where that is faster, else plain bfloat16. x: float32 or bfloat16 [out, in], not disposed. */
export const frozenWeight = (x: tf.Tensor2D): tf.Tensor2D => (hasNative("linear") ? disguise(packWeight(x)) : toBfloat16(x));

/** A weight from a file's bytes (bfloat16, little-endian, C order). shape: [out, in] */
export const frozenWeightFromBytes = (bytes: Uint8Array, shape: [number, number]): tf.Tensor2D =>
  hasNative("linear") ? disguise(packWeightBytes(bytes, shape)) : (bfloat16Tensor(bytes, shape) as tf.Tensor2D);

/** A weight in a file, packed when it is first multiplied with; plain bfloat16 where that is not faster. shape: [out, in] */
export function frozenWeightFromFile(part: FilePart, shape: [number, number]): tf.Tensor2D {
  if (!hasNative("linear")) return tensorFromFile(part, "bfloat16", shape) as tf.Tensor2D;
  const make = () => kernelFromFile("packWeight", { ...part, shape }, [], 64);
  const weight = deferTensor(shape, "bfloat16", { make, done: part.release }) as tf.Tensor2D;
  layouts.set(weight.dataId, { out: shape[0], in: shape[1] });
  return weight;
}

/** The packed memory as a tensor [out, in]. */
function disguise({ packed, out, in: inner }: PackedWeight): tf.Tensor2D {
  const backend = tf.backend() as unknown as { incRef(dataId: object): void };
  backend.incRef(packed.dataId);
  const weight = tf.engine().makeTensorFromTensorInfo({ dataId: packed.dataId, shape: [out, inner], dtype: packed.dtype }) as tf.Tensor2D;
  layouts.set(packed.dataId, { out, in: inner });
  packed.dispose();
  return weight;
}

/** Whether a weight is kept as native kernels multiply it: packed, or quantised. */
export const isPacked = (weight: tf.Tensor): boolean => layouts.has(weight.dataId) || isQuantised(weight);

/** Whether a weight can only be multiplied with, not trained: bfloat16, or quantised. */
export const isFrozen = (weight: tf.Tensor): boolean => isBfloat16(weight) || isQuantised(weight);

/** Whether kernels may multiply with a packed or quantised weight. Where they may not (while `jit` records), `plain` gives what TensorFlow's ops take. */
export const runsPacked = (weight: tf.Tensor): boolean => isPacked(weight) && hasNative(isQuantised(weight) ? "quantisedLinear" : "linear");

const asPacked = (weight: tf.Tensor, { out, in: inner }: Layout): PackedWeight => ({ packed: weight as tf.Tensor4D, out, in: inner });

/** A frozen weight as plain bfloat16 [out, in]. */
export function plain(weight: tf.Tensor2D): tf.Tensor2D {
  const layout = layouts.get(weight.dataId);
  return layout ? heldForm(weight, () => unpackWeight(asPacked(weight, layout))) : weight;
}

/** What a kernel multiplies with: the packed memory, or the matrix as it stands. */
const operand = (weight: tf.Tensor2D): ProductWeight => {
  const layout = layouts.get(weight.dataId);
  return layout ? asPacked(weight, layout) : { plain: weight };
};

/** x · Wᵀ with what `linearNative` folds in. x: [..., in], weight: packed, quantised or plain [out, in] -> y [..., out], and what went into the activation if `keep` */
export const multiply = (x: tf.Tensor, weight: tf.Tensor2D, options: LinearOptions = {}, keep = false): [tf.Tensor, tf.Tensor?] =>
  isQuantised(weight)
    ? keep
      ? multiplyQuantisedKeeping(x, weight, options)
      : [multiplyQuantised(x, weight, options)]
    : keep
      ? linearKeeping(x, operand(weight), options)
      : [linearNative(x, operand(weight), options)];

/** dy · W with what `linearNative` folds in, the gradient to the input. dy: [..., out] -> [..., in] */
export function multiplyBack(dy: tf.Tensor, weight: tf.Tensor2D, options: LinearOptions = {}): tf.Tensor {
  if (isQuantised(weight)) return multiplyQuantisedTransposed(dy, weight, options);
  const layout = layouts.get(weight.dataId);
  return layout ? linearBack(dy, asPacked(weight, layout), options) : linearNative(dy, { plain: weight, turned: true }, options);
}

setUnpack((x) => plain(x as tf.Tensor2D));
