/**
 * One recording: what TensorFlow's backend of tfjs does while a function of tensors runs once. `jit.ts` makes a TensorFlow function of it. While one is
 * under way native kernels are off (they are no ops of TensorFlow: the formulas run), and what a replay could not repeat is refused by name.
 */
import { type Attribute, type Constant, type OpDefinition, readOpList, withInputTypes } from "./graph-def";
import type { Binding, Handle, NodeBackend } from "./node-backend";
import { Patches } from "./patches";
import { tf } from "./tf";

/** tfjs's engine, with what its types keep to themselves. */
type Engine = {
  registeredVariables: { [name: string]: tf.Variable };
  startScope(name?: string): void;
  runKernel(name: string, inputs: object, attributes?: object): unknown;
  makeVariable(...args: unknown[]): tf.Variable;
};

const engineOf = () => tf.engine() as unknown as Engine;

/** tfjs's functions that draw random numbers on the host, where a recording would see only one draw. */
const RANDOM = new Set(
  "rand randomUniform randomUniformInt randomNormal randomStandardNormal randomGamma truncatedNormal multinomial".split(" "),
);

/** Ops whose result's shape depends on the values they get; what follows them was recorded for one shape. */
const SHAPE_FROM_VALUES = new Set("Where Unique UniqueV2 ListDiff NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5".split(" "));

/** Bytes of host values that one recording may carry. */
const CONSTANT_BYTES = 16 << 20;

/** One op that ran. */
export type Step = { op: string; attributes: Attribute[]; inputs: number[]; outputs: Handle[] };

/** What a function found outside of itself: a variable, read again at every call, or a tensor, held by the recording. */
export type Captured = { variable: tf.Variable } | { held: tf.Tensor };

let active: Recording | undefined;

/** Whether a function is being recorded. */
export const isRecording = (): boolean => active !== undefined;

const modes: (() => unknown)[] = [];

/** Has recordings depend on a state that ops read besides their inputs, such as `autocast`: another value of it, another recording. */
export function recordingsDependOn(read: () => unknown): void {
  modes.push(read);
}

/** The present values of what recordings depend on. */
export const recordingMode = (): string => modes.map((read) => String(read())).join();

/** Other forms of constant tensors, by the data they come from: each is shared by the recordings that hold it, and gone when none does. */
const forms = new WeakMap<object, { dataId: object; shape: number[]; dtype: tf.DataType }>();

/**
 * A tensor in another form than kernels keep it (a packed weight's plain one). While recording it is made outside of the recording, once, and becomes
 * something that the recording holds; else it is simply made.
 */
export function heldForm<T extends tf.Tensor>(of: tf.Tensor, make: () => T): T {
  if (!active) return make();
  const known = forms.get(of.dataId);
  const backend = tf.backend() as unknown as NodeBackend;
  if (known && backend.tensorMap.has(known.dataId)) return another(backend, known) as T;
  const form = active.outside(make);
  forms.set(of.dataId, { dataId: form.dataId, shape: form.shape, dtype: form.dtype });
  return form;
}

/** A further tensor on the same data, on no gradient tape. */
function another(backend: NodeBackend, { dataId, shape, dtype }: { dataId: object; shape: number[]; dtype: tf.DataType }): tf.Tensor {
  backend.incRef(dataId);
  return tf.engine().makeTensorFromTensorInfo({ dataId, shape, dtype });
}

const definitions = new WeakMap<object, Map<string, OpDefinition>>();

function opsOf(binding: Binding): Map<string, OpDefinition> {
  let ops = definitions.get(binding);
  if (!ops) definitions.set(binding, (ops = readOpList(binding.opDefinitions())));
  return ops;
}

export class Recording {
  readonly steps: Step[] = [];
  readonly constants = new Map<number, Constant>();
  readonly captured = new Map<number, Captured>();
  /** The step and output that made a handle. */
  readonly made = new Map<number, [step: number, output: number]>();
  readonly definitions: Map<string, OpDefinition>;

  /** TensorFlow's dtype of every handle that is known. */
  private readonly dtypes: Map<number, number>;
  private readonly inputs: Set<number>;
  /** Tensors with this number or a later one were made by the function. */
  private readonly first = (tf.engine() as unknown as { nextTensorId(): number }).nextTensorId();
  private readonly variables: Map<object, tf.Variable>;
  private readonly written = new WeakSet<object>();
  private readonly kernels: string[] = [];
  private readonly patches = new Patches();
  private constantBytes = 0;

  /** inputs: handles of the tensors that the function is called with, of its own alone. */
  constructor(
    private readonly name: string,
    private readonly backend: NodeBackend,
    inputs: { id: number; dtype: number }[],
  ) {
    this.dtypes = new Map(inputs.map(({ id, dtype }) => [id, dtype]));
    this.inputs = new Set(inputs.map(({ id }) => id));
    this.definitions = opsOf(backend.binding);
    this.variables = new Map(Object.values(engineOf().registeredVariables).map((v) => [(v as unknown as { dataId: object }).dataId, v]));
    this.watchBackend();
    this.watchEngine();
  }

  /** Runs the function under watch. */
  run = <T>(compute: () => T): T => this.watching(this, compute);

  /** Runs something in between as if nothing were recorded. */
  outside = <T>(compute: () => T): T => this.watching(undefined, compute);

  private watching<T>(now: Recording | undefined, compute: () => T): T {
    const before = active;
    const turn = (to: Recording | undefined) => {
      active = to;
      if (to) this.patches.apply();
      else this.patches.revert();
    };
    turn(now);
    try {
      return compute();
    } finally {
      turn(before);
    }
  }

  /** Whether a tensor was made by the function. */
  isNew = (x: tf.Tensor): boolean => x.id >= this.first && !(x instanceof tf.Variable);

  /** How many tensors it holds. */
  held = (): number => [...this.captured.values()].filter((one) => "held" in one).length;

  /** The steps that make these handles, in order; what only other steps captured is let go. */
  needed(ids: number[]): number[] {
    const [steps, used, waiting] = [new Set<number>(), new Set<number>(), [...ids]];
    for (let id = waiting.pop(); id !== undefined; id = waiting.pop()) {
      used.add(id);
      const step = this.made.get(id)?.[0];
      if (step === undefined || steps.has(step)) continue;
      steps.add(step);
      waiting.push(...this.steps[step]!.inputs);
    }
    this.release([...this.captured.keys()].filter((id) => !used.has(id)));
    return [...steps].sort((a, b) => a - b);
  }

  /** Frees what the recording holds. */
  release(ids: Iterable<number> = [...this.captured.keys()]): void {
    for (const id of ids) {
      const captured = this.captured.get(id);
      if (captured && "held" in captured) captured.held.dispose();
      this.captured.delete(id);
    }
  }

  private refuse(what: string, instead: string): never {
    throw new Error(`jit(${this.name}): ${what} cannot be recorded: ${instead}`);
  }

  private watchBackend(): void {
    const { backend } = this;
    const real = backend.binding;
    const readBack = () =>
      this.refuse(
        "reading a tensor's values (dataSync, arraySync, data)",
        "give the tensor back from the function and read it after the call",
      );
    const own: { [K in keyof Binding]?: unknown } = {
      createTensor: (shape: number[], dtype: number, data: ArrayBufferView) =>
        this.constant(real.createTensor(shape, dtype, data), shape, dtype, data),
      executeOp: (op: string, attributes: Attribute[], inputs: number[], outputs: number) =>
        this.step(real, op, attributes, inputs, outputs),
      runKernel: (kernel: string) =>
        this.refuse(`the native kernel ${kernel}`, "ask hasNative() before, which is false while recording, and take the formula"),
      tensorBytes: readBack,
      tensorDataSync: readBack,
    };
    const watched = Object.create(real) as Binding;
    for (const [key, value] of Object.entries(own)) Object.defineProperty(watched, key, { value });
    this.patches.replace(backend, "binding", watched);

    const ids = backend.getInputTensorIds.bind(backend);
    this.patches.replace(backend, "getInputTensorIds", (tensors: tf.Tensor[]) => {
      const found = ids(tensors);
      tensors.forEach((x, i) => this.see(x, found[i]!));
      return found;
    });
    const write = backend.write.bind(backend);
    this.patches.replace(backend, "write", (values: unknown, shape: number[], dtype: string) => {
      const dataId = write(values, shape, dtype);
      this.written.add(dataId);
      return dataId;
    });
    const readSync = backend.readSync.bind(backend);
    this.patches.replace(backend, "readSync", (dataId: object) => {
      // tfjs-node's gather reads its indices only to check their range. 0 is in the range; TensorFlow's own op checks the real ones.
      if (this.kernels.at(-1) === "GatherV2") return [0];
      return this.written.has(dataId) ? readSync(dataId) : readBack();
    });
  }

  private watchEngine(): void {
    const engine = engineOf();
    const startScope = engine.startScope.bind(engine);
    this.patches.replace(engine, "startScope", (name?: string) => {
      const op = name?.replace(/__op$/, "") ?? "";
      if (RANDOM.has(op))
        this.refuse(`a random draw (tf.${op})`, "every replay would give the same numbers; draw outside and pass the tensor in");
      startScope(name);
    });
    const runKernel = engine.runKernel.bind(engine);
    this.patches.replace(engine, "runKernel", (name: string, inputs: object, attributes?: object) => {
      this.kernels.push(name);
      try {
        return runKernel(name, inputs, attributes);
      } finally {
        this.kernels.pop();
      }
    });
    this.patches.replace(engine, "makeVariable", () => this.refuse("making a variable (tf.variable)", "make it outside"));
    this.patches.replace(tf.Variable.prototype, "assign", () =>
      this.refuse("assigning to a variable", "give the new value back from the function and assign it after the call"),
    );
    this.patches.replace(Math, "random", () => this.refuse("a random number (Math.random)", "draw outside and pass it in"));
  }

  private constant(id: number, shape: number[], dtype: number, data: ArrayBufferView): number {
    if (dtype === this.backend.binding.TF_STRING || !ArrayBuffer.isView(data))
      this.refuse("making a tensor of strings", "pass it in, or make it outside");
    this.constantBytes += data.byteLength;
    if (this.constantBytes > CONSTANT_BYTES)
      this.refuse(
        `making tensors from more than ${CONSTANT_BYTES >> 20} MB of the host's values`,
        "make the large ones outside: a recording holds what it finds there, and does not copy it",
      );
    this.constants.set(id, {
      dtype,
      shape: [...shape],
      bytes: Uint8Array.from(Buffer.from(data.buffer, data.byteOffset, data.byteLength)),
    });
    this.dtypes.set(id, dtype);
    return id;
  }

  private step(real: Binding, op: string, attributes: Attribute[], inputs: number[], count: number): Handle[] {
    const definition = this.definitions.get(op);
    if (!definition) this.refuse(`the op ${op}`, "it is not one of TensorFlow's (a recorded function inside of another?); call it outside");
    if (definition.stateful) this.refuse(`the op ${op}`, "it draws random numbers or keeps a state; run it outside and pass its result in");
    if (SHAPE_FROM_VALUES.has(op))
      this.refuse(`the op ${op}`, "the shape of its result depends on values; run it outside and pass its result in");
    const stranger = inputs.find((id) => !this.dtypes.has(id));
    if (stranger !== undefined) this.refuse(`an input of the op ${op}`, "it is no tensor of tfjs; make one of it outside");
    const outputs = real.executeOp(op, attributes, inputs, count);
    outputs.forEach(({ id, dtype }, i) => {
      this.made.set(id, [this.steps.length, i]);
      this.dtypes.set(id, dtype);
    });
    const types = inputs.map((id) => this.dtypes.get(id)!);
    this.steps.push({ op, attributes: withInputTypes(definition, attributes, types), inputs: [...inputs], outputs });
    return outputs;
  }

  /** A tensor is about to be used: one from outside becomes captured. */
  private see(x: tf.Tensor, id: number): void {
    const { dataId } = x as { dataId?: object };
    if (!dataId || this.made.has(id) || this.inputs.has(id)) return;
    if (this.constants.has(id) && this.written.has(dataId)) return;
    const variable = this.variables.get(dataId);
    const copy = variable && !(x instanceof tf.Variable) && !this.isNew(x);
    const known = this.captured.get(id);
    if (known && copy && "variable" in known)
      this.refuse(
        `a copy of the variable "${variable.name}" beside the variable`,
        "they share their numbers until the next update; copy with mul(1)",
      );
    if (known) return;
    this.constants.delete(id); // made before, and brought to the device only now
    this.dtypes.set(id, this.backend.tensorMap.get(dataId).dtype);
    this.captured.set(id, variable && !copy ? { variable } : { held: tf.keep(another(this.backend, x)) });
  }
}
