/** A tensor of a PyTorch file is a view on a storage: a start, a shape and strides, in elements. */
import { DTYPE_BYTES, type Dtype, elements, type TensorSource } from "./dtype";

/** The numbers behind one or several tensors. */
export type Storage = {
  /** How messages call it: its key in the file. */
  key: string;
  /** torch's name of the element type; undefined where the file says it with the tensor. */
  dtype: string | undefined;
  byteLength: number;
  read(offset: number, length: number): Uint8Array;
};

/** torch's names of the element types that we read. Complex, quantised and 8-bit floating-point tensors are not among them. */
const DTYPES: Readonly<Record<string, Dtype>> = {
  float64: "F64",
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  int64: "I64",
  int32: "I32",
  int16: "I16",
  int8: "I8",
  uint8: "U8",
  bool: "BOOL",
};

/** An expanded tensor (stride 0) may be larger than its storage, up to this many bytes: a few bytes of file must not fill the memory. */
const MAX_EXPANDED = 2 ** 30;

const wholeNumbers = (x: unknown): x is number[] => Array.isArray(x) && x.every((n) => Number.isSafeInteger(n) && n >= 0);

/**
 * The tensor that torch's `_rebuild_tensor` makes of a storage. offset, shape and strides are in elements.
 *
 * @throws Error naming the file when they are no whole numbers of 0 or more, or reach beyond the storage.
 */
export function stridedTensor(
  file: string,
  storage: Storage,
  dtypeName: string,
  offset: unknown,
  shape: unknown,
  strides: unknown,
): TensorSource {
  const fail = (problem: string): never => {
    throw new Error(`${file}: a tensor on storage ${storage.key}: ${problem}`);
  };
  const dtype = DTYPES[dtypeName] ?? fail(`its dtype ${dtypeName} is not read; only ${Object.keys(DTYPES).join(", ")} are`);
  if (!wholeNumbers(shape) || !wholeNumbers(strides) || !wholeNumbers([offset]) || shape.length !== strides.length)
    return fail(`shape ${show(shape)}, strides ${show(strides)} and offset ${show(offset)} are not as many whole numbers of 0 or more`);
  const [start, size] = [offset as number, DTYPE_BYTES[dtype]];
  const count = countElements(shape, fail);
  const last = count === 0 ? 0 : shape.reduce((sum, n, i) => sum + (n - 1) * strides[i], start) + 1;
  if (!Number.isSafeInteger(last) || last * size > storage.byteLength || start * size > storage.byteLength)
    fail(
      `shape [${shape}], strides [${strides}] and offset ${start} reach beyond the ${storage.byteLength / size} elements of its storage`,
    );
  const byteLength = count * size;
  if (byteLength > storage.byteLength && byteLength > MAX_EXPANDED)
    fail(`shape [${shape}] would make ${byteLength} bytes out of a storage of ${storage.byteLength}`);
  const copied = { shape: [...shape], strides: [...strides] };
  const read = (): Uint8Array => {
    if (count === 0) return new Uint8Array(0);
    const span = storage.read(start * size, (last - start) * size);
    return isContiguous(copied.shape, copied.strides) ? span : gather(span, size, copied.shape, copied.strides, count);
  };
  return { name: "", dtype, shape: copied.shape, byteLength, file, read };
}

function countElements(shape: number[], fail: (problem: string) => never): number {
  try {
    return elements(shape);
  } catch (error) {
    return fail((error as Error).message);
  }
}

const show = (x: unknown): string => (Array.isArray(x) ? `[${x.slice(0, 20)}]` : String(x).slice(0, 60));

function isContiguous(shape: number[], strides: number[]): boolean {
  let expected = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== expected) return false;
    expected *= shape[i];
  }
  return true;
}

/** Copies a strided view into C order. bytes begins with the view's first element. */
function gather(bytes: Uint8Array, size: number, shape: number[], strides: number[], count: number): Uint8Array {
  const unit = Math.min(size, 4); // 8-byte elements are copied as two halves
  const parts = size / unit;
  const [sizes, steps] = [
    [...shape, parts],
    [...strides.map((s) => s * parts), 1],
  ];
  const Type = unit === 1 ? Uint8Array : unit === 2 ? Uint16Array : Uint32Array;
  const from: Uint8Array | Uint16Array | Uint32Array = new Type(bytes.buffer as ArrayBuffer, bytes.byteOffset, bytes.byteLength / unit);
  const to = new Type(count * parts);
  let at = 0;
  const copy = (dimension: number, start: number): void => {
    const [n, step] = [sizes[dimension], steps[dimension]];
    if (dimension === sizes.length - 1) for (let i = 0; i < n; i++) to[at++] = from[start + i];
    else if (dimension === sizes.length - 2 && parts === 1) for (let i = 0; i < n; i++) to[at++] = from[start + i * step];
    else for (let i = 0; i < n; i++) copy(dimension + 1, start + i * step);
  };
  copy(0, 0);
  return new Uint8Array(to.buffer);
}
