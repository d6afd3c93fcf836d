/** Every check of an oracle's VisionTextDualEncoder and FLAVA families: text, pictures, layers, embeddings, losses, gradients, LoRA training. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type DualEncoder, type Flava, load, type VisionTextDualEncoder } from "vitrine/models";
import { unit } from "vitrine/models/clip";
import { record } from "vitrine/nn/tap";
import { ATTENTION, type Cases, Checks, channelsLast, FLOAT, integers, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";

type Seen = ReturnType<typeof record>["seen"];

const inputsOf = (oracle: Oracle) => ({
  pixels: channelsLast(oracle.array("forward.pixel_values")),
  ids: integers(oracle.array("forward.input_ids")),
  mask: integers(oracle.array("forward.attention_mask")),
});

async function hidden(oracle: Oracle, checks: Checks, seen: Seen, tower: string, names: string[]): Promise<void> {
  for (const [i, name] of names.entries()) {
    const at = i === 0 ? `${tower}.blocks.0.resid_pre` : `${tower}.blocks.${i - 1}.resid_post`;
    await checks.tensor(at, seen.get(at), oracle.array(name), FLOAT);
  }
}

/** Losses with their gradients, and LoRA, of any model with two towers. */
async function checkTraining<M extends DualEncoder>(
  oracle: Oracle,
  checks: Checks,
  model: M,
  logits: (model: M) => tf.Tensor,
  loss: (model: M) => tf.Scalar,
): Promise<void> {
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, model as never, loss as never, wanted);
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, model as never, { logits, loss } as never, wanted);
}

export async function checkDualEncoder(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<VisionTextDualEncoder>(join(oracle.folder, "model"));
  const [forward]: Cases[] = oracle.cases.forward;
  const { pixels, ids, mask } = inputsOf(oracle);
  const { tap, seen } = record();
  const [images, texts] = [model.encodeImage(pixels, tap), model.encodeText(ids, mask, tap)];
  await hidden(oracle, checks, seen, "vision", forward.vision_hidden);
  await hidden(oracle, checks, seen, "text", forward.text_hidden);
  for (const [i, name] of (forward.text_attention as string[]).entries())
    await checks.tensor(`text.blocks.${i}.attn.pattern`, seen.get(`text.blocks.${i}.attn.pattern`), oracle.array(name), ATTENTION);
  await checks.tensor("vision.final", seen.get("vision.final"), oracle.array(forward.vision_last_hidden_state), FLOAT);
  for (const tower of ["vision", "text"])
    await checks.tensor(`${tower}.pooled`, seen.get(`${tower}.pooled`), oracle.array(forward[`${tower}_pooler`]), FLOAT);
  await checks.tensor("image embeddings", unit(images), oracle.array(forward.image_embeds), FLOAT);
  await checks.tensor("text embeddings", unit(texts), oracle.array(forward.text_embeds), FLOAT);
  await checks.tensor("logits_per_image", model.logits(images, texts), oracle.array(forward.logits_per_image), FLOAT);
  checks.close("loss", await model.loss(images, texts).data(), [forward.loss], FLOAT);
  seen.dispose();
  const embed = (one: VisionTextDualEncoder) => [one.encodeImage(pixels), one.encodeText(ids, mask)] as const;
  await checkTraining(
    oracle,
    checks,
    model,
    (one) => tf.tidy(() => one.logits(...embed(one))),
    (one) => tf.tidy(() => one.loss(...embed(one))),
  );
  tf.dispose([pixels, ids, mask, images, texts]);
  model.dispose();
  return checks.rows;
}

export async function checkFlava(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<Flava>(join(oracle.folder, "model"));
  const [forward]: Cases[] = oracle.cases.forward;
  const { pixels, ids, mask } = inputsOf(oracle);
  const { tap, seen } = record();
  const pairs = model.encodePairs(pixels, ids, mask, tap);
  await hidden(oracle, checks, seen, "vision", forward.image_hidden);
  await hidden(oracle, checks, seen, "text", forward.text_hidden);
  await hidden(oracle, checks, seen, "multimodal", forward.multimodal_hidden);
  await checks.tensor("vision.final", seen.get("vision.final"), oracle.array(forward.image_embeddings), FLOAT);
  await checks.tensor("text.final", seen.get("text.final"), oracle.array(forward.text_embeddings), FLOAT);
  await checks.tensor("multimodal embeddings", pairs, oracle.array(forward.multimodal_embeddings), FLOAT);
  await checks.tensor("matching", model.matching(pairs), oracle.array(forward.itm_logits), FLOAT);
  const [images, texts] = [model.encodeImage(pixels), model.encodeText(ids, mask)];
  for (const [name, ours] of [["get_image_features", images] as const, ["get_text_features", texts] as const]) {
    const { values, shape } = oracle.array(forward[name]);
    const [B, N, d] = shape; // of every token; ours is the first one's
    const first = Float32Array.from({ length: B * d }, (_, i) => values[Math.floor(i / d) * N * d + (i % d)]);
    await checks.tensor(name, ours, { values: first, shape: [B, d] }, FLOAT);
  }
  await checks.tensor("image embeddings", unit(images), oracle.array(forward.contrastive_image), FLOAT);
  await checks.tensor("text embeddings", unit(texts), oracle.array(forward.contrastive_text), FLOAT);
  await checks.tensor("logits_per_image", model.logits(images, texts), oracle.array(forward.contrastive_logits_per_image), FLOAT);
  seen.dispose();
  const embed = (one: Flava) => [one.encodeImage(pixels), one.encodeText(ids, mask)] as const;
  // The reference adds the same number to every score, so that the third encoder is part of what is compared.
  const scores = (one: Flava) => tf.tidy(() => one.logits(...embed(one)).add(one.encodePairs(pixels, ids, mask).mean().mul(0.01)));
  await checkTraining(oracle, checks, model, scores, (one) => tf.tidy(() => one.loss(...embed(one))));
  tf.dispose([pixels, ids, mask, images, texts, pairs]);
  model.dispose();
  return checks.rows;
}
