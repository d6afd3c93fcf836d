/** Tensors from an open file, read when an op first uses them and never held on the JavaScript side. */
import { deferTensor } from "./deferred";
import { DTYPES, type Handle, hasNative, type NativeDtype, nativeBinding } from "./native";
import type { tf } from "./tf";

/** Bytes from which a tensor is mapped: below, a copy costs nothing. */
const LARGE = 2 ** 20;
const BYTES = { float32: 4, bfloat16: 2 };

/** Where a tensor's numbers stand: little-endian, in C order. */
export type FilePart = {
  /** Bytes from the file's start. */
  offset: number;
  dtype: NativeDtype;
  shape: number[];
  /** The file's descriptor. @throws when the file is no longer what it was. */
  descriptor(): number;
  /** Told once when the part will not be read again. */
  release(): void;
};

/** Whether tensors can come from files here: with our binding, on a CPU. */
export const readsFiles = (): boolean => hasNative("cast");

const count = (shape: number[]): number => shape.reduce((a, b) => a * b, 1);

/**
 * The tensor in a file, as float32 or bfloat16: the file's own pages where dtype and place allow, else a copy.
 *
 * @param shape of the tensor, where it is another view of the same numbers
 */
export function tensorFromFile(part: FilePart, dtype: NativeDtype, shape: number[] = part.shape): tf.Tensor {
  const make = () =>
    part.dtype === dtype
      ? nativeBinding().tensorFromFile(part.descriptor(), part.offset, DTYPES[dtype], shape, maps(part))
      : kernelFromFile("cast", { ...part, shape }, [DTYPES[dtype]], 1);
  return deferTensor(shape, dtype, { make, done: part.release });
}

/**
 * Whether the file's own pages are to be the tensor's memory. TensorFlow takes them where they begin at a multiple of 64 bytes (the binding sees to
 * that) and the system can then drop them; measured on CLIP ViT-B/32 in float32: 60 to 110 MB less than a copy, and as fast.
 */
const maps = (part: FilePart): boolean => count(part.shape) * BYTES[part.dtype] >= LARGE;

/**
 * What a kernel makes of a tensor in a file, read in slices of rows that are a few megabytes: `rows` rows of it must give one row of the output.
 * part: [rows, ...] -> the kernel's only output
 */
export function kernelFromFile(name: string, part: FilePart, numbers: number[], rows: number): Handle {
  return nativeBinding().kernelFromFile(name, numbers, part.descriptor(), part.offset, DTYPES[part.dtype], part.shape, rows)[0]!;
}
