/**
 * bfloat16 tensors inside tfjs, on the TensorFlow backend. tfjs 4.22 knows no 16-bit type: a bfloat16 tensor here says so in its `dtype`,
 * is counted right by `tf.memory()`, and can be kept, cloned, disposed and tidied. Only the functions of this file compute with one;
 * a stock op given one fails instead of answering wrongly.
 */
import { tf } from "./tf";

/** Codes of TensorFlow's DataType enum (tensorflow/core/framework/types.proto). */
const TF_FLOAT = 1;
const TF_UINT8 = 4;
const TF_BFLOAT16 = 14;

type Handle = { id: number; shape: number[]; dtype: number };
type Attribute = { name: string; type: number; value: unknown };
/** The part of tfjs-node's backend that this file uses (tfjs-node-gpu/src/nodejs_kernel_backend.ts). */
type NodeBackend = {
  binding: {
    TF_ATTR_TYPE: number;
    TF_ATTR_BOOL: number;
    TF_ATTR_INT: number;
    createTensor(shape: number[], dtype: number, data: Uint8Array): number;
    deleteTensor(id: number): void;
    executeOp(name: string, attributes: Attribute[], inputs: number[], outputs: number): Handle[];
  };
  tensorMap: { get(id: object): { dtype: number }; set(id: object, info: object): void };
  getInputTensorIds(tensors: tf.Tensor[]): number[];
  createOutputTensor(handle: Handle): tf.Tensor;
  getDTypeInteger(dtype: string): number;
  readSync(dataId: object): unknown;
};

const BFLOAT16 = "bfloat16" as tf.DataType;

/** Whether the backend in use has bfloat16 tensors. */
export const hasBfloat16 = (): boolean => tf.getBackend() === "tensorflow";

/** Whether a tensor holds bfloat16 numbers. */
export const isBfloat16 = (x: tf.Tensor): boolean => (x.dtype as string) === "bfloat16";

const backend = (): NodeBackend => {
  if (tf.getBackend() !== "tensorflow")
    throw new Error(
      `bfloat16 needs the TensorFlow backend; ${tf.getBackend()} is in use. Load with { dtype: "float32" }, or see \`npm run doctor\``,
    );
  return tf.backend() as unknown as NodeBackend;
};

let installed = false;

/** Teaches the running tfjs engine about bfloat16 tensors; called once, when the TensorFlow backend starts. */
export function installBfloat16(): void {
  if (installed) return;
  installed = true;
  const state = tf.engine() as unknown as { state: { numBytes: number; tensorInfo: WeakMap<object, unknown> } };
  const prototype = Object.getPrototypeOf(tf.engine()) as Record<
    "trackTensor" | "disposeTensor",
    (x: tf.Tensor, backend?: unknown) => void
  >;
  // Both methods ask tfjs for the bytes of one element, which throws for a type it does not know: they see float32, and the two
  // bytes too many are taken off again.
  for (const method of ["trackTensor", "disposeTensor"] as const) {
    const original = prototype[method];
    prototype[method] = function (this: typeof state, x, owner) {
      if (!isBfloat16(x)) return original.call(this as never, x, owner);
      const before = this.state.numBytes;
      (x as { dtype: string }).dtype = "float32";
      try {
        original.call(this as never, x, owner);
      } finally {
        (x as { dtype: string }).dtype = "bfloat16";
      }
      this.state.numBytes = before + (this.state.numBytes - before) / 2;
    };
  }
  const node = backend();
  const createOutputTensor = node.createOutputTensor.bind(node);
  node.createOutputTensor = (handle) => (handle.dtype === TF_BFLOAT16 ? adopt(node, handle) : createOutputTensor(handle));
  const readSync = node.readSync.bind(node);
  node.readSync = (dataId) => {
    if (node.tensorMap.get(dataId).dtype !== TF_BFLOAT16) return readSync(dataId);
    throw new Error('JavaScript has no array of bfloat16: widen the tensor first with toFloat32 of "vitrine/engine/bfloat16"');
  };
  const getDTypeInteger = node.getDTypeInteger.bind(node);
  node.getDTypeInteger = (dtype) => (dtype === "bfloat16" ? TF_BFLOAT16 : getDTypeInteger(dtype));
}

/** A tfjs tensor around a bfloat16 tensor that TensorFlow made. */
function adopt(node: NodeBackend, { id, shape, dtype }: Handle): tf.Tensor {
  const dataId = {};
  node.tensorMap.set(dataId, { shape, dtype, id, values: null, refCount: 1 });
  return tf.engine().makeTensorFromTensorInfo({ dataId, shape, dtype: BFLOAT16 });
}

function run(name: string, attributes: Attribute[], inputs: tf.Tensor[]): tf.Tensor {
  const node = backend();
  return node.createOutputTensor(node.binding.executeOp(name, attributes, node.getInputTensorIds(inputs), 1)[0]);
}

const typeAttribute = (name: string, value: number): Attribute => ({ name, type: backend().binding.TF_ATTR_TYPE, value });
const flag = (name: string, value: boolean): Attribute => ({ name, type: backend().binding.TF_ATTR_BOOL, value });

/**
 * Bytes of a checkpoint (little-endian bfloat16, C order) as a bfloat16 tensor, without widening on the way.
 * @throws RangeError when the byte count does not fit the shape.
 */
export function bfloat16Tensor(bytes: Uint8Array, shape: number[]): tf.Tensor {
  const count = shape.reduce((a, b) => a * b, 1);
  if (bytes.byteLength !== 2 * count)
    throw new RangeError(`bfloat16Tensor: ${bytes.byteLength} bytes for shape [${shape}], expected ${2 * count}`);
  const node = backend();
  const raw = node.binding.createTensor([...shape, 2], TF_UINT8, bytes);
  try {
    const handle = node.binding.executeOp("Bitcast", [typeAttribute("T", TF_UINT8), typeAttribute("type", TF_BFLOAT16)], [raw], 1)[0];
    return node.createOutputTensor(handle);
  } finally {
    node.binding.deleteTensor(raw);
  }
}

/** float32 -> bfloat16, rounded to nearest even; a bfloat16 tensor comes back as it is. Same shape. No gradient. */
export function toBfloat16<T extends tf.Tensor>(x: T): T {
  if (isBfloat16(x)) return x;
  return run("Cast", [typeAttribute("SrcT", TF_FLOAT), typeAttribute("DstT", TF_BFLOAT16), flag("Truncate", false)], [x]) as T;
}

/** Zeros. */
export const bfloat16Zeros = (shape: number[]): tf.Tensor => tf.tidy(() => toBfloat16(tf.zeros(shape)));

const unpack: { plain: (x: tf.Tensor) => tf.Tensor } = { plain: (x) => x };

/** How a bfloat16 tensor that is kept in another order comes back in C order; `frozen.ts` sets this. */
export function setUnpack(plain: (x: tf.Tensor) => tf.Tensor): void {
  unpack.plain = plain;
}

const widenings = new Map<string, (x: tf.Tensor) => tf.Tensor>();

/** How a tensor of another dtype that tfjs does not know becomes float32; the file that makes such tensors sets this. */
export function setWiden(dtype: string, toFloat: (x: tf.Tensor) => tf.Tensor): void {
  widenings.set(dtype, toFloat);
}

/** bfloat16 -> float32, exact, and int8 and NF4 weights dequantised; any other tensor comes back as it is. Same shape. No gradient. */
export function toFloat32<T extends tf.Tensor>(x: T): T {
  const toFloat = widenings.get(x.dtype);
  if (toFloat) return toFloat(x) as T;
  if (!isBfloat16(x)) return x;
  return tf.tidy(() => widen(unpack.plain(x))) as T;
}

function widen<T extends tf.Tensor>(x: T): T {
  return run("Cast", [typeAttribute("SrcT", TF_BFLOAT16), typeAttribute("DstT", TF_FLOAT), flag("Truncate", false)], [x]) as T;
}

/** a·b of two bfloat16 matrices, either transposed; float32 accumulation inside, bfloat16 result. */
export function matMulBfloat16(a: tf.Tensor2D, b: tf.Tensor2D, transposeA = false, transposeB = false): tf.Tensor2D {
  const attributes = [flag("transpose_a", transposeA), flag("transpose_b", transposeB), typeAttribute("T", TF_BFLOAT16)];
  return run("MatMul", attributes, [a, b]) as tf.Tensor2D;
}

/** Rows of a bfloat16 table. table: [V, D], ids: int32 [...] -> bfloat16 [..., D]. */
export function gatherBfloat16(table: tf.Tensor2D, ids: tf.Tensor): tf.Tensor {
  const axis = tf.scalar(0, "int32");
  try {
    const attributes = [
      { name: "batch_dims", type: backend().binding.TF_ATTR_INT, value: 0 },
      typeAttribute("Tparams", TF_BFLOAT16),
      typeAttribute("Tindices", 3),
      typeAttribute("Taxis", 3),
    ];
    return run("GatherV2", attributes, [table, ids, axis]);
  } finally {
    axis.dispose();
  }
}
