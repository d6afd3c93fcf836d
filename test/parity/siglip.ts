/** Every check of an oracle's SigLIP family: text, pictures, layers, pooling head, losses, gradients, LoRA training. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { load, type Siglip } from "vitrine/models";
import { unit } from "vitrine/models/clip";
import { record } from "vitrine/nn/tap";
import { ATTENTION, type Cases, Checks, channelsLast, FLOAT, integers, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";

export async function checkSiglip(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const siglip = await load<Siglip>(join(oracle.folder, "model"));
  const [pixels, ids] = [channelsLast(oracle.array("forward.pixel_values")), integers(oracle.array("forward.input_ids"))];
  const named = (name: string): Cases => oracle.cases.forward.find((f: { name: string }) => f.name === name);
  await checkForward(oracle, checks, siglip, named("siglip"), pixels, ids);
  await checkVariations(oracle, checks, siglip, named);
  const run = {
    logits: (model: Siglip) => tf.tidy(() => model.logits(model.encodeImage(pixels), model.encodeText(ids))),
    loss: (model: Siglip) => tf.tidy(() => model.loss(model.encodeImage(pixels), model.encodeText(ids))),
  };
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, siglip, run.loss, wanted);
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, siglip, run, wanted);
  tf.dispose([pixels, ids]);
  siglip.dispose();
  return checks.rows;
}

async function checkForward(
  oracle: Oracle,
  checks: Checks,
  siglip: Siglip,
  forward: Cases,
  pixels: tf.Tensor4D,
  ids: tf.Tensor2D,
): Promise<void> {
  const { tap, seen } = record();
  const [images, texts] = [siglip.encodeImage(pixels, tap), siglip.encodeText(ids, undefined, tap)];
  for (const tower of ["vision", "text"] as const) {
    for (const [i, name] of (forward[`${tower}_hidden`] as string[]).entries()) {
      const at = i === 0 ? `${tower}.blocks.0.resid_pre` : `${tower}.blocks.${i - 1}.resid_post`;
      await checks.tensor(at, seen.get(at), oracle.array(name), FLOAT);
    }
    for (const [i, name] of (forward[`${tower}_attention`] as string[]).entries())
      await checks.tensor(
        `${tower}.blocks.${i}.attn.pattern`,
        seen.get(`${tower}.blocks.${i}.attn.pattern`),
        oracle.array(name),
        ATTENTION,
      );
    await checks.tensor(`${tower}.final`, seen.get(`${tower}.final`), oracle.array(forward[`${tower}_last_hidden_state`]), FLOAT);
    await checks.tensor(`${tower}.out`, seen.get(`${tower}.out`), oracle.array(forward[`${tower}_pooler`]), FLOAT);
  }
  await checks.tensor("vision.head.pattern", seen.get("vision.head.pattern"), oracle.array(forward.head_attention), ATTENTION);
  await checks.tensor("vision.head.attn_out", seen.get("vision.head.attn_out"), oracle.array(forward.head_attention_output), FLOAT);
  await checks.tensor("image embeddings", unit(images), oracle.array(forward.image_embeds), FLOAT);
  await checks.tensor("text embeddings", unit(texts), oracle.array(forward.text_embeds), FLOAT);
  const logits = siglip.logits(images, texts);
  await checks.tensor("logits_per_image", logits, oracle.array(forward.logits_per_image), FLOAT);
  await checks.tensor("logits_per_text", logits.transpose(), oracle.array(forward.logits_per_text), FLOAT);
  await checks.tensor("probabilities", logits.sigmoid(), oracle.array(forward.probabilities), FLOAT);
  checks.close("loss", await siglip.loss(images, texts).data(), [forward.loss], FLOAT);
  seen.dispose();
}

/** A mask that a caller passes, and a picture of another size. */
async function checkVariations(oracle: Oracle, checks: Checks, siglip: Siglip, named: (name: string) => Cases): Promise<void> {
  const masked = named("text_with_mask");
  const [ids, mask] = (masked.inputs as string[]).map((name) => integers(oracle.array(name)));
  await checks.tensor("text with a mask", siglip.encodeText(ids, mask), oracle.array(masked.pooler_output), FLOAT);
  const resized = named("interpolate_pos_encoding");
  const { tap, seen } = record("vision.final");
  const out = siglip.encodeImage(channelsLast(oracle.array(resized.pixel_values)), tap);
  await checks.tensor("interpolated positions: final", seen.get("vision.final"), oracle.array(resized.last_hidden_state), FLOAT);
  await checks.tensor("interpolated positions: out", out, oracle.array(resized.pooler_output), FLOAT);
  seen.dispose();
}
