/** LoRA against PEFT: its first adapter, first gradients, ten AdamW steps, the trained adapter it saved, merging, and our file read back. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type Adaptable, type Adapter, linearPaths, mergeLora } from "vitrine/nn/lora";
import { loadAdapter, saveAdapter } from "vitrine/nn/peft";
import { adamW, clipGradients, globalNorm } from "vitrine/train/adamw";
import { schedule } from "vitrine/train/schedule";
import { type Cases, type Checks, FLOAT, GRADIENT, LORA_LOSS, MERGED, type Oracle } from "./check";

/** What the reference's run computes with a model: the numbers it keeps, and the loss. */
export type Run<M extends Adaptable> = { logits(model: M): tf.Tensor; loss(model: M): tf.Scalar };

const STEPS = 10;
const WARMUP = 2;

export async function checkLora<M extends Adaptable>(oracle: Oracle, checks: Checks, base: M, run: Run<M>, wanted: Cases): Promise<void> {
  const title = `LoRA (${wanted.name})`;
  const { model, adapter } = loadAdapter(base, join(oracle.folder, wanted.adapter_init));
  await checks.tensor(`${title}: logits before`, run.logits(model), oracle.array(wanted.logits_before), FLOAT);
  const losses = await trainAsPeft(checks, title, oracle, model, adapter, run, wanted);
  checks.close(`${title}: losses of ${STEPS} steps`, losses, wanted.losses, LORA_LOSS);
  checks.close(`${title}: loss after`, await run.loss(model).data(), [wanted.loss_after], LORA_LOSS);

  const trained = loadAdapter(base, join(oracle.folder, wanted.adapter_trained));
  await checks.tensor(`${title}: PEFT's trained adapter`, run.logits(trained.model), oracle.array(wanted.logits_after), FLOAT);
  const merged = mergeLora(trained.model);
  await checks.tensor(`${title}: merged`, run.logits(merged.model), oracle.array(wanted.logits_merged), MERGED);
  merged.disposeMerged();
  await checkRoundTrip(checks, title, base, run, trained);
  adapter.dispose();
  trained.adapter.dispose();
}

async function trainAsPeft<M extends Adaptable>(
  checks: Checks,
  title: string,
  oracle: Oracle,
  model: M,
  adapter: Adapter,
  run: Run<M>,
  wanted: Cases,
): Promise<number[]> {
  const { lr, betas, eps, weight_decay, max_grad_norm } = wanted.optimizer;
  // As torch's optimiser, ours leaves alone what the loss does not reach: layers of the picture tower behind the one that is read.
  const reached = reachedBy(() => run.loss(model), adapter.variables);
  const optimiser = adamW(reached, { betas, eps, weightDecay: weight_decay });
  const rate = schedule("cosine", STEPS, WARMUP);
  checks.close(
    `${title}: learning rates`,
    Array.from({ length: STEPS }, (_, i) => lr * rate(i)),
    wanted.learning_rates,
    { atol: 1e-9, rtol: 0 },
  );
  const [losses, norms]: number[][] = [[], []];
  for (let step = 0; step < STEPS; step++) {
    const { value, grads } = tf.variableGrads(() => run.loss(model), reached);
    const list = reached.map((v) => grads[v.name]);
    if (step === 0) await checkFirstGradients(checks, title, oracle, { model, adapter }, grads, wanted.first_step_gradients);
    const [norm] = await globalNorm(list).data();
    norms.push(norm);
    losses.push((await value.data())[0]);
    optimiser.step(clipGradients(list, norm, max_grad_norm), lr * rate(step));
    tf.dispose(grads);
  }
  checks.close(`${title}: gradient norms`, norms, wanted.grad_norms_before_clip, LORA_LOSS);
  optimiser.dispose();
  return losses;
}

function reachedBy(loss: () => tf.Scalar, variables: tf.Variable[]): tf.Variable[] {
  const { value, grads } = tf.variableGrads(loss, variables);
  const reached = variables.filter((v) => grads[v.name]);
  tf.dispose([value, ...Object.values(grads).filter(Boolean)]);
  return reached;
}

async function checkFirstGradients(
  checks: Checks,
  title: string,
  oracle: Oracle,
  { model, adapter }: { model: Adaptable; adapter: Adapter },
  grads: { [name: string]: tf.Tensor },
  wanted: { [key: string]: string },
): Promise<void> {
  for (const [key, name] of Object.entries(wanted)) {
    // FlavaForPreTraining has the names of its file, and FlavaModel, whose names ours are, those without the first part.
    const called = linearPaths(model).find((m) => [m.name, m.file].some((name) => key.startsWith(`base_model.model.${name}.lora_`)));
    const module = adapter.modules.find((m) => m.name === called?.name);
    if (!module) {
      checks.exact(`${title}: first gradient`, 1, [`no adapter for ${key}`]);
      continue;
    }
    const want = oracle.array(name);
    const variable = key.endsWith("lora_A.weight") ? module.A : module.B;
    await checks.tensor(
      `${title}: first gradient ${key.replace("base_model.model.", "")}`,
      grads[variable.name].reshape(want.shape),
      want,
      GRADIENT,
    );
  }
}

async function checkRoundTrip<M extends Adaptable>(
  checks: Checks,
  title: string,
  base: M,
  run: Run<M>,
  trained: { model: M; adapter: Adapter },
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-adapter-"));
  try {
    await saveAdapter(trained.model, trained.adapter, folder);
    const again = loadAdapter(base, folder);
    checks.close(`${title}: saved and loaded again`, await run.logits(again.model).data(), await run.logits(trained.model).data(), {
      atol: 0,
      rtol: 0,
    });
    again.adapter.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
}
