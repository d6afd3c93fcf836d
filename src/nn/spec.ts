/**
 * A checkpoint's spec: a tree shaped like the parameters, whose leaves name each tensor as the file does. The type of the parameters is
 * derived from it, the loader checks it both ways, and the saver walks it backwards.
 */
import { bfloat16Tensor, hasBfloat16, toBfloat16, toFloat32 as widen } from "../engine/bfloat16";
import { readsFiles, tensorFromFile } from "../engine/from-file";
import { frozenWeight, frozenWeightFromBytes, frozenWeightFromFile } from "../engine/frozen";
import { hasNative } from "../engine/native";
import { type QuantisedDtype, quantisedTensor, quantiseRows } from "../engine/quantised";
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import { readBitsandbytes } from "../files/bitsandbytes";
import { type TensorSource, toFloat32 } from "../files/safetensors";

/** How a loaded model keeps its frozen matrices (int8 and nf4: those of linear layers). float32 is for parity, bfloat16 for speed and memory. */
export type Dtype = FileDtype | QuantisedDtype;
/** Dtypes in which weights are written. */
export type FileDtype = "float32" | "bfloat16";
export const DTYPES: readonly Dtype[] = ["float32", "bfloat16", "int8", "nf4"];

/** One tensor of a checkpoint. */
export type WeightSpec<T extends tf.Tensor = tf.Tensor> = {
  /** Its key in the file. */
  readonly name: string;
  /** Its shape in the file. */
  readonly shape: number[];
  /** Its shape in memory, where that differs (the same numbers in the same order). */
  readonly view?: number[];
  /** Matrices take the model's dtype; what adds or scales (norms, biases, positions) stays float32. */
  readonly matrix: boolean;
  /** What a linear layer multiplies with; the other matrices are tables, whose rows are looked up. */
  readonly product?: boolean;
  /** Carries the tensor's type; never set. */
  readonly type?: T;
};

type Ranked = { 0: tf.Scalar; 1: tf.Tensor1D; 2: tf.Tensor2D; 3: tf.Tensor3D; 4: tf.Tensor4D };
type OfShape<S extends number[]> = S["length"] extends keyof Ranked ? Ranked[S["length"]] : tf.Tensor;

/** A tensor kept in float32: norms, biases, position tables, scalars. */
export const w = <S extends [] | [number] | [number, number] | [number, number, number] | [number, number, number, number]>(
  name: string,
  shape: S,
): WeightSpec<OfShape<S>> => ({
  name,
  shape,
  matrix: false,
});

/** The weight of a linear layer: kept in the dtype of the model. */
export const weight = (name: string, shape: [number, number]): WeightSpec<tf.Tensor2D> => ({
  name,
  shape,
  matrix: true,
  product: true,
});

/** An embedding table: kept in the dtype of the model. */
export const matrix = (name: string, shape: [number, number]): WeightSpec<tf.Tensor2D> => ({
  name,
  shape,
  matrix: true,
});

/** The kernel of a patch convolution, [D, C, P, P] in the file, as the matrix [D, C·P·P] that multiplies flattened patches. */
export const patchKernel = (name: string, [D, C, P]: [number, number, number]): WeightSpec<tf.Tensor2D> => ({
  name,
  shape: [D, C, P, P],
  view: [D, C * P * P],
  matrix: true,
  product: true,
});

/** The parameter tree of a spec: the same tree with tensors for leaves. */
export type Params<S> = S extends WeightSpec<infer T> ? T : S extends readonly (infer E)[] ? Params<E>[] : { [K in keyof S]: Params<S[K]> };

const isLeaf = (node: unknown): node is WeightSpec =>
  typeof node === "object" && node !== null && typeof (node as WeightSpec).name === "string" && Array.isArray((node as WeightSpec).shape);

/** All leaves of a spec, in order, with the way to them (`["vision", "blocks", 0, "ln1", "weight"]`). */
export function leaves(spec: unknown, path: (string | number)[] = []): { spec: WeightSpec; path: (string | number)[] }[] {
  if (isLeaf(spec)) return [{ spec, path }];
  if (Array.isArray(spec)) return spec.flatMap((child, i) => leaves(child, [...path, i]));
  if (typeof spec !== "object" || spec === null) return [];
  return Object.entries(spec).flatMap(([key, child]) => leaves(child, [...path, key]));
}

/** The parameter at a path; undefined where the tree has none. */
export const follow = (tree: unknown, path: (string | number)[]): unknown =>
  path.reduce<unknown>((node, key) => (node as Record<string | number, unknown> | undefined)?.[key], tree);

/** Rebuilds a spec's tree with `leaf(spec)` in the place of each leaf. */
export function mapLeaves<S, T>(spec: S, leaf: (spec: WeightSpec) => T): unknown {
  if (isLeaf(spec)) return leaf(spec);
  if (Array.isArray(spec)) return spec.map((child) => mapLeaves(child, leaf));
  if (typeof spec !== "object" || spec === null) return spec;
  return Object.fromEntries(Object.entries(spec).map(([key, child]) => [key, mapLeaves(child, leaf)]));
}

/**
 * Reads every tensor that the spec names, and checks that the checkpoint holds those and no others.
 *
 * @param tensors the checkpoint's tensors by name
 * @param ignore names that a file may hold although the model has no use for them (buffers such as `position_ids`)
 * @throws Error that lists every missing, unexpected and misshapen tensor at once
 */
export function loadWeights<S>(
  spec: S,
  tensors: Map<string, TensorSource>,
  options: { dtype?: Dtype; ignore?: RegExp; where: string },
): Params<S> {
  const { dtype = "float32", ignore, where } = options;
  const wanted = leaves(spec).map((leaf) => leaf.spec);
  const whole = readBitsandbytes(tensors);
  checkFit(wanted, whole, ignore, where);
  return mapLeaves(spec, (leaf) => readWeight(leaf, whole.get(leaf.name)!, dtype)) as Params<S>;
}

function checkFit(wanted: WeightSpec[], tensors: Map<string, TensorSource>, ignore: RegExp | undefined, where: string): void {
  const problems: string[] = [];
  for (const { name, shape } of wanted) {
    const found = tensors.get(name);
    if (!found) problems.push(`  missing     ${name} [${shape}]`);
    else if (String(found.shape) !== String(shape)) problems.push(`  wrong shape ${name}: file [${found.shape}], config [${shape}]`);
  }
  const known = new Set(wanted.map((leaf) => leaf.name));
  for (const name of tensors.keys())
    if (!known.has(name) && !ignore?.test(name)) problems.push(`  unexpected  ${name} [${tensors.get(name)!.shape}]`);
  if (problems.length === 0) return;
  const listed = problems.slice(0, 40).join("\n") + (problems.length > 40 ? `\n  … and ${problems.length - 40} more` : "");
  throw new Error(
    `${where} does not fit this model (${problems.length} misfits, ${wanted.length} tensors expected):\n${listed}\n` +
      `The weights and config.json probably belong to different models: the config asks for ${size(wanted)} of float32, the files hold ${size([...tensors.values()])}.`,
  );
}

const size = (tensors: { shape: number[] }[]): string => {
  const mb = (4 * tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0)) / 1e6;
  return mb < 1000 ? `${mb.toFixed(1)} MB` : `${(mb / 1000).toFixed(1)} GB`;
};

/** The dtypes of files that the engine reads by itself. */
const IN_PLACE: { [dtype: string]: FileDtype | undefined } = { F32: "float32", BF16: "bfloat16" };

/** One tensor that the engine reads from the file when it is first used; undefined where it cannot. */
function deferWeight(leaf: WeightSpec, source: TensorSource, shape: number[], frozen: boolean): tf.Tensor | undefined {
  const stored = IN_PLACE[source.dtype];
  if (!stored || !source.hold || !readsFiles()) return undefined;
  const part = { ...source.hold(), dtype: stored, shape };
  return frozen && leaf.product
    ? frozenWeightFromFile(part, shape as [number, number])
    : tensorFromFile(part, frozen ? "bfloat16" : "float32", shape);
}

/** One tensor into the engine at once: tfjs would hold its numbers on the JavaScript side until their first use, and a whole model of them. */
function readWeight(leaf: WeightSpec, source: TensorSource, dtype: Dtype): tf.Tensor {
  const shape = leaf.view ?? leaf.shape;
  if (dtype === "int8" || dtype === "nf4") {
    if (leaf.product && !leaf.view) return tf.keep(readQuantised(source, shape as [number, number], dtype));
    return readWeight(leaf, source, hasBfloat16() ? "bfloat16" : "float32");
  }
  const frozen = leaf.matrix && dtype === "bfloat16";
  const later = deferWeight(leaf, source, shape, frozen);
  if (later) return tf.keep(later);
  if (frozen && source.dtype === "BF16")
    return tf.keep(leaf.product ? frozenWeightFromBytes(source.read(), shape as [number, number]) : bfloat16Tensor(source.read(), shape));
  return tf.tidy(() => {
    const x = tf.tensor1d(toFloat32(source), "float32").reshape(shape);
    if (!frozen) return tf.keep(x);
    return tf.keep(leaf.product ? frozenWeight(x as tf.Tensor2D) : toBfloat16(x));
  });
}

/** The weight of a linear layer in int8 or NF4, read in slices: no float32 copy of all of it is made. */
function readQuantised(source: TensorSource, shape: [number, number], dtype: QuantisedDtype): tf.Tensor2D {
  const stored = dtype === "nf4" ? source.nf4?.() : undefined;
  if (stored) return quantisedTensor(stored.bytes, stored.format, shape);
  const rowBytes = source.byteLength / Math.max(1, shape[0]);
  const inPlace = IN_PLACE[source.dtype];
  if (inPlace && source.hold && readsFiles() && hasNative("quantise")) {
    const held = source.hold(); // the engine reads the slices: JavaScript would keep each until its next garbage collection
    const slice = (first: number, count: number) => ({
      ...held,
      offset: held.offset + first * rowBytes,
      shape: [count, shape[1]],
      release() {},
    });
    try {
      return quantiseRows(shape, dtype, (first, count) => tensorFromFile({ ...slice(first, count), dtype: inPlace }, inPlace));
    } finally {
      held.release();
    }
  }
  let all: Uint8Array | undefined;
  const bytesOf = (first: number, count: number): Uint8Array => {
    const [begin, end] = [first * rowBytes, (first + count) * rowBytes];
    return source.part ? source.part(begin, end) : (all ??= source.read()).slice(begin, end);
  };
  return quantiseRows(shape, dtype, (first, count) => {
    const bytes = bytesOf(first, count);
    return toFloat32({ ...source, read: () => bytes });
  });
}

/** Every parameter with its name in the file, as float32 values on the JavaScript side; the inverse of `loadWeights`. */
export async function* weightValues(
  spec: unknown,
  params: unknown,
): AsyncGenerator<{ name: string; shape: number[]; values: Float32Array }> {
  for (const leaf of leaves(spec)) {
    const x = follow(params, leaf.path) as tf.Tensor;
    const values = await take(tf.tidy(() => widen(x).clone()));
    yield { name: leaf.spec.name, shape: leaf.spec.shape, values };
  }
}

/** Frees every tensor of a parameter tree. */
export function disposeParams(spec: unknown, params: unknown): void {
  for (const leaf of leaves(spec)) (follow(params, leaf.path) as tf.Tensor).dispose();
}

/** `count` copies of a spec, numbered: `repeat(12, (i) => blockSpec(`encoder.layers.${i}`))`. */
export const repeat = <T>(count: number, make: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => make(i));
