/**
 * `defineOp`: an operation is declared once, with its formula, its gradient, and a faster kernel for each backend that has one.
 * It mirrors tfjs, which keys a kernel by name and backend and a gradient by name alone, so ours are recorded on the gradient tape
 * like tfjs's own and save only what their gradient names.
 */
import { tf } from "./tf";

type Tensors = { [name: string]: tf.Tensor };
type Attributes = { [name: string]: number | string | boolean };

export type Op<I extends Tensors, A extends Attributes> = {
  /** The meaning in plain tfjs: runs on every backend, and is what kernels are tested against. */
  formula: (inputs: I, attributes: A) => tf.Tensor;
  /** What the gradient reads: names of inputs, and whether the output. Nothing else survives the forward pass. */
  saves?: { inputs?: (keyof I & string)[]; output?: boolean };
  /** Gradient to each input, computed only for those that are asked for. `saved` holds what `saves` names (output as `y`). */
  gradient?: (dy: tf.Tensor, saved: Partial<I> & { y?: tf.Tensor }, attributes: A) => { [K in keyof I]?: () => tf.Tensor };
  /** Faster ways, by tfjs backend name. Must agree with the formula. */
  kernels?: { [backend: string]: (inputs: I, attributes: A) => tf.Tensor };
};

// biome-ignore lint/suspicious/noExplicitAny: a registry of ops of every signature
export const ops = new Map<string, Op<any, any>>();

const BACKENDS = ["tensorflow", "webgpu", "wasm", "cpu"];

/**
 * Declares an op and returns the function that runs it.
 * @param name the op's name in tfjs's registry; ours are prefixed "Vitrine" so that none shadows a stock one.
 */
export function defineOp<I extends Tensors, A extends Attributes>(name: string, op: Op<I, A>): (inputs: I, attributes: A) => tf.Tensor {
  const kernelName = `Vitrine${name}`;
  if (ops.has(name)) forget(name); // a notebook imports a changed file again: the new definition counts
  for (const backendName of BACKENDS) {
    const kernel = op.kernels?.[backendName] ?? op.formula;
    tf.registerKernel({
      kernelName,
      backendName,
      kernelFunc: ({ inputs, attrs }) => tf.tidy(() => kernel(inputs as I, attrs as unknown as A)),
    });
  }
  if (op.gradient) registerGradient(kernelName, op);
  ops.set(name, op);
  return (inputs, attributes) => tf.engine().runKernel(kernelName, inputs, attributes as unknown as tf.NamedAttrMap) as tf.Tensor;
}

function forget(name: string): void {
  for (const backendName of BACKENDS) tf.unregisterKernel(`Vitrine${name}`, backendName);
  if (ops.get(name)?.gradient) tf.unregisterGradient(`Vitrine${name}`);
  ops.delete(name);
}

function registerGradient<I extends Tensors, A extends Attributes>(kernelName: string, op: Op<I, A>): void {
  const names = op.saves?.inputs ?? [];
  tf.registerGradient({
    kernelName,
    inputsToSave: names,
    outputsToSave: [op.saves?.output ?? false],
    gradFunc: (dy, saved, attrs) => {
      freeSpent(dy as tf.Tensor, saved);
      const named = Object.fromEntries(names.map((name, i) => [name, saved[i]])) as Partial<I> & { y?: tf.Tensor };
      if (op.saves?.output) named.y = saved[names.length];
      // tfjs wants a function for every input; one that is not differentiable says so when it is asked.
      return owned(op.gradient!(dy as tf.Tensor, named, attrs as unknown as A) as { [name: string]: () => tf.Tensor }, dy as tf.Tensor);
    },
  });
}

/** Gradients that our ops made and tfjs alone refers to. */
const made = new WeakSet<tf.Tensor>();
let spent: tf.Tensor[] = [];

/**
 * tfjs keeps every activation and its gradient until the whole backward pass is over. When the next of our ops is asked for its gradients, the one
 * before has given all of its own, so what it saved can go, and what it received: unless somebody else may hold that (it was given to tf.grad, or comes
 * from a stock op). Nothing goes while an outer tape may want it (a gradient of a gradient).
 */
function freeSpent(dy: tf.Tensor, saved: tf.Tensor[]): void {
  for (const x of spent) x.dispose();
  const nested = (tf.engine() as unknown as { state: { gradientDepth: number } }).state.gradientDepth > 0;
  spent = nested ? [] : made.has(dy) ? [...saved, dy] : saved;
}

function owned(gradients: { [name: string]: () => tf.Tensor }, dy: tf.Tensor): { [name: string]: () => tf.Tensor } {
  const own = (compute: () => tf.Tensor) => () => {
    const x = compute();
    const mine = x === dy ? x.clone() : x;
    made.add(mine);
    return mine;
  };
  return Object.fromEntries(Object.entries(gradients).map(([name, compute]) => [name, own(compute)]));
}
