/** AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019), step for step as torch.optim.AdamW. */
import { hasNative, runNative } from "../engine/native";
import { tf } from "../engine/tf";

export type AdamWOptions = {
  betas?: [number, number];
  eps?: number;
  /** Share of each parameter that a step at learning rate 1 would take away; default 0.01. */
  weightDecay?: number;
  /** Which variables the decay leaves alone, e.g. `(v) => v.rank < 2` for norms and biases; default none, as PEFT's runs. */
  noDecay?: (variable: tf.Variable) => boolean;
};

export type Optimiser = {
  /** One update of all variables. gradients: in the variables' order; learningRate: of this step. */
  step(gradients: tf.Tensor[], learningRate: number): void;
  dispose(): void;
};

/** An optimiser for these variables. Its state is two tensors for each. */
export function adamW(
  variables: tf.Variable[],
  { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01, noDecay = () => false }: AdamWOptions = {},
): Optimiser {
  const [beta1, beta2] = betas;
  const zeros = () => tf.tidy(() => variables.map((v) => tf.variable(tf.zerosLike(v), false)));
  const [first, second] = [zeros(), zeros()];
  const decay = variables.map((v) => (noDecay(v) ? 0 : weightDecay));
  let t = 0;
  /** All at once, where the parameters and moments are. */
  const updateAll = (gradients: tf.Tensor[], learningRate: number) => {
    variables.forEach(ownMemory);
    const tensors = variables.flatMap((v, i) => [v, gradients[i], first[i], second[i]]);
    runNative("adamW", tensors, [learningRate, beta1, beta2, eps, t, 1, ...decay]);
  };
  const update = (i: number, g: tf.Tensor, learningRate: number) =>
    tf.tidy(() => {
      first[i].assign(first[i].mul(beta1).add(g.mul(1 - beta1)));
      second[i].assign(second[i].mul(beta2).add(g.square().mul(1 - beta2)));
      const spread = second[i]
        .sqrt()
        .div(Math.sqrt(1 - beta2 ** t))
        .add(eps);
      const decayed = variables[i].mul(1 - learningRate * decay[i]);
      variables[i].assign(decayed.sub(first[i].div(spread).mul(learningRate / (1 - beta1 ** t))));
    });
  return {
    step(gradients, learningRate) {
      if (gradients.length !== variables.length)
        throw new RangeError(`adamW: ${gradients.length} gradients for ${variables.length} variables`);
      t += 1;
      if (hasNative("adamW")) updateAll(gradients, learningRate);
      else gradients.forEach((g, i) => update(i, g, learningRate));
    },
    dispose: () => [...first, ...second].forEach((x) => x.dispose()),
  };
}

/** Gives a variable memory of its own where a clone or a view shares it: the kernel changes it in place, and the clone is to keep its numbers. */
function ownMemory(variable: tf.Variable): void {
  const { refCount } = tf.backend() as unknown as { refCount(dataId: object): number };
  if (refCount.call(tf.backend(), variable.dataId) > 1) tf.tidy(() => variable.assign(variable.mul(1)));
}

/** Length of all gradients taken as one vector. */
export const globalNorm = (gradients: tf.Tensor[]): tf.Scalar =>
  (hasNative("globalNorm")
    ? runNative("globalNorm", gradients)[0]
    : tf.tidy(() => tf.addN(gradients.map((g) => g.square().sum())).sqrt())) as tf.Scalar;

/** Gradients scaled so that their norm is at most `maxNorm`, as torch.nn.utils.clip_grad_norm_ does. Disposes what it replaces. */
export function clipGradients(gradients: tf.Tensor[], norm: number, maxNorm: number): tf.Tensor[] {
  const share = Math.min(1, maxNorm / (norm + 1e-6));
  if (share === 1) return gradients;
  return gradients.map((g) => {
    const scaled = g.mul(share);
    g.dispose();
    return scaled;
  });
}
