/** Every check of an oracle's CLIP family: text, pictures, layers, heads, losses, gradients, LoRA training. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type Clip, load } from "vitrine/models";
import { unit } from "vitrine/models/clip";
import { record } from "vitrine/nn/tap";
import { ATTENTION, Checks, channelsLast, FLOAT, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";

export async function checkClip(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const clip = await load(join(oracle.folder, "model"));
  const inputs = forwardInputs(oracle);
  await checkForward(oracle, checks, clip, inputs);
  await checkInterpolation(oracle, checks, clip);
  const { pixels, ids, mask } = inputs;
  const run = {
    logits: (model: Clip) => tf.tidy(() => model.logits(model.encodeImage(pixels), model.encodeText(ids, mask))),
    loss: (model: Clip) => tf.tidy(() => model.loss(model.encodeImage(pixels), model.encodeText(ids, mask))),
  };
  for (const wanted of oracle.cases.gradients ?? []) await checkGradients(oracle, checks, clip, run.loss, wanted);
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, clip, run, wanted);
  tf.dispose(inputs);
  clip.dispose();
  return checks.rows;
}

export type ClipInputs = { pixels: tf.Tensor4D; ids: tf.Tensor2D; mask: tf.Tensor2D };

function forwardInputs(oracle: Oracle): ClipInputs {
  const ints = (name: string) => {
    const { values, shape } = oracle.array(name);
    return tf.tensor2d(Int32Array.from(values), shape as [number, number], "int32");
  };
  return {
    pixels: channelsLast(oracle.array("forward.pixel_values")),
    ids: ints("forward.input_ids"),
    mask: ints("forward.attention_mask"),
  };
}

async function checkForward(oracle: Oracle, checks: Checks, clip: Clip, { pixels, ids, mask }: ClipInputs): Promise<void> {
  const forward = oracle.cases.forward.find((f: { name: string }) => f.name === "clip");
  const { tap, seen } = record();
  const [images, texts] = [clip.encodeImage(pixels, tap), clip.encodeText(ids, mask, tap)];
  for (const tower of ["vision", "text"] as const) {
    const hidden: string[] = forward[`${tower}_hidden`];
    for (const [i, name] of hidden.entries()) {
      const at = i === 0 ? `${tower}.blocks.0.resid_pre` : `${tower}.blocks.${i - 1}.resid_post`;
      await checks.tensor(at, seen.get(at), oracle.array(name), FLOAT);
    }
    for (const [i, name] of (forward[`${tower}_attention`] as string[]).entries()) {
      const want = oracle.array(name);
      const pattern = seen.get(`${tower}.blocks.${i}.attn.pattern`);
      const part = pattern.slice([0, 0, 0, 0], [want.shape[0], ...pattern.shape.slice(1)] as [number, number, number, number]);
      await checks.tensor(`${tower}.blocks.${i}.attn.pattern`, part, want, ATTENTION);
    }
    await checks.tensor(`${tower}.out`, seen.get(`${tower}.out`), oracle.array(forward[`${tower}_pooler`]), FLOAT);
  }
  await checks.tensor("text.final", seen.get("text.final"), oracle.array(forward.text_last_hidden_state), FLOAT);
  await checks.tensor("image embeddings", unit(images), oracle.array(forward.image_embeds), FLOAT);
  await checks.tensor("text embeddings", unit(texts), oracle.array(forward.text_embeds), FLOAT);
  await checks.tensor("logits_per_image", clip.logits(images, texts), oracle.array(forward.logits_per_image), FLOAT);
  await checks.tensor("logits_per_text", clip.logits(images, texts).transpose(), oracle.array(forward.logits_per_text), FLOAT);
  checks.close("loss", await clip.loss(images, texts).data(), [forward.loss], FLOAT);
  seen.dispose();
}

async function checkInterpolation(oracle: Oracle, checks: Checks, clip: Clip): Promise<void> {
  const wanted = oracle.cases.forward.find((f: { name: string }) => f.name === "interpolate_pos_encoding");
  if (!wanted) return;
  const { tap, seen } = record("vision.pooled");
  const pixels = channelsLast(oracle.array(wanted.pixel_values));
  clip.encodeImage(pixels, tap);
  await checks.tensor("interpolated positions: pooled", seen.get("vision.pooled"), oracle.array(wanted.pooler_output), FLOAT);
  seen.dispose();
}
