/** Gradients of a number that a model computes with respect to what happens inside it. */
import { tf } from "../engine/tf";
import { edit, type Tap } from "../nn/tap";
import { namesOf, watching } from "./watching";

export type Gradients = {
  /** What was differentiated. */
  value: tf.Scalar;
  /** Full names, in the order of the forward pass. */
  names: string[];
  /** An activation, as the same run made it. @throws naming those there are */
  activation(name: string): tf.Tensor;
  /** d value / d activation, of the activation's shape. @throws naming those there are */
  gradient(name: string): tf.Tensor;
  dispose(): void;
};

/**
 * Activations at named taps and the gradient of `loss` to each. A zero that is a variable is added to every activation that matches; its gradient is
 * the activation's. `loss` runs twice: once to find names and shapes, once with gradients; it must compute the same both times.
 *
 * @param which as in `record`
 * @param loss runs the model with the tap and gives one number: a similarity, an answer's log-probability
 * @throws when nothing matches: lists what there is
 *
 * @example
 * const at = gradientsAt("vision.blocks.3.attn.pattern", (tap) => clip.encodeImage(pixels, tap).mul(text).sum());
 * gradCamOfPattern((await at.activation("vision.blocks.3.attn.pattern").array())[0], (await at.gradient("vision.blocks.3.attn.pattern").array())[0]);
 */
export function gradientsAt(which: RegExp | string | readonly string[], loss: (tap: Tap) => tf.Scalar): Gradients {
  const shapes = namesOf(which, loss);
  const names = [...shapes.keys()];
  const zeros = new Map(names.map((name) => [name, tf.tidy(() => tf.variable(tf.zeros(shapes.get(name) as number[])))]));
  const kept = new Map<string, tf.Tensor>();
  const added = edit(names, (x, name) => {
    kept.get(name)?.dispose();
    kept.set(name, tf.keep(x.clone()));
    return x.add(zeros.get(name) as tf.Variable);
  });
  try {
    const { value, grads } = tf.variableGrads(() => loss(watching(names, added.tap)), [...zeros.values()]);
    const found = new Map(names.map((name) => [name, grads[(zeros.get(name) as tf.Variable).name] ?? tf.zerosLike(kept.get(name)!)]));
    const get = (map: Map<string, tf.Tensor>) => (name: string) => {
      const x = map.get(name);
      if (!x) throw new Error(`gradientsAt: nothing is kept of "${name}"; there are ${names.join(", ")}`);
      return x;
    };
    const dispose = () => tf.dispose([value, ...kept.values(), ...found.values()]);
    return { value, names, activation: get(kept), gradient: get(found), dispose };
  } catch (error) {
    tf.dispose([...kept.values()]);
    throw error;
  } finally {
    tf.dispose([...zeros.values()]);
  }
}
