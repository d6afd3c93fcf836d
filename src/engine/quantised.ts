/**
 * Frozen weights of linear layers in 8 or 4 bits. Such a weight is a tensor [out, in] whose dtype is "int8" or "nf4": `tf.memory()` counts the bytes
 * that it takes, it is kept, cloned, tidied and disposed like any other, `toFloat32` dequantises it, and a stock op on one is an error.
 * Native kernels multiply with it as it stands; other backends by the formula, on the dequantised weight.
 */
import { setWiden, toFloat32 } from "./bfloat16";
import { ACTIVATIONS, checkLinear, DTYPES, hasNative, type LinearOptions, nativeBytes, runNative } from "./native";
import {
  dequantiseFormula,
  dequantiseValues,
  dynamicMap,
  FORMATS,
  type Format,
  GROUP,
  type Layout,
  layoutOf,
  quantiseValues,
} from "./quantised-format";
import { tf } from "./tf";

/** The dtypes of quantised weights. */
export type QuantisedDtype = "int8" | "nf4";
export const QUANTISED: readonly QuantisedDtype[] = ["int8", "nf4"];

/** What stands behind a weight's data. */
const layouts = new WeakMap<object, Layout>();

/** Whether a weight is kept in int8 or NF4. */
export const isQuantised = (x: tf.Tensor): boolean => layouts.has(x.dataId);

/** How a weight is kept: "int8", "nf4", or "nf4-double" where the scales of NF4 are quantised too; undefined for any other tensor. */
export const formatOf = (x: tf.Tensor): Format | undefined => layouts.get(x.dataId)?.format;

export type QuantiseOptions = {
  /** NF4's scales in 8 bits too (QLoRA's double quantisation): 4.13 bits a number instead of 4.5. Default true. */
  double?: boolean;
};

/**
 * A weight in int8 (symmetric, a bfloat16 scale for 64 numbers of a row) or NF4 (a scale for 64 numbers, bitsandbytes' bytes).
 * @param weight float32 or bfloat16 [out, in]; not disposed
 * @throws where it holds NaN or infinity
 */
export function quantise(weight: tf.Tensor2D, dtype: QuantisedDtype, options: QuantiseOptions = {}): tf.Tensor2D {
  return quantiseRows(weight.shape, dtype, () => toFloat32(weight), { ...options, rows: weight.shape[0] });
}

/** Rows of a weight, as a tensor (float32 or bfloat16) or as float32 numbers. */
export type Rows = tf.Tensor | Float32Array;

/**
 * The same for a weight that is read in slices, so that no second copy of it is ever in memory.
 *
 * @param read rows `first` to `first + count` of it. A tensor that it makes is disposed by the scope of `tf.tidy` in which it is called.
 * @param options `rows` read at a time: rounded up to a multiple of 64, by default about 2 million numbers
 */
export function quantiseRows(
  [out, inner]: readonly [number, number],
  dtype: QuantisedDtype,
  read: (first: number, count: number) => Rows,
  { double = true, rows = 2 ** 21 / Math.max(1, inner) }: QuantiseOptions & { rows?: number } = {},
): tf.Tensor2D {
  if (!QUANTISED.includes(dtype)) throw new Error(`quantise: dtype is "${dtype}", expected ${QUANTISED.join(" or ")}`);
  const step = Math.max(1, Math.ceil(rows / GROUP)) * GROUP; // a slice ends where a group of scales does
  const format = dtype === "nf4" && double ? "nf4-double" : dtype;
  const starts = Array.from({ length: Math.max(1, Math.ceil(out / step)) }, (_, i) => i * step);
  const slice = <T>(first: number, take: (rows: Rows, count: number) => T): T =>
    tf.tidy(() => take(read(first, Math.min(step, out - first)), Math.min(step, out - first)) as tf.TensorContainer) as T;
  if (!hasNative("quantise")) {
    const values = new Float32Array(out * inner);
    for (const first of starts)
      values.set(
        slice(first, (rows) => (rows instanceof Float32Array ? rows : (toFloat32(rows).dataSync() as Float32Array))),
        first * inner,
      );
    return quantisedTensor(quantiseValues(values, [out, inner], format), format, [out, inner]);
  }
  let memory: tf.Tensor | undefined;
  try {
    for (const first of starts)
      slice(first, (rows, count) => {
        const x = rows instanceof Float32Array ? tf.tensor2d(rows, [count, inner]) : rows;
        const made = runNative("quantise", [x, memory], [FORMATS.indexOf(dtype), out, first]);
        memory ??= tf.keep(made[0]!);
      });
    const plain = memory!;
    if (format !== "nf4-double") return disguise(plain, format, [out, inner]);
    return tf.tidy(() => {
      const map = tf.tensor1d(dynamicMap());
      return disguise(runNative("quantiseScales", [plain, map], [out, inner])[0]!, format, [out, inner]);
    });
  } finally {
    memory?.dispose();
  }
}

/**
 * A weight from its bytes (src/native/quantised.h says where its parts stand).
 * @throws RangeError when there are not as many as the format needs
 */
export function quantisedTensor(bytes: Uint8Array, format: Format, shape: readonly [number, number]): tf.Tensor2D {
  const layout = layoutOf(format, shape);
  if (bytes.byteLength !== layout.bytes)
    throw new RangeError(`quantisedTensor: ${bytes.byteLength} bytes for ${format} [${shape}], expected ${layout.bytes}`);
  const aligned = bytes.byteOffset % 4 ? bytes.slice() : bytes;
  const words = tf.tensor1d(new Int32Array(aligned.buffer, aligned.byteOffset, layout.bytes / 4), "int32");
  if (tf.getBackend() === "tensorflow") backendOf().getInputTensorIds([words]); // into the engine at once, not at the first use
  try {
    return disguise(words, format, shape);
  } finally {
    words.dispose();
  }
}

/** A weight's bytes, as `quantisedTensor` takes them. */
export function quantisedBytes(weight: tf.Tensor): Uint8Array {
  layoutOrFail(weight, "quantisedBytes");
  return tf.tidy(() => {
    const words = wordsOf(weight);
    if (hasNative("dequantise")) return nativeBytes(words);
    return bytesHere(weight).slice();
  });
}

/** The weight that a quantised one stands for. -> [out, in] of `dtype` */
export function dequantise(weight: tf.Tensor, dtype: keyof typeof DTYPES = "float32"): tf.Tensor2D {
  const layout = layoutOrFail(weight, "dequantise");
  if (hasNative("dequantise"))
    return runNative("dequantise", [weight], [FORMATS.indexOf(layout.format), layout.out, layout.in, DTYPES[dtype]])[0] as tf.Tensor2D;
  if (dtype !== "float32") throw new Error(`dequantise: ${dtype} needs the native kernels, which are not in use here`);
  const here = ["cpu", "wasm"].includes(tf.getBackend()); // the numbers are on the JavaScript side, and wasm divides int32 as float32
  return tf.tidy(() => {
    if (here) return tf.tensor2d(dequantiseValues(bytesHere(weight), layout), [layout.out, layout.in]);
    return dequantiseFormula(wordsOf(weight), layout);
  });
}

/** The memory of a weight where the backend keeps it in JavaScript's reach. */
function bytesHere(weight: tf.Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = backendOf().readSync(weight.dataId) as Int32Array;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/**
 * activation(x · Wᵀ + scale · low · upᵀ + bias) + residual with a quantised weight, on the native kernel. Up to 8 rows are multiplied in float32;
 * more in bfloat16 where the processor has the instructions. x: float32 or bfloat16 [..., in] -> [..., out]. Not recorded for gradients.
 *
 * @throws RangeError naming every argument that does not fit.
 */
export const multiplyQuantised = (x: tf.Tensor, weight: tf.Tensor2D, options: LinearOptions = {}): tf.Tensor =>
  product(x, weight, options, false, false)[0]!;

/** multiplyQuantised that also gives what went into the activation, for the gradient: [y, pre-activation], both of `dtype`. */
export const multiplyQuantisedKeeping = (x: tf.Tensor, weight: tf.Tensor2D, options: LinearOptions = {}): [tf.Tensor, tf.Tensor] =>
  product(x, weight, options, true, false) as [tf.Tensor, tf.Tensor];

/** dy · W, the gradient to the input of a product with W, and what `LinearOptions` folds in. dy: [..., out] -> [..., in] */
export const multiplyQuantisedTransposed = (dy: tf.Tensor, weight: tf.Tensor2D, options: LinearOptions = {}): tf.Tensor =>
  product(dy, weight, options, false, true)[0]!;

function product(x: tf.Tensor, weight: tf.Tensor2D, options: LinearOptions, keep: boolean, itself: boolean): tf.Tensor[] {
  const layout = layoutOrFail(weight, "multiplyQuantised");
  const { bias, activation = "none", residual, pair, dtype = "float32" } = options;
  const [out, inner] = itself ? [layout.in, layout.out] : [layout.out, layout.in];
  checkLinear(x, out, inner, options);
  const numbers = [out, ACTIVATIONS.indexOf(activation), DTYPES[dtype], keep ? 1 : 0, pair?.scale ?? 1, pair?.transposed ? 1 : 0];
  const inputs = [x, weight, bias, residual, pair?.low, pair?.up];
  return runNative("quantisedLinear", inputs, [...numbers, FORMATS.indexOf(layout.format), itself ? 1 : 0]);
}

function layoutOrFail(weight: tf.Tensor, name: string): Layout {
  const layout = layouts.get(weight.dataId);
  if (!layout) throw new TypeError(`${name}: the weight is ${weight.dtype} [${weight.shape}], expected one made by quantise()`);
  return layout;
}

type Backend = { incRef(dataId: object): void; readSync(dataId: object): unknown; getInputTensorIds(x: tf.Tensor[]): number[] };
const backendOf = () => tf.backend() as unknown as Backend;

/** Another tensor on the same memory. */
function aliasOf(x: tf.Tensor, shape: number[], dtype: string): tf.Tensor {
  backendOf().incRef(x.dataId);
  return tf.engine().makeTensorFromTensorInfo({ dataId: x.dataId, shape, dtype: dtype as tf.DataType });
}

/** Memory as the weight [out, in] that it holds. */
function disguise(words: tf.Tensor, format: Format, shape: readonly [number, number]): tf.Tensor2D {
  install();
  layouts.set(words.dataId, layoutOf(format, shape));
  return aliasOf(words, [...shape], format === "int8" ? "int8" : "nf4") as tf.Tensor2D;
}

const wordsOf = (weight: tf.Tensor): tf.Tensor1D => aliasOf(weight, [layouts.get(weight.dataId)!.bytes / 4], "int32") as tf.Tensor1D;

type EngineMethods = {
  trackTensor(x: tf.Tensor, backend?: unknown): void;
  disposeTensor(x: tf.Tensor): void;
  runKernel(name: string, inputs: { [name: string]: tf.Tensor | tf.Tensor[] | undefined }, attributes?: object): unknown;
  readSync(dataId: object): unknown;
  read(dataId: object): unknown;
};
let installed = false;

/** Teaches the running tfjs engine about quantised tensors, at the first one. */
function install(): void {
  if (installed) return;
  installed = true;
  const prototype = Object.getPrototypeOf(tf.engine()) as EngineMethods;
  const disguised = (x: tf.Tensor | undefined): x is tf.Tensor => !!x && QUANTISED.includes(x.dtype as QuantisedDtype) && isQuantised(x);
  // tfjs asks for the bytes of one element, which throws for a type that it does not know: it sees float32, and the difference is taken off again.
  for (const method of ["trackTensor", "disposeTensor"] as const) {
    const original = prototype[method];
    prototype[method] = function (this: { state: { numBytes: number } }, x: tf.Tensor, owner?: unknown) {
      if (!disguised(x)) return original.call(this as never, x, owner);
      const [before, dtype, { bytes }] = [this.state.numBytes, x.dtype, layouts.get(x.dataId)!];
      (x as { dtype: string }).dtype = "float32";
      try {
        original.call(this as never, x, owner);
      } finally {
        (x as { dtype: string }).dtype = dtype;
      }
      this.state.numBytes = before + Math.sign(this.state.numBytes - before) * bytes;
    };
  }
  const { runKernel, readSync, read } = prototype;
  prototype.runKernel = function (name, inputs, attributes) {
    const x = inputs?.x as tf.Tensor | undefined;
    if (name === "Identity" && disguised(x)) return aliasOf(x, x.shape, x.dtype); // some backends would copy it, by its dtype
    if (!name.startsWith("Vitrine"))
      for (const x of Object.values(inputs ?? {}).flat())
        if (disguised(x)) throw new TypeError(`${name}: a ${x.dtype} weight [${x.shape}] is no input of a stock op; ${ADVICE}`);
    return runKernel.call(this, name, inputs, attributes);
  };
  const refuse = (dataId: object) => {
    const layout = layouts.get(dataId);
    if (layout) throw new TypeError(`JavaScript has no array of ${layout.format} numbers; ${ADVICE}`);
  };
  prototype.readSync = function (dataId) {
    refuse(dataId);
    return readSync.call(this, dataId);
  };
  prototype.read = function (dataId) {
    refuse(dataId);
    return read.call(this, dataId);
  };
}

const ADVICE = 'multiply with linearProduct of "vitrine/nn/ops", or widen it first with toFloat32 of "vitrine/engine/bfloat16"';

for (const dtype of QUANTISED) setWiden(dtype, (x) => dequantise(x));
