/**
 * A small gradient tape for the inside of a transformer block. tfjs's own tape demands float32 gradients and keeps every activation until the end; this
 * one takes bfloat16, keeps what each step names, and lets it go as soon as the step's gradient is done. `block.ts` makes one tfjs gradient of it.
 */
import { toFloat32 } from "../engine/bfloat16";
import { tf } from "../engine/tf";

/** What a step sees on the way back. Gradients have their tensor's shape; inside a block they are float32 or bfloat16. */
export type Backward = {
  /** Whether anybody asks for the gradient to a tensor. */
  needs(x: tf.Tensor | undefined): boolean;
  /** Adds to the gradient of a tensor. */
  give(x: tf.Tensor, gradient: tf.Tensor): void;
  /** The gradient of a tensor so far, to be added to and given back: what folds the sum into a kernel. */
  take(x: tf.Tensor): tf.Tensor | undefined;
};

type Step = {
  output: tf.Tensor;
  also: readonly tf.Tensor[];
  /** The places of what it saved. */
  saved: [number, number];
  backward(dy: tf.Tensor, saved: tf.Tensor[], to: Backward): void;
};

export class Tape {
  /** Everything that a step saved, in order: clones that outlive the forward pass, until `backward` or `dispose` frees them. */
  readonly saved: tf.Tensor[] = [];
  readonly #steps: Step[] = [];
  readonly #known = new Set<number>();
  readonly #needed = new Set<number>();

  /** inputs: what comes from outside and changes from call to call; needed: those of them, and the variables, whose gradients are wanted. */
  constructor(inputs: readonly tf.Tensor[], needed: readonly tf.Tensor[]) {
    for (const x of inputs) this.#known.add(x.id);
    for (const x of needed) this.#needed.add(x.id);
  }

  needs = (x: tf.Tensor | undefined): boolean => x !== undefined && this.#needed.has(x.id);

  /**
   * Records a step. from: its inputs that came out of other steps, or into the block; weights: those that may be variables; saves: what `backward` reads;
   * also: further outputs, whose gradients `backward` takes (`to.take`) beside that of `output`, which is zero where only they have one.
   *
   * @throws when an input came from an operation that no step recorded: its gradient would be lost
   */
  record(step: {
    name: string;
    output: tf.Tensor;
    also?: readonly tf.Tensor[];
    from: readonly (tf.Tensor | undefined)[];
    weights?: readonly (tf.Tensor | undefined)[];
    saves: readonly (tf.Tensor | undefined)[];
    backward(dy: tf.Tensor, saved: tf.Tensor[], to: Backward): void;
  }): void {
    const stray = step.from.find((x) => x && !this.#known.has(x.id));
    if (stray)
      throw new Error(
        `${step.name}: an input [${stray.shape}] comes from an operation that a block does not record; use the layers of nn/layers inside a block`,
      );
    const also = step.also ?? [];
    for (const x of [step.output, ...also]) this.#known.add(x.id);
    if (![...step.from, ...(step.weights ?? [])].some(this.needs)) return;
    for (const x of [step.output, ...also]) this.#needed.add(x.id);
    const begin = this.saved.length;
    this.saved.push(...(step.saves.filter(Boolean) as tf.Tensor[]).map((x) => tf.keep(x.clone())));
    this.#steps.push({ output: step.output, also, saved: [begin, this.saved.length], backward: step.backward });
  }

  /** Frees what the steps saved, where somebody else holds it or nobody needs it. */
  dispose(): void {
    for (const x of this.saved) x.dispose();
  }

  /**
   * Gradients to what is needed, from the gradient to the block's result. saved: the tensors of `this.saved`, which are disposed on the way.
   * Gives a float32 tensor for each of `wanted`; zeros where nothing reaches it.
   */
  backward(result: tf.Tensor, dy: tf.Tensor, saved: readonly tf.Tensor[], wanted: readonly tf.Tensor[]): tf.Tensor[] {
    const gradients = new Map<number, tf.Tensor>([[result.id, dy.clone()]]);
    const take = (x: tf.Tensor) => {
      const found = gradients.get(x.id);
      gradients.delete(x.id);
      return found;
    };
    const give = (x: tf.Tensor, gradient: tf.Tensor) => {
      const before = take(x);
      gradients.set(x.id, before ? added(before, gradient) : gradient);
    };
    for (const step of [...this.#steps].reverse()) {
      const gradient = take(step.output) ?? (step.also.some((x) => gradients.has(x.id)) ? tf.zeros(step.output.shape) : undefined);
      const own = saved.slice(...step.saved);
      if (gradient) step.backward(gradient, own, { needs: this.needs, give, take });
      gradient?.dispose();
      for (const x of own) x.dispose();
    }
    return wanted.map((x) => wide(take(x)) ?? tf.zerosLike(x));
  }
}

function wide(x: tf.Tensor | undefined): tf.Tensor | undefined {
  if (!x || x.dtype === "float32") return x;
  const y = toFloat32(x);
  x.dispose();
  return y;
}

function added(a: tf.Tensor, b: tf.Tensor): tf.Tensor {
  const [x, y] = [wide(a)!, wide(b)!];
  const sum = tf.add(x, y);
  tf.dispose([x, y]);
  return sum;
}
