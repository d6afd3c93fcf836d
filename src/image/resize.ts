/** Resizing exactly as Pillow does it for 8-bit pictures (`ImagingResample`), because checkpoints were trained on that. */
import type { Picture } from "./picture";

/** How far a filter reaches (in pixels of the smaller picture) and its weight at a distance. */
type Kernel = { support: number; weight: (x: number) => number };

const sinc = (x: number): number => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

const KERNELS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: { support: 1, weight: (x) => hamming(Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
} satisfies Record<string, Kernel>;

/** Keys' cubic with a = -0.5 (1981), for x >= 0. */
function cubic(x: number): number {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** Hamming's window, for x >= 0, with 0.54 and 0.46 in the single precision that Pillow writes them in. */
function hamming(x: number): number {
  if (x === 0) return 1;
  return x < 1 ? sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(x * Math.PI)) : 0;
}

/** The names that `resize()` knows. */
export type Filter = keyof typeof KERNELS | "nearest";

/** Which pass comes first where both are needed: as Pillow 13 decides, or always the horizontal one. */
export type PassOrder = "pillow" | "rows-first";

/** A part of the resized picture, in its pixels. */
export type Window = { left: number; top: number; width: number; height: number };

/** Weights are whole numbers of 22 bits after the point: 32 bits less 8 for the pixel and 2 for overshoot. */
const PRECISION = 22;

/** Each output position sums `taps` weights, `weights[i * taps ..]`, over the input from `first[i]` on, `count[i]` of them. */
type Weights = { taps: number; first: Int32Array; count: Int32Array; weights: Float64Array };

const cache = new Map<string, Weights>();
const CACHED = 64;

/** The weights of output positions [from, from + length) of an edge of `input` pixels resized to `output`. */
function weightsFor(input: number, output: number, filter: Exclude<Filter, "nearest">, from: number, length: number): Weights {
  const key = `${filter} ${input} ${output} ${from} ${length}`;
  const known = cache.get(key);
  if (known) return known;
  const made = makeWeights(input, output, KERNELS[filter], from, length);
  if (cache.size >= CACHED) cache.delete(cache.keys().next().value as string); // the oldest
  cache.set(key, made);
  return made;
}

function makeWeights(input: number, output: number, kernel: Kernel, from: number, length: number): Weights {
  const scale = input / output;
  const stretch = Math.max(scale, 1); // a shrinking filter covers all the pixels it replaces
  const support = kernel.support * stretch;
  const taps = Math.min(Math.ceil(support) * 2 + 1, input);
  const made = { taps, first: new Int32Array(length), count: new Int32Array(length), weights: new Float64Array(length * taps) };
  const exact = new Float64Array(taps);
  for (let i = 0; i < length; i++) {
    const center = (from + i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.trunc(center + support + 0.5), input) - first;
    let sum = 0;
    for (let x = 0; x < count; x++) {
      exact[x] = kernel.weight((x + first - center + 0.5) * (1 / stretch));
      sum += exact[x];
    }
    for (let x = 0; x < count; x++) {
      const fixed = (sum === 0 ? exact[x] : exact[x] / sum) * 2 ** PRECISION;
      made.weights[i * taps + x] = Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
    made.first[i] = first;
    made.count[i] = count;
  }
  return made;
}

const HALF = 1 << (PRECISION - 1);

/** Rows and columns of a picture in memory. */
type Raster = { width: number; data: Uint8Array };

// Both passes sum in double precision, which is exact here (below 2^53) and faster in JavaScript than 32-bit integers; the output arrays clamp to
// 0..255. They take what one weight multiplies together: the three colours of a pixel, in two rows at a time where the pass goes along rows.

/** Horizontal pass over rows [top, top + rows). `by.first` counts from column `left`. -> [rows, outputs, 3] */
function resizeRows(raster: Raster, by: Weights, top: number, rows: number, left: number): Raster {
  const outputs = by.first.length;
  const out = new Uint8ClampedArray(rows * outputs * 3);
  const start = (y: number): number => ((top + y) * raster.width - left) * 3;
  for (let y = 0; y + 1 < rows; y += 2) resizeTwoRows(raster.data, by, start(y), raster.width * 3, out, y * outputs * 3);
  const last = rows - 1;
  if (rows % 2) resizeTwoRows(raster.data, by, start(last), 0, out, last * outputs * 3, 0); // the odd one, with itself
  return { width: outputs, data: plain(out) };
}

/** The row that starts at `row` and the one `pitch` numbers on, to out[o ..] and `gap` numbers on. */
function resizeTwoRows(data: Uint8Array, by: Weights, row: number, pitch: number, out: Uint8ClampedArray, o: number, gap?: number): void {
  const { taps, first, count, weights } = by;
  const next = gap ?? first.length * 3;
  for (let x = 0; x < first.length; x++, o += 3) {
    let r = HALF;
    let g = HALF;
    let b = HALF;
    let r2 = HALF;
    let g2 = HALF;
    let b2 = HALF;
    let i = row + first[x] * 3;
    let j = i + pitch;
    const end = x * taps + count[x];
    for (let k = x * taps; k < end; k++, i += 3, j += 3) {
      const w = weights[k];
      r += data[i] * w;
      g += data[i + 1] * w;
      b += data[i + 2] * w;
      r2 += data[j] * w;
      g2 += data[j + 1] * w;
      b2 += data[j + 2] * w;
    }
    out[o] = r >> PRECISION;
    out[o + 1] = g >> PRECISION;
    out[o + 2] = b >> PRECISION;
    out[o + next] = r2 >> PRECISION;
    out[o + next + 1] = g2 >> PRECISION;
    out[o + next + 2] = b2 >> PRECISION;
  }
}

/** Vertical pass over columns [left, left + columns). `by.first` counts from row `top`. -> [outputs, columns, 3] */
function resizeColumns({ width, data }: Raster, by: Weights, left: number, columns: number, top: number): Raster {
  const { taps, first, count, weights } = by;
  const [stride, pitch] = [columns * 3, width * 3];
  const out = new Uint8ClampedArray(first.length * stride);
  for (let y = 0, o = 0; y < first.length; y++) {
    const row = ((first[y] - top) * width + left) * 3;
    const end = y * taps + count[y];
    for (let x = 0; x < stride; x += 3, o += 3) {
      let r = HALF;
      let g = HALF;
      let b = HALF;
      for (let k = y * taps, i = row + x; k < end; k++, i += pitch) {
        const w = weights[k];
        r += data[i] * w;
        g += data[i + 1] * w;
        b += data[i + 2] * w;
      }
      out[o] = r >> PRECISION;
      out[o + 1] = g >> PRECISION;
      out[o + 2] = b >> PRECISION;
    }
  }
  return { width: columns, data: plain(out) };
}

/** The same bytes, not clamping. */
const plain = (data: Uint8ClampedArray): Uint8Array => new Uint8Array(data.buffer);

/** The stretch of input that all outputs together look at: [start, start + length). */
function reach({ first, count }: Weights): [start: number, length: number] {
  const last = first.length - 1;
  return [first[0], first[last] + count[last] - first[0]];
}

/** Which input position each output position takes; the sum is kept running, and so rounded, as Pillow does. */
function nearestPositions(input: number, output: number, from: number, length: number): Int32Array {
  const step = input / output;
  const positions = new Int32Array(length);
  let at = step * 0.5;
  for (let i = 0; i < from; i++) at += step;
  for (let i = 0; i < length; i++, at += step) positions[i] = Math.min(Math.trunc(at), input - 1);
  return positions;
}

function resizeNearest(picture: Picture, width: number, height: number, window: Window): Picture {
  const columns = nearestPositions(picture.width, width, window.left, window.width);
  const rows = nearestPositions(picture.height, height, window.top, window.height);
  const data = new Uint8Array(window.width * window.height * 3);
  let o = 0;
  for (const y of rows)
    for (const x of columns) {
      const i = (y * picture.width + x) * 3;
      data[o++] = picture.data[i];
      data[o++] = picture.data[i + 1];
      data[o++] = picture.data[i + 2];
    }
  return { width: window.width, height: window.height, data };
}

/** Columns [left, left + width) and rows [top, top + rows) as they are. */
function cut({ width, data }: Picture, part: Window): Raster {
  const out = new Uint8Array(part.width * part.height * 3);
  for (let y = 0; y < part.height; y++) {
    const start = ((part.top + y) * width + part.left) * 3;
    out.set(data.subarray(start, start + part.width * 3), y * part.width * 3);
  }
  return { width: part.width, data: out };
}

/** Throws unless the size is one a picture can have and the window lies inside it. */
function checkSize(width: number, height: number, window: Window): void {
  const whole = [width, height, window.width, window.height].every((n) => Number.isSafeInteger(n) && n > 0);
  const inside = window.left >= 0 && window.top >= 0 && window.left + window.width <= width && window.top + window.height <= height;
  if (!whole || !inside || !Number.isInteger(window.left) || !Number.isInteger(window.top))
    throw new RangeError(
      `resize: width ${width}, height ${height}, window ${JSON.stringify(window)}; ` +
        "expected whole numbers above 0, and a window inside the new picture",
    );
}

/**
 * Resizes a picture, byte for byte as `Image.resize` of Pillow 13: 8 bits between the two passes, filters widened when
 * shrinking ("bicubic" has a = -0.5, "lanczos" three lobes). The vertical pass comes first where the height loses more
 * than twice as many pixels as the width, found by experiment; Pillow before 13 always began with the horizontal one,
 * which rounds a level or so differently (7 levels where bicubic overshoots and is cut off in between): that is `order` "rows-first", and
 * what torchvision does, within one level, to tensors of bytes. `window` keeps only that part of the new picture, at the cost of that part.
 */
export function resize(
  picture: Picture,
  width: number,
  height: number,
  filter: Filter = "bicubic",
  window: Window = { left: 0, top: 0, width, height },
  order: PassOrder = "pillow",
): Picture {
  checkSize(width, height, window);
  if (filter === "nearest") return resizeNearest(picture, width, height, window);
  if (!Object.hasOwn(KERNELS, filter))
    throw new TypeError(`resize: filter ${JSON.stringify(filter)}; expected nearest, ${Object.keys(KERNELS).join(", ")}`);
  const across = width === picture.width ? null : weightsFor(picture.width, width, filter, window.left, window.width);
  const down = height === picture.height ? null : weightsFor(picture.height, height, filter, window.top, window.height);
  const lost = picture.height - height;
  const downFirst = order === "pillow" && across && down && lost > 0 && lost > 2 * (picture.width - width);

  const [left, columns] = across ? reach(across) : [window.left, window.width];
  const [top, rows] = down ? reach(down) : [window.top, window.height];
  let out: Raster;
  if (downFirst) {
    out = resizeRows(resizeColumns(picture, down, left, columns, 0), across, 0, window.height, left);
  } else {
    out = across ? resizeRows(picture, across, top, rows, 0) : cut(picture, { left, top, width: columns, height: rows });
    if (down) out = resizeColumns(out, down, 0, window.width, top);
  }
  return { width: window.width, height: window.height, data: out.data };
}
