/** The one training loop: an async generator of rows. A cell plots them, a command prints them, a job appends them to a file. */
import { breathe, interruptSignal } from "../engine/interrupt";
import { stoppable } from "../engine/stop";
import { tf } from "../engine/tf";
import { nearest } from "../files/nearest";
import { checkpointed } from "../nn/block";
import { autocast } from "../nn/ops";
import { type AdamWOptions, adamW, clipGradients, globalNorm } from "./adamw";
import { type ScheduleName, schedule } from "./schedule";

/** What one optimiser step did. */
export type Row = {
  /** 1 for the first step. */
  step: number;
  /** Before the update; the mean over the accumulated batches. */
  loss: number;
  learningRate: number;
  /** Before clipping. */
  gradNorm: number;
  /** Of the whole step, data included. */
  seconds: number;
};

export type TrainOptions<Batch> = AdamWOptions & {
  /** What is updated: `adapter.variables`, or all parameters of a model made trainable. */
  variables: tf.Variable[];
  /** One batch after the other, endless or not; each is used once and disposed by the loop. */
  batches: Iterable<Batch> | AsyncIterable<Batch>;
  /** Mean loss of a batch. Runs inside a tidy; what it makes is freed. */
  loss: (batch: Batch) => tf.Scalar;
  /** Optimiser steps. */
  steps: number;
  learningRate: number;
  schedule?: ScheduleName;
  /** Steps of warm-up, or a share of all steps when below 1. */
  warmupSteps?: number;
  /** Gradients longer than this are scaled down to it; default 1. Infinity: never. */
  maxGradNorm?: number;
  /** Batches whose gradients are averaged for one step; default 1. */
  gradientAccumulationSteps?: number;
  /** Products in bfloat16 (`autocast`); needs the TensorFlow backend; default false. */
  bf16?: boolean;
  /** Keep only what goes into each transformer block and compute the block again in the backward pass: more time, less memory; default false. */
  checkpointing?: boolean;
  /** Stops the loop, in the middle of a step where Ctrl-C or the notebook's interrupt came; default: the notebook's interrupt, or Ctrl-C. */
  signal?: AbortSignal;
};

const KNOWN =
  "variables batches loss steps learningRate schedule warmupSteps maxGradNorm gradientAccumulationSteps bf16 checkpointing signal betas eps weightDecay noDecay".split(
    " ",
  );

/**
 * Trains, one row for each optimiser step. Ends early and normally when `signal` aborts: what was learned stays in the variables.
 *
 * @throws at once on options that make no sense, all of them listed; at the step where the loss is no number; when the batches end too soon
 */
export async function* train<Batch>(options: TrainOptions<Batch>): AsyncGenerator<Row, void, undefined> {
  check(options);
  const { variables, steps, learningRate, maxGradNorm = 1, signal = interruptSignal() } = options;
  const rate = schedule(options.schedule ?? "constant", steps, options.warmupSteps ?? 0);
  const optimiser = adamW(variables, options);
  const source = iterator(options.batches);
  try {
    for (let step = 1; step <= steps && !signal.aborted; step++) {
      const started = performance.now();
      const measured = await gradients(options, source, step, signal);
      if (!measured) return;
      const norm = await read(globalNorm(measured.grads));
      if (!Number.isFinite(measured.loss + norm)) {
        measured.grads.forEach((g) => g.dispose());
        throw new Error(
          `train: step ${step} has loss ${measured.loss} and gradient norm ${norm}; nothing was updated. Try a lower learningRate (${learningRate}) or a warm-up`,
        );
      }
      const clipped = clipGradients(measured.grads, norm, maxGradNorm);
      const now = learningRate * rate(step - 1);
      optimiser.step(clipped, now);
      clipped.forEach((g) => g.dispose());
      yield { step, loss: measured.loss, learningRate: now, gradNorm: norm, seconds: (performance.now() - started) / 1000 };
      await breathe();
    }
  } finally {
    await source.return?.();
    optimiser.dispose();
  }
}

/** Loss and mean gradients of one step's batches, in the variables' order; undefined when the signal came first. */
async function gradients<Batch>(
  { variables, loss, gradientAccumulationSteps = 1, bf16 = false, checkpointing = false }: TrainOptions<Batch>,
  source: AsyncIterator<Batch> | Iterator<Batch>,
  step: number,
  signal: AbortSignal,
): Promise<{ loss: number; grads: tf.Tensor[] } | undefined> {
  let [total, sum] = [0, undefined as tf.Tensor[] | undefined];
  for (let i = 0; i < gradientAccumulationSteps; i++) {
    const { value: batch, done } = await source.next();
    if (done) {
      tf.dispose(sum ?? []);
      throw new Error(`train: the batches ended before step ${step}; give more epochs or fewer steps`);
    }
    if (signal.aborted) {
      tf.dispose(batch as tf.TensorContainer);
      sum?.forEach((g) => g.dispose());
      return undefined;
    }
    const measure = () => tf.variableGrads(() => loss(batch).div(gradientAccumulationSteps) as tf.Scalar, variables);
    const cast = () => (bf16 ? autocast(measure) : measure());
    const measured = await untilDone(() => (checkpointing ? checkpointed(cast) : cast()), signal);
    tf.dispose(batch as tf.TensorContainer);
    if (!measured) {
      sum?.forEach((g) => g.dispose());
      return undefined;
    }
    const { value, grads } = measured;
    if (variables.some((v) => !grads[v.name])) {
      tf.dispose([value, grads, sum ?? []]);
      throw unreached(variables, grads);
    }
    const list = variables.map((v) => grads[v.name]);
    sum = sum ? addAll(sum, list) : list;
    total += await read(value);
    await breathe();
  }
  return { loss: total, grads: sum! };
}

/** Runs a step that Ctrl-C ends in the middle; undefined when `signal` has heard of it, else the step is done again. */
async function untilDone<T>(step: () => T, signal: AbortSignal): Promise<T | undefined> {
  for (;;) {
    const done = stoppable(step);
    if (done !== undefined) return done;
    await breathe(); // lets the listeners of Ctrl-C hear of it
    if (signal.aborted) return undefined;
  }
}

function unreached(variables: tf.Variable[], grads: { [name: string]: tf.Tensor }): Error {
  const idle = variables.filter((v) => !grads[v.name]);
  const shapes = idle
    .slice(0, 5)
    .map((v) => `[${v.shape}]`)
    .join(", ");
  return new Error(
    `train: the loss does not reach ${idle.length} of ${variables.length} variables (shapes ${shapes}${idle.length > 5 ? ", …" : ""}); ` +
      "leave them out of variables, or compute the loss with the model that carries them",
  );
}

function addAll(a: tf.Tensor[], b: tf.Tensor[]): tf.Tensor[] {
  return a.map((x, i) => {
    const y = x.add(b[i]);
    tf.dispose([x, b[i]]);
    return y;
  });
}

async function read(x: tf.Scalar): Promise<number> {
  const [value] = await x.data();
  x.dispose();
  return value;
}

const iterator = <T>(items: Iterable<T> | AsyncIterable<T>): AsyncIterator<T> | Iterator<T> =>
  Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();

function check<Batch>(o: TrainOptions<Batch>): void {
  const problems = Object.keys(o)
    .filter((key) => !KNOWN.includes(key))
    .map((key) => `unknown option "${key}"${nearest(key, KNOWN) ? `, did you mean "${nearest(key, KNOWN)}"?` : ""}`);
  if (!o.variables?.length) problems.push("variables is empty: nothing would be trained");
  if (!Number.isInteger(o.steps) || o.steps < 1) problems.push(`steps is ${o.steps}, expected a whole number of at least 1`);
  if (!(o.learningRate >= 0 && Number.isFinite(o.learningRate)))
    problems.push(`learningRate is ${o.learningRate}, expected a number of at least 0`);
  const accumulate = o.gradientAccumulationSteps ?? 1;
  if (!Number.isInteger(accumulate) || accumulate < 1)
    problems.push(`gradientAccumulationSteps is ${accumulate}, expected a whole number of at least 1`);
  if (!((o.maxGradNorm ?? 1) > 0)) problems.push(`maxGradNorm is ${o.maxGradNorm}, expected a number above 0 (Infinity: no clipping)`);
  if (problems.length) throw new Error(`train: ${problems.join("; ")}`);
}
