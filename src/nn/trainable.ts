/** Full training: every weight of a model as a variable. */
import { isFrozen } from "../engine/frozen";
import { tf } from "../engine/tf";
import type { Adaptable } from "./lora";
import { follow, leaves, mapLeaves } from "./spec";

/**
 * The model with every weight that `which` accepts as a variable (default: all); the others are shared with the base model.
 *
 * @param which by the weight's name in the file, e.g. `(name) => name.startsWith("text_model.")`
 * @throws when it accepts none, or one that is kept in bfloat16, int8 or NF4 (frozen)
 */
export function withTrainable<M extends Adaptable>(
  model: M,
  which: (name: string) => boolean = () => true,
): { model: M; variables: tf.Variable[]; dispose(): void } {
  const values = new Map(leaves(model.spec).map(({ spec, path }) => [spec.name, follow(model.params, path) as tf.Tensor]));
  const chosen = [...values].filter(([name]) => which(name));
  if (chosen.length === 0)
    throw new Error(`withTrainable: no weight was chosen; names look like ${[...values.keys()].slice(0, 3).join(", ")}`);
  const frozen = chosen.find(([, x]) => isFrozen(x));
  if (frozen) throw new Error(`withTrainable: ${frozen[0]} is kept in ${frozen[1].dtype}, which is frozen; load with { dtype: "float32" }`);
  const variables = new Map(chosen.map(([name, x]) => [name, tf.variable(x, true)]));
  const params = mapLeaves(model.spec, ({ name }) => variables.get(name) ?? values.get(name));
  const list = [...variables.values()];
  return { model: model.with(params as never) as M, variables: list, dispose: () => list.forEach((v) => v.dispose()) };
}
