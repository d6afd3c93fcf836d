/** Activations of language models' feed-forward layers, and their gated forms act(gate) · up (Shazeer 2020). float32, any shape. */
import { hasNative, runNative } from "../engine/native";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";

const FLOAT = 1;
type None = Record<string, never>;

/** A function and its slope; `kind` is its number among src/native/activation.cc's. */
type Shape = { kind: number; value: (x: tf.Tensor) => tf.Tensor; slope: (x: tf.Tensor) => tf.Tensor };

const SILU: Shape = {
  kind: 3,
  value: (x) => x.mul(x.sigmoid()),
  slope: (x) => {
    const s = x.sigmoid();
    return tf.scalar(1).sub(s).mul(x).add(1).mul(s); // s + x s (1 - s)
  },
};

const [ROOT, CUBIC] = [Math.sqrt(2 / Math.PI), 0.044715];
const tanhInside = (x: tf.Tensor): tf.Tensor => x.square().mul(CUBIC).add(1).mul(x).mul(ROOT).tanh();
const GELU_TANH: Shape = {
  kind: 4,
  value: (x) => tanhInside(x).add(1).mul(x).mul(0.5),
  slope: (x) => {
    const t = tanhInside(x);
    const inner = x
      .square()
      .mul(3 * CUBIC)
      .add(1)
      .mul(ROOT);
    return tf.scalar(1).sub(t.square()).mul(x).mul(inner).add(t).add(1).mul(0.5);
  },
};

const GELU: Shape = {
  kind: 1,
  value: (x) => x.mul(Math.SQRT1_2).erf().add(1).mul(x).mul(0.5),
  slope: (x) => {
    const density = x
      .square()
      .mul(-0.5)
      .exp()
      .mul(1 / Math.sqrt(2 * Math.PI));
    return x.mul(Math.SQRT1_2).erf().add(1).mul(0.5).add(x.mul(density));
  },
};

function defineActivation(name: string, { kind, value, slope }: Shape): (x: tf.Tensor) => tf.Tensor {
  const op = defineOp<{ x: tf.Tensor }, None>(name, {
    formula: ({ x }) => value(x),
    kernels: {
      tensorflow: ({ x }) => (hasNative("activation") ? runNative("activation", [x, undefined], [kind, FLOAT])[0]! : value(x)),
    },
    saves: { inputs: ["x"] },
    gradient: (dy, { x }) => ({
      x: () =>
        hasNative("activationGradient")
          ? runNative("activationGradient", [dy, x!, undefined], [kind, FLOAT, 0])[0]!
          : tf.tidy(() => dy.mul(slope(x!))),
    }),
  });
  return (x) => op({ x }, {});
}

type Gate = { gate: tf.Tensor; up: tf.Tensor };

function defineGated(name: string, { kind, value, slope }: Shape): (gate: tf.Tensor, up: tf.Tensor) => tf.Tensor {
  const formula = ({ gate, up }: Gate) => value(gate).mul(up);
  /** Both gradients, which share their reading of gate and up. */
  const gradients = (dy: tf.Tensor, { gate, up }: Gate): tf.Tensor[] =>
    hasNative("gatedGradient")
      ? runNative("gatedGradient", [dy, gate, up], [kind, FLOAT])
      : tf.tidy(() => [dy.mul(up).mul(slope(gate)), dy.mul(value(gate))]);
  const op = defineOp<Gate, None>(name, {
    formula,
    kernels: {
      tensorflow: (inputs) => (hasNative("gated") ? runNative("gated", [inputs.gate, inputs.up], [kind, FLOAT])[0]! : formula(inputs)),
    },
    saves: { inputs: ["gate", "up"] },
    gradient: (dy, saved) => {
      const [dgate, dup] = gradients(dy, saved as Gate);
      return { gate: () => dgate!, up: () => dup! };
    },
  });
  return (gate, up) => {
    if (String(gate.shape) !== String(up.shape)) throw new RangeError(`${name}: gate [${gate.shape}] and up [${up.shape}] differ`);
    return op({ gate, up }, {});
  };
}

/** x σ(x) (Elfwing et al. 2017): `silu` and `swish` in configs. Any shape. */
export const silu = defineActivation("Silu", SILU);

/** GELU's tanh form (Hendrycks & Gimpel 2016): `gelu_new` and `gelu_pytorch_tanh` in configs. Any shape. */
export const geluTanh = defineActivation("GeluTanh", GELU_TANH);

const reluOp = defineOp<{ x: tf.Tensor }, None>("Relu", {
  formula: ({ x }) => x.relu(),
  saves: { output: true },
  gradient: (dy, { y }) => ({ x: () => tf.tidy(() => dy.mul(y!.step())) }),
});

/** max(x, 0), with slope 0 at 0. Keeps its result, which the next layer keeps too, and not its input. Any shape. */
export const relu = (x: tf.Tensor): tf.Tensor => reluOp({ x }, {});

/** silu(gate) · up, of one shape: Llama's and Qwen2's feed-forward. @throws RangeError where the shapes differ. */
export const swiglu = defineGated("Swiglu", SILU);

/** gelu(gate) · up with the exact GELU. @throws RangeError where the shapes differ. */
export const geglu = defineGated("Geglu", GELU);

/** gelu(gate) · up with GELU's tanh form: `gated-gelu` of T5 1.1 and Flan-T5. @throws RangeError where the shapes differ. */
export const gegluTanh = defineGated("GegluTanh", GELU_TANH);
