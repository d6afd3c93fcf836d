/** Adapters that have something to say: a new one's B is zero, and so every mistake behind it invisible. */
import { random } from "vitrine/data/random";
import { tf } from "vitrine/engine";
import type { Adapter } from "vitrine/nn/lora";

/** Gives every B small random numbers and, with DoRA, every magnitude a factor near 1. */
export function stir({ modules }: Adapter, seed = 7): void {
  const draw = random(seed);
  const noise = (x: tf.Variable, spread: number) =>
    tf.tensor(
      Float32Array.from({ length: x.size }, () => spread * (2 * draw() - 1)),
      x.shape,
    );
  tf.tidy(() => {
    for (const { B, magnitude } of modules) {
      B.assign(noise(B, 0.1) as tf.Tensor2D);
      if (magnitude) magnitude.assign(magnitude.mul(noise(magnitude, 0.2).add(1)) as tf.Tensor1D);
    }
  });
}
