/**
 * A transformer block as one custom gradient with a float32 residual stream. The block's function is written once, with the layers of `layers.ts`; it runs
 * on native kernels in the dtype of the weights where they can run, and as the layers' formulas elsewhere.
 */
import { toBfloat16 } from "../engine/bfloat16";
import { isPacked } from "../engine/frozen";
import { hasNative } from "../engine/native";
import { checkStop } from "../engine/stop";
import { tf } from "../engine/tf";
import { type Inside, insideBlock, runInside } from "./lean";
import { castsProducts } from "./ops";
import { noTap, type Tap, watched } from "./tap";
import { Tape } from "./tape";

type Tensors = { [name: string]: tf.Tensor | undefined };
/** What of an adapter decides how a block runs; see `Lora` in layers.ts. */
type Adapter = { A: tf.Tensor; B: tf.Tensor; magnitude?: tf.Tensor; dropping(): boolean };

export type BlockOptions = {
  /** Compute the block again in the backward pass instead of keeping what it needs: more time, less memory. */
  checkpointing?: boolean;
  /** Who looks in. With a gradient, somebody who looks gets the formulas, through which tfjs differentiates. */
  tap?: Tap;
};

const recompute = { on: false };

/** Runs `compute` with `checkpointing` in every block. */
export function checkpointed<T>(compute: () => T): T {
  const before = recompute.on;
  recompute.on = true;
  try {
    return compute();
  } finally {
    recompute.on = before;
  }
}

/** What a block's parameters are, found once for each tree of them. */
type Plan = { leaves: tf.Tensor[]; adapters: Adapter[]; trained: boolean; packed: boolean };
const plans = new WeakMap<object, Plan>();

function planOf(params: object): Plan {
  let plan = plans.get(params);
  if (!plan) {
    plan = { leaves: [], adapters: [], trained: false, packed: false };
    collect(params, plan);
    plans.set(params, plan);
  }
  return plan;
}

function collect(node: unknown, plan: Plan): void {
  if (node instanceof tf.Tensor) {
    plan.leaves.push(node);
    plan.trained ||= isVariable(node);
    plan.packed ||= isPacked(node);
  } else if (node && typeof node === "object") {
    for (const [key, child] of Object.entries(node)) {
      if (key !== "lora" || !child) {
        collect(child, plan);
        continue;
      }
      const adapter = child as Adapter;
      plan.adapters.push(adapter);
      plan.leaves.push(adapter.A, adapter.B, ...(adapter.magnitude ? [adapter.magnitude] : []));
    }
  }
}

/** Activations take the dtype of the weights, where the processor multiplies it. */
const dtypeOf = ({ packed }: Plan): Inside["dtype"] => (packed && hasNative("linear") ? "bfloat16" : "float32");

const isVariable = (x: tf.Tensor): boolean => x instanceof tf.Variable && x.trainable;

const KERNELS = ["attention", "attentionGradient", "layerNorm", "layerNormGradient", "activation", "activationGradient", "linearFloat"];

/** The parts of tfjs's engine that a custom gradient of lazily found gradients needs (tfjs-core/src/engine.ts). */
type Engine = {
  state: { gradientDepth: number; kernelDepth: number; activeTape?: { inputs: { [name: string]: tf.Tensor }; outputs: tf.Tensor[] }[] };
  runKernelFunc(call: {
    forwardFunc: (backend: unknown, save: (tensors: tf.Tensor[]) => void) => tf.Tensor;
    backwardsFunc: (dy: tf.Tensor, saved: tf.Tensor[]) => { [name: string]: () => tf.Tensor };
    inputs: { [name: string]: tf.Tensor };
  }): tf.Tensor;
};
const engine = (): Engine => tf.engine() as unknown as Engine;

const recording = (): boolean => engine().state.gradientDepth > 0 && engine().state.kernelDepth === 0;

/**
 * Runs a block: `compute` on `inputs`, with `params` its weights.
 *
 * @param params the block's part of the parameter tree, adapters included
 * @param inputs every tensor that comes from outside and is no weight: the residual stream `x`, masks, the states of an encoder
 * @returns what `compute` gives, float32
 */
export function asBlock<I extends Tensors>(
  params: object,
  inputs: I,
  compute: (inputs: I) => tf.Tensor3D,
  options: BlockOptions = {},
): tf.Tensor3D {
  checkStop();
  const plan = planOf(params);
  if (insideBlock() || !runsLean(plan, options.tap ?? noTap)) return tf.tidy(() => compute(inputs));
  if (!recording()) return tf.tidy(() => runInside({ dtype: dtypeOf(plan) }, () => compute(inputs)));
  return withGradient(plan, inputs, compute, options.checkpointing ?? recompute.on);
}

/**
 * What several blocks read, such as the states of an encoder, in the dtype of their activations: rounded once, and not in every block. As it is where
 * gradients are recorded, or blocks run as their formulas.
 */
export const forBlocks = <T extends tf.Tensor>(params: object, x: T, tap: Tap = noTap): T =>
  !recording() && runsLean(planOf(params), tap) && dtypeOf(planOf(params)) === "bfloat16" ? toBfloat16(x) : x;

/** Every tensor of a block's parameters. */
export const tensorsOf = (params: object): readonly tf.Tensor[] => planOf(params).leaves;

/** A block of full training, of DoRA, of dropout, or with somebody who edits while gradients are recorded runs as its formulas. */
function runsLean(plan: Plan, tap: Tap): boolean {
  if (castsProducts() || !KERNELS.every(hasNative)) return false;
  if (plan.adapters.some((a) => a.magnitude || a.dropping())) return false;
  return !recording() || (!plan.trained && !watched(tap) && engine().state.gradientDepth === 1);
}

function withGradient<I extends Tensors>(plan: Plan, inputs: I, compute: (inputs: I) => tf.Tensor3D, checkpointing: boolean): tf.Tensor3D {
  const outside = Object.entries(inputs).filter(([, x]) => x) as [string, tf.Tensor][];
  const variables = plan.adapters.flatMap(({ A, B }) => [A, B]).filter(isVariable);
  const needed = [...outside.map(([, x]) => x).filter((x) => x.dtype === "float32" && dependsOnVariable(x)), ...variables];
  const run: Recorded<I> = { plan, inputs, outside, needed, compute };
  const keeps = needed.length > 0 && !checkpointing;
  let forward: { tape: Tape; y: tf.Tensor3D } | undefined;
  return engine().runKernelFunc({
    // Inputs stand first: tfjs asks for gradients in this order.
    inputs: Object.fromEntries([...outside, ...plan.leaves.map((x, i) => [`weight ${i}`, x])]),
    forwardFunc(_, save) {
      if (!keeps) {
        save(outside.map(([, x]) => x));
        return runInside({ dtype: dtypeOf(plan) }, () => compute(inputs));
      }
      forward = record(run, inputs);
      save([...outside.map(([, x]) => x), ...forward.tape.saved]);
      forward.tape.dispose(); // tfjs holds them now
      return forward.y;
    },
    backwardsFunc: (dy, saved) => gradientsOf(run, forward, dy, saved),
  }) as tf.Tensor3D;
}

type Recorded<I> = {
  plan: Plan;
  inputs: I;
  outside: [string, tf.Tensor][];
  needed: tf.Tensor[];
  compute: (inputs: I) => tf.Tensor3D;
};

function record<I extends Tensors>({ plan, outside, needed, compute }: Recorded<I>, inputs: I): { tape: Tape; y: tf.Tensor3D } {
  const tape = new Tape(
    outside.map(([name]) => inputs[name]!),
    needed,
  );
  try {
    return { tape, y: runInside({ dtype: dtypeOf(plan), tape }, () => compute(inputs)) };
  } catch (error) {
    tape.dispose();
    throw error;
  }
}

/** Gradients that blocks made and tfjs alone refers to, and the one that the block before has read. */
const made = new WeakSet<tf.Tensor>();
let spent: tf.Tensor | undefined;

/** A function for each input. What variables need is computed here: in the functions, tfjs would free all but the one that was asked for. */
function gradientsOf<I extends Tensors>(
  run: Recorded<I>,
  forward: { tape: Tape; y: tf.Tensor3D } | undefined,
  dy: tf.Tensor,
  saved: tf.Tensor[],
): { [name: string]: () => tf.Tensor } {
  const { plan, inputs, outside, needed, compute } = run;
  checkStop();
  spent?.dispose(); // the gradient of a block is read by the block before it alone
  spent = made.has(dy) ? dy : undefined;
  const kept = { ...inputs, ...Object.fromEntries(outside.map(([name], i) => [name, saved[i]])) };
  const found = needed.length ? backward(run, forward, kept, dy, saved.slice(outside.length)) : [];
  for (const x of found) made.add(x);
  const gradient = (x: tf.Tensor, where: string) => () => {
    if (needed.includes(x)) return found[needed.indexOf(x)];
    // Somebody differentiates by a tensor that is no variable: through the formulas, which know every weight.
    return tf.tidy(() => differentiate(() => compute(kept), kept[where] ?? x, dy));
  };
  return Object.fromEntries([
    ...outside.map(([name, x]) => [name, gradient(x, name)]),
    ...plan.leaves.map((x, i) => [`weight ${i}`, gradient(x, "")]),
  ]);
}

/** Gradients to what is needed; with checkpointing the forward pass comes first, on the inputs that were kept. */
function backward<I extends Tensors>(
  run: Recorded<I>,
  forward: { tape: Tape; y: tf.Tensor3D } | undefined,
  kept: I,
  dy: tf.Tensor,
  saved: tf.Tensor[],
): tf.Tensor[] {
  return tf.tidy(() => {
    if (forward) return forward.tape.backward(forward.y, dy, saved, run.needed);
    const there = run.needed.map((x) => kept[run.outside.find(([, y]) => y === x)?.[0] ?? ""] ?? x);
    const { tape, y } = record({ ...run, needed: there }, kept);
    return tape.backward(y, dy, tape.saved, there);
  });
}

/** tf.grad inside a gradient: tfjs forgets the outer tape over the inner one. */
function differentiate(compute: () => tf.Tensor, x: tf.Tensor, dy: tf.Tensor): tf.Tensor {
  const { state } = engine();
  const [outer, depth] = [state.activeTape, state.kernelDepth];
  state.kernelDepth = 0;
  try {
    return (tf.engine().gradients(compute, [x], dy) as { grads: tf.Tensor[] }).grads[0];
  } finally {
    state.activeTape = outer;
    state.kernelDepth = depth;
  }
}

/** For each tape of tfjs: how much of it was looked at, and which tensors depend on a variable. */
const followed = new WeakMap<object, { length: number; dependent: Set<number> }>();

function dependsOnVariable(x: tf.Tensor): boolean {
  const tape = engine().state.activeTape ?? [];
  let seen = followed.get(tape);
  if (!seen) followed.set(tape, (seen = { length: 0, dependent: new Set() }));
  for (; seen.length < tape.length; seen.length++) {
    const { inputs, outputs } = tape[seen.length];
    if (Object.values(inputs).some((input) => isVariable(input) || seen.dependent.has(input.id)))
      for (const output of outputs) seen.dependent.add(output.id);
  }
  return isVariable(x) || seen.dependent.has(x.id);
}

/**
 * Runs what nobody trains, such as a frozen picture tower, without recording gradients: nothing of it is kept, as under torch.no_grad. Its result is a
 * constant for the gradient.
 */
export function withoutGradient<T extends tf.TensorContainer>(compute: () => T): T {
  const { state } = engine();
  state.kernelDepth++;
  try {
    return tf.tidy(compute);
  } finally {
    state.kernelDepth--;
  }
}
