/** Full training: every weight of a model as a variable. */
import { isBfloat16 } from "../engine/bfloat16";
import { tf } from "../engine/tf";
import type { Adaptable } from "./lora";
import { follow, leaves, mapLeaves } from "./spec";

/**
 * The model with every weight that `which` accepts as a variable (default: all); the others are shared with the base model.
 *
 * @param which by the weight's name in the file, e.g. `(name) => name.startsWith("text_model.")`
 * @throws when it accepts none, or one that is kept in bfloat16 (frozen)
 */
export function withTrainable<M extends Adaptable>(
  model: M,
  which: (name: string) => boolean = () => true,
): { model: M; variables: tf.Variable[]; dispose(): void } {
  const values = new Map(leaves(model.spec).map(({ spec, path }) => [spec.name, follow(model.params, path) as tf.Tensor]));
  const variables = new Map<string, tf.Variable>();
  for (const [name, x] of values) {
    if (!which(name)) continue;
    if (isBfloat16(x)) throw new Error(`withTrainable: ${name} is kept in bfloat16, which is frozen; load with { dtype: "float32" }`);
    variables.set(name, tf.variable(x, true));
  }
  if (variables.size === 0) throw new Error(`withTrainable: no weight was chosen; names look like ${[...values.keys()].slice(0, 3).join(", ")}`);
  const params = mapLeaves(model.spec, ({ name }) => variables.get(name) ?? values.get(name));
  const list = [...variables.values()];
  return { model: model.with(params as never) as M, variables: list, dispose: () => list.forEach((v) => v.dispose()) };
}
