/** Root-mean-square normalisation (Zhang & Sennrich 2019), the norm of Llama, Qwen2, InternLM2 and T5. */
import { hasNative, runNative } from "../engine/native";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";

const FLOAT = 1;

type Inputs = { x: tf.Tensor; weight: tf.Tensor1D };
type Attributes = { eps: number };

/** 1 / root of a row's mean square. [..., 1] */
const inverseOf = (x: tf.Tensor, eps: number): tf.Tensor => x.square().mean(-1, true).add(eps).rsqrt();

const formula = ({ x, weight }: Inputs, { eps }: Attributes): tf.Tensor => x.mul(inverseOf(x, eps)).mul(weight);

/** y and statistics [rows, 2], or undefined where the kernel cannot run. */
const kernel = ({ x, weight }: Inputs, eps: number): tf.Tensor[] | undefined =>
  hasNative("rmsNorm") ? runNative("rmsNorm", [x, weight], [eps, FLOAT]) : undefined;

/** dx, and with `parameters` dweight. */
function gradientKernel(dy: tf.Tensor, { x, weight }: Inputs, eps: number, parameters: boolean): tf.Tensor[] | undefined {
  const statistics = hasNative("rmsNormGradient") && kernel({ x, weight }, eps)?.[1];
  return statistics ? runNative("rmsNormGradient", [dy, x, weight, statistics, undefined], [FLOAT, parameters ? 1 : 0]) : undefined;
}

const normalise = defineOp<Inputs, Attributes>("RmsNorm", {
  formula,
  kernels: { tensorflow: (inputs, { eps }) => kernel(inputs, eps)?.[0] ?? formula(inputs, { eps }) },
  saves: { inputs: ["x", "weight"] },
  gradient: (dy, saved, { eps }) => {
    const { x, weight } = saved as Inputs;
    return {
      x: () =>
        tf.tidy(() => {
          const native = gradientKernel(dy, { x, weight }, eps, false);
          if (native) return native[0]!;
          const inverse = inverseOf(x, eps);
          const [normal, g] = [x.mul(inverse), dy.mul(weight)];
          return g.sub(normal.mul(g.mul(normal).mean(-1, true))).mul(inverse);
        }),
      weight: () =>
        tf.tidy(
          () =>
            gradientKernel(dy, { x, weight }, eps, true)?.[1] ??
            dy
              .mul(x.mul(inverseOf(x, eps)))
              .reshape([-1, weight.shape[0]])
              .sum(0),
        ),
    };
  },
});

/**
 * RMS norm over the last axis, or over each part of it that is as long as the weight (head by head); eps stands inside the root. x: float32 [..., D],
 * weight: [W], W a divisor of D -> [..., D]
 *
 * @throws RangeError where it is none
 */
export function rmsNormOp(x: tf.Tensor, weight: tf.Tensor1D, eps: number): tf.Tensor {
  const [D, W] = [x.shape[x.shape.length - 1]!, weight.shape[0]];
  if (D === W) return normalise({ x, weight }, { eps });
  if (D % W !== 0) throw new RangeError(`rmsNorm: x [${x.shape}] does not divide into parts of the weight's ${W}`);
  return tf.tidy(() => normalise({ x: x.reshape([...x.shape.slice(0, -1), D / W, W]), weight }, { eps }).reshape(x.shape));
}
