/** LoRA against PEFT: its first adapter, first gradients, ten AdamW steps, the trained adapter it saved, merging, and our file read back. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tf } from "vitrine/engine";
import type { Clip } from "vitrine/models";
import { type Adapter, mergeLora } from "vitrine/nn/lora";
import { loadAdapter, saveAdapter } from "vitrine/nn/peft";
import { adamW, clipGradients, globalNorm } from "vitrine/train/adamw";
import { schedule } from "vitrine/train/schedule";
import { type Cases, type Checks, FLOAT, GRADIENT, LORA_LOSS, MERGED, type Oracle } from "./check";
import type { ClipInputs } from "./clip";

const STEPS = 10;
const WARMUP = 2;

export async function checkLora(oracle: Oracle, checks: Checks, clip: Clip, inputs: ClipInputs, wanted: Cases): Promise<void> {
  const title = `LoRA (${wanted.name})`;
  const { model, adapter } = loadAdapter(clip, join(oracle.folder, wanted.adapter_init));
  await checks.tensor(`${title}: logits before`, logits(model, inputs), oracle.array(wanted.logits_before), FLOAT);
  const losses = await trainAsPeft(checks, title, oracle, model, adapter, inputs, wanted);
  checks.close(`${title}: losses of ${STEPS} steps`, losses, wanted.losses, LORA_LOSS);
  checks.close(`${title}: loss after`, await lossOf(model, inputs).data(), [wanted.loss_after], LORA_LOSS);

  const trained = loadAdapter(clip, join(oracle.folder, wanted.adapter_trained));
  await checks.tensor(`${title}: PEFT's trained adapter`, logits(trained.model, inputs), oracle.array(wanted.logits_after), FLOAT);
  const merged = mergeLora(trained.model);
  await checks.tensor(`${title}: merged`, logits(merged.model, inputs), oracle.array(wanted.logits_merged), MERGED);
  merged.disposeMerged();
  await checkRoundTrip(checks, title, clip, inputs, trained);
  adapter.dispose();
  trained.adapter.dispose();
}

const lossOf = (model: Clip, { pixels, ids, mask }: ClipInputs): tf.Scalar =>
  model.loss(model.encodeImage(pixels), model.encodeText(ids, mask));

/** Every picture with every text, [B, T]. */
const logits = (model: Clip, { pixels, ids, mask }: ClipInputs): tf.Tensor2D =>
  tf.tidy(() => model.logits(model.encodeImage(pixels), model.encodeText(ids, mask)));

async function trainAsPeft(
  checks: Checks,
  title: string,
  oracle: Oracle,
  model: Clip,
  adapter: Adapter,
  inputs: ClipInputs,
  wanted: Cases,
): Promise<number[]> {
  const { lr, betas, eps, weight_decay, max_grad_norm } = wanted.optimizer;
  const optimiser = adamW(adapter.variables, { betas, eps, weightDecay: weight_decay });
  const rate = schedule("cosine", STEPS, WARMUP);
  checks.close(
    `${title}: learning rates`,
    Array.from({ length: STEPS }, (_, i) => lr * rate(i)),
    wanted.learning_rates,
    { atol: 1e-9, rtol: 0 },
  );
  const [losses, norms]: number[][] = [[], []];
  for (let step = 0; step < STEPS; step++) {
    const { value, grads } = tf.variableGrads(() => lossOf(model, inputs), adapter.variables);
    const list = adapter.variables.map((v) => grads[v.name]);
    if (step === 0) await checkFirstGradients(checks, title, oracle, adapter, grads, wanted.first_step_gradients);
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

async function checkFirstGradients(
  checks: Checks,
  title: string,
  oracle: Oracle,
  adapter: Adapter,
  grads: { [name: string]: tf.Tensor },
  wanted: { [key: string]: string },
): Promise<void> {
  for (const [key, name] of Object.entries(wanted)) {
    const module = adapter.modules.find((m) => key.startsWith(`base_model.model.${m.name}.lora_`));
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

async function checkRoundTrip(
  checks: Checks,
  title: string,
  clip: Clip,
  inputs: ClipInputs,
  trained: { model: Clip; adapter: Adapter },
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-adapter-"));
  try {
    await saveAdapter(trained.model, trained.adapter, folder);
    const again = loadAdapter(clip, folder);
    checks.close(`${title}: saved and loaded again`, await logits(again.model, inputs).data(), await logits(trained.model, inputs).data(), {
      atol: 0,
      rtol: 0,
    });
    again.adapter.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
}
