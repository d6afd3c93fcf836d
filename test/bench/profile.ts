/** Where the time of our side goes, by native kernel and TensorFlow op: every call into the binding is timed. */
import { tf } from "vitrine/engine";

type Handle = { shape: number[]; dtype: number };
type Attribute = { name: string; value: unknown };
type Binding = {
  executeOp(name: string, attributes: Attribute[], inputs: number[], outputs: number): Handle[];
  /** Only with our binding: kernels of src/native. */
  runKernel?(name: string, inputs: number[], numbers: number[]): Handle[];
  runProgram?(names: string[], code: Float64Array): Handle[];
  createTensor(...args: unknown[]): number;
  tensorDataSync(id: number): unknown;
};

export type ProfileLine = {
  /** The op and its number format, e.g. "MatMul bfloat16"; a kernel of ours with what it gives, e.g. "native layerNorm bfloat16". */
  op: string;
  calls: number;
  seconds: number;
  /** The output shape that took most of it, and its seconds. */
  shape: string;
  shapeSeconds: number;
};
/** `seconds`: of all timed repetitions, JavaScript included; the lines: slowest first. */
export type Profile = { seconds: number; repetitions: number; lines: ProfileLine[] };

const FORMATS: Record<number, string> = { 1: "float32", 3: "int32", 4: "uint8", 10: "bool", 14: "bfloat16" };

type Entry = { calls: number; seconds: number; shapes: Map<string, number> };

/** Times every call from now on. `reset()` forgets what was measured (after the warm-up). */
export function startProfile(): { reset(): void; lines(): ProfileLine[] } {
  const entries = new Map<string, Entry>();
  const node = tf.backend() as unknown as { binding: Binding };
  const { binding } = node;
  const note = (op: string, shape: string, started: number) => {
    const seconds = (performance.now() - started) / 1000;
    const entry = entries.get(op) ?? { calls: 0, seconds: 0, shapes: new Map() };
    entry.calls += 1;
    entry.seconds += seconds;
    entry.shapes.set(shape, (entry.shapes.get(shape) ?? 0) + seconds);
    entries.set(op, entry);
  };
  const timed = {
    executeOp(name: string, attributes: Attribute[], inputs: number[], outputs: number) {
      const started = performance.now();
      const handles = binding.executeOp(name, attributes, inputs, outputs);
      note(opName(name, attributes), `[${handles[0]?.shape ?? ""}]`, started);
      return handles;
    },
    ...(binding.runKernel && {
      runKernel(name: string, inputs: number[], numbers: number[]) {
        const started = performance.now();
        const handles = binding.runKernel!(name, inputs, numbers);
        note(`native ${name} ${FORMATS[handles[0]?.dtype] ?? ""}`.trim(), `[${handles[0]?.shape ?? ""}]`, started);
        return handles;
      },
    }),
    ...(binding.runKernel && {
      runProgram(names: string[], code: Float64Array) {
        const started = performance.now();
        const handles = binding.runProgram!(names, code);
        note(`native program of ${names.length} kernels`, `[${handles[0]?.shape ?? ""}]`, started);
        return handles;
      },
    }),
    createTensor(shape: number[], ...rest: unknown[]) {
      const started = performance.now();
      const id = binding.createTensor(shape, ...rest);
      note("upload", `[${shape}]`, started);
      return id;
    },
    tensorDataSync(id: number) {
      const started = performance.now();
      const values = binding.tensorDataSync(id);
      note("download", "", started);
      return values;
    },
  };
  // The binding's own functions are read-only; an object that inherits the rest takes its place.
  node.binding = Object.create(binding, Object.fromEntries(Object.entries(timed).map(([name, value]) => [name, { value }]))) as Binding;
  return { reset: () => entries.clear(), lines: () => [...entries].map(toLine).sort((a, b) => b.seconds - a.seconds) };
}

function opName(name: string, attributes: Attribute[]): string {
  const code = (key: string) => FORMATS[attributes.find((a) => a.name === key)?.value as number] ?? "";
  return name === "Cast" ? `Cast ${code("SrcT")} to ${code("DstT")}` : `${name} ${code("T")}`.trim();
}

function toLine([op, { calls, seconds, shapes }]: [string, Entry]): ProfileLine {
  const [shape, shapeSeconds] = [...shapes].sort((a, b) => b[1] - a[1])[0];
  return { op, calls, seconds, shape, shapeSeconds };
}

/** The slowest `most` ops as a table: milliseconds a repetition, share, calls, and the shape that takes most. */
export function profileTable({ seconds, repetitions, lines }: Profile, most = 15): string[][] {
  const ms = (s: number) => ((1000 * s) / repetitions).toFixed(1);
  const share = (s: number) => `${((100 * s) / seconds).toFixed(1)} %`;
  const inOps = lines.reduce((sum, line) => sum + line.seconds, 0);
  const rest = lines.slice(most);
  const rows = lines
    .slice(0, most)
    .map((l) => [l.op, ms(l.seconds), share(l.seconds), String(Math.round(l.calls / repetitions)), `${l.shape} ${share(l.shapeSeconds)}`]);
  if (rest.length) {
    const restSeconds = rest.reduce((sum, line) => sum + line.seconds, 0);
    rows.push([
      `${rest.length} other ops`,
      ms(restSeconds),
      share(restSeconds),
      String(Math.round(rest.reduce((sum, l) => sum + l.calls, 0) / repetitions)),
      "",
    ]);
  }
  rows.push(["JavaScript", ms(seconds - inOps), share(seconds - inOps), "", ""], ["all", ms(seconds), "100 %", "", ""]);
  return [["op", "ms", "share", "calls", "output that takes most"], ...rows];
}
