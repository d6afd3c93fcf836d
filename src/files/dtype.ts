/** Number formats in weight files, and the way from and to float32. Bytes are little-endian, as in the files and on every machine we run on. */

import type { HeldPart } from "./window";

export type Dtype = "F64" | "F32" | "F16" | "BF16" | "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL";

/** Bytes of one element. */
export const DTYPE_BYTES: Readonly<Record<Dtype, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

export const isDtype = (name: string): name is Dtype => Object.hasOwn(DTYPE_BYTES, name);

/** One tensor of a weight file, not yet read. */
export type TensorSource = {
  name: string;
  dtype: Dtype;
  shape: number[];
  byteLength: number;
  /** The file that holds it, for messages. */
  file: string;
  /** Exactly the tensor's bytes: little-endian, C order, read from the file at each call, in an ArrayBuffer of their own. */
  read(): Uint8Array;
  /** The same bytes for a reader that comes later, after the file was closed; absent where they do not stand in the file as they are. */
  hold?(): HeldPart;
  /** Bytes `begin` to `end` of them alone, where the file can give these without reading all. */
  part?(begin: number, end: number): Uint8Array;
  /** Where the file holds the tensor in 4 bits (bitsandbytes.ts): its bytes as the engine keeps them. `read()` then gives float32. */
  nf4?(): { bytes: Uint8Array; format: "nf4" | "nf4-double" };
};

/** Whether `x` is a tensor of a weight file (a leaf of what `openTorch` returns). */
export const isTensorSource = (x: unknown): x is TensorSource =>
  typeof x === "object" && x !== null && typeof (x as TensorSource).read === "function" && typeof (x as TensorSource).dtype === "string";

/**
 * Number of elements of a shape (1 for a scalar).
 * @throws RangeError when a dimension is no whole number of 0 or more, or the product passes 2^53.
 */
export function elements(shape: readonly number[]): number {
  let product = 1;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`shape [${shape}] holds ${size}`);
    product *= size;
    if (!Number.isSafeInteger(product)) throw new RangeError(`shape [${shape}] has more elements than any file can hold`);
  }
  return product;
}

type Numbers = Float32Array | Int32Array;
type Source = Pick<TensorSource, "name" | "dtype" | "file" | "read">;
/** A view on bytes as elements of another type, copied first where they do not stand at a multiple of the element's size. */
type Maker<T> = { readonly BYTES_PER_ELEMENT: number; new (buffer: ArrayBufferLike, offset: number, length: number): T };

function view<T>(Type: Maker<T>, bytes: Uint8Array): T {
  const aligned = bytes.byteOffset % Type.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
  return new Type(aligned.buffer, aligned.byteOffset, aligned.byteLength / Type.BYTES_PER_ELEMENT);
}

/**
 * Reads a tensor as float32, flat in C order. F16 and BF16 are exact; F64 and I64 are rounded to nearest; BOOL gives 0 and 1.
 */
export function toFloat32(source: Source): Float32Array {
  const bytes = source.read();
  switch (source.dtype) {
    case "F32":
      return view(Float32Array, bytes);
    case "F64":
      return Float32Array.from(view(Float64Array, bytes));
    case "BF16":
      return widenBfloat16(view(Uint16Array, bytes));
    case "F16":
      return widenFloat16(view(Uint16Array, bytes));
    case "I64":
      return fromInt64(view(Uint32Array, bytes), new Float32Array(bytes.byteLength / 8), (low, high) => high * 2 ** 32 + low);
    default:
      return Float32Array.from(integers(source.dtype, bytes));
  }
}

/**
 * Reads a tensor of whole numbers or booleans as int32, flat in C order.
 * @throws when the tensor holds floating-point numbers, or an I64 that does not fit into 32 bits.
 */
export function toInt32(source: Source): Int32Array {
  const bytes = source.read();
  const { dtype } = source;
  if (dtype === "F64" || dtype === "F32" || dtype === "F16" || dtype === "BF16")
    throw new TypeError(`${source.file}: tensor "${source.name}" is ${dtype}; expected whole numbers (I64, I32, I16, I8, U8 or BOOL)`);
  if (dtype !== "I64") return dtype === "I32" ? view(Int32Array, bytes) : Int32Array.from(integers(dtype, bytes));
  return fromInt64(view(Uint32Array, bytes), new Int32Array(bytes.byteLength / 8), (low, high, i) => {
    if (high !== (low | 0) >> 31)
      throw new RangeError(`${source.file}: tensor "${source.name}" holds ${high * 2 ** 32 + low} at ${i}; it does not fit into 32 bits`);
    return low | 0;
  });
}

function integers(dtype: "I32" | "I16" | "I8" | "U8" | "BOOL", bytes: Uint8Array): ArrayLike<number> & Iterable<number> {
  if (dtype === "I32") return view(Int32Array, bytes);
  if (dtype === "I16") return view(Int16Array, bytes);
  if (dtype === "I8") return view(Int8Array, bytes);
  return dtype === "BOOL" ? bytes.map((x) => (x === 0 ? 0 : 1)) : bytes;
}

/** BigInt64Array is an order of magnitude slower than two halves. high is signed, low is not. */
function fromInt64<T extends Numbers>(halves: Uint32Array, out: T, join: (low: number, high: number, i: number) => number): T {
  for (let i = 0; i < out.length; i++) out[i] = join(halves[2 * i], halves[2 * i + 1] | 0, i);
  return out;
}

function widenBfloat16(bits: Uint16Array): Float32Array {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = bits[i] << 16;
  return new Float32Array(out.buffer);
}

let table: Uint32Array | undefined;

/** By table, of the bits and not the values: a NaN keeps its payload. */
function widenFloat16(bits: Uint16Array): Float32Array {
  table ??= Uint32Array.from({ length: 65536 }, (_, h) => float16Bits(h));
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]];
  return new Float32Array(out.buffer);
}

/** IEEE 754 binary16 bits -> binary32 bits. */
function float16Bits(h: number): number {
  const sign = (h & 0x8000) << 16;
  const [exponent, fraction] = [(h >> 10) & 0x1f, h & 0x3ff];
  if (exponent === 31) return sign | 0x7f800000 | (fraction << 13);
  if (exponent > 0) return sign | ((exponent + 112) << 23) | (fraction << 13);
  if (fraction === 0) return sign;
  const shift = Math.clz32(fraction) - 21; // moves the leading bit of a subnormal to the hidden place
  return sign | ((113 - shift) << 23) | (((fraction << shift) & 0x3ff) << 13);
}

/**
 * Bytes of float32 values in a floating-point dtype, for saving. BF16 and F16 are rounded to nearest, ties to even; what is too large
 * becomes infinity and NaN stays NaN, as in PyTorch.
 */
export function fromFloat32(values: Float32Array, dtype: Dtype): Uint8Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  switch (dtype) {
    case "F32":
      return new Uint8Array(values.slice().buffer);
    case "F64":
      return new Uint8Array(Float64Array.from(values).buffer);
    case "BF16":
      return narrow(bits, toBfloat16);
    case "F16":
      return narrow(bits, toFloat16);
    default:
      throw new TypeError(`fromFloat32: ${dtype} does not hold floating-point numbers; expected F64, F32, F16 or BF16`);
  }
}

function narrow(bits: Uint32Array, round: (bits: number) => number): Uint8Array {
  const out = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = round(bits[i]);
  return new Uint8Array(out.buffer);
}

function toBfloat16(u: number): number {
  if ((u & 0x7fffffff) > 0x7f800000) return (u >>> 16) | 0x40; // NaN: rounding could carry it into infinity
  return (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
}

function toFloat16(u: number): number {
  const sign = (u >>> 16) & 0x8000;
  const size = u & 0x7fffffff;
  if (size > 0x7f800000) return sign | 0x7e00; // NaN
  if (size >= 0x477ff000) return sign | 0x7c00; // 65520 and above round to infinity
  if (size >= 0x38800000) return sign | ((size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13);
  if (size < 0x33000000) return sign; // below half of the smallest subnormal, 2^-25
  const shift = 126 - (size >>> 23);
  const fraction = (size & 0x7fffff) | 0x800000;
  const [whole, rest, half] = [fraction >>> shift, fraction & ((1 << shift) - 1), 1 << (shift - 1)];
  return sign | (whole + (rest > half || (rest === half && (whole & 1) === 1) ? 1 : 0));
}
