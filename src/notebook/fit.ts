/** Makes a figure small enough for a notebook: an output is stored in the file and sent to the browser at a limited rate. */
import type { Figure } from "../figures/figure";

/** Bytes of JSON that one figure may have. */
export const LIMIT = 800_000;

export type Fitted = { figure: Figure; bytes: number /** What was left out, in a sentence; undefined when nothing was. */; note?: string };
type Trace = Record<string, unknown>;
type Numbers = ArrayLike<unknown>;

/** Traces whose points stand for themselves, so that leaving some out keeps the picture; a mesh, say, would fall apart. */
const THINNABLE = new Set([
  "scatter",
  "scattergl",
  "scatter3d",
  "bar",
  "histogram",
  "histogram2d",
  "box",
  "violin",
  "heatmap",
  "contour",
  "surface",
  "image",
]);
/** Below this many points a trace is never thinned. */
const FEW = 200;

/**
 * The figure as plain JSON values, numbers to 7 digits (float32 has no more). Above `limit` bytes of JSON, long traces are thinned
 * (a line keeps the least and the greatest value of each stretch) and matrices averaged over blocks; `note` says what became of what.
 *
 * @throws RangeError when what makes it large cannot be thinned; the message names the size and the largest part.
 */
export function fit(figure: Figure, limit = LIMIT): Fitted {
  const before = estimate(figure);
  let keep = before < 4 * limit ? 1 : limit / before; // the estimate is rough
  for (let attempt = 0; attempt < 8; attempt++) {
    const data = keep === 1 ? figure.data : figure.data.map((trace) => thin(trace as Trace, keep));
    if (keep < 1 && estimate(data) > 20 * limit) break; // nothing in it can be thinned: do not write it out to see
    const plain = tidy({ data, layout: figure.layout }) as Figure;
    const bytes = JSON.stringify(plain).length;
    if (bytes <= limit) return { figure: plain, bytes, note: keep < 1 ? noteOf(figure, plain, before, limit) : undefined };
    keep *= Math.min(0.9, (0.9 * limit) / bytes);
  }
  throw new RangeError(tooLarge(figure, before, limit));
}

/** Bytes of JSON, about; a long array is judged by a sample. */
function estimate(value: unknown): number {
  if (typeof value === "string") return value.length + 3;
  if (typeof value === "number") return Number.isInteger(value) ? String(value).length + 1 : 10;
  if (typeof value !== "object" || value === null) return 6;
  if (!isArray(value)) return Object.entries(value).reduce((sum, [key, part]) => sum + key.length + 4 + estimate(part), 2);
  const step = Math.max(1, Math.floor(value.length / 200));
  let [sum, count] = [0, 0];
  for (let i = 0; i < value.length; i += step, count++) sum += estimate(value[i]);
  return count === 0 ? 2 : (sum / count) * value.length + 2;
}

const isArray = (value: unknown): value is Numbers => Array.isArray(value) || (ArrayBuffer.isView(value) && "length" in value);
const isMatrix = (value: unknown): value is ArrayLike<Numbers> => isArray(value) && value.length > 0 && isArray(value[0]);

/** Typed arrays as arrays, numbers to 7 digits. */
function tidy(value: unknown): unknown {
  if (typeof value === "number") return Number.isInteger(value) || !Number.isFinite(value) ? value : Number(value.toPrecision(7));
  if (typeof value !== "object" || value === null) return value;
  if (isArray(value)) return Array.from(value, tidy);
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, tidy(part)]));
}

function thin(trace: Trace, keep: number): Trace {
  if (!THINNABLE.has(String(trace.type ?? "scatter"))) return trace;
  return isMatrix(trace.z) ? thinMatrix(trace, trace.z, keep) : thinPoints(trace, keep);
}

/** Averages z over blocks; labels, texts and colours of the cells are those of the first cell of a block. */
function thinMatrix(trace: Trace, z: ArrayLike<Numbers>, keep: number): Trace {
  const [rows, columns] = [z.length, z[0]!.length];
  if (rows * columns <= FEW) return trace;
  const block = Math.ceil(1 / Math.sqrt(keep));
  const every = (list: Numbers) => Array.from({ length: Math.ceil(list.length / block) }, (_, i) => list[i * block]);
  const mean = (r: number, c: number): unknown => {
    if (typeof z[r]![c] !== "number") return z[r]![c];
    let [sum, count] = [0, 0];
    for (let i = r; i < Math.min(r + block, rows); i++)
      for (let j = c; j < Math.min(c + block, columns); j++, count++) sum += z[i]![j] as number;
    return sum / count;
  };
  const cells = {
    z: every(Array.from({ length: rows }, (_, r) => r)).map((r) =>
      every(Array.from({ length: columns }, (_, c) => c)).map((c) => mean(r as number, c as number)),
    ),
  };
  const others = Object.entries(trace).map(([key, value]) => {
    if (key !== "z" && isMatrix(value) && value.length === rows) return [key, every(value).map((row) => every(row as Numbers))];
    if ((key === "x" && isArray(value) && value.length === columns) || (key === "y" && isArray(value) && value.length === rows))
      return [key, every(value)];
    return [key, value];
  });
  return {
    ...Object.fromEntries(others),
    ...cells,
    ...(isArray(trace.x) ? {} : step(trace, "x", block)),
    ...(isArray(trace.y) ? {} : step(trace, "y", block)),
  };
}

/** Where the blocks stand on an axis that has no labels: cells are counted there. */
function step(trace: Trace, axis: "x" | "y", block: number): Trace {
  const [start, width] = [Number(trace[`${axis}0`] ?? 0), Number(trace[`d${axis}`] ?? 1)];
  return { [`${axis}0`]: start + ((block - 1) / 2) * width, [`d${axis}`]: width * block };
}

/** Leaves out points: every array of the trace that is as long as its longest loses the same ones. */
function thinPoints(trace: Trace, keep: number): Trace {
  const lengths = ["x", "y", "z", "text", "customdata"].map((key) => (isArray(trace[key]) ? (trace[key] as Numbers).length : 0));
  const count = Math.max(...lengths);
  if (count <= FEW) return trace;
  const chosen = chosenPoints(trace, count, Math.max(FEW / 2, Math.floor(count * keep)));
  const pick = (value: unknown): unknown => {
    if (isArray(value)) return value.length === count ? chosen.map((i) => value[i]) : value;
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, pick(part)]));
  };
  // Points without a place of their own stand at their index.
  const places = isArray(trace.y) && !isArray(trace.x) ? { x: chosen } : {};
  return { ...(pick(trace) as Trace), ...places };
}

/** Indices to keep, ascending: of a line the least and greatest y of each stretch, of anything else every so many. */
function chosenPoints(trace: Trace, count: number, wanted: number): number[] {
  const { y } = trace;
  const line = String(trace.mode ?? "lines").includes("lines") && isArray(y) && y.length === count && typeof y[0] === "number";
  if (!line) return Array.from({ length: wanted }, (_, i) => Math.floor((i * count) / wanted));
  const stretches = Math.max(1, Math.floor(wanted / 2));
  const chosen = new Set<number>([0, count - 1]);
  for (let s = 0; s < stretches; s++) {
    const [from, to] = [Math.floor((s * count) / stretches), Math.floor(((s + 1) * count) / stretches)];
    let [least, most] = [from, from];
    for (let i = from; i < to; i++) {
      if ((y[i] as number) < (y[least] as number)) least = i;
      if ((y[i] as number) > (y[most] as number)) most = i;
    }
    chosen.add(least).add(most);
  }
  return [...chosen].sort((a, b) => a - b);
}

/** Points or cells of all traces. */
const counted = ({ data }: Figure): number =>
  data.reduce((sum: number, trace) => {
    const { x, y, z } = trace as Trace;
    return sum + (isMatrix(z) ? z.length * z[0]!.length : Math.max(...[x, y].map((part) => (isArray(part) ? part.length : 0))));
  }, 0);

const readable = (bytes: number): string => (bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.round(bytes / 1e3)} kB`);
const grouped = (count: number): string => count.toLocaleString("en-US");

function noteOf(before: Figure, after: Figure, bytes: number, limit: number): string {
  return (
    `The figure was ${readable(bytes)} (${grouped(counted(before))} values) and an output may have ${readable(limit)}: ${grouped(counted(after))} values are drawn, ` +
    "averages of blocks in a matrix, lows and highs in a line."
  );
}

function tooLarge({ data, layout }: Figure, bytes: number, limit: number): string {
  const parts = [
    ...data.map((trace, i) => ({ name: `data[${i}] (${String((trace as Trace).type ?? "scatter")})`, bytes: estimate(trace) })),
    { name: "layout", bytes: estimate(layout) },
  ];
  const largest = parts.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  return (
    `show: the figure is ${readable(bytes)} as JSON, an output may have ${readable(limit)}, and it cannot be thinned enough. ` +
    `The largest part is ${largest.name} with ${readable(largest.bytes)}. Draw fewer traces or smaller pictures.`
  );
}
