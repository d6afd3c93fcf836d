/**
 * The C++ kernels of `src/native`, by name, and the packed bfloat16 product of a frozen weight. They are functions of the TensorFlow binding that
 * set-up compiles and work on tensors in the computer's memory: `hasNative(name)` is false on a GPU, on other backends, with the stock binding,
 * where the processor lacks the instructions, with VITRINE_NATIVE=off, and while `jit` records. The caller then takes the formula.
 */
import { bfloat16Tensor, isBfloat16, toFloat32 } from "./bfloat16";
import { isRecording } from "./recording";
import { tf } from "./tf";

/** Codes of TensorFlow's DataType enum. */
export const DTYPES = { float32: 1, bfloat16: 14 };

/** What kernels compute with: an activation's number is its place. */
export const ACTIVATIONS = ["none", "gelu", "quick_gelu", "silu", "gelu_tanh", "relu"] as const;

export type NativeDtype = keyof typeof DTYPES;
export type NativeActivation = (typeof ACTIVATIONS)[number];

/** A tensor as the binding gives it. */
export type Handle = { id: number; shape: number[]; dtype: number };
/** The functions that src/native/binding.cc adds; a stock binding has none of them. */
type Binding = {
  runKernel?(name: string, inputs: number[], numbers: number[]): Handle[];
  runProgram(names: string[], code: Float64Array): Handle[];
  kernelNames(): string[];
  kernelLevel(): string;
  kernelThreads(): number;
  tensorBytes(id: number): Uint8Array;
  tensorFromFile(fd: number, offset: number, dtype: number, shape: number[], map: boolean): Handle;
  kernelFromFile(name: string, numbers: number[], fd: number, offset: number, dtype: number, shape: number[], rows: number): Handle[];
  cutMappings(): number;
};
/** The part of tfjs-node's backend that is used here (tfjs-node-gpu/src/nodejs_kernel_backend.ts). */
type NodeBackend = {
  binding: Binding;
  isUsingGpuDevice: boolean;
  getInputTensorIds(tensors: tf.Tensor[]): number[];
  createOutputTensor(handle: Handle): tf.Tensor;
};

const NONE: ReadonlySet<string> = new Set();
const known = new WeakMap<Binding, ReadonlySet<string>>();

/** Our binding's backend, or undefined where another computes. */
export function nativeBackend(): NodeBackend | undefined {
  if (tf.getBackend() !== "tensorflow") return undefined;
  const backend = tf.backend() as unknown as NodeBackend;
  return backend.binding.runKernel && !backend.isUsingGpuDevice ? backend : undefined;
}

/** Our binding. @throws where another computes: ask `hasNative` first */
export function nativeBinding(): Binding {
  const backend = nativeBackend();
  if (!backend) throw new Error(`no native kernels here (backend ${tf.getBackend()})`);
  return backend.binding;
}

const use: { setting?: boolean; pauses: number } = { pauses: 0 };

/** Whether ops may take kernels: VITRINE_NATIVE, read once, does not say no, and no function is recorded for TensorFlow. */
function inUse(): boolean {
  const setting = use.setting === undefined ? process.env.VITRINE_NATIVE : undefined; // the environment is slow to read
  if (setting !== undefined && setting !== "off")
    throw new Error(`VITRINE_NATIVE is "${setting}"; expected "off" (TensorFlow's ops in place of native kernels), or unset`);
  use.setting ??= setting !== "off";
  return use.setting && use.pauses === 0 && !isRecording();
}

/** Runs something (not async) with TensorFlow's ops alone, as VITRINE_NATIVE=off does for a whole process. */
export function withoutNative<T>(compute: () => T): T {
  use.pauses++;
  try {
    return compute();
  } finally {
    use.pauses--;
  }
}

/** Names of the kernels that ops may take here; empty where there are none. */
export function nativeKernels(): ReadonlySet<string> {
  const backend = inUse() ? nativeBackend() : undefined;
  if (!backend) return NONE;
  let names = known.get(backend.binding);
  if (!names) {
    names = new Set(backend.binding.kernelNames());
    known.set(backend.binding, names);
  }
  return names;
}

/** Whether ops may take the kernel of that name. */
export const hasNative = (name: string): boolean => nativeKernels().has(name);

/** The instruction set that kernels use ("base", "avx2", "avx512bf16") and their threads; undefined where there are none. */
export function nativeProcessor(): { level: string; threads: number } | undefined {
  const binding = nativeBackend()?.binding;
  return binding && { level: binding.kernelLevel(), threads: binding.kernelThreads() };
}

/**
 * Runs a kernel. inputs: tensors, undefined where one is absent; numbers: as the kernel's comment says. Not recorded for gradients.
 * @throws Error with the kernel's message when dtypes or shapes do not fit, or when it is not there.
 */
export function runNative(name: string, inputs: (tf.Tensor | undefined)[], numbers: number[] = []): tf.Tensor[] {
  const backend = nativeBackend();
  if (!backend) throw new Error(`kernel ${name}: no native kernels here (backend ${tf.getBackend()}); ask hasNative("${name}") first`);
  const ids = inputs.map((x) => (x ? backend.getInputTensorIds([x])[0]! : -1));
  const outputs = backend.binding.runKernel!(name, ids, numbers).map((handle) => backend.createOutputTensor(handle));
  watching?.push({ name, inputs, numbers, outputs });
  return outputs;
}

/** One call of `runNative`. */
export type NativeCall = { name: string; inputs: (tf.Tensor | undefined)[]; numbers: number[]; outputs: tf.Tensor[] };
let watching: NativeCall[] | undefined;

/** Runs something (not async) and tells which kernels it called. */
export function watchNative<T>(run: () => T): { result: T; calls: NativeCall[] } {
  const [before, calls] = [watching, [] as NativeCall[]];
  watching = calls;
  try {
    return { result: run(), calls };
  } finally {
    watching = before;
  }
}

/** A copy of a tensor's memory, little-endian, of any dtype that kernels know, bfloat16 too. Not for strings. */
export function nativeBytes(x: tf.Tensor): Uint8Array {
  const backend = nativeBackend();
  if (!backend) throw new Error(`nativeBytes: no native kernels here (backend ${tf.getBackend()})`);
  return backend.binding.tensorBytes(backend.getInputTensorIds([x])[0]!);
}

/**
 * A frozen bfloat16 weight in the order that the processor multiplies in. `packed` is an ordinary tensor, counted and disposed by tfjs:
 * bfloat16 [ceil(out / 64), ceil(in / 2), 64, 2], filled up with zeros.
 */
export type PackedWeight = { packed: tf.Tensor4D; out: number; in: number };

/** Packs a weight. weight: float32 (rounded to bfloat16) or bfloat16 [out, in]; it is not disposed. */
export function packWeight(weight: tf.Tensor2D): PackedWeight {
  const [out, inner] = weight.shape;
  return { packed: runNative("packWeight", [weight])[0] as tf.Tensor4D, out, in: inner };
}

/** Packs a weight from a file's bytes (bfloat16, little-endian, C order), without a float32 copy on the way. shape: [out, in] */
export function packWeightBytes(bytes: Uint8Array, shape: [number, number]): PackedWeight {
  const weight = bfloat16Tensor(bytes, shape) as tf.Tensor2D;
  try {
    return packWeight(weight);
  } finally {
    weight.dispose();
  }
}

/** The weight again: bfloat16 [out, in], bit for bit. */
export const unpackWeight = ({ packed, out, in: inner }: PackedWeight): tf.Tensor2D =>
  runNative("unpackWeight", [packed], [out, inner])[0] as tf.Tensor2D;

/** A low-rank addition scale · low · upᵀ to a product: low is x · Aᵀ of a LoRA pair, up its B. */
export type LowRankPair = {
  low: tf.Tensor; // [..., r], float32 or bfloat16
  up: tf.Tensor2D; // [out, r], or [r, out] where `transposed`
  scale: number;
  transposed?: boolean;
};

export type LinearOptions = {
  bias?: tf.Tensor1D; // float32 [out]
  activation?: NativeActivation;
  residual?: tf.Tensor; // [..., out], float32 or bfloat16
  pair?: LowRankPair;
  /** Of the result. */
  dtype?: NativeDtype;
};

/** What a product multiplies with: a packed bfloat16 weight, or a plain matrix [out, in] ([in, out] where `turned`) of float32 or bfloat16. */
export type ProductWeight = PackedWeight | { plain: tf.Tensor2D; turned?: boolean };

/**
 * activation(x · Wᵀ + scale · low · upᵀ + bias) + residual, in one pass. With a packed weight products are of bfloat16, x rounded to it; with a plain one
 * of float32. Sums and all that follows are float32. x: float32 or bfloat16 [..., in] -> [..., out]. Not recorded for gradients.
 *
 * @throws RangeError naming every argument that does not fit.
 */
export const linearNative = (x: tf.Tensor, weight: ProductWeight, options: LinearOptions = {}): tf.Tensor =>
  product(x, weight, options, false)[0]!;

/** linearNative that also gives what went into the activation, for the gradient: [y, pre-activation], both of `dtype`. */
export const linearKeeping = (x: tf.Tensor, weight: ProductWeight, options: LinearOptions = {}): [tf.Tensor, tf.Tensor] =>
  product(x, weight, options, true) as [tf.Tensor, tf.Tensor];

function product(x: tf.Tensor, weight: ProductWeight, options: LinearOptions, keep: boolean): tf.Tensor[] {
  const { bias, activation = "none", residual, pair, dtype = "float32" } = options;
  const [out, inner] =
    "packed" in weight ? [weight.out, weight.in] : weight.turned ? [...weight.plain.shape].reverse() : weight.plain.shape;
  checkLinear(x, out, inner, options);
  const [name, matrix, first] = "packed" in weight ? ["linear", weight.packed, out] : ["linearFloat", weight.plain, weight.turned ? 1 : 0];
  return runNative(
    name as string,
    [x, matrix as tf.Tensor, bias, residual, pair?.low, pair?.up],
    [first as number, ACTIVATIONS.indexOf(activation), DTYPES[dtype], keep ? 1 : 0, pair?.scale ?? 1, pair?.transposed ? 1 : 0],
  );
}

/** Refuses arguments that do not fit a weight [out, in]. @throws RangeError naming every one */
/**
 * dy · W + scale · low · up + residual with a packed weight, the gradient to its input: products in bfloat16, sums and all that follows in float32.
 * dy: float32 or bfloat16 [..., out] -> [..., in]. Of `options` residual, dtype and a pair with `up` as [r, in] count. Not recorded for gradients.
 *
 * @throws RangeError naming every argument that does not fit.
 */
export function linearBack(dy: tf.Tensor, weight: PackedWeight, { residual, pair, dtype = "float32" }: LinearOptions = {}): tf.Tensor {
  checkLinear(dy, weight.in, weight.out, { residual, pair: pair && { ...pair, transposed: true }, dtype });
  return runNative("linearBack", [dy, weight.packed, residual, pair?.low, pair?.up], [weight.in, DTYPES[dtype], pair?.scale ?? 1])[0]!;
}

export function checkLinear(
  x: tf.Tensor,
  out: number,
  inner: number,
  { bias, activation = "none", residual, pair, dtype = "float32" }: LinearOptions,
): void {
  const misfits: string[] = [];
  const rows = x.shape.slice(0, -1);
  const expect = (name: string, tensor: tf.Tensor | undefined, shape: (number | "r")[]) => {
    const fits = !tensor || (tensor.rank === shape.length && tensor.shape.every((n, i) => shape[i] === "r" || n === shape[i]));
    if (!fits) misfits.push(`${name} is [${tensor.shape}], expected [${shape}]`);
  };
  expect("x", x, [...rows, inner]);
  expect("bias", bias, [out]);
  expect("residual", residual, [...rows, out]);
  expect("pair.low", pair?.low, [...rows, "r"]);
  const rank = pair ? (pair.low.shape.at(-1) ?? 0) : 0;
  expect("pair.up", pair?.up, pair?.transposed ? [rank, out] : [out, rank]);
  if (!ACTIVATIONS.includes(activation)) misfits.push(`activation is "${activation}", known: ${ACTIVATIONS.join(", ")}`);
  if (!Object.hasOwn(DTYPES, dtype)) misfits.push(`dtype is "${dtype}", known: ${Object.keys(DTYPES).join(", ")}`);
  if (pair && !Number.isFinite(pair.scale)) misfits.push(`pair.scale is ${pair.scale}`);
  if (misfits.length) throw new RangeError(`product with weight [${out}, ${inner}]: ${misfits.join("; ")}`);
}

/**
 * scale · x · Aᵀ for a narrow A, the lower half of a LoRA pair, in the arithmetic that `dtype`, the result's, stands for. x: [..., in]; a: [r, in], or
 * [in, r] where `transposed` -> [..., r]
 */
export function lowRank(
  x: tf.Tensor,
  a: tf.Tensor2D,
  { scale = 1, transposed = false, dtype = "float32" }: { scale?: number; transposed?: boolean; dtype?: NativeDtype } = {},
): tf.Tensor {
  if (dtype === "bfloat16" && hasNative("lowRank")) return runNative("lowRank", [x, a], [scale, transposed ? 1 : 0, DTYPES.bfloat16])[0]!;
  const y = linearNative(x, { plain: a, turned: transposed }, { dtype });
  return scale === 1 ? y : tf.mul(y, scale);
}

/** scale · tᵀ · x summed over all rows, the gradient of a LoRA matrix; in bfloat16 where both are. t: [..., r], x: [..., n] -> float32 [r, n] */
export function lowRankGradient(t: tf.Tensor, x: tf.Tensor, scale = 1): tf.Tensor2D {
  if (isBfloat16(t) && hasNative("lowRankGradient")) return runNative("lowRankGradient", [t, x], [scale])[0] as tf.Tensor2D;
  return tf.tidy(() => {
    const [low, rows] = [t, x].map((y) => toFloat32(y).reshape([-1, y.shape.at(-1)!]) as tf.Tensor2D);
    return tf.matMul(low, rows, true, false).mul(scale) as tf.Tensor2D;
  });
}
