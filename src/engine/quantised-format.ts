/**
 * Quantised weights as bytes: where their parts stand, and the formulas in plain JavaScript and tfjs that the kernels of src/native/quantised.cc
 * are tested against. The formats are described in src/native/quantised.h.
 */
import { tf } from "./tf";

/** int8 with a bfloat16 scale for 64 numbers of a row; NF4 with a float32 scale for 64 numbers; NF4 whose scales are quantised again. */
export type Format = "int8" | "nf4" | "nf4-double";
/** A format's number for the kernels is its place. */
export const FORMATS: readonly Format[] = ["int8", "nf4", "nf4-double"];

/** Numbers that share a scale, scales that share a scale, and entries of the map of these. */
export const [GROUP, NESTED, MAP] = [64, 256, 256];

/** NormalFloat4's levels (Dettmers et al. 2023, "QLoRA", appendix E), float32. */
export const LEVELS: Float32Array = Float32Array.of(
  ...[
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
  ],
  ...[0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941],
  ...[0.7229568362236023, 1],
);

/**
 * The signed 8-bit map for scales (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.2): 256 numbers in order. Each
 * step is rounded to float32 as PyTorch's linspace does, so that the numbers are bitsandbytes' to the last bit.
 */
export function dynamicMap(): Float32Array {
  const { fround } = Math;
  const values = [0, 1];
  for (let exponent = 0; exponent < 7; exponent++) {
    const count = 2 ** exponent;
    const step = fround(fround(1 - fround(0.1)) / count);
    const edge = (i: number) => fround(i < (count + 1) >> 1 ? fround(0.1) + step * i : 1 - step * (count - i));
    for (let i = 0; i < count; i++) {
      const value = fround(fround(10 ** (exponent - 6)) * fround(fround(edge(i) + edge(i + 1)) / 2));
      values.push(value, -value);
    }
  }
  return Float32Array.from(values).sort();
}

const roundUp = (x: number, to: number): number => Math.ceil(x / to) * to;

/** Sizes and places of a weight's parts, in bytes. */
export type Layout = {
  format: Format;
  out: number;
  in: number;
  /** Groups that have a scale. */
  groups: number;
  scales: number;
  nested: number;
  map: number;
  offset: number;
  bytes: number;
};

export function layoutOf(format: Format, [out, inner]: readonly [number, number]): Layout {
  const size = out * inner;
  const int8 = format === "int8";
  const groups = int8 ? out * Math.ceil(inner / GROUP) : Math.ceil(size / GROUP);
  const scales = roundUp(int8 ? groups * GROUP : Math.ceil(size / 2), 64);
  const nested = scales + roundUp(groups * { int8: 2, nf4: 4, "nf4-double": 1 }[format], 64);
  const map = nested + roundUp(Math.ceil(groups / NESTED) * 4, 64);
  const offset = map + MAP * 4;
  return { format, out, in: inner, groups, scales, nested, map, offset, bytes: format === "nf4-double" ? offset + 64 : nested };
}

/** float32 -> bfloat16 bits, to the nearest, ties to even. */
function halfOf(x: number): number {
  const bits = new Uint32Array(Float32Array.of(x).buffer)[0]!;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

const wideOf = (half: number): number => new Float32Array(Uint32Array.of(half << 16).buffer)[0]!;

function largestOf(values: Float32Array, begin: number, end: number, what: string): number {
  let largest = 0;
  for (let i = begin; i < end; i++) {
    if (!Number.isFinite(values[i])) throw new RangeError(`quantise: the ${what} holds NaN or infinity (number ${i}): it has no scale`);
    largest = Math.max(largest, Math.abs(values[i]!));
  }
  return largest;
}

/** Whole number nearest to x, ties to even. */
const nearest = (x: number): number => Math.fround(Math.fround(x + 12582912) - 12582912);

/** The index of the interval between sorted edges in which x falls; an edge belongs to the lower one. */
function interval(edges: Float32Array, x: number): number {
  let [low, high] = [0, edges.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle]! < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

const edgesOf = (values: Float32Array): Float32Array =>
  Float32Array.from({ length: values.length - 1 }, (_, i) => Math.fround(values[i]! + values[i + 1]!) / 2);

/** A weight's bytes in a format. values: [out, in], flat in C order. @throws RangeError where one is not finite */
export function quantiseValues(values: Float32Array, shape: readonly [number, number], format: Format): Uint8Array {
  if (format === "int8") return quantiseInt8(values, shape);
  const plain = quantiseNf4(values, shape);
  return format === "nf4" ? plain : quantiseScales(plain, shape);
}

function quantiseInt8(values: Float32Array, shape: readonly [number, number]): Uint8Array {
  const { bytes, scales, groups, in: inner } = layoutOf("int8", shape);
  const to = new Uint8Array(bytes);
  const halves = new Uint16Array(to.buffer, scales, groups);
  const ofRow = Math.ceil(inner / GROUP);
  for (let group = 0; group < groups; group++) {
    const begin = Math.floor(group / ofRow) * inner + (group % ofRow) * GROUP;
    const end = Math.min(begin + GROUP, (Math.floor(group / ofRow) + 1) * inner);
    const half = halfOf(Math.fround(largestOf(values, begin, end, "weight") / 127));
    const scale = wideOf(half);
    if (!(scale > Math.fround(1e-30))) continue; // its inverse would be no number; code and scale are 0
    const inverse = Math.fround(1 / scale);
    for (let i = begin; i < end; i++)
      to[group * GROUP + i - begin] = Math.max(-127, Math.min(127, nearest(Math.fround(values[i]! * inverse))));
    halves[group] = half;
  }
  return to;
}

function quantiseNf4(values: Float32Array, shape: readonly [number, number]): Uint8Array {
  const { bytes, scales, groups } = layoutOf("nf4", shape);
  const to = new Uint8Array(bytes);
  const absmax = new Float32Array(to.buffer, scales, groups);
  const edges = edgesOf(LEVELS);
  for (let group = 0; group < groups; group++) {
    const [begin, end] = [group * GROUP, Math.min((group + 1) * GROUP, values.length)];
    absmax[group] = largestOf(values, begin, end, "weight");
    const inverse = Math.fround(1 / (absmax[group] || 1));
    // Where the count is odd, the last half byte is the code of 0, as in bitsandbytes.
    const code = (i: number) => (i < end ? interval(edges, Math.fround(values[i]! * inverse)) : 7);
    for (let i = begin; i < end; i += 2) to[i / 2] = (code(i) << 4) | code(i + 1);
  }
  return to;
}

/** NF4 with its scales quantised again. bytes: of the format "nf4" */
export function quantiseScales(bytes: Uint8Array, shape: readonly [number, number], map: Float32Array = dynamicMap()): Uint8Array {
  const [plain, layout] = [layoutOf("nf4", shape), layoutOf("nf4-double", shape)];
  const absmax = new Float32Array(bytes.buffer, bytes.byteOffset + plain.scales, plain.groups);
  const codes = new Uint8Array(layout.groups);
  const nested = new Float32Array(Math.ceil(layout.groups / NESTED));
  const offset = Math.fround(absmax.reduce((sum, x) => sum + x, 0) / (absmax.length || 1));
  const edges = edgesOf(map);
  for (let block = 0; block < nested.length; block++) {
    const centred = absmax.subarray(block * NESTED, (block + 1) * NESTED).map((x) => x - offset);
    nested[block] = largestOf(centred, 0, centred.length, "scales");
    const inverse = Math.fround(1 / (nested[block] || 1));
    centred.forEach((x, i) => (codes[block * NESTED + i] = interval(edges, Math.fround(x * inverse))));
  }
  return nf4Bytes(shape, bytes.subarray(0, Math.ceil((layout.out * layout.in) / 2)), { codes, largest: nested, map, offset });
}

/** NF4's scales: one for each group, or 8-bit codes for them. */
export type Nf4Scales = Float32Array | { codes: Uint8Array; largest: Float32Array; map: Float32Array; offset: number };

/** The bytes of an NF4 weight from its parts. codes: two to a byte; scales: plain gives the format "nf4", else "nf4-double" */
export function nf4Bytes(shape: readonly [number, number], codes: Uint8Array, scales: Nf4Scales): Uint8Array {
  const plain = scales instanceof Float32Array;
  const layout = layoutOf(plain ? "nf4" : "nf4-double", shape);
  const to = new Uint8Array(layout.bytes);
  to.set(codes);
  if (plain) new Float32Array(to.buffer, layout.scales, layout.groups).set(scales);
  else {
    to.set(scales.codes, layout.scales);
    new Float32Array(to.buffer, layout.nested).set(scales.largest);
    new Float32Array(to.buffer, layout.map).set(scales.map);
    new Float32Array(to.buffer, layout.offset).set([scales.offset]);
  }
  return to;
}

/** The numbers that a weight's bytes stand for, flat in C order. */
export function dequantiseValues(bytes: Uint8Array, { format, out, in: inner, groups, ...at }: Layout): Float32Array {
  const values = new Float32Array(out * inner);
  const floats = (begin: number, count: number) => new Float32Array(bytes.buffer, bytes.byteOffset + begin, count);
  if (format === "int8") {
    const [codes, scales] = [new Int8Array(bytes.buffer, bytes.byteOffset), new Uint16Array(bytes.buffer, bytes.byteOffset + at.scales)];
    const ofRow = Math.ceil(inner / GROUP);
    for (let row = 0; row < out; row++)
      for (let group = row * ofRow; group < (row + 1) * ofRow; group++) {
        const [scale, first] = [wideOf(scales[group]!), (group - row * ofRow) * GROUP];
        for (let i = first; i < Math.min(inner, first + GROUP); i++) values[row * inner + i] = codes[group * GROUP + i - first]! * scale;
      }
    return values;
  }
  const nested = format === "nf4" ? undefined : floats(at.nested, Math.ceil(groups / NESTED));
  const scales = nested
    ? Float32Array.from(bytes.subarray(at.scales, at.scales + groups), (code, i) => {
        return Math.fround(floats(at.map, MAP)[code]! * nested[Math.floor(i / NESTED)]!) + floats(at.offset, 1)[0]!;
      })
    : floats(at.scales, groups);
  for (let i = 0; i < values.length; i++)
    values[i] = LEVELS[i % 2 ? bytes[i >> 1]! & 15 : bytes[i >> 1]! >> 4]! * scales[Math.floor(i / GROUP)]!;
  return values;
}

/** Bits of float32 as the numbers that they stand for, on any backend: int32 [n] -> float32 [n]. */
function fromBits(bits: tf.Tensor1D): tf.Tensor1D {
  const whole = (x: number) => tf.scalar(x, "int32");
  const negative = bits.less(whole(0));
  const positive = tf.where(negative, bits.sub(whole(-(2 ** 31))), bits);
  const exponent = positive.floorDiv(whole(2 ** 23)) as tf.Tensor1D;
  const fraction = positive.sub(exponent.mul(whole(2 ** 23))).cast("float32");
  const power = tf.tensor1d(Float32Array.from({ length: 256 }, (_, e) => 2 ** (Math.max(1, e) - 150)));
  const size = fraction
    .add(
      exponent
        .greater(whole(0))
        .cast("float32")
        .mul(2 ** 23),
    )
    .mul(power.gather(exponent));
  return tf.where(negative, size.neg(), size) as tf.Tensor1D;
}

/** The four bytes of each word, from 0 to 255. int32 [n] -> int32 [4 n] */
function bytesOf(words: tf.Tensor1D): tf.Tensor1D {
  const base = tf.scalar(256, "int32");
  const parts: tf.Tensor[] = [];
  let rest: tf.Tensor = words;
  for (let i = 0; i < 4; i++) {
    const above = rest.floorDiv(base);
    parts.push(rest.sub(above.mul(base)));
    rest = above;
  }
  return tf.stack(parts, 1).flatten() as tf.Tensor1D;
}

/** The same in plain tfjs, for a device from which nothing is read back; its division of int32 must be exact. words: its bytes as int32 -> float32 [out, in] */
export function dequantiseFormula(words: tf.Tensor1D, layout: Layout): tf.Tensor2D {
  const { format, out, in: inner, groups, scales, nested, map, offset } = layout;
  const part = (begin: number, bytes: number) => words.slice(begin / 4, Math.ceil(bytes / 4));
  if (out * inner === 0) return tf.zeros([out, inner]);
  if (format === "int8") {
    const codes = bytesOf(part(0, groups * GROUP)).cast("float32");
    const signed = codes.sub(codes.greater(127).cast("float32").mul(256)).reshape([groups, GROUP]);
    const [low, high] = tf.unstack(bytesOf(part(scales, 2 * groups)).reshape([-1, 2]), 1);
    const bits = high!.mul(tf.scalar(256, "int32")).add(low!).mul(tf.scalar(65536, "int32")) as tf.Tensor1D;
    const scale = fromBits(bits).slice(0, groups).reshape([groups, 1]);
    return signed.mul(scale).reshape([out, -1]).slice([0, 0], [out, inner]) as tf.Tensor2D;
  }
  const bytes = bytesOf(part(0, groups * (GROUP / 2)));
  const upper = bytes.floorDiv(tf.scalar(16, "int32"));
  const codes = tf.stack([upper, bytes.sub(upper.mul(tf.scalar(16, "int32")))], 1).flatten() as tf.Tensor1D;
  const level = tf
    .tensor1d(LEVELS)
    .gather(codes.slice(0, groups * GROUP))
    .reshape([groups, GROUP]);
  const absmax = format === "nf4" ? fromBits(part(scales, 4 * groups)) : nestedScales();
  return level
    .mul(absmax.reshape([groups, 1]))
    .flatten()
    .slice(0, out * inner)
    .reshape([out, inner]) as tf.Tensor2D;

  function nestedScales(): tf.Tensor {
    const blocks = Math.ceil(groups / NESTED);
    const value = fromBits(part(map, 4 * MAP)).gather(bytesOf(part(scales, groups)).slice(0, groups));
    const largest = fromBits(part(nested, 4 * blocks))
      .reshape([blocks, 1])
      .tile([1, NESTED])
      .flatten()
      .slice(0, groups);
    return value.mul(largest).add(fromBits(part(offset, 4)));
  }
}
