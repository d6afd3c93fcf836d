/** Losses and gradients of named weights against PyTorch's. */
import { tf } from "vitrine/engine";
import type { Adaptable } from "vitrine/nn/lora";
import { follow, leaves } from "vitrine/nn/spec";
import { withTrainable } from "vitrine/nn/trainable";
import { globalNorm } from "vitrine/train/adamw";
import { type Cases, type Checks, FLOAT, GRADIENT, type Oracle } from "./check";

/** loss: of the model with its weights as variables. */
export async function checkGradients<M extends Adaptable>(
  oracle: Oracle,
  checks: Checks,
  base: M,
  loss: (model: M) => tf.Scalar,
  wanted: Cases,
): Promise<void> {
  const { model, variables, dispose } = withTrainable(base);
  const { value, grads } = tf.variableGrads(() => loss(model), variables);
  checks.close(`gradients (${wanted.name}): loss`, await value.data(), [wanted.loss], FLOAT);
  for (const { spec, path } of leaves(base.spec)) {
    const name = wanted.gradients[spec.name];
    if (!name) continue;
    const gradient = grads[(follow(model.params, path) as tf.Variable).name].reshape(spec.shape);
    await checks.tensor(`gradients (${wanted.name}): ${spec.name}`, gradient, oracle.array(name), GRADIENT);
  }
  const known = new Set(leaves(base.spec).map(({ spec }) => spec.name));
  const missing = Object.keys(wanted.gradients).filter((name) => !known.has(name));
  checks.exact(`gradients (${wanted.name}): every weight named`, Object.keys(wanted.gradients).length, missing);
  const used = Object.values(grads).filter(Boolean); // layers behind the one that is read have none
  const [norm] = await globalNorm(used).data();
  checks.close(`gradients (${wanted.name}): global norm`, [norm], [wanted.global_grad_norm], GRADIENT);
  tf.dispose(used);
  dispose();
}
