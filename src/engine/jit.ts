/**
 * Record and replay. `jit(fn)` runs a function of tensors once under watch and makes one TensorFlow function of what it did, which is then called in place of it:
 * one call instead of hundreds, optimised as a whole, on request compiled by XLA. The path of GPUs and of small batches.
 */
import { takeApart } from "./containers";
import { isPacked } from "./frozen";
import { functionDef, type Node, outputName } from "./graph-def";
import type { NodeBackend } from "./node-backend";
import { type Captured, isRecording, Recording, recordingMode } from "./recording";
import { tf } from "./tf";

export type JitOptions = {
  /** What errors and messages call it; default the function's name. */
  name?: string;
  /** Compiles each recording with XLA, which takes seconds at its first call and can pay on a GPU; default false. */
  xla?: boolean;
  /** Recordings that are kept, one for each form of the arguments; the one unused for longest goes first. Default 8. */
  maxRecordings?: number;
  /** Is told of every recording after the first; default `console.warn`. */
  tell?: (message: string) => void;
};

/** What a recording consists of. */
export type RecordingInfo = {
  /** Shapes and dtypes of the arguments. */
  form: string;
  /** Ops that ran, and those of them that the results need. */
  recorded: number;
  nodes: number;
  /** Tensors and variables from outside. */
  captured: number;
  /** Of the function's definition. */
  bytes: number;
};

/** A recorded function: called like the one it was made of. */
export type Jitted<A extends unknown[], R> = {
  (...args: A): R;
  /** The recordings there are, the one used last at the end. */
  recordings(): RecordingInfo[];
  /** Frees all recordings and what they hold. A call after it is an error. */
  dispose(): void;
};

/** A function that TensorFlow holds. */
type Replay = { info: RecordingInfo; call(inputs: tf.Tensor[]): unknown; dispose(): void };

let count = 0;

/**
 * Records `fn` at the first call for each form (shapes and dtypes) of its arguments, and replays it from then on. Its results are those of the plain
 * function up to the last digits (TensorFlow may reorder sums), and the caller's to dispose. Gradients are recorded as a whole:
 * `jit((x) => tf.variableGrads(() => loss(x)))`.
 *
 * Tensors that `fn` finds outside are held as they are at the recording; variables are read again at every call. Everything else that it reads or does
 * besides its result (a counter, a log line) belongs to the recording alone. While recording, native kernels are off.
 *
 * @param fn takes and gives tensors, plain lists and objects of them (numbers and texts among the arguments are part of their form); not async
 * @throws on what a replay could not repeat, by name: random draws, values read back, changes of variables, tensors kept inside (`tf.keep`, a
 * recording tap), another `jit`; where the backend is not TensorFlow; when called under `tf.grad`
 * @example const step = jit((batch) => tf.variableGrads(() => loss(batch), adapter.variables)); const { value, grads } = step(batch);
 */
export function jit<A extends unknown[], R>(fn: (...args: A) => R, options: JitOptions = {}): Jitted<A, R> {
  const { name = fn.name || "fn", xla = false, maxRecordings = 8, tell = console.warn } = options;
  if (!Number.isInteger(maxRecordings) || maxRecordings < 1)
    throw new RangeError(`jit(${name}): maxRecordings is ${maxRecordings}, expected a whole number of at least 1`);
  const replays = new Map<string, Replay>();
  let disposed = false;

  const make = (args: A, form: string): Replay => {
    if (replays.size > 0) tell(grown(name, form, [...replays.keys()], maxRecordings));
    const replay = record(name, fn as (...args: unknown[]) => unknown, args, form, xla);
    if (replays.size === maxRecordings) {
      const [oldest] = replays.keys();
      replays.get(oldest!)!.dispose();
      replays.delete(oldest!);
    }
    return replay;
  };
  const jitted = (...args: A): R => {
    if (disposed) throw new Error(`jit(${name}): this recorded function was disposed; make another with jit()`);
    check(name);
    const { tensors, form } = takeApart(args, `jit(${name}): arguments`);
    const key = [form, recordingMode()].join(" ").trim();
    const replay = replays.get(key) ?? make(args, key);
    replays.delete(key);
    replays.set(key, replay); // the last is the one used last
    return replay.call(tensors) as R;
  };
  return Object.assign(jitted, {
    recordings: () => [...replays.values()].map((replay) => replay.info),
    dispose() {
      disposed = true;
      for (const replay of replays.values()) replay.dispose();
      replays.clear();
    },
  });
}

function grown(name: string, form: string, known: string[], most: number): string {
  const number = known.length < most ? `${known.length + 1} of at most ${most}` : `in place of ${known[0]}`;
  return `jit(${name}): recording again for ${form} (${number}); arguments of few different shapes are faster`;
}

function check(name: string): void {
  if (isRecording()) throw new Error(`jit(${name}): a recorded function cannot run inside of another; call the plain function there`);
  if (tf.getBackend() !== "tensorflow" || !backend().binding.addFunction)
    throw new Error(
      `jit(${name}): recording needs the TensorFlow backend with the workbench's own binding, ${tf.getBackend()} is in use; ` +
        "call the plain function, or see `npm run doctor`",
    );
  if ((tf.engine() as unknown as { isTapeOn(): boolean }).isTapeOn())
    throw new Error(
      `jit(${name}): gradients do not reach into a recorded function; record the gradient as a whole: jit(() => tf.variableGrads(…))`,
    );
}

const backend = (): NodeBackend => tf.backend() as unknown as NodeBackend;

/** Runs the function once and adds what it did to TensorFlow. */
function record(name: string, fn: (...args: unknown[]) => unknown, args: unknown[], form: string, xla: boolean): Replay {
  const node = backend();
  const { tensors, rebuild } = takeApart(args, `jit(${name}): arguments`);
  const packed = tensors.findIndex(isPacked);
  if (packed >= 0)
    throw new Error(`jit(${name}): tensor ${packed + 1} of the arguments is a packed frozen weight; let the function find it outside`);
  const before = tf.memory().numTensors;
  // Tensors of the recording's own: one that is passed twice, or is captured too, would otherwise be taken for the other.
  const own = tensors.map((x) => onHandleOfItsOwn(node, x));
  const inputs = node.getInputTensorIds(own).map((id, i) => ({ id, dtype: dtypeOf(node, own[i]!) }));
  const recording = new Recording(name, node, inputs);
  let made: tf.Tensor[] = [];
  try {
    const result = recording.run(() => tf.tidy(() => synchronous(name, fn(...(rebuild(own) as unknown[])))));
    const parts = takeApart(result, `jit(${name}): the result`);
    made = [...new Set(parts.tensors)].filter((x) => recording.isNew(x));
    if (parts.tensors.length === 0) throw new Error(`jit(${name}): the function gives back no tensor; there is nothing to replay`);
    const kept = tf.memory().numTensors - before - made.length - own.filter((x) => !x.isDisposed).length - recording.held();
    if (kept > 0) throw keeps(name, kept);
    const ids = recording.run(() => node.getInputTensorIds(parts.tensors));
    const outputs = parts.tensors.map((x, i) => ({ id: ids[i]!, dtype: dtypeOf(node, x) }));
    return define({ name, form, node, recording, inputs, outputs, rebuild: parts.rebuild, xla });
  } catch (error) {
    recording.release();
    throw error;
  } finally {
    tf.dispose([...made, ...own.filter((x) => !x.isDisposed)]);
  }
}

const dtypeOf = (node: NodeBackend, x: tf.Tensor): number => node.tensorMap.get(x.dataId).dtype;

function onHandleOfItsOwn(node: NodeBackend, x: tf.Tensor): tf.Tensor {
  const [id] = node.getInputTensorIds([x]);
  const attributes = [{ name: "T", type: node.binding.TF_ATTR_TYPE, value: dtypeOf(node, x) }];
  return node.createOutputTensor(node.binding.executeOp("Identity", attributes, [id!], 1)[0]!);
}

function synchronous(name: string, result: unknown): tf.TensorContainer {
  if (!(result instanceof Promise)) return result as tf.TensorContainer;
  result.catch(() => {}); // what it still does is nobody's any more
  throw new TypeError(`jit(${name}): the function is async; only one that is done when it returns can be recorded`);
}

const keeps = (name: string, kept: number): Error =>
  new Error(
    `jit(${name}): the function keeps ${kept} tensor${kept > 1 ? "s" : ""} besides its result (tf.keep, a tap that records, a cache), ` +
      "which a replay would not renew; give them back with the result, or make them before the first call",
  );

type Port = { id: number; dtype: number };

/** The recording as a function of TensorFlow. */
function define(of: {
  name: string;
  form: string;
  node: NodeBackend;
  recording: Recording;
  inputs: Port[];
  outputs: Port[];
  rebuild: (tensors: readonly tf.Tensor[]) => unknown;
  xla: boolean;
}): Replay {
  const { name, node, recording, inputs, outputs } = of;
  const needed = recording.needed(outputs.map(({ id }) => id));
  const captured = [...recording.captured.values()];
  const graph = new Graph(recording, inputs);
  const nodes = needed.map((i) => graph.node(i));
  const results = outputs.map(({ id, dtype }, i) => ({ name: `y${i}`, dtype, from: graph.reference(id) }));
  const args = [...inputs.map(({ dtype }, i) => ({ name: `x${i}`, dtype })), ...captured.map((one, i) => ({ name: `w${i}`, dtype: dtypeOf(node, tensorOf(name, one)) }))]; // biome-ignore format: one line
  const title = `vitrine_jit_${++count}`;
  const bytes = functionDef({ name: title, arguments: args, nodes: [...graph.constants.values(), ...nodes], results, xla: of.xla });
  node.binding.addFunction!(bytes);
  return {
    info: { form: of.form, recorded: recording.steps.length, nodes: nodes.length, captured: captured.length, bytes: bytes.length },
    call(given) {
      const ids = node.getInputTensorIds([...given, ...captured.map((one) => tensorOf(name, one))]);
      try {
        return of.rebuild(node.binding.executeOp(title, [], ids, outputs.length).map((handle) => node.createOutputTensor(handle)));
      } catch (error) {
        const advice = of.xla ? "; XLA compiles not every op: try without { xla: true }" : "";
        throw new Error(`jit(${name}): TensorFlow could not run the recording${advice}: ${(error as Error).message}`, { cause: error });
      }
    },
    dispose() {
      node.binding.removeFunction(title);
      recording.release();
    },
  };
}

/** What a captured tensor is at this moment. */
function tensorOf(name: string, captured: Captured): tf.Tensor {
  if ("held" in captured) return captured.held;
  if (captured.variable.isDisposed)
    throw new Error(`jit(${name}): the variable "${captured.variable.name}", which was recorded, is disposed; make another with jit()`);
  return captured.variable;
}

/** The nodes of a function, by the handles that they had at the recording. */
class Graph {
  readonly constants = new Map<number, Node>();
  private readonly names = new Map<number, string>();

  constructor(
    private readonly recording: Recording,
    inputs: Port[],
  ) {
    [...recording.captured.keys()].forEach((id, i) => this.names.set(id, `w${i}`));
    inputs.forEach(({ id }, i) => this.names.set(id, `x${i}`));
  }

  node(i: number): Node {
    const { op, attributes, inputs } = this.recording.steps[i]!;
    return { name: `n${i}`, op, inputs: inputs.map((id) => this.reference(id)), attributes };
  }

  reference(id: number): string {
    const made = this.recording.made.get(id);
    if (made) {
      const { op, attributes } = this.recording.steps[made[0]]!;
      return outputName(`n${made[0]}`, this.recording.definitions.get(op)!, attributes, made[1]);
    }
    return this.names.get(id) ?? this.constant(id);
  }

  private constant(id: number): string {
    const name = `c${id}`;
    const constant = this.recording.constants.get(id)!;
    this.constants.set(id, { name, op: "Const", inputs: [], attributes: [], constant });
    return `${name}:output:0`;
  }
}
