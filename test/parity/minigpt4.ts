/** Every check of an oracle's MiniGPT-4: text, pictures, Q-Former, each layer of the language model, losses, gradients, LoRA, greedy answers. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { readPicture } from "vitrine/image/picture";
import { load } from "vitrine/models";
import type { MiniGpt4 } from "vitrine/models/minigpt4";
import { crossEntropy } from "vitrine/nn/cross-entropy";
import { at, noTap, record, type Tap } from "vitrine/nn/tap";
import { checkQFormer } from "./blip2-generation";
import { type Cases, Checks, FLOAT, type Oracle } from "./check";
import { checkGeneration } from "./generation";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";
import { withPixels } from "./vision-language";

/** Positions that the oracle keeps of the logits of LoRA runs. */
const LAST = 6;

export async function checkMiniGpt4(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<MiniGpt4>(join(oracle.folder, "model"));
  const [wanted]: Cases[] = oracle.cases.forward;
  const picture = await readPicture(join(oracle.root, wanted.image));
  const prompt = withPixels(model.prompt(wanted.prompt, [picture]), oracle.array("forward.pixel_values"));
  const [{ start, end }] = prompt.images;
  const pieces = [prompt.ids.slice(0, start), prompt.ids.slice(end)];
  checks.exact("ids around the picture", 2, JSON.stringify(pieces) === JSON.stringify(wanted.segments_ids) ? [] : [`${pieces}`]);

  const run = (m: MiniGpt4, tap: Tap = noTap): tf.Tensor3D =>
    tf.tidy(() => m.language.logits(m.language.forward({ embeddings: m.embedPrompt(prompt, { tap }), tap: at(tap, "language") })));
  const { tap, seen } = record();
  const logits = run(model, tap);
  const see = (name: string, array: string) => checks.tensor(name, seen.get(name), oracle.array(array), FLOAT);
  await see("vision.final", wanted.vision_last_hidden_state);
  await checkQFormer(oracle, checks, seen, wanted.qformer);
  await see("projector", wanted.image_embeds);
  for (const [i, name] of wanted.lm_hidden.entries())
    await see(i ? `language.blocks.${i - 1}.resid_post` : "language.blocks.0.resid_pre", name);
  await checks.tensor("logits", logits, oracle.array(wanted.logits), FLOAT);
  seen.dispose();
  for (const generation of oracle.cases.generation) await checkGeneration(oracle, checks, model, prompt, generation);

  const last = pieces[1];
  const loss = (m: MiniGpt4): tf.Scalar =>
    tf.tidy(() => {
      const all = run(m);
      const [, N, V] = all.shape;
      const rows = all.slice([0, N - last.length, 0], [1, last.length - 1, V]).reshape([last.length - 1, V]) as tf.Tensor2D;
      return crossEntropy(rows, tf.tensor1d(last.slice(1), "int32"));
    });
  const end6 = (m: MiniGpt4) =>
    tf.tidy(() => {
      const all = run(m);
      return all.slice([0, all.shape[1] - LAST, 0], [1, LAST, -1]);
    });
  for (const one of oracle.cases.gradients) await checkGradients(oracle, checks, model, loss, one);
  for (const one of oracle.cases.lora) await checkLora(oracle, checks, model, { loss, logits: end6 }, one);
  logits.dispose();
  model.dispose();
  return checks.rows;
}
